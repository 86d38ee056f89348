"""What each filter looks for, without any image of a user: pictures by activation maximisation, and the classes that
the full network sees in them.

A picture is painted in frequencies, low ones moving fastest (Olah et al. 2017), climbs the filter's mean activation
where the network reads it, and is kept smooth by total variation, small shifts and a pull to the mean colour.
"""

import copy
import hashlib
import json
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import nn

from common.files import replacing
from common.groups import Group
from common.torch_engine.base import BaseModel
from common.torch_engine.evidence import hooks
from common.torch_engine.forward import Images, normalise
from common.torch_engine.scores import gate_hook

Progress = Callable[[int, int], None]

_FORMAT = 1  # part of the key: another number makes stored groups stale


@dataclass(frozen=True)
class Visualisation:
    """`steps`: of Adam with `rate`. `batch`: pictures painted at once. `shift`: largest random shift in pixels.

    `smooth` and `calm`: strength of total variation and of the pull to the mean colour, the filter's gradient being 1.
    `leak`: share of the activation before the nonlinearity, which wakes filters that are silent at the start.
    """

    steps: int = 20
    batch: int = 64
    rate: float = 0.3
    shift: int = 1
    smooth: float = 0.02
    calm: float = 0.01
    leak: float = 0.1
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Pictures:
    """Of one group: `pictures` uint8 [F, H, W, C] and `profile` float32 [F, classes], rows summing to one."""

    pictures: Images
    profile: NDArray[np.float32]


DEFAULT = Visualisation()


def visualise(
    base: BaseModel,
    settings: Visualisation = DEFAULT,
    folder: Path | None = None,
    on_group: Progress | None = None,
    workers: int = 2,
) -> dict[str, Pictures]:
    """Pictures and class preferences of every prunable group, by name, in execution order.

    Finished groups are stored in `folder` under weights and settings; a later call goes on from there and computes a
    missing or damaged group anew, to the same result. `on_group(done, total)` is called after each group, in their
    order; `workers` groups are computed side by side.
    """
    prunable = base.groups.prunable
    key, threads = _key(base, settings), torch.get_num_threads()

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
    """Pictures and profile of prunable group `number`."""
    group = base.groups.prunable[number]
    words = np.random.SeedSequence([abs(settings.seed), number]).generate_state(1)
    generator = torch.Generator().manual_seed(int(words[0]))
    pictures, profiles = [], []
    for targets in torch.arange(group.channels).split(settings.batch):
        painted = _paint(base, group, targets, settings, generator)
        pictures.append(painted)
        profiles.append(class_preference(base, group, targets, painted))
    return Pictures(np.concatenate(pictures), np.concatenate(profiles))


@torch.no_grad()
def class_preference(base: BaseModel, group: Group, targets: torch.Tensor, pictures: Images) -> NDArray[np.float32]:
    """Profile [n, classes] of filters `targets` [n] of a group, from one picture [n, H, W, C] each.

    √(p_c · |t_c|) over its sum. p: softmax of the logits of the picture, standardised over the classes, so that the
    network's confidence does not decide how many classes a filter has. t: change of each logit with a gate on the
    filter, ∂z/∂gate = Σ a·∂z/∂a, centred over the classes because a softmax ignores a common shift. It is the
    data-free form of the measured Taylor score: what the filter does to class c, on a picture that is an image of
    class c to degree p_c. Without p a filter would count for the classes it suppresses, without t for what its
    picture happens to look like; the root, their geometric mean, keeps profiles as flat as measured ones are.
    A filter that changes no logit gets equal shares.
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


def _paint(
    base: BaseModel, group: Group, targets: torch.Tensor, settings: Visualisation, generator: torch.Generator
) -> Images:
    """Pictures [n, H, W, C] that drive filters `targets` [n]."""
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (base.mean, base.std))
    canvas = _Canvas(base.groups.input_shape, mean)
    spectrum = 0.1 * torch.randn(len(targets), *canvas.shape, generator=generator)
    spectrum.requires_grad_()
    optimiser = torch.optim.Adam([spectrum], settings.rate, (0.8, 0.99))
    with torch.enable_grad():
        for _ in range(settings.steps):
            picture = canvas(spectrum)
            leaf = picture.detach().requires_grad_()
            by = torch.randint(-settings.shift, settings.shift + 1, (2,), generator=generator).tolist()
            shifted = (leaf.roll(by, (2, 3)) - mean) / std
            up = torch.autograd.grad(activation(base.module, group, shifted, targets, settings.leak).sum(), leaf)[0]
            up = up / up.flatten(1).norm(dim=1).clamp_min(1e-12).view(-1, 1, 1, 1)
            down = settings.smooth * _roughness(leaf.detach()) + settings.calm * (leaf.detach() - mean)
            spectrum.grad = torch.autograd.grad(picture, spectrum, down - up)[0]
            optimiser.step()
    return (canvas(spectrum.detach()) * 255).round().byte().permute(0, 2, 3, 1).contiguous().numpy()


class _Canvas:
    """Frequencies to pixels in [0, 1]: amplitudes fall with frequency, hues move less than brightness."""

    def __init__(self, input_shape: tuple[int, int, int], mean: torch.Tensor) -> None:
        channels, height, width = input_shape
        down, across = torch.fft.fftfreq(height).view(-1, 1), torch.fft.rfftfreq(width).view(1, -1)
        frequency = (down.square() + across.square()).sqrt().clamp_min(1 / max(height, width))
        self.size = (height, width)
        self.shape = (channels, *frequency.shape, 2)
        self.scale = (1 / frequency).view(*frequency.shape, 1) / math.sqrt(height * width)
        self.start = mean.clamp(0.02, 0.98).logit()
        grey = torch.full((channels, channels), 1 / channels)
        self.hues = grey + 0.4 * (torch.eye(channels) - grey)

    def __call__(self, spectrum: torch.Tensor) -> torch.Tensor:
        waves = torch.view_as_complex((spectrum * self.scale).contiguous())
        pixels = torch.fft.irfft2(waves, s=self.size, norm="ortho") * math.sqrt(self.size[0] * self.size[1]) / 4
        return torch.sigmoid(torch.einsum("dc,nchw->ndhw", self.hues, pixels) + self.start)


def _roughness(picture: torch.Tensor) -> torch.Tensor:
    """Gradient of the total variation Σ |differences| (softened at 0.1) by pixel."""
    gradient = torch.zeros_like(picture)
    for dim in (2, 3):
        difference = picture.diff(dim=dim)
        slope = difference / (difference.square() + 0.01).sqrt()
        gradient.narrow(dim, 1, slope.shape[dim]).add_(slope)
        gradient.narrow(dim, 0, slope.shape[dim]).sub_(slope)
    return gradient


class _Enough(Exception):
    """All that was to be seen has been seen: the rest of the forward pass is not needed."""


def activation(
    module: nn.Module, group: Group, x: torch.Tensor, targets: torch.Tensor, leak: float = 0.0
) -> torch.Tensor:
    """Mean activation [n] over positions and consumers of filter `targets[i]` on image i.

    `leak`: weight of its mean before the nonlinearity, at the output of the last layer that makes or scales it.
    """
    layers = dict(module.named_modules())
    rows = torch.arange(len(targets))
    seen: list[torch.Tensor] = []

    def mean(x: torch.Tensor, taps: int, offset: int) -> torch.Tensor:
        channels = x[:, offset : offset + group.channels * taps].reshape(len(x), group.channels, -1)
        return channels[rows, targets].mean(1)

    def read(taps: int, offset: int) -> Callable[..., None]:
        def hook(_module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            seen.append(mean(inputs[0], taps, offset) / len(group.consumers))
            if len(seen) == wanted:
                raise _Enough

        return hook

    def before(taps: int, offset: int) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: Any, output: torch.Tensor) -> None:
            seen.append(leak * mean(output, taps, offset))

        return hook

    wanted = len(group.consumers)
    handles = [layers[c.layer].register_forward_pre_hook(read(c.taps, c.offset)) for c in group.consumers]
    own = [cut for cut in group.cuts if cut.dim == 0]
    if leak and own:
        wanted += 1
        layer = layers[own[-1].tensor.rpartition(".")[0]]
        handles.append(layer.register_forward_hook(before(own[-1].taps, own[-1].offset)))
    try:
        with hooks(handles):
            module(x)
    except _Enough:
        pass
    return torch.stack(seen).sum(0)


def _key(base: BaseModel, settings: Visualisation) -> str:
    """SHA-256 of all that pictures depend on."""
    digest = hashlib.sha256()
    meta = [_FORMAT, base.name, base.groups.digest, base.mean, base.std, asdict(settings)]
    digest.update(json.dumps(meta, sort_keys=True).encode())
    for name in sorted(base.state):
        tensor = np.ascontiguousarray(base.state[name])
        digest.update(f"{name} {tensor.dtype} {tensor.shape}".encode())
        digest.update(tensor.tobytes())
    return digest.hexdigest()


def _checksum(found: Pictures) -> str:
    return hashlib.sha256(found.pictures.tobytes() + found.profile.tobytes()).hexdigest()


def _store(path: Path, key: str, group: Group, found: Pictures) -> None:
    """Write one group atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"key": key, "group": group.name, "checksum": _checksum(found)}
    data = safetensors.numpy.save({"pictures": found.pictures, "profile": found.profile}, metadata)
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def _load(path: Path, key: str, group: Group, base: BaseModel) -> Pictures | None:
    """A stored group, or None when it is missing, damaged or of another run."""
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
