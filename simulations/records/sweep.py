"""`sweep.json`: the figures of one scenario under several seeds."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from fedcaptor.simulations.records.record import Number, Numbers, Record
from fedcaptor.simulations.records.summary import Provenance


class Metric(Record):
    """A figure over the seeds, in the order of these; None in `values` where a run lacks it.

    `mean`, `std` (of the sample, n − 1) and the interval [`low`, `high`] of the mean are over the values that exist;
    the spread of fewer than two is unknown.
    """

    mean: Number = None
    std: Number = None
    low: Number = None
    high: Number = None
    values: Numbers = ()


class Sweep(Record):
    """The whole file. `metrics` are named by dotted keys of `summary.json`."""

    model: str
    data: str
    seeds: Annotated[tuple[int, ...], Field(min_length=1)]
    confidence: float
    metrics: dict[str, Metric]
    marks: tuple[str, ...] = ()
    provenance: Provenance | None = None

    @model_validator(mode="after")
    def _one_value_a_seed(self) -> Self:
        for name, found in self.metrics.items():
            if len(found.values) != len(self.seeds):
                raise ValueError(f"{name} has {len(found.values)} values for {len(self.seeds)} seeds")
        return self
