"""A real device: its settings from Flower's node configuration, and the phone that they make.

The child process of a phone's own work reads the settings too, and needs none of what answers messages: cryptography
and the sides of masked sums are imported where a phone is made.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fedcaptor.client import kept_scores, own_look, pending_delivery
from fedcaptor.client.folder import DATABASE, phone_ledger
from fedcaptor.client.ledger import Ledger
from fedcaptor.client.usage import last_day_of
from fedcaptor.common.config import Config, load_config
from fedcaptor.common.errors import ConfigError
from fedcaptor.common.files import no_file
from fedcaptor.common.statistics import MOMENTS, SCORES
from fedcaptor.common.tiers import as_tier
from fedcaptor.common.weights_file import digest_of_file

if TYPE_CHECKING:
    from fedcaptor.client.engine import Engine
    from fedcaptor.client.learner import Learner
    from fedcaptor.client.phone import Phone

logger = logging.getLogger(__name__)

_DAY_SECONDS = 86_400


@dataclass(frozen=True)
class Device:
    """Hold the checked settings of a device. `node`: the node configuration that they came from; `place`: the folder
    that relative paths of `config.device` start from.
    """

    node: Mapping[str, str]
    folder: Path
    images: Path
    weights: Path
    model: str
    input_shape: tuple[int, int, int]
    config: Config
    place: Path = Path("/")

    @classmethod
    def of(cls, node_config: Mapping[str, object]) -> Device:
        """Read and check a node configuration, or the phone's file that it names alone (`file`).

        `folder`: the phone's own storage; `images`: its images; `weights`, `model`, `input-shape` ("1x28x28"): the base
        model; `config`: TOML with what the phone insists on. Paths are absolute. `tier`: its device tier, where there
        are tiers and `personal.tier` does not give it. `graph`: the model's graph (`fedcaptor export-graph`), with
        which the phone needs no torch. `operator`: the operator's public key; this phone then takes deliveries that it
        signed alone. `register`: file of the enrolled phones, signed by the same key; this phone then adds up with
        enrolled ones alone. Raises ConfigError on a key that is missing or malformed.
        """
        node = {key: str(value) for key, value in node_config.items()}
        if node.get("file"):
            return cls.of_file(Path(node["file"]))
        for key in ("folder", "images", "weights", "model", "config", "input-shape"):
            if not node.get(key):
                raise ConfigError(f"node configuration lacks {key!r}: start the node with --node-config '{key}=\"…\"'")
        shape = node["input-shape"].split("x")
        if len(shape) != 3 or not all(n.isdecimal() for n in shape):
            raise ConfigError(f'input-shape is {node["input-shape"]!r}, must be channels, height and width: "1x28x28"')
        channels, height, width = map(int, shape)
        config = load_config(Path(node["config"]))
        if config.tiers and not (node.get("tier") or config.personal.tier):
            names = ", ".join(tier.name for tier in config.tiers)
            raise ConfigError(
                f"the phone's tier is not given: start the node with --node-config 'tier=\"…\"', of {names}"
            )
        return cls(
            node,
            Path(node["folder"]),
            Path(node["images"]),
            Path(node["weights"]),
            node["model"],
            (channels, height, width),
            as_tier(config, node["tier"]) if node.get("tier") else config,
        )

    @classmethod
    def of_file(cls, path: Path) -> Device:
        """Read and check a phone's file, whose section `[device]` has what the node configuration has elsewhere.

        Raises ConfigError naming key and remedy.
        """
        config = load_config(path)
        settings, place = config.device, path.absolute().parent
        for key in ("superlink", "key", "folder", "images", "weights", "model", "input_shape"):
            if not getattr(settings, key):
                raise ConfigError(f"{path}: device.{key} is not given: see `fedcaptor config --reference`")
        if len(settings.input_shape) != 3:
            raise ConfigError(f"{path}: device.input_shape is {settings.input_shape}, must be channels, height, width")
        if config.tiers and not config.personal.tier:
            names = ", ".join(tier.name for tier in config.tiers)
            raise ConfigError(f"{path}: personal.tier is not given: it is one of {names}")
        channels, height, width = settings.input_shape
        graph = str(place / settings.graph) if settings.graph else ""
        register = str(place / settings.register_file) if settings.register_file else ""
        operator = settings.operator
        if (place / operator).is_file():  # else the key itself, or `phone` says what it lacks
            operator = str(place / operator)
        return cls(
            {"file": str(path.absolute()), "register": register, "operator": operator, "graph": graph},
            place / settings.folder,
            place / settings.images,
            place / settings.weights,
            settings.model,
            (channels, height, width),
            config,
            place,
        )

    def __post_init__(self) -> None:
        self.config.privacy.require_protected()
        if self.config.personal.precision == "int8" and not self.node.get("graph"):
            raise ConfigError(
                "personal.precision is int8, which a phone with PyTorch does not have: give the network's graph "
                "(`fedcaptor export-graph`), or set float32"
            )
        if not self.config.device.catalogue:  # else they may still have to be fetched
            self._require_pinned()

    def require_files(self) -> None:
        """Raise ConfigError where weights or graph are missing, or the weights are not those that the settings pin."""
        for path in (self.weights, Path(self.node.get("graph") or self.weights)):
            if (problem := no_file(path)) is not None:
                raise ConfigError(problem)
        self._require_pinned()

    def _require_pinned(self) -> None:
        pinned = self.config.device.weights_digest
        if pinned and (found := digest_of_file(self.weights, self.input_shape[0])) != pinned:
            raise ConfigError(
                f"{self.weights} holds weights of the digest {found[:12]}, device.weights_digest is {pinned[:12]}: "
                "install the weights that the operator named"
            )

    def phone(self, sleep: Callable[[float], object] = time.sleep) -> Phone:
        """Make the phone that answers messages; its noise is the operating system's. `sleep` waits for replies."""
        from fedcaptor.client.background import InChildProcess
        from fedcaptor.client.phone import Phone
        from fedcaptor.client.reply_timing import ReplyTiming
        from fedcaptor.common.secure.register import enrolled_by, operator_of

        operator = operator_of(self.node)
        if operator is None:
            logger.info("no operator's key is configured: deliveries are taken from whoever runs the SuperLink")
        return Phone(
            self.folder,
            lambda: self._learner(replying=True),
            self.config,
            timing=ReplyTiming(self.config.delivery.answer_seconds, sleep=sleep),
            background=InChildProcess(self.folder, self.node, self._due),
            enrolled=enrolled_by(self.node),
            operator=operator,
        )

    def work(self, kind: str) -> None:
        """Do the phone's own work that is due, unless its owner has switched it off; see `Learner.work`."""
        with phone_ledger(self.folder, self.config.privacy, Ledger) as ledger:
            if ledger.is_off:
                return
        self._learner(replying=False).work(kind)

    def _due(self, kind: str) -> bool:
        """Tell whether `work` would do anything; this needs no network."""
        if kind in own_look.KINDS:
            due = own_look.due(self.folder, today(), kind == MOMENTS.kind)
            return due or pending_delivery.exists(self.folder)
        scored = kind != SCORES.kind or kept_scores.day_of(self.folder) == today()
        recorded = last_day_of(self.folder / DATABASE) == today()
        return not (scored and recorded) or pending_delivery.exists(self.folder)

    def _learner(self, replying: bool) -> Learner:
        from fedcaptor.client.images import FolderFeed
        from fedcaptor.client.learner import Learner

        channels, height, width = self.input_shape
        feed = FolderFeed(self.images, (height, width, channels), self.config.usage.images)
        return Learner(self.folder, self._engine(), feed, self.config, day=lambda round: today(), replying=replying)

    def _engine(self) -> Engine:
        if graph := self.node.get("graph"):
            from fedcaptor.client.onnx_engine import OnnxEngine

            engine = OnnxEngine.of(Path(graph), self.weights, self.config.device.batch)
            found = engine.groups.model, engine.groups.input_shape
            if found != (self.model, self.input_shape):
                raise ConfigError(f"{graph} is of {found}, must be of {(self.model, self.input_shape)}: export it anew")
            return engine
        from fedcaptor.client.torch_engine import TorchEngine, load_base

        return TorchEngine(load_base(self.weights, self.model, self.input_shape))


def today() -> int:
    """Return the number of today since 1970, by the device's own clock."""
    return int(time.time() // _DAY_SECONDS)
