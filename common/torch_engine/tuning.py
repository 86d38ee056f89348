"""Tune a submodel briefly: it learns from the full model's answers on unlabelled images, and never ends worse."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel

from fedcaptor.common.arrays import Images, Indices
from fedcaptor.common.errors import DataError
from fedcaptor.common.torch_engine.base import Submodel
from fedcaptor.common.torch_engine.forward import logits, normalise
from fedcaptor.common.torch_engine.recalibrate import batch_norms
from fedcaptor.common.torch_engine.teacher import Channels, Teacher, half_precision, inputs_of

TEMPERATURE = 4.0  # softens the answers, so that what the full model holds for second best is learnt too
RATE = 4e-4  # of Adam, where the start is far from the full model
NEAR = 0.08  # share of different answers below which what is there is worth keeping: smaller steps, fixed batch norms
MANY = 2048  # images from which batch norms may learn statistics anew: with 270 that set a network back
CHECKS = 8  # validations, evenly over the run
WARM_UP = 0.1  # of the run, while the rate rises: at once it would set a reconstructed network back
DECAY = 4  # of the mean of weights over steps, which is what is kept: about the last fifth of them count
PATIENCE = 4  # checks that are no better than an earlier one before it stops


@dataclass(frozen=True, eq=False)
class Tuned:
    """Hold a tuned submodel, and how tuning went.

    Attributes:
        submodel: The best of all checks on the way, the start among them.
        before: Share of the validation images on which the given submodel agrees with the full model, restricted to the
            same classes.
        after: That share for the tuned one.
        steps: Steps that were taken.
        rate: The highest learning rate.
    """

    submodel: Submodel
    before: float
    after: float
    steps: int
    rate: float


def tune(
    submodel: Submodel,
    images: Images,
    held: Images,
    *,
    steps: int = 600,
    seconds: float = 180.0,
    rate: float | None = None,
    batch: int = 64,
    seed: int = 0,
    augment: bool = True,
    on_step: Callable[[int], None] | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Tuned:
    """Distil the full model, restricted to the submodel's classes, into the submodel.

    The loss is the divergence from softened answers (Hinton et al. 2015) and the error of deep channels; Adam,
    gradients clipped to norm 1, warm-up and cosine decay; dropout off. Where the start is far from the full model and
    images are many, batch norms are in training mode; otherwise their statistics stay, which a reconstructed network is
    fitted to. What is kept is the mean of weights over steps, of which late ones count more (polynomial decay, Shamir
    and Zhang 2013): single steps set it back less. The best of a few checks on `held` is returned, the start among
    them: the result's answers diverge there no more than the input's. The input and its base stay as they are.

    Args:
        submodel: Where to begin.
        images: Unlabelled images of its classes, uint8 [N, H, W, C].
        held: Validation images, uint8 [M, H, W, C], not among `images`.
        steps: Most steps; tuning ends with them or with `seconds`, whichever comes first.
        seconds: Most seconds of `clock`.
        rate: The highest learning rate; None: by how often the start differs from the full model on `held`.
        batch: Images of one step.
        seed: Makes the result repeatable, where steps end the run.
        augment: Whether images are mirrored and shifted.
        on_step: Called with the number of steps taken.
        clock: Gives seconds.

    Raises:
        DataError: There are fewer than two images, or no validation images.
    """
    if len(images) < 2 or len(held) < 1:
        raise DataError(f"{len(images)} images to tune on and {len(held)} held out, at least 2 and 1 are needed")
    began, taken, looks, rng = clock(), 0, 0, np.random.default_rng(seed)
    module = copy.deepcopy(submodel.module).to(memory_format=torch.channels_last).requires_grad_(True)
    teacher = Teacher(submodel, images, augment, rng)
    average = AveragedModel(module, avg_fn=_averaged, use_buffers=True)
    best = _BestCheckpoint(module, _Validation(submodel, held))
    distance = min(1.0, (1 - best.start.agreement) / NEAR)
    for norm in batch_norms(module) if distance == 1 and len(images) >= MANY else ():
        norm.train()
    highest = rate if rate is not None else RATE * max(0.1, distance)
    optimiser = torch.optim.Adam(module.parameters(), highest)
    batches = _batches(len(teacher), batch, rng)
    progress = 0.0 if steps > 0 else 1.0
    while progress < 1 and best.idle < PATIENCE:
        optimiser.param_groups[0]["lr"] = highest * _scheduled(progress)
        with inputs_of(module, teacher.layers) as seen:
            _step(module, optimiser, seen, *teacher.examples(next(batches)))
        average.update_parameters(module)
        taken += 1
        if on_step is not None:
            on_step(taken)
        progress = min(max(taken / steps, (clock() - began) / seconds), 1.0)
        if progress * CHECKS >= looks + 1:
            best.check(average.module)
            looks = int(progress * CHECKS)
    module.load_state_dict(best.state)
    module = module.to(memory_format=torch.contiguous_format).requires_grad_(False).eval()
    result = Submodel(submodel.base, submodel.plan, module)
    return Tuned(result, best.start.agreement, best.score.agreement, taken, highest)


@dataclass(frozen=True)
class Judgement:
    """Compare two submodels of one plan on images that neither was fitted to.

    Attributes:
        before: Share of the images on which the first agrees with the full model, restricted to the same classes.
        after: That share for the second.
        helped: Whether the second agrees no less, and diverges less by more than twice the standard error: of few
            images, by more than they can tell by chance.
    """

    before: float
    after: float
    helped: bool


def judge(before: Submodel, after: Submodel, images: Images) -> Judgement:
    """Compare two submodels on unlabelled images, uint8 [N, H, W, C]. Raises DataError for fewer than two."""
    if len(images) < 2:
        raise DataError(f"{len(images)} images to judge on, at least 2 are needed: give more")
    base = before.base
    x = normalise(images, base.mean, base.std)
    answers = torch.from_numpy(logits(base.module, x)[:, before.classes])
    first, second = (torch.from_numpy(logits(one.module, x)) for one in (before, after))
    share, now = (float((found.argmax(1) == answers.argmax(1)).double().mean()) for found in (first, second))
    closer = _divergences(first, answers) - _divergences(second, answers)
    certain = float(closer.mean()) > 2 * float(closer.std()) / math.sqrt(len(images))
    return Judgement(share, now, certain and now >= share)


class _Score(NamedTuple):
    """Compare a network's answers with the full model's on the validation set."""

    agreement: float
    divergence: float  # from the full model's answers; tells more than agreement where images are few


class _Validation:
    """Measure how well a network agrees with the full model on the validation set."""

    def __init__(self, submodel: Submodel, held: Images) -> None:
        base = submodel.base
        self.x = normalise(held, base.mean, base.std)
        self.answers = torch.from_numpy(logits(base.module, self.x)[:, submodel.classes])

    def __call__(self, module: nn.Module) -> _Score:
        found = torch.from_numpy(logits(module, self.x))
        same = found.argmax(1) == self.answers.argmax(1)
        return _Score(float(same.double().mean()), float(_divergence(found, self.answers)))


class _BestCheckpoint:
    """Keep the least divergent weights so far, and count the checks in a row that were no better than an earlier one.

    How often answers agree does not count: on a thousand images that is chance. Nor does the start count for patience:
    a rate that is still high first sets a reconstructed network back a little.
    """

    def __init__(self, module: nn.Module, validate: Callable[[nn.Module], _Score]) -> None:
        self.validate, self.idle = validate, 0
        self.start = self.score = validate(module)
        self.state = copy.deepcopy(module.state_dict())
        self._least = math.inf

    def check(self, module: nn.Module) -> None:
        """Validate a network, and keep its weights when they are the best."""
        found = self.validate(module)
        self.idle = 0 if found.divergence < self._least else self.idle + 1
        self._least = min(found.divergence, self._least)
        if found.divergence < self.score.divergence:
            self.score, self.state = found, copy.deepcopy(module.state_dict())


def _step(
    module: nn.Module,
    optimiser: torch.optim.Optimizer,
    seen: Channels,
    x: torch.Tensor,
    answers: torch.Tensor,
    channels: Channels,
) -> None:
    """Take one step of the optimiser. `seen`: the submodel's channels; `channels`: those that the teacher asks for."""
    with torch.enable_grad():
        with half_precision():
            found = module(x)
        loss = _divergence(found.float(), answers)
        for layer, wanted in channels.items():
            error = (seen[layer].float() - wanted).square().mean() / wanted.var().clamp_min(1e-6)
            loss = loss + error / len(channels)
        optimiser.zero_grad()
        loss.backward()
    nn.utils.clip_grad_norm_(module.parameters(), 1.0)
    optimiser.step()


def _scheduled(progress: float) -> float:
    """Return the learning rate at `progress` in [0, 1], in units of the highest: warm-up, then cosine decay."""
    return min((1 + math.cos(math.pi * progress)) / 2, progress / WARM_UP + 0.01)


def _averaged(mean: torch.Tensor, latest: torch.Tensor, steps: torch.Tensor | int) -> torch.Tensor:
    """Update the mean of weights after one more than `steps`."""
    return mean + (latest - mean) * ((DECAY + 1) / (DECAY + 1 + steps))


def _divergence(found: torch.Tensor, answers: torch.Tensor) -> torch.Tensor:
    """Average the Kullback-Leibler divergence of softened answers, in units that do not depend on the temperature."""
    return _divergences(found, answers).mean()


def _divergences(found: torch.Tensor, answers: torch.Tensor) -> torch.Tensor:
    """Compute that divergence of each image [N]."""
    softened, wanted = (F.log_softmax(z / TEMPERATURE, 1) for z in (found, answers))
    return F.kl_div(softened, wanted, log_target=True, reduction="none").sum(1) * TEMPERATURE**2


def _batches(count: int, batch: int, rng: np.random.Generator) -> Iterator[Indices]:
    """Number the examples of each batch, without end: each once a pass, batches of nearly one size, at least two."""
    parts = min(-(-count // max(batch, 2)), count // 2)
    while True:
        yield from np.array_split(rng.permutation(count), parts)
