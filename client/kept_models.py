"""Store and read what a phone keeps of its last personalisation: a note, its own submodel, perhaps its cluster's."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import numpy as np

from fedcaptor.client.engine import Engine, Submodel
from fedcaptor.client.fallback import Models
from fedcaptor.client.folder import CLUSTER_FILE, OUTCOME_FILE, SUBMODEL_FILE
from fedcaptor.client.outcome import Outcome
from fedcaptor.client.personal import Personalised
from fedcaptor.common.files import clear_leftovers
from fedcaptor.common.plan import Plan
from fedcaptor.common.weights_file import load_state, save_state


def keep(folder: Path, engine: Engine, result: Personalised, larger: Submodel | None, base_fetches: int) -> Outcome:
    """Store what the phone answers with. Returns the note of it.

    The submodels come first, then the note that names their digests: after a kill in between they do not fit each
    other, and the phone is without a submodel until it personalises again, which clears what the kill left.
    `larger`: the cluster's submodel, where it answers what the own one is unsure of. `base_fetches`: how often the
    full model was downloaded again.
    """
    for name in (SUBMODEL_FILE, CLUSTER_FILE, OUTCOME_FILE):
        clear_leftovers(folder / name)
    own = result.submodel
    digest = None if own is None else _save(folder / SUBMODEL_FILE, engine, own)
    larger_digest = None if larger is None else _save(folder / CLUSTER_FILE, engine, larger)
    note = Outcome(
        kind=result.kind,
        classes=tuple(result.classes.tolist()),
        prior=tuple(result.prior.tolist()),
        agreement=result.agreement,
        agreement_cluster=result.agreement_cluster,
        threshold=result.threshold if math.isfinite(result.threshold) else None,
        escalated=result.escalated,
        cluster=result.cluster,
        macs=1.0 if own is None else own.macs_ratio,
        parameters=1.0 if own is None else own.parameters_ratio,
        plan=None if own is None else own.plan.to_json(),
        digest=digest,
        larger=None if larger is None else larger.plan.to_json(),
        larger_digest=larger_digest,
        base_fetches=base_fetches,
    )
    note.write(folder)
    for name, held in ((SUBMODEL_FILE, own), (CLUSTER_FILE, larger)):
        if held is None:
            (folder / name).unlink(missing_ok=True)
    return note


def holds_full(folder: Path, mode: str) -> bool:
    """Tell whether the full model is on the phone under a `fallback.mode`: until there is a submodel, or for good."""
    note = Outcome.read(folder)
    return mode == "kept_full" or note is None or note.plan is None


def read_models(folder: Path, engine: Engine, mode: str) -> Models:
    """Read the models in a phone's folder under a `fallback.mode`."""
    note = Outcome.read(folder)
    if note is None:
        return Models(None, None, np.ones(engine.groups.classes), -math.inf, np.zeros(0, np.int64))
    own, larger = _read(folder / SUBMODEL_FILE, note.plan, note.digest, engine), None
    if mode == "kept_full":
        larger = engine.whole()
    elif mode == "cluster":
        larger = _read(folder / CLUSTER_FILE, note.larger, note.larger_digest, engine)
    threshold = -math.inf if note.threshold is None else note.threshold
    return Models(own, larger, np.array(note.prior), threshold, np.array(note.classes))


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _save(path: Path, engine: Engine, submodel: Submodel) -> str:
    save_state(path, engine.tensors(submodel), {}, private=True)
    return _digest(path)


def _read(path: Path, plan: str | None, digest: str | None, engine: Engine) -> Submodel | None:
    if plan is None:
        return None
    if not path.exists() or _digest(path) != digest:  # a kill came between the submodel and its note
        return None
    tensors, _ = load_state(path)
    return engine.load(Plan.from_json(plan, engine.groups), tensors)
