"""Store and read what a phone keeps of its last personalisation: a note, its own submodel, perhaps its cluster's."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import numpy as np

from fedcaptor.client.engine import Engine, Submodel
from fedcaptor.client.fallback import Models
from fedcaptor.client.folder import CLUSTER_FILE, CLUSTER_PROGRAM, OUTCOME_FILE, SUBMODEL_FILE, SUBMODEL_PROGRAM
from fedcaptor.client.outcome import Outcome
from fedcaptor.client.personal import Personalised
from fedcaptor.common.files import clear_leftovers, write_whole
from fedcaptor.common.plan import Plan
from fedcaptor.common.weights_file import load_state, save_state

_OWN, _LARGER = (SUBMODEL_FILE, SUBMODEL_PROGRAM), (CLUSTER_FILE, CLUSTER_PROGRAM)


def keep(
    folder: Path,
    engine: Engine,
    result: Personalised,
    larger: Submodel | None,
    base_fetches: int,
    drifted: bool = False,
) -> Outcome:
    """Store what the phone answers with. Returns the note of it.

    The submodels come first, then the note that names their digests: after a kill in between they do not fit each
    other, and the phone is without a submodel until it personalises again, which clears what the kill left.
    `larger`: the cluster's submodel, where it answers what the own one is unsure of. `base_fetches`: how often the
    full model was downloaded again. `drifted`: as in the note.
    """
    for name in (*_OWN, *_LARGER, OUTCOME_FILE):
        clear_leftovers(folder / name)
    own = result.submodel
    file, digest = _save(folder, _OWN, engine, own)
    larger_file, larger_digest = _save(folder, _LARGER, engine, larger)
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
        file=file,
        larger_file=larger_file,
        outputs=() if own is None else tuple(own.classes.tolist()),
        precision=result.precision,
        drifted=drifted,
    )
    note.write(folder)
    for name in {*_OWN, *_LARGER} - {file, larger_file}:
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
    own, larger = _read(folder, note.file, note.plan, note.digest, engine), None
    if mode == "kept_full":
        larger = engine.whole()
    elif mode == "cluster":
        larger = _read(folder, note.larger_file, note.larger, note.larger_digest, engine)
    threshold = -math.inf if note.threshold is None else note.threshold
    return Models(own, larger, np.array(note.prior), threshold, np.array(note.classes))


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _save(
    folder: Path, names: tuple[str, str], engine: Engine, submodel: Submodel | None
) -> tuple[str, str] | tuple[None, None]:
    """Store a submodel, as a program where the engine writes one; returns name and digest of its file."""
    if submodel is None:
        return None, None
    tensors, program = (folder / name for name in names)
    content = engine.program(submodel)
    if content is None:
        save_state(tensors, engine.tensors(submodel), {}, private=True)
        return tensors.name, _digest(tensors)
    write_whole(program, content, private=True)
    return program.name, _digest(program)


def _read(folder: Path, name: str | None, plan: str | None, digest: str | None, engine: Engine) -> Submodel | None:
    if plan is None or name is None:
        return None
    path = folder / name
    if not path.exists() or _digest(path) != digest:  # a kill came between the submodel and its note
        return None
    kept = Plan.from_json(plan, engine.groups)
    if name in (SUBMODEL_PROGRAM, CLUSTER_PROGRAM):
        return engine.of_program(kept, path.read_bytes())
    tensors, _ = load_state(path)
    return engine.load(kept, tensors)
