"""What malicious clients do to a fleet's looks and moments, and what of it the server's own images bear out."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from typer import Option

from benchmarks.command import SHARED, Benchmark, Measure
from benchmarks.federation import CAMERAS
from benchmarks.fleet_photos import Photos
from benchmarks.fleet_server import courier_args, opened
from benchmarks.fleet_sums import Fleet, FleetCourier, ImageOutputs
from benchmarks.last_call import remembers_last_call
from benchmarks.malicious import malicious_clients
from benchmarks.poisoning import shares_of
from benchmarks.progress import OnPhase
from benchmarks.record import Row, numbers, settings_of
from fedcaptor.common.adaptation import Adaptation
from fedcaptor.common.arrays import Array, Floats, Images, Indices, Tensors
from fedcaptor.common.config import Config, load_config, parse
from fedcaptor.common.domain import parts
from fedcaptor.common.statistics import asked, in_block, nearest
from fedcaptor.common.statistics.domain import COUNTED, look_scale
from fedcaptor.server.adapt import adapt
from fedcaptor.server.looks import ALIKE
from fedcaptor.simulations.population import images_file
from fedcaptor.simulations.runner import build_world

ATTACKS = ("push", "vanish", "split", "opposite", "random", "variance")
"""All clip, and know all honest vectors. On looks: `push` moves the attacked camera's look from the server's as far as
clipped vectors can; `vanish` takes phones from its count; `split` fills the emptiest block with a false look beside the
camera's. On the moments of its look: `opposite` to the honest sum, along a `random` direction, or all of `variance` up.
"""
_BESIDE = 1.5 * ALIKE  # how far from its camera a false look is: looks that are closer are merged


@dataclass(frozen=True, kw_only=True)
class LookPoisoning(Benchmark):
    """What a share of malicious clients does to looks and moments, and to the full model's answers.

    A fourth of the phones has each of four cameras; the one that is attacked takes blurred photos unless another is
    named. A row takes some CPU seconds, and a seed's phones 40. Ctrl-C stops it, the same command goes on.

    Example: python -m benchmarks look_poisoning --seeds 0..2 --json benchmarks/results/look_poisoning.json
    """

    liars: Annotated[str, Option(help="Shares of the phones that are malicious.")] = "0,0.01,0.02,0.05,0.1"
    seeds: Annotated[str, Option(help="Seeds: 0..2 or 0,5,7. Phones, malicious clients and noise follow.")] = "0"
    phones: Annotated[int, Option(min=40, help="Phones."), SHARED] = 1000
    epsilon: Annotated[float, Option(min=0.1, help="ε of a run."), SHARED] = 8.0
    images: Annotated[int, Option(min=8, help="Photos of a phone."), SHARED] = 30
    judged: Annotated[int, Option(min=20, help="Test images, photographed by each camera."), SHARED] = 400
    camera: Annotated[int, Option(min=0, max=3, help="Number of the camera that is attacked."), SHARED] = 1

    def config(self, seed: int, overrides: Sequence[str] = ()) -> Config:
        """Return the configuration of one run."""
        own = [f"population.phones={self.phones}", f"population.use_images={self.images}", f"run.seed={seed}"]
        own += ["population.check_images=8", "domain.enabled=true", "domain.moments=true"]
        cameras = parse({"looks": [dict(camera) for camera in CAMERAS]})
        return load_config(cameras, [*own, f"privacy.epsilon={self.epsilon}", *overrides])

    def shared(self) -> dict[str, Any]:
        return {**super().shared(), **settings_of(self.config(0))}

    def row_keys(self) -> list[Row]:
        attacks = [("none", 0.0), *product(ATTACKS, sorted(share for share in shares_of(self.liars) if share))]
        rows = product(numbers(self.seeds), attacks)
        return [{"attack": attack, "liars": share, "seed": seed} for seed, (attack, share) in rows]

    @contextmanager
    def measuring(self, on_phase: OnPhase) -> Iterator[Measure]:
        with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
            yield LookMeasurement(self, Path(folder), on_phase).measure


@dataclass(eq=False)
class Attacked:
    """A fleet with one camera that malicious clients attack.

    Attributes:
        photos: What the phones meet.
        camera: Number of the camera.
        judged: Test images that judge the full model.
    """

    photos: Photos
    camera: int
    judged: int

    @cached_property
    def looks(self) -> Floats:
        """The looks of all phones' photos [N, n]."""
        return np.array(self.photos.looks, dtype=np.float64)

    @cached_property
    def centres(self) -> Floats:
        """The mean look of each camera's phones [cameras, n]."""
        return np.array([self.looks[self.photos.cameras == c].mean(0) for c in range(len(CAMERAS))])

    @property
    def centre(self) -> Floats:
        """The mean look of the attacked camera's phones [n]."""
        return np.asarray(self.centres[self.camera])

    @cached_property
    def spread(self) -> Floats:
        """The direction in which its phones' looks differ most [n]."""
        own = self.looks[self.photos.cameras == self.camera]
        return np.asarray(np.linalg.svd(own - self.centre, full_matrices=False)[2][0])

    @cached_property
    def tested(self) -> tuple[list[Images], Indices]:
        """Test images as each camera takes them, which no phone has, and their labels."""
        oracle = self.photos.world.directory / "oracle"
        labels = np.load(oracle / "labels.npy")
        chosen = np.sort(np.random.default_rng(0).permutation(len(labels))[: self.judged])
        files = (images_file(oracle, camera) for camera in range(len(CAMERAS)))
        return [np.load(file, mmap_mode="r")[chosen] for file in files], labels[chosen]

    @cached_property
    def shipped(self) -> Floats:
        """The accuracy of the shipped model on each camera's photos [cameras]."""
        return np.array([self.accuracy(camera, None) for camera in range(len(CAMERAS))])

    def accuracy(self, camera: int, moments: Array | None) -> float:
        """Return the accuracy of the full model on a camera's photos, as shipped or adapted by moments [m]."""
        base, (images, labels) = self.photos.world.base, self.tested
        model = base if moments is None or not moments.any() else base.adapted(moments)
        return float((model.scores(images[camera]).argmax(1) == labels).mean())

    @cached_property
    def fleet(self) -> Fleet:
        """What honest phones answer, who are asked for looks and moments alone."""
        groups, phones = self.photos.world.base.groups, len(self.photos.use)
        nothing = ImageOutputs(np.zeros((0, groups.classes), np.float32), np.zeros((0, 0), np.float32))
        return Fleet(groups, nothing, np.zeros((phones, groups.classes)), np.zeros((phones, 0), int), self.photos)


@dataclass(eq=False)
class LyingPhones:
    """Phones some of which are malicious.

    Attributes:
        of: The fleet.
        malicious: Which of them lie [N].
        attack: How, one of `ATTACKS`; `none` before they do.
        expected: Moments that the server expects of its looks, once it has asked for moments.
    """

    of: Attacked
    malicious: NDArray[np.bool_]
    attack: str = "none"
    expected: Array = field(default_factory=lambda: np.zeros((0, 0)))

    def vectors(self, kind: str, numbers: Sequence[int] | Indices, tensors: Tensors) -> Floats:
        """Return what these phones add to a sum [n, length]: within the clip, also the malicious ones."""
        self.expected = tensors.get("expected", self.expected)
        found, mine = self.of.fleet.vectors(kind, numbers, tensors), self.malicious[numbers]
        if mine.any():
            lie = self._lie(kind, tensors)
            found[mine] = found[mine] if lie is None else lie
        return found

    def _lie(self, kind: str, tensors: Tensors) -> Floats | None:
        """Return the vector of every liar, of norm 1 at most; None where the attack leaves this sum alone."""
        looks = tensors["looks"]
        block, size = nearest(self.of.centre, looks), asked(kind, tensors).length(self.of.fleet.groups, 1) - 1
        match kind, self.attack:
            case "look", "push":
                far = self.of.centre - tensors["look_source"]  # less of a count moves a mean as well as more of a sum
                content = list(pushed(far, look_scale(self.of.fleet.groups)))
            case "look", "vanish":
                content = [-1.0, *np.zeros(size)]
            case "look", "split":
                phones = [nearest(look, looks) for look in self.of.looks[~self.malicious]]
                block = int(np.bincount(phones, minlength=len(looks)).argmin())
                false = self.of.centre + _BESIDE * self.of.spread - tensors["look_source"]
                content = [COUNTED, *(false / look_scale(self.of.fleet.groups))]
            case "moments", "opposite":
                honest = self.of.fleet.vectors(kind, np.flatnonzero(~self.malicious), tensors).sum(0)
                content = [0.0, *-_unit(honest.reshape(len(looks), -1)[block, 1:])]
            case "moments", "random":
                rng = np.random.default_rng(self.of.photos.world.config.run.seed)
                content = [0.0, *_unit(rng.normal(size=size))]
            case "moments", "variance":
                moments = np.zeros(size)
                for _, _, ratios in parts(self.of.fleet.groups.tensors, moments):
                    ratios += 1.0
                content = [0.0, *_unit(moments)]
            case _:
                return None
        return in_block(np.array(content) / max(1.0, float(np.linalg.norm(content))), block, len(looks))


@dataclass(eq=False)
class LookMeasurement:
    """Measures rows; keys that come sorted share the phones of their seed. Figures are of honest phones: `hit` of those
    with the attacked camera.
    """

    settings: LookPoisoning
    folder: Path
    on_phase: OnPhase
    overrides: Sequence[str] = ()

    def measure(self, key: Mapping[str, Any]) -> dict[str, Any]:
        """Return the figures of one row."""
        start, attacked = time.process_time(), self._attacked(key["seed"])
        malicious = malicious_clients(len(attacked.looks), 0, key["liars"], key["seed"])
        phones = LyingPhones(attacked, malicious, key["attack"])
        self.on_phase(f"{key['attack']} {key['liars']:g}", 0, 1)
        return {**figures(phones, learned(phones)), "seconds": time.process_time() - start}

    @remembers_last_call
    def _attacked(self, seed: int) -> Attacked:
        self.on_phase("population", 0, 1)
        world = build_world(self.settings.config(seed, self.overrides), self.folder / str(seed))
        return Attacked(Photos(world, self.on_phase), self.settings.camera, self.settings.judged)


def learned(phones: LyingPhones) -> Adaptation:
    """Return what the server learns of these phones in the first round, and publishes."""
    world = phones.of.photos.world
    courier = FleetCourier(**courier_args(world, len(phones.malicious)), fleet=phones)
    with opened(world, courier) as flow:
        adaptation = adapt(flow, 1)
    assert adaptation is not None  # domain.enabled
    return adaptation


def figures(phones: LyingPhones, adaptation: Adaptation) -> dict[str, Any]:
    """Return how wrong an adaptation is for honest phones, and how the full model answers them."""
    attacked, honest = phones.of, np.flatnonzero(~phones.malicious)
    chosen = np.array([adaptation.nearest(look) for look in attacked.looks[honest]])
    cameras = attacked.photos.cameras[honest]
    hit = cameras == attacked.camera
    errors = np.linalg.norm(adaptation.looks[chosen] - attacked.centres[cameras], axis=1)
    pairs, of = np.unique(np.column_stack([cameras, chosen]), axis=0, return_inverse=True)
    adapted = np.array([attacked.accuracy(camera, adaptation.moments[look]) for camera, look in pairs])[of.ravel()]
    shipped = attacked.shipped[cameras]
    moved = (adaptation.moments != 0).any(1)
    corrected = moved & (np.abs(adaptation.moments - phones.expected).max(1) > 1e-6)
    scale, far = look_scale(attacked.fleet.groups), float(np.linalg.norm(attacked.centre - adaptation.source))
    return {
        "looks": len(adaptation.looks),
        "look_error": float(errors[hit].mean()),
        "bound": moved_at_most(int(phones.malicious.sum()), int(hit.sum()), scale, far),
        "wrong": float((errors > ALIKE).mean()),
        "adapted": float(moved[chosen][hit].mean()),
        "corrected": float(corrected[chosen][hit].mean()),
        "accuracy": float(np.mean(adapted)),
        "accuracy_shipped": float(np.mean(shipped)),
        "hit": float(np.mean(adapted[hit])),
        "hit_shipped": float(np.mean(shipped[hit])),
    }


def moved_at_most(liars: int, phones: int, scale: float, far: float) -> float | None:
    """Return how far liars who clip move the mean of a block in one sum; None: as far as they like, or out of it.

    A liar's block is (c, v) of norm 1 at most: it counts as 2 c phones, of either sign, and adds `scale` · v to what is
    counted. So the mean m of N phones becomes (N m + V) / (N + C): it moves by |V − C m| / (N + C), where n liars have
    |V| + |C m| ≤ n √(scale² + 4 |m|²) and C ≥ −2 n.

    Args:
        liars: The liars, n.
        phones: Honest phones in the block, N.
        scale: Of an entry (`look_scale`, `moments_scale`).
        far: |m|, of the honest mean less what phones subtract.
    """
    left = phones - liars / COUNTED
    return liars * math.hypot(scale, far / COUNTED) / left if left > 0 else None


def pushed(far: Floats, scale: float) -> Floats:
    """Return the block (c, v), of norm 1, that moves a mean `far` [n] farther; terms as of `moved_at_most`."""
    distance = float(np.linalg.norm(far))
    return _unit(np.array([-distance / COUNTED, *(scale * far / max(distance, 1e-12))]))


def _unit(vector: Floats) -> Floats:
    return vector / max(float(np.linalg.norm(vector)), 1e-12)
