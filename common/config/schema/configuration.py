"""The whole configuration and what holds between its sections."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Self

from pydantic import Field, model_validator

from fedcaptor.common.config.digest import digest
from fedcaptor.common.config.schema.base import Section
from fedcaptor.common.config.schema.deployment import DeploymentSettings
from fedcaptor.common.config.schema.device import DeviceSettings
from fedcaptor.common.config.schema.phone import MAX_TIERS, Delivery, Fallback, Personal, Tier, Usage
from fedcaptor.common.config.schema.privacy import Privacy
from fedcaptor.common.config.schema.run import Data, Model, Rounds, Run, Testing
from fedcaptor.common.config.schema.server import Clusters, Domain, Planner, Scores, Visualise
from fedcaptor.common.config.schema.simulated import MAX_LOOKS, Faults, Look, Population

SMALL_COHORTS = "small cohorts"
"""The mark of a run whose sums may be of few phones."""


MARKS = {
    "sums not encrypted": "the server sees each phone's vector, as no sum is masked; for debugging",
    "local answers": "each phone's answer is private by itself: no sum is made, and no fleet figures",
    "seeded noise": "noise is drawn from the run's seed, so that a run can be repeated; who knows the seed can take it "
    "off, so ε holds for real phones alone, which draw it from their operating system",
    "noise off": "nothing is private",
    SMALL_COHORTS: "sums may be of so few phones that they tell of single ones; for tests",
}
"""What each mark of a run means."""


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
    domain: Domain = Domain()
    planner: Planner = Planner()
    personal: Personal = Personal()
    delivery: Delivery = Delivery()
    fallback: Fallback = Fallback()
    privacy: Privacy = Privacy()
    rounds: Rounds = Rounds()
    faults: Faults = Faults()
    testing: Testing = Testing()
    device: DeviceSettings = DeviceSettings()
    deployment: DeploymentSettings = DeploymentSettings()
    tiers: Annotated[tuple[Tier, ...], Field(max_length=MAX_TIERS)] = ()
    looks: Annotated[tuple[Look, ...], Field(max_length=MAX_LOOKS)] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [tier.name for tier in self.tiers]
        _require_whole("tiers", self.tiers)
        _require_whole("looks", self.looks)
        if self.personal.tier and self.personal.tier not in names:
            raise ValueError(f"personal.tier is {self.personal.tier!r}, tiers are {', '.join(names) or 'not given'}")
        if self.run.rounds == self.privacy.rounds_per_period == 0:
            raise ValueError(
                "run.rounds is 0, a run without a last round needs a budget that is renewed: set "
                "privacy.rounds_per_period above 0"
            )
        if self.delivery.mode == "submodel" and self.planned_rounds > self.delivery.fetches:
            raise ValueError(
                f"delivery.fetches is {self.delivery.fetches}, below the {self.planned_rounds} rounds of a run or of "
                "90 days (run.rounds, privacy.rounds_per_period): raise it"
            )
        if names and self.delivery.mode != "plan":
            raise ValueError(f"tiers need delivery.mode plan, not {self.delivery.mode}: a fetched file names the tier")
        if self.domain.enabled and (self.delivery.mode != "plan" or self.privacy.sums == "local"):
            raise ValueError(
                f"domain.enabled needs delivery.mode plan and privacy.sums masked or plain, not {self.delivery.mode} "
                f"and {self.privacy.sums}: a fetched file would name the look of a phone's photos, and looks are summed"
            )
        spent = self.privacy.outcome_share + self.privacy.scores_share
        if self.domain.enabled:
            spent += self.privacy.look_share + self.privacy.moments_share * self.domain.moments
        if spent >= 1:
            raise ValueError(
                f"outcome_share, scores_share and, where domain.enabled, look_share and moments_share take {spent:g}, "
                "and leave nothing for usage: lower one below a sum of 1"
            )
        return self

    @property
    def planned_rounds(self) -> int:
        """Rounds that share one privacy budget: those of the run, or of 90 days where they are fewer."""
        return min(rounds for rounds in (self.run.rounds, self.privacy.rounds_per_period) if rounds)

    @property
    def own_tier(self) -> Tier | None:
        """The tier of this phone; None: no limits."""
        return next((tier for tier in self.tiers if tier.name == self.personal.tier), None)

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of what a result depends on; it seeds noise. See `fedcaptor.common.config.digest`."""
        return digest(self)

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


def _require_whole(section: str, parts: Sequence[Tier] | Sequence[Look]) -> None:
    """Raise ValueError where parts of the phones share a name, or are more or fewer than all of them."""
    names, total = [part.name for part in parts], sum(part.share for part in parts)
    if len(set(names)) != len(names):
        raise ValueError(f"{section} are named {', '.join(names)}: give each a name of its own")
    if parts and abs(total - 1) > 1e-6:
        raise ValueError(f"the shares of {section} sum to {total:.4g}, must sum to 1: correct them")
