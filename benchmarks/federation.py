"""What federation brings, and where: the same phones and seeds in different worlds, by what a phone has of others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
from typer import Option

from benchmarks.command import SHARED, Benchmark, Measure
from benchmarks.fleet_photos import AdaptedCourier, AdaptedFleet, Photos
from benchmarks.fleet_server import Adapt, Profiles, Served, courier_args, serve_fleet
from benchmarks.fleet_sums import Fleet
from benchmarks.last_call import remembers_last_call
from benchmarks.options import MinCohort
from benchmarks.progress import OnPhase
from benchmarks.record import Row, floats, numbers, settings_of
from benchmarks.sampled_phones import run_phones, start_phones
from benchmarks.subsets import shown
from fedcaptor.common.adaptation import Adaptation
from fedcaptor.common.config import Config, load_config
from fedcaptor.common.config.loading import parse
from fedcaptor.common.errors import ConfigError
from fedcaptor.common.look import look_of
from fedcaptor.common.torch_engine.recalibrate import moments_on
from fedcaptor.server.adapt import published
from fedcaptor.server.flow import Flow
from fedcaptor.server.planning import Reference
from fedcaptor.server.synthesis import synthesise
from fedcaptor.simulations.owners_world import SOURCE as OWNERS
from fedcaptor.simulations.runner import build_world

CAMERAS = (
    {"name": "sharp", "share": 0.25},
    {"name": "blurred", "share": 0.25, "corruptions": ["blur=1.0"]},
    {"name": "noisy", "share": 0.25, "corruptions": ["noise=0.1"]},
    {"name": "dim", "share": 0.25, "corruptions": ["light=0.5", "contrast=0.7"]},
)
"""Four families of cameras, each of a fourth of the phones."""
MANY = (
    "population.law=interests",
    "population.groups=12",
    "population.classes_max=34",
    "population.exponent=0.7",
    "population.concentration=60",
)
"""Owners as in the benchmark `many_classes`."""
CHECK_SHARE, FEWEST_CHECKS = 2 / 3, 8
EACH = 60
"""Images of a class that a server without any makes."""
IN_THE_CLEAR = 1000
"""Photos of a camera, of all its phones together, that the arm `oracle` takes batch norms from."""


@dataclass(frozen=True)
class Setting:
    """A world that phones live in.

    Attributes:
        words: What it is, for the page.
        overrides: Of the shipped configuration.
        looks: Cameras, as `[[looks]]` of a scenario.
        newcomers: The phones that are judged are new: they have `images` photos, while the fleet's have as many as by
            default, and answer by their cluster's submodel where the arm publishes one.
        own_images: Phones have as many images as their owners, whatever `images` says; rows have 0.
        synthetic: The server has no images but those that it makes of the network.
    """

    words: str
    overrides: tuple[str, ...] = ()
    looks: tuple[Mapping[str, Any], ...] = ()
    newcomers: bool = False
    own_images: bool = False
    synthetic: bool = False


WORLDS: dict[str, Setting] = {
    "clean": Setting("photos like the training images"),
    "no-images": Setting("the same, and a server without images: it makes them of the network", synthetic=True),
    "new": Setting("new phones, photos like the training images", newcomers=True),
    "new-no-images": Setting("the same, and a server without images", newcomers=True, synthetic=True),
    "looks": Setting("four kinds of cameras: sharp, blurred, noisy, dim", looks=CAMERAS),
    "cold": Setting("new phones of the four kinds of cameras", looks=CAMERAS, newcomers=True),
    "many": Setting("owners with two of twelve interests, each a long tail of 34 classes", MANY),
    "owners": Setting(
        "natural owners with few images each, all their own, at most 240 of them",
        (f"data.source={OWNERS}", "population.law=owners"),
        own_images=True,
    ),
}


@dataclass(frozen=True)
class Arm:
    """What a phone has of the server and of other phones.

    Attributes:
        words: What it is, for the page.
        overrides: Of the shipped configuration.
        sums: Private sums over the fleet are used: ε counts.
        clear: Batch norms are taken from all photos of each camera in the clear.
    """

    words: str
    overrides: tuple[str, ...] = ()
    sums: bool = True
    clear: bool = False


NO_LOOKS = ("domain.enabled=false", "domain.alone=false")
OWN_LOOK = ("domain.enabled=false", "domain.alone=true")
LOOKS = ("domain.enabled=true", "domain.alone=false")
NO_SCORES = ("scores.enabled=false", "visualise.enabled=false")
NO_CLUSTERS = ("clusters.k=1", "usage.prior=0", "delivery.plans=false")
ALONE = (*NO_CLUSTERS, *NO_SCORES)
ONE_MODEL = ("personal.enabled=false", "planner.by_usage=false", "personal.reference=0")

TOPICS = ("clusters.method=topics", "clusters.k=16", "clusters.iterations=6")

ARMS: dict[str, Arm] = {
    "shipped": Arm("the defaults"),
    "own-images": Arm(
        "a phone alone, without images of the server", (*ALONE, *NO_LOOKS, "personal.reference=0"), False
    ),
    "alone": Arm("a phone alone, with images of the server", (*ALONE, *NO_LOOKS), False),
    "alone-look": Arm("a phone alone, with these re-rendered in its own look", (*ALONE, *OWN_LOOK), False),
    "usage": Arm("usage clusters of the fleet", (*NO_SCORES, *NO_LOOKS)),
    "topics": Arm("topics of the fleet, of which each owner has a mixture", (*NO_SCORES, *NO_LOOKS, *TOPICS)),
    "look": Arm("usage clusters and looks of the fleet", (*NO_SCORES, *LOOKS)),
    "moments": Arm("these and the fleet's moments", (*NO_SCORES, *LOOKS, "domain.moments=true")),
    "scores": Arm("usage clusters, looks and filter scores of the fleet", LOOKS),
    "one-model": Arm("one submodel for all, limited to own classes", (*ALONE, *NO_LOOKS, *ONE_MODEL), False),
    "oracle": Arm("clusters and each camera's batch norms in the clear", (*NO_SCORES, *LOOKS), False, clear=True),
}


@dataclass(frozen=True, kw_only=True)
class Federation(Benchmark):
    """What federation brings over a phone alone, and where: worlds by arms.

    The whole fleet takes part in the private sums without being run: looks, moments and usage vectors are those of the
    phones' own photos, the noise is that of the accounting for so many phones. A sample of the phones is run to its
    end with what the server published, and judged. A row takes about half a minute with a small network and 1,000
    phones. Ctrl-C stops it, the same command goes on.

    Worlds: clean (photos like the training images), no-images (the same, and a server that has the network and no
    images: it makes some of the network, which takes two minutes a seed), new and new-no-images (new phones of these,
    with `--images`, 0 too, judged by their cluster's submodel), looks (four kinds of cameras), cold (new phones of
    these), many (owners with two interests; for a
    network with 34 classes or more), owners (natural owners with few images).

    Arms: shipped (the defaults, with each phone's own look), own-images and alone (nothing of the fleet; without and
    with images of the server), alone-look (these re-rendered in the phone's own look), usage (the fleet's usage
    clusters), topics (its topics instead), look (clusters and looks), moments (and its moments), scores (usage, looks
    and filter scores), one-model (one submodel for all), oracle (each camera's batch norms, of all photos in the
    clear).

    Example: python -m benchmarks federation --worlds clean,looks --images 30 --phones 1000 --seeds 0..4 --epsilon 8
    --json benchmarks/results/federation.json
    """

    worlds: Annotated[str, Option(help="Worlds, separated by commas.")] = "clean,looks"
    arms: Annotated[str, Option(help="Arms, separated by commas.")] = ",".join(ARMS)
    images: Annotated[str, Option(help="Photos that a phone learns its owner from, one or more numbers.")] = "30"
    phones: Annotated[str, Option(help="Phones of the fleet, one or more numbers.")] = "1000"
    seeds: Annotated[str, Option(help="Seeds: 0..4 or 0,5,7. Phones, photos and noise follow from them.")] = "0"
    epsilon: Annotated[str, Option(help="privacy.epsilon, one or more.")] = "8"
    model: Annotated[str, Option(help="Registered model, or your own as package.module:factory.")] = "small-cnn"
    weights: Annotated[Path | None, Option(help="Its weights, safetensors; the shipped ones if not given.")] = None
    data: Annotated[str, Option(help="Source of all images, with a key `split` where parts are fixed.")] = "embedded"
    sample: Annotated[int, Option(min=1, help="Phones that are run and judged."), SHARED] = 20
    test_images: Annotated[int, Option(min=1, help="Test images of a phone."), SHARED] = 120
    min_cohort: MinCohort = 20
    overrides: Annotated[
        list[str] | None, Option("--set", help="section.key=value of all runs, may be repeated."), SHARED
    ] = None

    def __post_init__(self) -> None:
        for text, known, what in ((self.worlds, WORLDS, "world"), (self.arms, ARMS, "arm")):
            if unknown := [name for name in text.split(",") if name not in known]:
                raise ConfigError(f"{what} {unknown[0]!r} is unknown, known are {', '.join(known)}")
        if not (found := floats(self.epsilon)) or not all(0 < value < np.inf for value in found):
            raise ConfigError(f"epsilon is {self.epsilon!r}, must be different values above 0 such as 8,2")
        fed = [name for name in self.worlds.split(",") if not WORLDS[name].newcomers and not WORLDS[name].own_images]
        if 0 in numbers(self.images) and fed:
            raise ConfigError(f"images is 0, but phones of the world {fed[0]} need some: give 1 or more")
        looking = [arm for arm in self.arms.split(",") if "domain.enabled=true" in ARMS[arm].overrides]
        if looking and any(WORLDS[name].synthetic for name in self.worlds.split(",")):
            raise ConfigError(f"without images of the server there are no looks: leave out the arm {looking[0]}")
        if "owners" in self.worlds.split(",") and (self.weights or self.data != "embedded"):
            raise ConfigError("the world owners has images and weights of its own: leave out --data and --weights")
        if self.sample > min(numbers(self.phones)):
            raise ConfigError(f"sample is {self.sample}, must be at most the fewest phones: lower it")

    def config(self, key: Mapping[str, Any]) -> Config:
        """Return the configuration of a row: of its world, then of its arm."""
        world, arm = WORLDS[key["world"]], ARMS[key["arm"]]
        images = key["images"]
        checks = max(FEWEST_CHECKS, round(CHECK_SHARE * images))
        photos = (f"population.use_images={images}", f"population.check_images={checks}")
        epsilon = key["epsilon"]
        return load_config(
            parse({"looks": [dict(look) for look in world.looks]}),
            [
                f"data.source={self.data}",
                f"model.name={self.model}",
                *([f"model.weights={self.weights}"] if self.weights else []),
                *(() if world.newcomers or world.own_images else photos),
                f"population.phones={key['phones']}",
                f"population.test_images={self.test_images}",
                f"privacy.min_cohort={self.min_cohort}",
                f"run.seed={key['seed']}",
                *world.overrides,
                *(self.overrides or ()),
                *arm.overrides,
                "privacy.noise=false" if epsilon is None else f"privacy.epsilon={epsilon}",
            ],
        )

    def shared(self) -> dict[str, Any]:
        plain = replace(self, model="small-cnn", weights=None, data="embedded")
        defaults = plain.config(
            {"world": "clean", "arm": "shipped", "images": 60, "phones": 100, "epsilon": 8.0, "seed": 0}
        )
        return {
            **super().shared(),
            **settings_of(defaults),
            "model": self.model,
            "weights": self.weights.name if self.weights else "shipped",
            "data": shown(self.data),
            "looks": defaults.domain.enabled,
            "own_look": defaults.domain.alone,
        }

    def options(self) -> dict[str, Any]:
        return {**super().options(), "data": shown(self.data)}

    def row_keys(self) -> list[Row]:
        """Return the rows seed by seed, so that a run that was stopped has whole seeds; an arm without private sums has
        no ε, and one row for all.
        """
        found: dict[tuple[Any, ...], Row] = {}
        arms = self.arms.split(",")
        every = product(numbers(self.seeds), self.worlds.split(","), numbers(self.images), numbers(self.phones), arms)
        for seed, world, images, phones, arm in every:
            for epsilon in floats(self.epsilon) if ARMS[arm].sums else [None]:
                count = 0 if WORLDS[world].own_images else images
                row = {"world": world, "arm": arm, "images": count, "phones": phones, "epsilon": epsilon, "seed": seed}
                found[tuple(row.values())] = row
        return list(found.values())

    @contextmanager
    def measuring(self, on_phase: OnPhase) -> Iterator[Measure]:
        with TemporaryDirectory(prefix="benchmark-") as folder:
            yield Measurement(self, Path(folder), on_phase).measure


@dataclass(eq=False)
class Measurement:
    """Measures rows; those that come one after the other share their population."""

    settings: Federation
    folder: Path
    on_phase: OnPhase
    _profiles: dict[tuple[Any, ...], Profiles] = field(default_factory=dict)

    def measure(self, key: Mapping[str, Any]) -> dict[str, Any]:
        """Return the figures of one row."""
        config, arm, setting = self.settings.config(key), ARMS[key["arm"]], WORLDS[key["world"]]
        photos = self._photos(*(key[part] for part in ("world", "images", "phones", "seed")))
        world = replace(photos.world, config=config)
        scored = config.scores.enabled
        before = self._shipped(photos, scored and not config.domain.enabled)  # else scores are asked for once adapted
        fleet = AdaptedFleet(photos, before, scored)
        courier = AdaptedCourier(**courier_args(world, world.phones), fleet=fleet)
        pictures = key["world"] == "owners", config.visualise.enabled, key["seed"]
        served = serve_fleet(
            world,
            courier,
            self._profiles.setdefault(pictures, []),
            adapt=in_the_clear(photos) if arm.clear else None,
            on_phase=self.on_phase,
        )
        sample = range(min(self.settings.sample, world.phones))
        new = key["images"] if setting.newcomers else None
        if new is not None and config.delivery.plans:
            judged = start_phones(world, served, sample, new, fleet.adaptation)
        else:
            judged = run_phones(world, served, sample, new)
        found = []
        for phone in judged:
            found.append(phone)
            self.on_phase("sampled phones", len(found), len(sample))
        accuracy = np.array([phone.accuracy for phone in found])
        return {
            "accuracy": float(np.nanmean(accuracy)),
            "accuracy_p5": float(np.nanpercentile(accuracy, 5)),
            "full": float(np.nanmean([phone.full for phone in found])),
            "effective_macs": float(np.mean([phone.effective_macs for phone in found])),
            "kept_full": float(np.mean([phone.kept_full for phone in found])),
            "adapted": float(np.mean([phone.adapted for phone in found])),
            "download_bytes": _bytes(served, config),
            "clusters": len(served.round.centroids),
            "looks": 0 if fleet.adaptation is None else len(fleet.adaptation.looks),
            "spent_epsilon": served.epsilon,
        }

    @remembers_last_call
    def _photos(self, world: str, images: int, phones: int, seed: int) -> Photos:
        self.on_phase("population", 0, 1)
        key = {"world": world, "arm": "shipped", "images": images, "phones": phones, "epsilon": 8.0, "seed": seed}
        folder = self.folder / f"{world}-{images}-{phones}-{seed}"
        population = build_world(self.settings.config(key), folder)
        if WORLDS[world].synthetic:
            x, y = synthesise(
                population.base, EACH, seed=seed, on_step=lambda *done: self.on_phase("images of the network", *done)
            )
            population = replace(population, reference=Reference(x, y, synthetic=True))
        return Photos(population, self.on_phase)

    @remembers_last_call
    def _shipped(self, photos: Photos, scored: bool) -> Fleet:
        return photos.answered(scored)


def in_the_clear(photos: Photos) -> Adapt:
    """Return a phase that adapts to each camera by its photos in the clear, those of all its phones together."""

    def adapt(flow: Flow, round: int) -> Adaptation:
        base, rng = flow.base, np.random.default_rng(flow.config.run.seed)
        looks, moments = [], []
        for camera in np.unique(photos.cameras):
            seen = photos.of_camera(camera)
            chosen = seen[rng.permutation(len(seen))[:IN_THE_CLEAR]]
            looks.append(look_of(chosen))
            moments.append(moments_on(base, chosen))
        parts = np.array(looks), look_of(flow.reference.x), np.array(moments)
        adaptation = Adaptation(*(np.asarray(part, np.float32) for part in parts))
        flow.phase(round, "adapt", lambda: published(flow, round, adaptation))
        return adaptation

    return adapt


def _bytes(served: Served, config: Config) -> int:
    """Return what a phone downloads beside the base model: all deliveries, or the one submodel."""
    if not config.personal.enabled:
        (model,) = served.models
        return sum(tensor.numel() * tensor.element_size() for tensor in model.module.state_dict().values())
    return sum(tensor.nbytes for _, tensors in served.deliveries for tensor in tensors.values())
