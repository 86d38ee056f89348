"""What the report reads of a run: `summary.json` and `details.json`, checked. All text in them is data."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from fedcaptor.common.errors import StateError

SUMMARY, DETAILS, ATLAS, REPORT = "summary.json", "details.json", "atlas.safetensors", "report.html"


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


Number = Annotated[float | None, BeforeValidator(_finite)]
Numbers = tuple[Number, ...]
Array = NDArray[np.float64]


class Part(BaseModel):
    """Unknown fields are left alone: a newer run may have written more."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class Spread(Part):
    """An accuracy over the phones."""

    mean: Number = None
    p5: Number = None


class Accuracies(Part):
    """Accuracy on each owner's classes."""

    full: Spread
    full_limited: Spread
    personalised: Spread


class ClusterOnly(Part):
    """The same run with one model for each cluster and nothing for the phone alone."""

    accuracy: Spread = Field(default_factory=Spread)
    macs_ratio: Number = None
    effective_macs_ratio: Number = None
    parameters_ratio: Number = None
    download_bytes_ratio: Number = None


class OutOfSet(Part):
    """Images of classes that the owner does not usually meet."""

    auroc: Number = None
    escalated_ratio: Number = None
    accuracy: Number = None


class Privacy(Part):
    """`epsilon` None: noise is off. `epsilon_server`: towards a server that deviates."""

    epsilon: Number = None
    epsilon_server: Number = None
    delta: Number = None
    sums: Any = None
    mode: str = ""
    delivery_leak: str = ""


class Summary(Part):
    """`summary.json`."""

    phones: int
    phones_scored: int | None = None
    clusters: int
    rounds: int
    seconds: Number = None
    model: str
    data: str
    seed: int
    accuracy: Accuracies
    macs_ratio: Number
    effective_macs_ratio: Number = None
    parameters_ratio: Number = None
    download_bytes_ratio: Number = None
    storage_ratio: Number = None
    cluster_only: ClusterOnly | None = None
    out_of_set: OutOfSet | None = None
    privacy: Privacy | None = None
    faults: dict[str, Any] | None = None
    peak_rss_bytes: Number = None
    marks: tuple[str, ...] = ()


class Phones(Part):
    """One number for each phone, None where it has none."""

    accuracy_full: Numbers = ()
    accuracy_full_limited: Numbers = ()
    accuracy: Numbers = ()
    macs_ratio: Numbers = ()
    effective_macs_ratio: Numbers = ()
    escalated: Numbers = ()
    download_bytes: Numbers = ()
    stored_bytes: Numbers = ()
    classes: Numbers = ()

    @model_validator(mode="after")
    def _same_length(self) -> Self:
        if len({len(values) for _, values in self if values}) > 1:
            raise ValueError("the lists must have one entry for each phone")
        return self


class Layer(Part):
    """What the planner decided for one channel group."""

    group: str
    channels: Annotated[int, Field(ge=1)]
    kept: Annotated[int, Field(ge=0)]
    share_of_macs: Number = None
    next_loss_per_mac: Number = None
    why: str = ""


class Cluster(Part):
    """A plan: of a cluster, for one device tier where there are tiers."""

    cluster: int
    tier: str = ""
    phones: Number = None
    centroid: Numbers = ()
    classes: tuple[int | str, ...] = ()
    macs_ratio: Number = None
    parameters_ratio: Number = None
    layers: tuple[Layer, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.cluster} {self.tier}".strip()


class Phase(Part):
    round: int
    phase: str
    seconds: Number = None
    asked: int = 0
    replies: int = 0
    dropped: int = 0
    refused: dict[str, int] = Field(default_factory=dict)
    bytes_down: int = 0
    bytes_up: int = 0


class Round(Part):
    """What the server knows when a round ends; the fleet's figures are means from a private sum."""

    round: int
    phases: int = 0
    asked: int = 0
    replies: int = 0
    dropped: int = 0
    refused: int = 0
    bytes_down: int = 0
    bytes_up: int = 0
    seconds: Number = None
    clusters: int | None = None
    epsilon: Number = None
    agreement_cluster: Number = None
    agreement: Number = None
    macs: Number = None
    parameters: Number = None
    escalated: Number = None


class Scores(Part):
    """Out-of-set scores of all phones' test images, counted in bins between `edges`; high means inside."""

    edges: tuple[float, ...]
    inside: tuple[int, ...]
    outside: tuple[int, ...]

    @model_validator(mode="after")
    def _one_count_a_bin(self) -> Self:
        if not len(self.edges) - 1 == len(self.inside) == len(self.outside):
            raise ValueError("inside and outside must have one count for each bin")
        return self


class PrivateSum(Part):
    name: str
    length: int | None = None
    clip: Number = None
    noise_multiplier: Number = None
    rho: Number = None


class Details(Part):
    """`details.json`."""

    class_names: tuple[str, ...] = ()
    phones: Phones = Field(default_factory=Phones)
    clusters: tuple[Cluster, ...] = ()
    rounds: tuple[Round, ...] = ()
    phases: tuple[Phase, ...] = ()
    sums: tuple[PrivateSum, ...] = ()
    scores: Scores | None = None

    @model_validator(mode="after")
    def _one_share_each(self) -> Self:
        for cluster in self.clusters:
            if cluster.centroid and len(cluster.centroid) != len(self.class_names):
                raise ValueError(
                    f"cluster {cluster.cluster} has {len(cluster.centroid)} shares for {len(self.class_names)} classes"
                )
        return self

    @property
    def groups(self) -> list[str]:
        """Channel groups as the plans name them, which is the order of execution."""
        return list(dict.fromkeys(layer.group for cluster in self.clusters for layer in cluster.layers))

    def name(self, label: int | str) -> str:
        """The name of a class by its number; a name stays as it is."""
        if isinstance(label, int):
            return self.class_names[label] if 0 <= label < len(self.class_names) else f"class {label}"
        return label


Model = TypeVar("Model", bound=BaseModel)


def known(values: Numbers) -> Array:
    """Those that are numbers."""
    return np.array([value for value in values if value is not None], dtype=np.float64)


def read(path: Path, model: type[Model]) -> Model:
    """A file of a run directory. Raises StateError that names it when it is missing or damaged."""
    try:
        return model.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise StateError(f"{path} is missing; run the simulation to its end or give its directory") from error
    except OSError as error:
        raise StateError(f"{path} cannot be read ({error.strerror}); check the permissions") from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "file"
        raise StateError(f"{path} is damaged ({where}: {first['msg']}); run the simulation again") from error
