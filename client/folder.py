"""Show a phone's folder to its owner: what was spent and what is stored, never a class; and erase it.

This needs no torch and no model, so that it works on a phone whose app does not start.
"""

from __future__ import annotations

import math
import sqlite3
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from fedcaptor.client.ledger import Ledger
from fedcaptor.common.config import Privacy
from fedcaptor.common.errors import StateError
from fedcaptor.common.files import clear_leftovers, make_folder
from fedcaptor.common.privacy.zcdp import PERIOD_DAYS

DATABASE = "phone.db"
NOISE_FREE_DATABASE = "noise-free.db"
OUTCOME_FILE = "outcome.json"
SUBMODEL_FILE = "submodel.safetensors"
SUBMODEL_PROGRAM = "submodel.onnx"
CLUSTER_FILE = "cluster.safetensors"
CLUSTER_PROGRAM = "cluster.onnx"
DELIVERY_FILE = "delivery.safetensors"
IDENTITY_FILE = "identity.key"
SCORES_FILE = "scores.safetensors"
LOOK_FILE = "look.safetensors"
ADAPTATION_FILE = "adaptation.safetensors"
WORK_LOG = "work.log"
WORK_LOCK = "work.lock"
RESIDENT_LOCK = "resident.lock"
FETCH_LOCK = "fetch.lock"
LOG_FILE = "phone.log"
NODE_FILE = "node.id"

CONTENTS = {
    DATABASE: "class usage, privacy ledger, answers that may be asked for again",
    OUTCOME_FILE: "own classes and figures of the last personalisation",
    SUBMODEL_FILE: "own submodel, as tensors",
    SUBMODEL_PROGRAM: "own submodel, as a program",
    CLUSTER_FILE: "the cluster's submodel, as tensors",
    CLUSTER_PROGRAM: "the cluster's submodel, as a program",
    DELIVERY_FILE: "pending delivery: accepted, not personalised yet",
    IDENTITY_FILE: "key that signs in masked sums",
    SCORES_FILE: "scores of filters by class, until a sum asks for them",
    LOOK_FILE: "how the photos look",
    ADAPTATION_FILE: "published looks, and the base model's adaptation to each",
    WORK_LOG: "why the phone's own work failed the last time, if it did",
    NODE_FILE: "the phone's number at the SuperLink",
    LOG_FILE: "what the resident process did, and why it could not",
    NOISE_FREE_DATABASE: "answers to sums without noise, in tests: outside any epsilon",
}
"""What a phone keeps, by file."""

# The note first: it names the classes. Charges without noise go as well: they have no budget that could be refunded.
_ERASED = (OUTCOME_FILE, *(name for name in CONTENTS if name not in (DATABASE, OUTCOME_FILE)))

L = TypeVar("L", bound=Ledger)


@dataclass(frozen=True)
class Status:
    """Tell the state of a phone: whether it is `answering`, and what it spent and stores.

    `epsilon`: spent at `delta` by the answers in the period of `period_days`, of which `budget` may be spent (infinite:
    no limit); `epsilon_server`: the same towards a server that cheats, at most. `answers`: number in the period by
    kind. `named`: times in it that the phone named its cluster. `stored`: bytes of each file that is there.
    """

    answering: bool
    epsilon: float
    epsilon_server: float
    delta: float
    budget: float
    period_days: int
    answers: dict[str, int]
    named: int
    stored: dict[str, int]


def phone_ledger(
    folder: Path,
    privacy: Privacy,
    kind: type[L],
    clock: Callable[[], float] = time.time,
    *,
    durable: bool = True,
    noise_free: bool = False,
) -> L:
    """Open the ledger of a phone under its own settings, as phone and owner do; a missing folder is made.

    `noise_free`: a ledger beside it, for sums without noise: a test run of that kind must not use up the budget of
    later ones for a whole period.
    """
    make_folder(folder)
    return kind(
        folder / (NOISE_FREE_DATABASE if noise_free else DATABASE),
        durable=durable,
        clock=clock,
        delta=privacy.delta,
        budget_epsilon=privacy.epsilon if privacy.noise else math.inf,
        period_days=PERIOD_DAYS,
        dishonest=privacy.noiseless,
    )


def open_ledger(
    folder: Path, privacy: Privacy, clock: Callable[[], float] = time.time, *, make: bool = False
) -> Ledger:
    """Open the ledger in a phone's folder, for its owner. Raises StateError unless it is a phone's folder.

    `make`: a folder that is missing or empty becomes one, as with the phone's first answer.
    """
    path = folder / DATABASE
    if path.is_file():
        _require_phone(path)
    elif not make or (folder.is_dir() and any(folder.iterdir())):
        raise StateError(
            f"{folder} is no phone's folder, or the phone has not answered yet: it holds no {DATABASE}; "
            "give the `folder` of the node's configuration"
        )
    return phone_ledger(folder, privacy, Ledger, clock)


def status(folder: Path, privacy: Privacy, clock: Callable[[], float] = time.time) -> Status:
    """Collect what the owner may want to know of a phone's folder. Raises StateError unless it is a phone's."""
    with open_ledger(folder, privacy, clock) as ledger:
        start = clock() - PERIOD_DAYS * 86_400
        kinds = Counter(charge.kind for charge in ledger.entries() if charge.at > start)
        answering, spent, named = not ledger.is_off, (ledger.spent(), ledger.spent_server()), ledger.times_named()
    budget = privacy.epsilon if privacy.noise else math.inf
    stored = {name: (folder / name).stat().st_size for name in CONTENTS if (folder / name).is_file()}
    return Status(answering, *spent, privacy.delta, budget, PERIOD_DAYS, dict(sorted(kinds.items())), named, stored)


def erase(folder: Path, privacy: Privacy) -> list[str]:
    """Empty the phone's file except for its charges, delete the note, the submodels and what a kill left of them;
    returns the names of the files deleted. Calling it again after a kill finishes it.
    """
    with open_ledger(folder, privacy) as ledger:
        ledger.erase()
    erased = []
    for name in _ERASED:
        if (folder / name).is_file():
            (folder / name).unlink(missing_ok=True)
            erased.append(name)
        erased += [path.name for path in clear_leftovers(folder / name)]
    return erased


def _require_phone(path: Path) -> None:
    """Raise StateError for a SQLite file without a phone's tables, which opening a ledger would add to it.

    Damage is left for the ledger to report.
    """
    connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=rw", uri=True)
    try:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    except sqlite3.Error:
        return
    finally:
        connection.close()
    if not tables & {"ledger_charges", "usage_log"}:
        raise StateError(f"{path} is not a phone's: it has no ledger; give the `folder` of the node's configuration")
