"""Show what each filter responds to without any user's image.

Pictures are made by activation maximisation; the classes that the full network sees in them give each filter's profile.
"""

import copy
import hashlib
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import safetensors.numpy
import torch
from joblib import cpu_count
from numpy.typing import NDArray
from safetensors import SafetensorError

from fedcaptor.common.arrays import Images
from fedcaptor.common.files import replacing
from fedcaptor.common.groups import Group
from fedcaptor.common.torch_engine.base import BaseModel
from fedcaptor.common.torch_engine.evidence import hooks
from fedcaptor.common.torch_engine.forward import normalise
from fedcaptor.common.torch_engine.scores import gate_hook
from fedcaptor.server.painting import Visualisation, paint

Progress = Callable[[int, int], None]
"""Called with (done, total)."""

_FORMAT = 2  # part of the key: another number makes stored groups stale


@dataclass(frozen=True, eq=False)
class Pictures:
    """Hold one group's `pictures` uint8 [F, H, W, C] and `profile` float32 [F, classes], rows summing to one."""

    pictures: Images
    profile: NDArray[np.float32]


DEFAULT = Visualisation()


def visualise(
    base: BaseModel,
    settings: Visualisation = DEFAULT,
    folder: Path | None = None,
    on_group: Progress | None = None,
    workers: int | None = None,
) -> dict[str, Pictures]:
    """Paint pictures and compute class preferences of every prunable group, by name, in execution order.

    Finished groups are stored in `folder` under weights and settings; a later call goes on from there and computes a
    missing or damaged group anew, to the same result. `on_group(done, total)` is called after each group, in their
    order; `workers` groups are computed side by side, by default as many as leave no core idle, and at least two.
    """
    prunable = base.groups.prunable
    key, threads = _key(base, settings), torch.get_num_threads()
    workers = workers or max(2, cpu_count() // threads)

    def one(number: int) -> Pictures:
        path = folder / f"{key[:16]}-{number:03d}.safetensors" if folder else None
        stored = _load(path, key, prunable[number], base) if path else None
        if stored is not None:
            return stored
        torch.set_num_threads(threads)  # holds for the calling thread
        own = replace(base, module=copy.deepcopy(base.module))  # hooks live on the network
        pictures = visualise_group(own, number, settings)
        if path:
            _store(path, key, prunable[number], pictures)
        return pictures

    found = {}
    with ThreadPoolExecutor(workers) as pool:
        try:
            for number, pictures in enumerate(pool.map(one, range(len(prunable)))):
                found[prunable[number].name] = pictures
                if on_group:
                    on_group(number + 1, len(prunable))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return found


def visualise_group(base: BaseModel, number: int, settings: Visualisation = DEFAULT) -> Pictures:
    """Paint pictures and compute profiles of prunable group `number`."""
    return visualise_filters(base, number, range(base.groups.prunable[number].channels), settings)


def visualise_filters(
    base: BaseModel,
    number: int,
    filters: Sequence[int] | NDArray[np.int64],
    settings: Visualisation = DEFAULT,
    on_step: Callable[[], None] = lambda: None,
) -> Pictures:
    """Paint pictures and compute profiles of these filters of prunable group `number`, in their order.

    `on_step` is called after each step of each batch.
    """
    group = base.groups.prunable[number]
    words = np.random.SeedSequence([abs(settings.seed), number]).generate_state(1)
    generator = torch.Generator().manual_seed(int(words[0]))
    pictures, profiles = [], []
    for targets in torch.as_tensor(filters).split(settings.batch):
        painted = paint(base, group, targets, settings, generator, on_step)
        pictures.append(painted)
        profiles.append(class_preference(base, group, targets, painted))
    return Pictures(np.concatenate(pictures), np.concatenate(profiles))


@torch.no_grad()
def class_preference(base: BaseModel, group: Group, targets: torch.Tensor, pictures: Images) -> NDArray[np.float32]:
    """Compute the class profile [n, classes] of filters `targets` [n] of a group, from one picture [n, H, W, C] each.

    It is √(p_c · |t_c|) over its sum. p: softmax of the logits of the picture, standardised over the classes, so that
    the network's confidence does not decide how many classes a filter has. t: change of each logit with a gate on the
    filter, ∂z/∂gate = Σ a·∂z/∂a, centred over the classes because a softmax ignores a common shift. It is the data-free
    form of the measured Taylor score: what the filter does to class c, on a picture that is an image of class c to
    degree p_c. Without p a filter would count for the classes it suppresses, without t for what its picture happens to
    look like; the root, their geometric mean, keeps profiles as flat as measured ones are. A filter that changes no
    logit gets equal shares.
    """
    x = normalise(pictures, base.mean, base.std)
    step = 1 / 16  # central difference: needs no more of the network than that it runs

    def logits(change: float) -> torch.Tensor:
        gate = torch.ones(len(targets), group.channels)
        gate[torch.arange(len(targets)), targets] += change
        layers = dict(base.module.named_modules())
        with hooks([layers[c.layer].register_forward_pre_hook(gate_hook(c, gate)) for c in group.consumers]):
            z: torch.Tensor = base.module(x)
        return z.double()

    more, less = logits(step), logits(-step)
    response = (more + less) / 2
    response = (response - response.mean(1, keepdim=True)) / response.std(1, keepdim=True).clamp_min(1e-9)
    effect = (more - less) / (2 * step)
    effect = (effect - effect.mean(1, keepdim=True)).abs()
    evidence = (response.softmax(1) * effect).sqrt()
    total = evidence.sum(1, keepdim=True)
    equal = torch.full_like(evidence, 1 / evidence.shape[1])
    return torch.where(total > 1e-6, evidence / total.clamp_min(1e-6), equal).float().numpy()


def _key(base: BaseModel, settings: Visualisation) -> str:
    """Hash all that pictures depend on (SHA-256, hex)."""
    digest = hashlib.sha256()
    named = asdict(settings)
    named["calm"] = named.pop("mean_colour")  # its name in the keys of stored pictures, which must stay valid
    meta = [_FORMAT, base.name, base.groups.digest, base.mean, base.std, named]
    digest.update(json.dumps(meta, sort_keys=True).encode())
    for name in sorted(base.state):
        tensor = np.ascontiguousarray(base.state[name])
        digest.update(f"{name} {tensor.dtype} {tensor.shape}".encode())
        digest.update(tensor.tobytes())
    return digest.hexdigest()


def _checksum(found: Pictures) -> str:
    """Hash pictures and profiles (SHA-256, hex)."""
    return hashlib.sha256(found.pictures.tobytes() + found.profile.tobytes()).hexdigest()


def _store(path: Path, key: str, group: Group, found: Pictures) -> None:
    """Write one group atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"key": key, "group": group.name, "checksum": _checksum(found)}
    data = safetensors.numpy.save({"pictures": found.pictures, "profile": found.profile}, metadata)
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def _load(path: Path, key: str, group: Group, base: BaseModel) -> Pictures | None:
    """Read a stored group; None when it is missing, damaged or of another run."""
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            found = Pictures(file.get_tensor("pictures"), file.get_tensor("profile"))
    except (SafetensorError, OSError):
        return None
    channels, height, width = base.groups.input_shape
    fits = (
        found.pictures.shape == (group.channels, height, width, channels)
        and found.profile.shape == (group.channels, base.groups.classes)
        and metadata == {"key": key, "group": group.name, "checksum": _checksum(found)}
    )
    return found if fits else None
