"""What a network's output layer reads and answers of all photos of a fleet, and how its answers are judged."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import numpy as np

from benchmarks.federation import IN_THE_CLEAR
from benchmarks.fleet_photos import Photos
from benchmarks.output_updates import Flags, Single
from benchmarks.progress import OnPhase
from fedcaptor.common.arrays import Floats, Images, Indices
from fedcaptor.common.torch_engine.base import BaseModel
from fedcaptor.common.torch_engine.recalibrate import moments_on
from fedcaptor.simulations.population import images_file
from fedcaptor.simulations.runner import World

BATCH = 64
FEWEST = 8
"""Classes of an owner at most where a network knows no more than 40, else a fifth of them."""
REFERENCE = 1000
"""Images of the server at most that components and scales are taken from."""


@dataclass(frozen=True, eq=False)
class Output:
    """What the output layer reads [U, F] and answers [U, C] of photos."""

    features: Single
    logits: Single


@dataclass(frozen=True, eq=False)
class Fleet:
    """What phones hold and what owners are judged on.

    Attributes:
        photos: Numbers of phones' photos [N, images] among those of `met`, -1 for none.
        labels: Their classes [N, images], -1 for none.
        met: The distinct photos, camera by camera.
        cameras: The camera of each of these.
        tested: The test images, camera by camera.
        test_cameras: The camera of each of these.
        tests: Numbers of owners' test images [J, tests] among those of `tested`, -1 for none.
        truth: The classes of test images.
        own: Whether a class is among its owner's likeliest [J, C].
        reference: What the output layer reads of the server's images.
    """

    photos: Indices
    labels: Indices
    met: Output
    cameras: Indices
    tested: Output
    test_cameras: Indices
    tests: Indices
    truth: Indices
    own: Flags
    reference: Single

    def judged(self, logits: Floats) -> dict[str, float]:
        """Return the accuracies of answers to owners' test images of own classes: among all classes, and own ones."""
        right = {"all": 0, "own": 0}
        count = 0
        for own, tests in zip(self.own, self.tests, strict=True):
            images = tests[tests >= 0]
            images = images[own[self.truth[images]]]
            answered, truth = logits[images], self.truth[images]
            right["all"] += int((answered.argmax(1) == truth).sum())
            right["own"] += int((np.where(own, answered, -np.inf).argmax(1) == truth).sum())
            count += len(images)
        return {among: number / count for among, number in right.items()}


@dataclass(eq=False)
class Networks:
    """Runs networks on images, once for all populations that have the same ones."""

    on_phase: OnPhase
    _outputs: dict[tuple[str, str], Output] = field(default_factory=dict)

    def fleet(self, world: World, owners: int) -> Fleet:
        """Return the fleet of a population whose phones know all labels; the first `owners` are judged."""
        photos, oracle = Photos(world, self.on_phase), world.directory / "oracle"
        cameras = range(len(photos.by_camera))
        distinct = int(photos.use.max()) + 1
        met, tested, reference = [], [], []
        for camera in cameras:
            seen = np.array(photos.by_camera[camera][:distinct])
            base = _in_the_clear(world, seen) if len(cameras) > 1 else world.base
            met.append(self.output(base, seen))
            tested.append(self.output(base, np.load(images_file(oracle, camera))))
            reference.append(self.output(base, world.reference.x[:REFERENCE]).features)
        tests, shares = (np.load(oracle / f"{name}.npy")[0][:owners] for name in ("test", "shares"))
        classes = shares.shape[1]
        likeliest = np.sort(shares, axis=1)[:, -min(max(FEWEST, classes // 5), classes), None]
        test_images = len(tested[0].logits)
        return Fleet(
            photos=np.where(photos.use < 0, -1, photos.use + distinct * photos.cameras[:, None]),
            labels=np.load(world.directory / "population" / "corrections.npy")[0],
            met=_joined(met),
            cameras=np.repeat(cameras, distinct),
            tested=_joined(tested),
            test_cameras=np.repeat(cameras, test_images),
            tests=np.where(tests < 0, -1, tests + test_images * photos.cameras[: len(tests), None]),
            truth=np.tile(np.load(oracle / "labels.npy"), len(cameras)),
            own=(shares >= likeliest) & (shares > 0),
            reference=np.concatenate(reference),
        )

    def output(self, base: BaseModel, images: Images) -> Output:
        """Return what the network makes of images."""
        key = base.weights_digest, hashlib.sha256(images.tobytes()).hexdigest()
        if key not in self._outputs:
            self._outputs[key] = self._run(base, images)
        return self._outputs[key]

    def _run(self, base: BaseModel, images: Images) -> Output:
        read: list[Single] = []
        layer = base.module.get_submodule(next(group.producers[0] for group in base.groups.groups if group.output))
        hook = layer.register_forward_pre_hook(lambda module, given: read.append(given[0].flatten(1).numpy().copy()))
        answered = []
        for start in range(0, len(images), BATCH):
            answered.append(base.scores(np.array(images[start : start + BATCH])))
            self.on_phase("images", start + len(answered[-1]), len(images))
        hook.remove()
        return Output(np.concatenate(read), np.concatenate(answered))


def _in_the_clear(world: World, photos: Images) -> BaseModel:
    """Return the base model with the batch norms of a camera's photos, of all its phones together."""
    chosen = np.random.default_rng(world.config.run.seed).permutation(len(photos))[:IN_THE_CLEAR]
    return world.base.adapted(moments_on(world.base, photos[chosen]))


def _joined(outputs: list[Output]) -> Output:
    features, logits = ([getattr(output, name) for output in outputs] for name in ("features", "logits"))
    return Output(np.concatenate(features), np.concatenate(logits))
