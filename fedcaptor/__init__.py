"""Each phone gets its own smaller CNN, pruned for the classes its owner meets, and nobody sees which these are.

One network: `prune`, `Evidence`, `Submodel`, `load`, `inspect`, `atlas`, `train`. A population of simulated phones:
`simulate`, `Run`, `Config`, `load_config`. Parts of one's own: `protocols`, with `Dataset`, `Task` and
`PreparedStrategy`.

Importing the package imports none of this: a phone's messages need neither torch nor a simulation. A name that is
used brings what it needs, or says which extra is missing.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from fedcaptor._extras import explained

# From 1.29 on, ONNX Runtime stores an identifier of the device and reports its use to its maker, unless this is set
# before it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

if TYPE_CHECKING:
    from fedcaptor import protocols
    from fedcaptor._atlas import atlas
    from fedcaptor._evidence import Evidence
    from fedcaptor._inspection import Inspection, inspect
    from fedcaptor._pruning import prune
    from fedcaptor._simulation import Run, simulate
    from fedcaptor._submodel import Submodel, load
    from fedcaptor._training import train
    from fedcaptor.common.config import Config, load_config
    from fedcaptor.common.data.source import Dataset
    from fedcaptor.common.errors import (
        ConfigError,
        DataError,
        FedcaptorError,
        MissingError,
        ModelError,
        NormalisationWarning,
        PlanError,
        PrivacyError,
        StateError,
    )
    from fedcaptor.common.torch_engine.strategies import PreparedStrategy, Task

__all__ = [
    "Config",
    "ConfigError",
    "DataError",
    "Dataset",
    "Evidence",
    "FedcaptorError",
    "Inspection",
    "MissingError",
    "ModelError",
    "NormalisationWarning",
    "PlanError",
    "PreparedStrategy",
    "PrivacyError",
    "Run",
    "StateError",
    "Submodel",
    "Task",
    "atlas",
    "inspect",
    "load",
    "load_config",
    "protocols",
    "prune",
    "simulate",
    "train",
]

_PLACES = {
    "_atlas": ("atlas",),
    "_inspection": ("Inspection", "inspect"),
    "_evidence": ("Evidence",),
    "_pruning": ("prune",),
    "_simulation": ("Run", "simulate"),
    "_submodel": ("Submodel", "load"),
    "_training": ("train",),
    "common.config": ("Config", "load_config"),
    "common.data.source": ("Dataset",),
    "common.errors": (
        "ConfigError",
        "DataError",
        "FedcaptorError",
        "MissingError",
        "ModelError",
        "NormalisationWarning",
        "PlanError",
        "PrivacyError",
        "StateError",
    ),
    "common.torch_engine.strategies": ("PreparedStrategy", "Task"),
}
_MODULE_OF = {name: module for module, names in _PLACES.items() for name in names}


def __getattr__(name: str) -> Any:
    """A public name, imported when it is first used (PEP 562)."""
    if name == "protocols":
        return import_module("fedcaptor.protocols")
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'fedcaptor' has no attribute {name!r}")
    module = f"fedcaptor.{_MODULE_OF[name]}"
    with explained(module):
        found = getattr(import_module(module), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
