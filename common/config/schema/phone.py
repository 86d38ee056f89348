"""Sections of what a phone does: usage, the personal step, delivery, fallback, its tier."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fedcaptor.common.config.schema.base import PHONE, SERVER, SIMULATION, Positive, Ratio, Section, Share, one_of

MAX_TIERS = 8
Precision = Literal["float32", "int8"]
TIER_NAME = r"^[a-z0-9][a-z0-9_-]{0,31}$"


class Usage(Section):
    """What a phone remembers of the classes that its owner meets."""

    half_life: Annotated[Positive, PHONE] = Field(
        2000.0, description="Predictions after which an old prediction counts half."
    )
    corrections: Annotated[Share, SIMULATION] = Field(
        0.0, description="Share of wrong predictions that the simulated owner corrects."
    )
    prior: Annotated[float, PHONE] = Field(
        4.0,
        ge=0,
        description="Weight, in images, of the published centroids in the usage estimate: a phone that saw fewer is "
        "treated like its cluster, one that saw many more by these alone.",
    )
    min_share: Annotated[Share, PHONE] = Field(
        0.0,
        description="A class with at least this share of the usage is the owner's own. 0 = 0.3 over the number of "
        "classes, at most 0.03: a class that is met more rarely costs more in each answer than its misses do.",
    )
    max_classes: Annotated[int, PHONE] = Field(
        0, ge=0, description="Most own classes; 0 = four fifths of all, at least 8."
    )
    images: Annotated[int, PHONE] = Field(
        1000, ge=1, description="Devices: most images of the owner's folder that are read a day, the newest."
    )
    drift: Annotated[Share, PHONE] = Field(
        0.1, description="Jensen-Shannon divergence (bits) of the usage from which a phone personalises anew."
    )


class Personal(Section):
    enabled: Annotated[bool, PHONE] = Field(
        True, description="Each phone refines its cluster's submodel to its own classes."
    )
    ladder: Annotated[tuple[Ratio, ...], PHONE] = Field(
        (0.22, 0.32, 0.42, 0.55, 0.7), description="MACs ratios tried, smallest first."
    )
    tolerance: Annotated[Share, PHONE] = Field(
        0.02,
        description="Accuracy that a submodel may lose against the full model limited to the own classes, by the full "
        "model's calibrated probabilities on the validation set.",
    )
    confidence: Annotated[Ratio, PHONE] = Field(
        0.6,
        description="Probability that the accuracy lost is within `tolerance`, given the validation images, from which "
        "a submodel is kept: with few images a phone keeps a larger one.",
    )
    reference: Annotated[int, SERVER] = Field(
        30, ge=0, description="Reference images a class that every phone receives; 0 = none."
    )
    rows: Annotated[int, PHONE] = Field(
        2048, ge=64, description="Observations a layer that merging on the phone uses at most."
    )
    images: Annotated[int, PHONE] = Field(
        400,
        ge=1,
        description="Most own and reference images together that a submodel is made on, spread evenly: memory and time "
        "grow with them.",
    )
    precision: Annotated[Precision, PHONE, SIMULATION] = Field(
        "float32",
        description="What the submodel computes in. `int8`: whole numbers of eight bits, half of the file's bytes, if "
        "it is then still good enough on the validation set, else `float32`. For phones with the ONNX engine.",
    )
    start: Annotated[Literal["cluster", "base"], PHONE] = Field(
        "base", description="Channels to select from: the cluster's, or all."
    )
    tune_steps: Annotated[int, PHONE] = Field(
        0,
        ge=0,
        le=100_000,
        description="Steps, three minutes at most, in which a submodel that disagrees too often learns from the full "
        "model's answers on own and reference images; judged on the validation set, it never ends worse. 0 = no "
        "training; otherwise raise `delivery.answer_seconds` by what it takes.",
    )
    tier: Annotated[str, PHONE] = Field("", description="A device's own tier, by name; the simulation draws it.")


class Delivery(Section):
    mode: Annotated[Literal["plan", "submodel"], SERVER, PHONE, SIMULATION] = Field(
        "plan",
        description="`plan`: every phone fetches all plans and slices for itself; `submodel`: it names its cluster, "
        "which the server then knows, and fetches that cluster's submodel.",
    )
    fetches: Annotated[int, PHONE] = Field(
        16, ge=0, le=1024, description="Mode `submodel`: most times in 90 days that a phone names its cluster."
    )
    max_bytes: Annotated[int, PHONE] = Field(
        1 << 28, ge=1, description="Most bytes of one delivery; a larger one is refused."
    )
    max_images: Annotated[int, PHONE] = Field(
        20_000, ge=1, description="Most reference images of one delivery, see `personal.reference`."
    )
    max_class_images: Annotated[int, PHONE] = Field(
        100,
        ge=1,
        description="Most reference images of one class in a delivery: a phone works on those of its own classes.",
    )
    plans: Annotated[bool, SERVER] = Field(
        True, description="Phones receive the clusters' plans; false: they select from the base alone."
    )
    download: Annotated[Positive, SERVER] = Field(
        0.5,
        description="Most bytes that a phone fetches over those of the full model's file in half precision. Reference "
        "images are coded as JPEG, then fewer are sent, to keep it; cluster plans and preference are sent whole.",
    )
    answer_seconds: Annotated[float, SERVER, PHONE] = Field(
        60.0,
        ge=0,
        le=86_400,
        description="Devices: a reply with a vector leaves so many seconds after its request came. It "
        "waits three quarters of them for the phone to look at its images, which it does in a process of its "
        "own: set it above what the slowest phone takes. 0 = at once; simulated phones reply at once.",
    )

    @model_validator(mode="after")
    def _plans(self) -> Self:
        if self.mode == "submodel" and not self.plans:
            raise ValueError("plans is false, a submodel is sent with its plan: leave it true with mode submodel")
        return self


class Fallback(Section):
    mode: Annotated[Literal["kept_full", "cluster", "abstain"], PHONE, SIMULATION] = Field(
        "kept_full",
        description="Who answers an image that the own submodel is unsure of. `kept_full`: the full model, which stays "
        "on the phone; `cluster`: the cluster's submodel, kept beside the own one; `abstain`: nobody, which counts as "
        "wrong for images of own classes. Under the last two a phone with a submodel no longer runs the full model: it "
        "counts as deleted (storage), and as downloaded again for each later personalisation with "
        '`delivery.mode = "plan"`; with `submodel` the own submodel is refined from the cluster\'s instead.',
    )
    score: Annotated[str, one_of("energy", "max-softmax", "max-logit"), PHONE] = Field(
        "max-logit", description="Out-of-set score of the submodel; or your own, `package.module:function`."
    )
    outputs: Annotated[Literal["own", "all"], PHONE] = Field(
        "own",
        description="Outputs of the own submodel. `own`: those of the own classes; `all`: also those of the other "
        "classes that its base has, fitted on reference images where there are some. It never answers with those: the "
        "out-of-set score is held against them.",
    )
    retention: Annotated[Ratio, PHONE] = Field(
        0.96, description="Share of own images that the submodel answers itself."
    )


class Tier(Section):
    """A kind of device, `[[tiers]]`: none of its phones gets a submodel above its limits.

    Images that the submodel leaves to the full model are not counted.
    """

    name: Annotated[str, SERVER, PHONE, SIMULATION] = Field(
        pattern=TIER_NAME, description="Such as `low`; all phones learn all names."
    )
    share: Annotated[Ratio, SERVER, SIMULATION] = Field(
        description="Share of the phones; the shares of all tiers sum to 1."
    )
    macs: Annotated[Ratio, SERVER, PHONE, SIMULATION] = Field(
        1.0, description="Most MACs of a submodel over those of the full model."
    )
    bytes: Annotated[int, SERVER, PHONE, SIMULATION] = Field(
        0, ge=0, description="Most bytes of a submodel's file; 0 = no limit."
    )
