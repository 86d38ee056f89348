"""HeteroFL beside FedCAPTOR, on the same phones at the same MACs: nested widths of all classes, trained by everybody.

HeteroFL (Diao, Ding & Tarokh, ICLR 2021) as its paper has it, but for two things. Its scaler is left out, since a batch
norm follows every scaled layer; and widths are not of a few levels, each is as wide as its phone's MACs allow. It is
not private: the server sees each phone's weights, and the phone reads the true labels of its images.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
import torch
from torch.nn import functional as F
from typer import Option

from benchmarks.command import SHARED, Benchmark
from benchmarks.options import MinCohort
from benchmarks.progress import OnPhase
from benchmarks.record import Row, numbers, settings_of
from fedcaptor.client.outcome import Outcome
from fedcaptor.common.arrays import Images, Indices
from fedcaptor.common.config import Config, load_config
from fedcaptor.common.data.splits import pool, split
from fedcaptor.common.groups import ChannelGroups, State
from fedcaptor.common.plan import Plan
from fedcaptor.common.random_streams import Stream, stream
from fedcaptor.common.slicer import kept_elements, slice_state
from fedcaptor.common.torch_engine.base import BaseModel, Submodel
from fedcaptor.common.torch_engine.forward import normalise
from fedcaptor.common.torch_engine.network import state_of
from fedcaptor.common.torch_engine.recalibrate import recalibrate
from fedcaptor.simulations.runner import World, build_world, simulate

BATCH = 20
WIDTHS = 256  # steps of width from nothing to the full one
BYTES = 4  # of a value that travels, in single precision


@dataclass(frozen=True, kw_only=True)
class HeteroFL(Benchmark):
    """HeteroFL beside FedCAPTOR: the first channels of every layer, all classes, trained by all phones; not private.

    Both start from the same base model. Each phone's nested submodel has at most the MACs of the one that FedCAPTOR
    gave it, and is trained on its images with their true labels; the server averages what overlaps.

    Example: python -m benchmarks heterofl --seeds 0..2 --json benchmarks/results/heterofl.json
    """

    seeds: Annotated[str, Option(help="Seeds: 0..2 or 0,5,7. Phones, images and noise follow from them.")] = "0"
    phones: Annotated[int, Option(min=20, help="Simulated phones."), SHARED] = 40
    min_cohort: MinCohort = 20
    rounds: Annotated[int, Option(min=1, help="Rounds of HeteroFL, which all phones join."), SHARED] = 30
    epochs: Annotated[int, Option(min=1, help="Passes over a phone's own images in a round."), SHARED] = 1
    rate: Annotated[float, Option(help="Learning rate of the first round; it falls to zero."), SHARED] = 0.02
    keep: Annotated[Path | None, Option(help="Keep each seed's run in this folder, and go on with one there.")] = None

    def config(self, seed: int) -> Config:
        """Return the shipped configuration of one run, apart from the population's size."""
        sizes = [f"population.phones={self.phones}", f"privacy.min_cohort={self.min_cohort}"]
        return load_config(None, [*sizes, f"run.seed={seed}"])

    def shared(self) -> dict[str, Any]:
        return {**super().shared(), **settings_of(self.config(0))}

    def options(self) -> dict[str, Any]:
        return {**super().options(), "keep": None}

    def row_keys(self) -> list[Row]:
        return [{"seed": seed} for seed in numbers(self.seeds)]

    def measure(self, key: Mapping[str, Any], on_phase: OnPhase) -> dict[str, Any]:
        """Simulate FedCAPTOR, train HeteroFL on the population that it left, and return the figures of both."""
        config = self.config(key["seed"])
        with TemporaryDirectory(prefix="benchmark-") as temporary:
            folder = (self.keep or Path(temporary)) / str(key["seed"])
            summary = simulate(config, folder, on_phase)
            population = Population.of(build_world(config, folder))
            details = json.loads((folder / "details.json").read_text())
            plans = [nested(population.base.groups, ratio) for ratio in details["phones"]["macs_ratio"]]
            state = self.train(population, plans, key["seed"], lambda done: on_phase("HeteroFL", done, self.rounds))
            return {**_of_fedcaptor(summary, details), **self._of_heterofl(population, plans, state)}

    def train(self, population: Population, plans: list[Plan], seed: int, on_round: Callable[[int], None]) -> State:
        """Return the full network's tensors after all rounds."""
        base = population.base
        state = {name: np.array(array) for name, array in base.state.items()}
        for round in range(self.rounds):
            rate = self.rate * (1 - round / self.rounds)
            updates = []
            for phone, (plan, (images, labels)) in enumerate(zip(plans, population.use, strict=True)):
                own = Plan.of(base.groups, {**plan.kept, base.groups.output.name: labels})
                rng = stream(seed, Stream.LOCAL_TRAINING, round, phone)
                updates.append((own, trained(base, state, own, images, labels, self.epochs, rate, rng)))
            state = averaged(state, base.groups, updates)
            on_round(round + 1)
        return state

    def _of_heterofl(self, population: Population, plans: list[Plan], state: State) -> dict[str, Any]:
        groups, base = population.base.groups, population.base

        @cache
        def submodel(width: int) -> Submodel:
            plan = next(plan for plan in plans if groups.macs(plan.counts()) == width)
            sliced = Submodel(base, plan, base.rebuild(slice_state(state, groups, plan, own=True)))
            return recalibrate(sliced, population.reference)  # static batch norm: statistics after training

        hits: dict[str, list[float]] = {"accuracy": [], "limited": []}
        for plan, test in zip(plans, population.tests, strict=True):
            if len(test.labels):
                scores = submodel(groups.macs(plan.counts())).scores(test.images)
                limited = np.where(np.isin(np.arange(groups.classes), test.classes), scores, -np.inf)
                for name, given in (("accuracy", scores), ("limited", limited)):
                    hits[name].append(float((given.argmax(1) == test.labels).mean()))
        macs = [groups.macs_ratio(plan.counts()) for plan in plans]
        moved = [2 * self.rounds * BYTES * groups.parameters(plan.counts()) for plan in plans]  # there and back
        return {
            "heterofl_accuracy": float(np.mean(hits["accuracy"])),
            "heterofl_accuracy_p5": float(np.percentile(hits["accuracy"], 5)),
            "heterofl_limited": float(np.mean(hits["limited"])),
            "heterofl_limited_p5": float(np.percentile(hits["limited"], 5)),
            "heterofl_macs": float(np.mean(macs)),
            "heterofl_bytes": float(np.mean(moved)),
        }


@dataclass(frozen=True, eq=False)
class Test:
    """A phone's test images of its owner's classes with `labels`; `classes`: those that the phone takes for its own."""

    images: Images
    labels: Indices
    classes: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Population:
    """`use`: own images of each phone with their true labels, which HeteroFL reads and FedCAPTOR does not."""

    base: BaseModel
    reference: Images
    use: list[tuple[Images, Indices]]
    tests: list[Test]

    @classmethod
    def of(cls, world: World) -> Population:
        """Return what a finished run's phones have."""
        parts = pool(world.data, split(world.data)["phones"])
        seen = np.concatenate([parts["use"], parts["check"]])  # the order in which `prepare` numbers them
        rows = np.load(world.directory / "population" / "use.npy")[-1]
        use = [seen[row[row >= 0]] for row in rows]
        return cls(
            world.base,
            world.reference.x,
            [(world.data.x[images], world.data.y[images]) for images in use],
            [_test(world.directory, phone) for phone in range(world.phones)],
        )


def _test(directory: Path, phone: int) -> Test:
    oracle = directory / "oracle"
    row = np.load(oracle / "test.npy", mmap_mode="r")[-1, phone]
    own = np.flatnonzero(np.load(oracle / "shares.npy", mmap_mode="r")[-1, phone])
    index = row[row >= 0]
    index = index[np.isin(np.load(oracle / "labels.npy")[index], own)]
    images = np.load(oracle / "images.npy", mmap_mode="r")[index]
    note = Outcome.read(directory / "phones" / f"{phone:06d}")
    return Test(images, np.load(oracle / "labels.npy")[index], note.classes if note else tuple(own))


def nested(groups: ChannelGroups, macs: float) -> Plan:
    """Return the widest plan of the first channels of every group, the same share of each, within a ratio of MACs."""
    for step in range(WIDTHS, 1, -1):
        kept = {group.name: max(1, group.channels * step // WIDTHS) for group in groups.prunable}
        if groups.macs_ratio(kept) <= macs:
            break
    return Plan.of(groups, {name: np.arange(count) for name, count in kept.items()})


def trained(
    base: BaseModel,
    state: State,
    plan: Plan,
    images: Images,
    labels: Indices,
    epochs: int,
    rate: float,
    rng: np.random.Generator,
) -> State:
    """Return a slice of the network's tensors after some passes over a phone's images, by SGD with momentum.

    Classes that the phone has no image of are left out of the softmax: the plan has no output for them.
    """
    module = base.rebuild(slice_state(state, base.groups, plan, own=True)).requires_grad_(True).train()
    x = normalise(images, base.mean, base.std)
    y = torch.from_numpy(np.searchsorted(plan.classes(base.groups), labels))
    optimiser = torch.optim.SGD(module.parameters(), rate, momentum=0.9, weight_decay=5e-4)
    for _ in range(epochs):
        for batch in torch.from_numpy(rng.permutation(len(y))).split(BATCH):
            if len(batch) > 1:  # one image has no variance
                optimiser.zero_grad()
                F.cross_entropy(module(x[batch]), y[batch]).backward()
                optimiser.step()
    return state_of(module)


def averaged(state: State, groups: ChannelGroups, updates: Iterable[tuple[Plan, State]]) -> State:
    """Return the full network's tensors, each element the mean over the slices that hold it, or as it was."""
    totals = {name: np.zeros(array.shape) for name, array in state.items()}
    counts = {name: np.zeros(array.shape) for name, array in state.items()}
    for plan, update in updates:
        kept = kept_elements(groups, plan)
        for name, array in update.items():
            place: Any = np.ix_(*(kept.get((name, dim), np.arange(n)) for dim, n in enumerate(state[name].shape)))
            totals[name][place] += array
            counts[name][place] += 1
    return {
        name: np.where(counts[name] > 0, totals[name] / np.maximum(counts[name], 1), array).astype(array.dtype)
        for name, array in state.items()
    }


def _of_fedcaptor(summary: Mapping[str, Any], details: Mapping[str, Any]) -> dict[str, Any]:
    accuracy, phases = summary["accuracy"], details["phases"]
    return {
        "full": accuracy["full"]["mean"],
        "full_p5": accuracy["full"]["p5"],
        "fedcaptor_accuracy": accuracy["personalised"]["mean"],
        "fedcaptor_accuracy_p5": accuracy["personalised"]["p5"],
        "fedcaptor_macs": summary["macs_ratio"],
        "fedcaptor_effective_macs": summary["effective_macs_ratio"],
        "fedcaptor_bytes": sum(phase["bytes_down"] + phase["bytes_up"] for phase in phases) / summary["phones"],
        "spent_epsilon": summary["privacy"]["epsilon"],
    }
