"""Sections that only a simulation needs: the population of owners, and faults."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from fedcaptor.common.config.schema.base import SERVER, SIMULATION, Positive, Ratio, Section, Share, one_of

LAWS = ("habits", "zipf", "dirichlet", "interests", "owners", "partitioner")


class Population(Section):
    """Simulated phones and their owners' habits. `fedcaptor privacy plan` reads the server's keys of it."""

    phones: Annotated[int, SERVER, SIMULATION] = Field(
        120,
        ge=1,
        le=1_000_000,
        description="Number of phones; with `owners`, and partitioners of given sizes, at most this many.",
    )
    law: Annotated[str, one_of(*LAWS), SIMULATION] = Field(
        "habits",
        description="How images are given to phones. `habits`: owners belong to groups with favourite classes, and the "
        "shares of an owner's classes are drawn; `zipf`: as `habits`, with shares by rank; `dirichlet`: each owner "
        "independently; `interests`: each owner has two of `groups` interests, each a long tail of `classes_max` "
        "classes; `owners`: by the natural owners of the images; `partitioner`: by one of flwr-datasets; "
        "or your own, `package.module:function`.",
    )
    groups: Annotated[int, SIMULATION] = Field(
        4, ge=1, le=32, description="Groups of owners (`habits`, `zipf`), or interests."
    )
    classes_min: Annotated[int, SERVER, SIMULATION] = Field(2, ge=1, description="Fewest classes of an owner.")
    classes_max: Annotated[int, SERVER, SIMULATION] = Field(4, ge=1, description="Most classes of an owner.")
    typical: Annotated[Share, SIMULATION] = Field(
        0.85, description="Share of an owner's classes taken from the group's favourites (`habits`, `zipf`)."
    )
    concentration: Annotated[Positive, SIMULATION] = Field(
        4.0,
        description="Dirichlet concentration of the shares of an owner's classes (`habits`, `dirichlet`, `interests`).",
    )
    exponent: Annotated[float, SIMULATION] = Field(
        1.0, ge=0, le=8, description="A class of rank r has a share in proportion to r^-exponent (`zipf`, `interests`)."
    )
    partitioner: Annotated[str, SIMULATION] = Field(
        "DirichletPartitioner",
        description="Class of flwr-datasets that divides the phones' images (`partitioner`, needs the extra of that "
        "name); each partition is a phone.",
    )
    partitioner_arguments: Annotated[dict[str, bool | int | float | str | list[int | float]], SIMULATION] = Field(
        {}, description='Its arguments, such as `alpha = 0.5`; `partition_by` is "label" unless given.'
    )
    use_images: Annotated[int, SIMULATION] = Field(
        60, ge=1, le=100_000, description="Images a round that the phone learns its owner from."
    )
    check_images: Annotated[int, SIMULATION] = Field(
        40, ge=1, le=100_000, description="Images a round of the phone's validation set: keep the submodel, or not."
    )
    test_images: Annotated[int, SIMULATION] = Field(
        60, ge=0, le=100_000, description="Images a round that the simulator alone reads, for true accuracy."
    )
    out_of_set: Annotated[Share, SIMULATION] = Field(
        0.05,
        description="Share of out-of-set images: of classes that the owner does not usually meet. Where images have "
        "owners, the rarest classes of each owner up to this share count as such.",
    )
    drift_round: Annotated[int, SIMULATION] = Field(
        0, ge=0, description="Round in which habits change (`habits`, `zipf`, `dirichlet`, `interests`); 0 = never."
    )
    drift_share: Annotated[Share, SIMULATION] = Field(0.5, description="Share of owners whose habits change then.")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.classes_min > self.classes_max:
            raise ValueError(f"classes_min {self.classes_min} is above classes_max {self.classes_max}: lower it")
        if self.drift_round and self.law in ("owners", "partitioner"):
            raise ValueError(
                f'drift_round is {self.drift_round}, with law "{self.law}" owners keep their images: set it to 0'
            )
        return self


class Faults(Section):
    """Simulated faults, as shares of messages; at most one happens to a message."""

    dropout: Annotated[Share, SIMULATION] = Field(0.0, description="Answered by an error.")
    silence: Annotated[Share, SIMULATION] = Field(0.0, description="Never answered.")
    stall: Annotated[Share, SIMULATION] = Field(
        0.0, description="Answered `stall_seconds` late: lost when that is beyond `rounds.deadline`."
    )
    stall_seconds: Annotated[Positive, SIMULATION] = Field(60.0, description="Seconds that a stalled answer takes.")
    malformed: Annotated[Share, SIMULATION] = Field(
        0.0, description="Answered by a malformed reply. Its former name `rubbish` is still read."
    )

    @model_validator(mode="after")
    def _at_most_all(self) -> Self:
        total = self.dropout + self.silence + self.stall + self.malformed
        if total > 1 + 1e-9:
            raise ValueError(f"dropout, silence, stall and malformed add up to {total:g}: lower one below a sum of 1")
        return self


CORRUPTIONS = {
    "blur": (0.1, 5.0),
    "noise": (0.005, 0.5),
    "contrast": (0.05, 3.0),
    "light": (0.05, 2.0),
    "warmth": (-0.9, 0.9),
    "jpeg": (1, 95),
}
"""Names of corruptions with their least and largest strength; `fedcaptor.simulations.looks` has their formulas."""

MAX_LOOKS = 8


def strength_of(corruption: str) -> tuple[str, float]:
    """Read name and strength of a corruption, such as `blur=1.0`. Raises ValueError naming what is known."""
    name, _, text = corruption.partition("=")
    if name not in CORRUPTIONS:
        raise ValueError(f"corruption {name[:40]!r} is unknown, known are {', '.join(CORRUPTIONS)}")
    least, most = CORRUPTIONS[name]
    try:
        strength = float(text)
    except ValueError:
        strength = float("nan")
    if not least <= strength <= most:
        raise ValueError(
            f"{name} is {text[:40]!r}, must lie in {least:g}..{most:g}: write {name}={least:g}, for example"
        )
    return name, strength


def _corruption(value: str) -> str:
    strength_of(value)
    return value


class Look(Section):
    """A kind of camera or light, `[[looks]]`: the photos of its phones are not like the server's images."""

    name: Annotated[str, SIMULATION] = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,31}$", description="Such as `blurred`.")
    share: Annotated[Ratio, SIMULATION] = Field(description="Share of the phones; the shares of all looks sum to 1.")
    corruptions: Annotated[tuple[Annotated[str, AfterValidator(_corruption)], ...], SIMULATION] = Field(
        (),
        max_length=8,
        description="What happens to a photo, one after the other: `blur=σ` in pixels, `noise=σ` and `contrast=factor` "
        "and `light=factor` of grey levels in [0, 1], `warmth` from -0.9 (blue) to 0.9 (red), `jpeg=quality`; none: "
        "photos stay as they are.",
    )
