"""What a phone keeps in its folder of its last personalisation: a note, its own submodel, perhaps its cluster's."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from fedcaptor.client.fallback import Models, whole
from fedcaptor.client.folder import CLUSTER_FILE, OUTCOME_FILE, SUBMODEL_FILE
from fedcaptor.client.personal import Personalised
from fedcaptor.common.errors import StateError
from fedcaptor.common.files import clear_leftovers, replacing
from fedcaptor.common.plan import Plan
from fedcaptor.common.torch_engine.base import BaseModel, Submodel
from fedcaptor.common.torch_engine.network import load_state, save_state, state_of


def keep(folder: Path, result: Personalised, larger: Submodel | None, base_fetches: int) -> None:
    """The submodels first, then the note that names their digests: after a kill in between they do not fit each other,
    and the phone is without a submodel until it personalises again, which clears what the kill left.

    `larger`: the cluster's submodel, where it answers what the own one is unsure of. `base_fetches`: how often the
    full model was downloaded again.
    """
    for name in (SUBMODEL_FILE, CLUSTER_FILE, OUTCOME_FILE):
        clear_leftovers(folder / name)
    note: dict[str, Any] = {
        "kind": result.kind,
        "classes": result.classes.tolist(),
        "prior": result.prior.tolist(),
        "agreement": result.agreement,
        "agreement_cluster": result.agreement_cluster,
        "threshold": result.threshold if math.isfinite(result.threshold) else None,
        "escalated": result.escalated,
        "cluster": result.cluster,
        "macs": 1.0,
        "parameters": 1.0,
        "plan": None,
        "digest": None,
        "larger": None,
        "larger_digest": None,
        "base_fetches": base_fetches,
    }
    if result.submodel is not None:
        note |= {
            "digest": _save(folder / SUBMODEL_FILE, result.submodel),
            "macs": result.submodel.macs_ratio,
            "parameters": result.submodel.parameters_ratio,
            "plan": result.submodel.plan.to_json(),
        }
    if larger is not None:
        note |= {"larger_digest": _save(folder / CLUSTER_FILE, larger), "larger": larger.plan.to_json()}
    with replacing(folder / OUTCOME_FILE, private=True) as temporary:
        temporary.write_text(json.dumps(note))
    for name, held in ((SUBMODEL_FILE, result.submodel), (CLUSTER_FILE, larger)):
        if held is None:
            (folder / name).unlink(missing_ok=True)


def read_outcome(folder: Path) -> dict[str, Any] | None:
    """The phone's note of its last personalisation, None before the first."""
    path = folder / OUTCOME_FILE
    if not path.exists():
        return None
    try:
        note: dict[str, Any] = json.loads(path.read_text())
    except ValueError as error:
        raise StateError(f"{path} is damaged ({error}): delete it, the phone personalises again") from error
    return note


def holds_full(folder: Path, mode: str) -> bool:
    """Whether the full model is on the phone under a `fallback.mode`: until there is a submodel, or for good."""
    note = read_outcome(folder)
    return mode == "kept_full" or note is None or note["plan"] is None


def read_models(folder: Path, base: BaseModel, mode: str) -> Models:
    """The models in a phone's folder under a `fallback.mode`."""
    note = read_outcome(folder)
    if note is None:
        return Models(None, None, np.ones(base.groups.classes), -math.inf, np.zeros(0, np.int64))
    prior, threshold = np.array(note["prior"]), -math.inf if note["threshold"] is None else note["threshold"]
    own, larger = _read(folder / SUBMODEL_FILE, note["plan"], note["digest"], base), None
    if mode == "kept_full":
        larger = whole(base)
    elif mode == "cluster":
        larger = _read(folder / CLUSTER_FILE, note["larger"], note["larger_digest"], base)
    return Models(own, larger, prior, threshold, np.array(note["classes"]))


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _save(path: Path, submodel: Submodel) -> str:
    save_state(path, state_of(submodel.module), {}, private=True)
    return _digest(path)


def _read(path: Path, plan: str | None, digest: str | None, base: BaseModel) -> Submodel | None:
    if plan is None:
        return None
    if not path.exists() or _digest(path) != digest:  # a kill came between the submodel and its note
        return None
    state, _ = load_state(path)
    return Submodel(base, Plan.from_json(plan, base.groups), base.rebuild(state))
