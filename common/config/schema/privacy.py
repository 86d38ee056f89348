"""The section of the privacy budget and of the masks of sums."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fedcaptor.common.config.schema.base import PHONE, SERVER, SIMULATION, Positive, Ratio, Section
from fedcaptor.common.errors import ConfigError


class Privacy(Section):
    sums: Annotated[Literal["masked", "plain", "local"], SERVER, PHONE, SIMULATION] = Field(
        "masked",
        description="`masked`: the server learns sums and no phone's vector; `plain`: it receives every vector, for "
        "debugging and large simulations: marked, and refused on devices; `local`: no sums: every phone answers once, "
        "private by itself at `epsilon` and δ = 0, without cohorts; no filter scores, no fleet figures, marked.",
    )
    noise: Annotated[bool, SERVER, PHONE, SIMULATION] = Field(
        True, description="Discrete Gaussian noise in shares; false only in simulation, and marked."
    )
    epsilon: Annotated[Positive, SERVER, PHONE] = Field(
        8.0,
        description="Privacy budget of the whole run, or with `rounds_per_period` of 90 days: ε of a phone that "
        "answers every sum.",
    )
    delta: Annotated[float, SERVER, PHONE, SIMULATION] = Field(1e-5, gt=0, lt=1, description="δ of the whole run.")
    min_cohort: Annotated[int, SERVER, PHONE] = Field(
        50, ge=1, description="Fewest phones in a published sum; at least 20 outside tests."
    )
    dropout: Annotated[float, SERVER] = Field(
        0.1,
        ge=0,
        lt=1,
        description="Largest share of asked phones that may fail to answer. With masked sums, 2 × `dropout` + "
        "`corrupted` must be below 1, and large cohorts allow less: with `corrupted = 0.05` at most 0.44 for 100 "
        "phones, 0.27 for 1,000, 0.22 for 10,000.",
    )
    corrupted: Annotated[float, SERVER, PHONE] = Field(
        0.05,
        ge=0,
        le=0.5,
        description="Share of the phones of a masked sum that may side with the server, made-up ones included: masks "
        "and noise hold against the server and so many phones together. Phones insist on their own value at least.",
    )
    dishonest: Annotated[float, SERVER, PHONE] = Field(
        0.0, ge=0, lt=1, description="Share of phones that may leave out their noise."
    )
    reserve: Annotated[int, SERVER] = Field(
        0,
        ge=0,
        le=100,
        description="Sums that may be repeated after their vectors had left, when too few phones were left or one sent "
        "shares that do not open: each phone is charged again. The noise leaves room in `epsilon` for so many of the "
        "most expensive sum. 1 is sensible for devices; without any, such a sum ends the run.",
    )
    rounds_per_period: Annotated[int, SERVER, SIMULATION] = Field(
        0,
        ge=0,
        le=1000,
        description="Rounds within any 90 days that the noise is planned for: `epsilon` is then the budget of 90 days, "
        "however many rounds the run has, and a round that would exceed it is refused; 0 = all rounds of the run.",
    )
    outcome_share: Annotated[Ratio, SERVER] = Field(0.15, description="Share of the privacy budget for fleet figures.")
    scores_share: Annotated[Ratio, SERVER] = Field(
        0.3, description="Share of the privacy budget for filter scores; usage takes the rest."
    )
    look_share: Annotated[Ratio, SERVER] = Field(
        0.15, description="Share of the privacy budget for the looks of photos, where `domain.enabled`."
    )
    moments_share: Annotated[Ratio, SERVER] = Field(
        0.15,
        description="Share of the privacy budget for moments of batch norms, where `domain.moments` asks.",
    )

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
        if self.sums == "local" and not self.noise:
            raise ValueError("noise is false, with local sums it is all that protects a phone: set sums to plain")
        return self

    @model_validator(mode="after")
    def _maskable(self) -> Self:
        """Of a phone's k holders, t reveal its secrets. Those that stay must be t or more: t ≤ (1 - dropout) k. And no
        corrupted ones may help to two answers: 2 t > (1 + corrupted) k. See `common/secure/topology.py`.
        """
        total = 2 * self.dropout + self.corrupted
        if self.sums == "masked" and total >= 1 - 1e-9:
            raise ValueError(
                f"dropout {self.dropout:g} with corrupted {self.corrupted:g} allows no cohort of masked sums, however "
                f"large: 2 x dropout + corrupted is {total:g}, must be below 1: lower dropout below "
                f"{(1 - self.corrupted) / 2:g}"
            )
        return self
