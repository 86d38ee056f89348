"""Which extra brings a library that is missing: one line with the remedy instead of a traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from fedcaptor.common.errors import MissingError

_EXTRA_OF = {
    "torch": ("torch", "torchvision", "torch_pruning", "sklearn", "scipy", "threadpoolctl"),
    "phone": ("flwr", "cryptography", "onnx", "onnxruntime", "grpc", "google"),
    "onnx": ("onnxscript",),
    "server": ("grpc_health", "grpc_reflection", "dp_accounting", "sqlalchemy", "prometheus_client"),
    "dashboards": ("grafana_foundation_sdk",),
    "devices": ("adbutils",),
    "simulation": ("jinja2", "plotly", "pandas", "psutil", "filelock", "ray"),
}
_WHOLE = {"fedcaptor._simulation": "simulation", "fedcaptor._atlas": "simulation"}
"""Parts of the interface that need more than one library of their extra: named at once, not one after the other."""


@contextmanager
def explained(part: str) -> Iterator[None]:
    """Turns a missing library, met while `part` of the package is imported or runs, into MissingError."""
    try:
        yield
    except ModuleNotFoundError as error:
        library = (error.name or "").partition(".")[0]
        extra = next((extra for extra, libraries in _EXTRA_OF.items() if library in libraries), None)
        if extra is None:
            raise
        extra = _WHOLE.get(part, extra)
        raise MissingError(f"{library} is not installed: pip install 'fedcaptor[{extra}]'") from error
