"""One configuration for simulation and deployment: sections of a TOML file, each key documented where it is defined."""

from __future__ import annotations

import difflib
import hashlib
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from fedcaptor.common.errors import ConfigError
from fedcaptor.common.plugins import is_own

Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Ratio = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
MAX_TIERS = 8
TIER_NAME = r"^[a-z0-9][a-z0-9_-]{0,31}$"
SMALL_COHORTS = "small cohorts"
"""The mark of a run whose sums may be of few phones."""


def one_of(*known: str) -> AfterValidator:
    """A shipped part by name, or one's own as `package.module:object`."""

    def check(value: str) -> str:
        if value not in known and not is_own(value):
            expected = ", ".join(f"'{name}'" for name in known)
            raise PydanticCustomError(
                "literal_error", "Input should be {expected} or package.module:object", {"expected": expected}
            )
        return value

    return AfterValidator(check)


class Section(BaseModel):
    """Frozen, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Run(Section):
    seed: int = Field(0, ge=0, description="Seed of everything that a simulation draws.")
    rounds: int = Field(1, ge=1, le=1000, description="Personalisation rounds.")


class Data(Section):
    source: str = Field(
        "embedded",
        description="`embedded`, an `.npz` file, a folder of class folders, `torchvision:NAME`, or "
        "`package.module:function`.",
    )


class Model(Section):
    name: str = Field("small-cnn", description="Registered model, or `package.module:factory`.")
    weights: str = Field("", description="Weights as safetensors; empty = those shipped for the embedded data.")


class Population(Section):
    """Simulated phones and their owners' habits."""

    phones: int = Field(
        120,
        ge=1,
        le=1_000_000,
        description="Number of phones; with `owners`, and partitioners of given sizes, at most this many.",
    )
    law: Annotated[str, one_of("habits", "zipf", "dirichlet", "owners", "partitioner")] = Field(
        "habits",
        description="`habits`: owners belong to groups with favourite classes and draw shares among their own; `zipf`: "
        "the same, shares by rank; `dirichlet`: each owner alone; `owners`: natural owners of the images; "
        "`partitioner`: one of flwr-datasets; or your own, `package.module:function`.",
    )
    groups: int = Field(4, ge=1, le=32, description="Groups of owners (`habits`, `zipf`).")
    classes_min: int = Field(2, ge=1, description="Fewest classes of an owner.")
    classes_max: int = Field(4, ge=1, description="Most classes of an owner.")
    typical: Share = Field(
        0.85, description="Share of an owner's classes taken from the group's favourites (`habits`, `zipf`)."
    )
    concentration: Positive = Field(
        4.0, description="Dirichlet concentration of the shares among an owner's classes (`habits`, `dirichlet`)."
    )
    exponent: float = Field(
        1.0, ge=0, le=8, description="An owner's class of rank r has a share in proportion to r^-exponent (`zipf`)."
    )
    partitioner: str = Field(
        "DirichletPartitioner",
        description="Class of flwr-datasets that divides the phones' images (`partitioner`, needs the extra of that "
        "name); each partition is a phone.",
    )
    partitioner_arguments: dict[str, bool | int | float | str | list[int | float]] = Field(
        {}, description='Its arguments, such as `alpha = 0.5`; `partition_by` is "label" unless given.'
    )
    use_images: int = Field(60, ge=1, le=100_000, description="Images a round that the phone learns its owner from.")
    check_images: int = Field(40, ge=1, le=100_000, description="Images a round that decide: keep or fall back.")
    test_images: int = Field(60, ge=0, le=100_000, description="Images that the simulator alone reads.")
    out_of_set: Share = Field(
        0.05,
        description="Share of images from classes that the owner does not usually meet; where images have owners, the "
        "rarest classes of each up to this share count as such.",
    )
    drift_round: int = Field(
        0, ge=0, description="Round in which habits change (`habits`, `zipf`, `dirichlet`); 0 = never."
    )
    drift_share: Share = Field(0.5, description="Share of owners whose habits change then.")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.classes_min > self.classes_max:
            raise ValueError(f"classes_min {self.classes_min} is above classes_max {self.classes_max}: lower it")
        if self.drift_round and self.law in ("owners", "partitioner"):
            raise ValueError(
                f'drift_round is {self.drift_round}, with law "{self.law}" owners keep their images: set it to 0'
            )
        return self


class Usage(Section):
    half_life: Positive = Field(2000.0, description="Predictions after which an old one counts half.")
    corrections: Share = Field(0.0, description="Simulation: share of wrong predictions that the owner corrects.")
    prior: float = Field(
        1.0, ge=0, description="Weight, in images, of the nearest published centroid in the usage estimate."
    )
    min_share: Ratio = Field(0.03, description="A class with at least this share of the usage is the owner's own.")
    max_classes: int = Field(8, ge=1, description="Most own classes.")
    drift: Share = Field(0.1, description="Jensen-Shannon divergence (bits) from which a phone personalises anew.")


class Scores(Section):
    enabled: bool = Field(True, description="Collect Taylor scores of filters by class in one private sum.")
    clusters_per_layer: int = Field(
        8, ge=1, le=65536, description="Filter clusters a layer, by which scores are pooled; many: each filter alone."
    )
    weight: Share = Field(
        0.1, description="Exponent of the preference in the cost of removing a filter; 0 = ignore it."
    )
    measured: Share = Field(0.5, description="Weight of the phones' half against feature visualisation.")
    images: int = Field(48, ge=1, description="Most images that a phone scores its filters with.")
    shrink: float = Field(20.0, ge=0, description="Phones of a class at which the measured half counts half.")


class Visualise(Section):
    enabled: bool = Field(True, description="Feature visualisation of every filter, on the server, without user data.")
    steps: int = Field(10, ge=1, le=10_000, description="Ascent steps a picture.")


class Clusters(Section):
    method: Annotated[str, one_of("kmeans")] = Field(
        "kmeans", description="How phones are clustered by noisy sums: `kmeans`, or your own, `package.module:object`."
    )
    k: int = Field(0, ge=0, le=32, description="Preference clusters; 0 = chosen, see `most`.")
    alike: float = Field(0.05, ge=0, le=1, description="Centroids closer than this (bits) merge where `k` is 0.")
    most: int = Field(8, ge=1, le=32, description="Clusters to begin with where `k` is 0; small and alike ones merge.")
    iterations: int = Field(2, ge=1, le=5, description="Private k-means iterations in the first round; later take one.")


class Planner(Section):
    macs: Ratio = Field(0.3, description="MACs of a cluster's submodel over those of the full model.")
    multiple: int = Field(8, ge=1, description="Kept channels are multiples of this.")
    tolerance: Share = Field(
        0.0,
        description="Disagreement with the full model, on a third of these images held out, that is accepted: the "
        "smallest MACs ratio within it takes the place of `macs`; 0 = off.",
    )
    images: int = Field(600, ge=1, description="Reference images that the server plans each cluster with.")
    coverage: Ratio = Field(0.9, description="A cluster's submodel serves its most used classes up to this share.")
    by_usage: bool = Field(
        True, description="Plan for the classes that a cluster uses, as it uses them; false: for all classes alike."
    )


class Personal(Section):
    enabled: bool = Field(True, description="Each phone refines its cluster's submodel to its own classes.")
    ladder: tuple[Ratio, ...] = Field((0.22, 0.32, 0.42), description="MACs ratios tried, smallest first.")
    tolerance: Share = Field(
        0.04, description="Disagreement with the full model, limited to the own classes, that is accepted."
    )
    reference: int = Field(30, ge=0, description="Reference images a class that every phone receives; 0 = none.")
    rows: int = Field(2048, ge=64, description="Observations a layer that merging on the phone uses at most.")
    start: Literal["cluster", "base"] = Field("base", description="Channels to select from: the cluster's, or all.")
    tune_steps: int = Field(
        0,
        ge=0,
        le=100_000,
        description="Steps, three minutes at most, in which a submodel that disagrees too often learns from the full "
        "model's answers on own and reference images; judged on check images, it never ends worse. 0 = no training; "
        "otherwise raise `delivery.answer_seconds` by what it takes.",
    )
    tier: str = Field("", description="A device's own tier, by name; the simulation draws it.")


class Delivery(Section):
    mode: Literal["plan", "submodel"] = Field(
        "plan",
        description="`plan`: every phone fetches all plans and slices for itself; `submodel`: it names its cluster, "
        "which the server then knows, and fetches that cluster's submodel.",
    )
    fetches: int = Field(
        16, ge=0, le=1024, description="Mode `submodel`: most times in 90 days that a phone names its cluster."
    )
    plans: bool = Field(True, description="Phones receive the clusters' plans; false: they select from the base alone.")
    answer_seconds: float = Field(
        60.0,
        ge=0,
        le=86_400,
        description="Devices: a reply that would take longer for some owners than for others (to a delivery, or with a "
        "vector) leaves so many seconds after its request came. Above what the slowest phone takes: it logs when it "
        "takes longer. 0 = at once; simulated phones reply at once.",
    )

    @model_validator(mode="after")
    def _plans(self) -> Self:
        if self.mode == "submodel" and not self.plans:
            raise ValueError("plans is false, a submodel is sent with its plan: leave it true with mode submodel")
        return self


class Fallback(Section):
    mode: Literal["kept_full", "cluster", "abstain"] = Field(
        "kept_full",
        description="Who answers an image that the own submodel is unsure of. `kept_full`: the full model, which stays "
        "on the phone; `cluster`: the cluster's submodel, kept beside the own one; `abstain`: nobody, which counts as "
        "wrong for images of own classes. Under the last two a phone with a submodel runs the full model no more: it "
        "counts as deleted (storage), and as downloaded again for each later personalisation with "
        '`delivery.mode = "plan"`; with `submodel` the own submodel is refined from the cluster\'s instead.',
    )
    score: Annotated[str, one_of("energy", "max-softmax", "max-logit")] = Field(
        "max-logit", description="Out-of-set score of the submodel; or your own, `package.module:function`."
    )
    outputs: Literal["own", "all"] = Field(
        "own",
        description="Outputs of the own submodel. `own`: those of the own classes; `all`: also those of the other "
        "classes that its base has, fitted on reference images where there are some. It never answers with those: the "
        "score is held against them.",
    )
    retention: Ratio = Field(0.96, description="Share of own images that the submodel answers itself.")
    own_prior: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.95,
        description="How likely an image is of the owner's classes; with their usage it is the prior of each answer.",
    )


class Privacy(Section):
    sums: Literal["masked", "plain", "local"] = Field(
        "masked",
        description="`masked`: the server learns sums and no phone's vector; `plain`: it receives every vector, for "
        "debugging and large simulations: marked, and refused on devices; `local`: no sums: every phone answers once, "
        "private by itself at `epsilon` and δ = 0, without cohorts; no filter scores, no fleet figures, marked.",
    )
    noise: bool = Field(True, description="Discrete Gaussian noise in shares; false only in simulation, and marked.")
    epsilon: Positive = Field(8.0, description="ε of the whole run for the worst phone.")
    delta: Annotated[float, Field(gt=0, lt=1)] = Field(1e-5, description="δ of the whole run.")
    min_cohort: int = Field(50, ge=1, description="Fewest phones in a published sum; at least 20 outside tests.")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.1, description="Largest share of asked phones that may fail to answer; half at most with masked sums."
    )
    corrupted: Annotated[float, Field(ge=0, le=0.5)] = Field(
        0.05,
        description="Share of the phones of a masked sum that may side with the server, made-up ones included: masks "
        "and noise hold against the server and so many phones together. Phones insist on their own value at least.",
    )
    dishonest: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="Share of phones that may leave out their noise."
    )
    outcome_share: Ratio = Field(0.15, description="Share of the budget for fleet figures.")
    scores_share: Ratio = Field(0.3, description="Share of the budget for filter scores; usage takes the rest.")

    @property
    def spent_delta(self) -> float:
        """δ that ε is stated at: 0 with local answers."""
        return 0.0 if self.sums == "local" else self.delta

    @property
    def noiseless(self) -> float:
        """Share of phones whose noise protects nobody: they leave it out, or tell the server."""
        return max(self.dishonest, self.corrupted if self.sums == "masked" else 0.0)

    def require_protected(self) -> None:
        """Raise ConfigError where the server would see the vectors of real phones."""
        if self.sums == "plain":
            raise ConfigError('privacy.sums is "plain", real phones mask theirs: set it to "masked", or to "local"')

    @model_validator(mode="after")
    def _shares(self) -> Self:
        if self.outcome_share + self.scores_share >= 1:
            raise ValueError(
                f"outcome_share {self.outcome_share} and scores_share {self.scores_share} leave nothing for usage: "
                "lower one below a sum of 1"
            )
        if self.sums == "local" and not self.noise:
            raise ValueError("noise is false, with local sums it is all that protects a phone: set sums to plain")
        return self


class Rounds(Section):
    cohort: int = Field(0, ge=0, description="Phones asked in a sum; 0 = all.")
    deadline: Positive = Field(3600.0, description="Seconds that the server waits for replies.")
    attempts: int = Field(3, ge=1, le=100, description="Times that a sum with too few replies is asked again.")
    poll: Positive = Field(0.5, description="Seconds between two looks for replies.")


class Faults(Section):
    """Simulated faults, as shares of messages."""

    dropout: Share = Field(0.0, description="Answered by an error.")
    silence: Share = Field(0.0, description="Never answered.")
    stall: Share = Field(0.0, description="Answered `stall_seconds` late: lost when that is beyond `rounds.deadline`.")
    stall_seconds: Positive = Field(60.0, description="Seconds that a stalled answer takes.")
    rubbish: Share = Field(0.0, description="Answered by a damaged reply.")

    @model_validator(mode="after")
    def _at_most_all(self) -> Self:
        total = self.dropout + self.silence + self.stall + self.rubbish
        if total > 1 + 1e-9:
            raise ValueError(f"dropout, silence, stall and rubbish add up to {total:g}: lower one below a sum of 1")
        return self


class Testing(Section):
    small_cohorts: bool = Field(
        False,
        description="Lifts the floor of 20 under `min_cohort`; marked in every output, "
        "and not served by an exporter that other machines can reach.",
    )


class Tier(Section):
    """A kind of device, `[[tiers]]`: none of its phones gets a submodel above its limits.

    Images that the submodel leaves to the full model are not counted.
    """

    name: str = Field(pattern=TIER_NAME, description="Such as `low`; all phones learn all names.")
    share: Ratio = Field(description="Share of the phones; the shares of all tiers sum to 1.")
    macs: Ratio = Field(1.0, description="Most MACs of a submodel over those of the full model.")
    bytes: int = Field(0, ge=0, description="Most bytes of a submodel's file; 0 = no limit.")


class Config(Section):
    """Everything that a run depends on, its output folder excepted."""

    run: Run = Run()
    data: Data = Data()
    model: Model = Model()
    population: Population = Population()
    usage: Usage = Usage()
    scores: Scores = Scores()
    visualise: Visualise = Visualise()
    clusters: Clusters = Clusters()
    planner: Planner = Planner()
    personal: Personal = Personal()
    delivery: Delivery = Delivery()
    fallback: Fallback = Fallback()
    privacy: Privacy = Privacy()
    rounds: Rounds = Rounds()
    faults: Faults = Faults()
    testing: Testing = Testing()
    tiers: Annotated[tuple[Tier, ...], Field(max_length=MAX_TIERS)] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [tier.name for tier in self.tiers]
        total = sum(tier.share for tier in self.tiers)
        if len(set(names)) != len(names):
            raise ValueError(f"tiers are named {', '.join(names)}: give each a name of its own")
        if names and abs(total - 1) > 1e-6:
            raise ValueError(f"the shares of tiers sum to {total:.4g}, must sum to 1: correct them")
        if self.personal.tier and self.personal.tier not in names:
            raise ValueError(f"personal.tier is {self.personal.tier!r}, tiers are {', '.join(names) or 'not given'}")
        if self.delivery.mode == "submodel" and self.run.rounds > self.delivery.fetches:
            raise ValueError(
                f"delivery.fetches is {self.delivery.fetches}, below run.rounds {self.run.rounds}: raise it"
            )
        if names and self.delivery.mode != "plan":
            raise ValueError(f"tiers need delivery.mode plan, not {self.delivery.mode}: a fetched file names the tier")
        return self

    @property
    def own_tier(self) -> Tier | None:
        """The tier of this phone; None: no limits."""
        return next((tier for tier in self.tiers if tier.name == self.personal.tier), None)

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of all values but two that are for phones alone and change no result, and the clustering where
        it is the default: runs from before that key keep their digest, which seeds noise.
        """
        own = {"delivery": {"answer_seconds", "fetches"}}
        if self.clusters.method == Clusters().method:
            own["clusters"] = {"method"}
        return hashlib.sha256(self.model_dump_json(exclude=own).encode()).hexdigest()

    def marks(self, simulated: bool) -> list[str]:
        """What every output of the run must say of it."""
        marks = {"plain": ["sums not encrypted"], "local": ["local answers"]}.get(self.privacy.sums, [])
        if simulated:
            marks.append("seeded noise")
        if not self.privacy.noise:
            marks.append("noise off")
        if self.testing.small_cohorts:
            marks.append(SMALL_COHORTS)
        return marks


def load_config(path: Path | Config | None = None, overrides: Iterable[str] = ()) -> Config:
    """Defaults, then the TOML file or another configuration, then `section.key=value` overrides. Raises ConfigError
    naming key and remedy.
    """
    values: dict[str, Any] = {}
    if isinstance(path, Config):
        values = path.model_dump(mode="json")
    elif path is not None:
        try:
            values = tomllib.loads(path.read_text())
        except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} cannot be read as TOML ({error}): correct the file") from error
    for override in overrides:
        _apply(values, override)
    return parse(values)


def parse(values: Mapping[str, Any]) -> Config:
    """Validated configuration from nested sections."""
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError("; ".join(_explain(fault) for fault in error.errors(include_url=False))) from None


def _apply(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    section, dot, name = key.strip().partition(".")
    if not equals or not dot or not name:
        raise ConfigError(f"override {override!r} is not section.key=value, for example run.seed=1")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    if not isinstance(values.setdefault(section, {}), dict):
        raise ConfigError(f"[{section}] is {values[section]!r}, must be a section")
    values[section] = {**values[section], name: value}


def _explain(fault: Any) -> str:
    path = [str(part) for part in fault["loc"]]
    key = ".".join(path)
    if fault["type"] == "extra_forbidden":
        known = _keys(path)
        near = difflib.get_close_matches(path[-1], known, 1)
        return f"{key} is unknown" + (f": did you mean {near[0]}?" if near else f", known are {', '.join(known)}")
    said = fault["msg"].removeprefix("Value error, ")
    return f"{key} is {fault['input']!r}: {said}" if key else said


def _keys(path: list[str]) -> list[str]:
    if len(path) == 1:
        return list(Config.model_fields)
    return list(_section(path[0]).model_fields)


def _section(name: str) -> type[Section]:
    """The section of that name; for a list of sections, such as `[[tiers]]`, what one entry is."""
    annotation: Any = Config.model_fields[name].annotation
    return get_args(annotation)[0] if get_args(annotation) else annotation


def reference_page() -> str:
    """docs/configuration.md."""
    lines = ["# Configuration", "", "Made by `make docs`; do not edit by hand.", ""]
    for name, field in Config.model_fields.items():
        title = f"## [{name}]" if field.annotation is _section(name) else f"## [[{name}]]"
        lines += [title, "", "| key | default | meaning |", "|---|---|---|"]
        for key, value in _section(name).model_fields.items():
            default = "–" if value.is_required() else f"`{_toml(value.default)}`"
            lines.append(f"| `{key}` | {default} | {value.description} |")
        lines.append("")
    return "\n".join(lines)


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return str(list(value))
    return f'"{value}"' if isinstance(value, str) else str(value)
