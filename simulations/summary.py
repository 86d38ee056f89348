"""The records of a finished simulation: `summary.json` and `details.json`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fedcaptor.common.tiers import drawn
from fedcaptor.server.record import RoundRecord, RunRecord
from fedcaptor.simulations.oracle import Expected, PhoneFigures
from fedcaptor.simulations.records import (
    Accuracies,
    Cluster,
    ClusterOnly,
    Details,
    Layer,
    LookFigures,
    OutOfSet,
    Phase,
    Phones,
    Privacy,
    PrivateSum,
    Provenance,
    ReferenceImages,
    RoundAccuracy,
    Scores,
    Spread,
    Summary,
    TierFigures,
)
from fedcaptor.simulations.rounds import rounds_of

if TYPE_CHECKING:
    from fedcaptor.simulations.runner import World

PER_PHONE = (
    "accuracy_full",
    "accuracy_full_limited",
    "accuracy_submodel",
    "accuracy",
    "macs_ratio",
    "effective_macs_ratio",
    "escalated",
    "stored_bytes",
    "classes",
)
"""Figures of single phones that `details.json` has under the names of `PhoneFigures`."""

PHONE_COLUMNS = {
    "phone": "its number",
    "tier": "its device tier; empty without tiers",
    "kind": "what it ended with: `personal`, a submodel of its own; `cluster`, its cluster's; `full`, the full model",
    "own_classes": "names of the owner's true classes",
    "accuracy_full": "accuracy of the full model",
    "accuracy_full_limited": "accuracy of the full model, limited to the owner's true classes",
    "accuracy_submodel": "accuracy of its submodel alone, without escalations",
    "accuracy": "accuracy with escalations",
    "macs_ratio": "MACs of its model, as a ratio of the full model's",
    "effective_macs_ratio": "the same with escalations",
    "parameters_ratio": "parameters of its model, as a ratio of the full model's",
    "energy_ratio": "modelled energy of its model, as a ratio of the full model's (`common/energy.py`)",
    "escalated": "share of all test images that are escalated",
    "accuracy_outside": "accuracy on test images of other classes",
    "stored_bytes": "bytes of all files in its folder",
}
"""The columns of `phones.csv` with their meanings. Nobody but a simulator knows them of single phones."""

LEAK = {
    "plan": "none: every phone fetches all plans and slices for itself",
    "submodel": "the server sees which cluster's submodel is fetched: log2 K bits per fetch, outside any epsilon",
}
SCORE_BINS = 25


def summary_of(
    world: World,
    run: RunRecord,
    figures: list[PhoneFigures],
    expected: list[Expected],
    earlier: Sequence[RoundAccuracy],
    seconds: float,
    peak_rss_bytes: int,
    provenance: Provenance,
) -> Summary:
    """Headline figures over all phones; accuracies over the phones that have test images.

    `expected`: those of each phone on further images. `earlier`: accuracies after all rounds but the last.
    """
    refused = run.refused
    download = sum(done.delivered.bytes for done in run.rounds) / world.weights_bytes
    known = {name: float(np.mean([getattr(f, name) for f in figures])) for name in ("base_fetches", "holds_full")}
    stored = float(np.mean([f.stored_bytes for f in figures]))
    return Summary(
        phones=world.phones,
        phones_scored=sum(not math.isnan(f.accuracy) for f in figures),
        clusters=len(run.last.centroids),
        rounds=len(run.rounds),
        seconds=round(seconds, 2),
        model=world.config.model.name,
        data=world.data.name,
        seed=world.config.run.seed,
        accuracy=Accuracies(
            full=_spread(figures, "accuracy_full"),
            full_limited=_spread(figures, "accuracy_full_limited"),
            personalised=_spread(figures, "accuracy"),
            submodel=_spread(figures, "accuracy_submodel"),
            shipped=_spread(figures, "accuracy_shipped"),
        ),
        expected_accuracy=Accuracies(
            full=_spread(expected, "full"),
            full_limited=_spread(expected, "full_limited"),
            personalised=_spread(expected, "personalised"),
            submodel=_spread(expected, "submodel"),
            shipped=_spread(expected, "shipped"),
        ),
        accuracy_by_round=(*earlier, round_accuracy(run.last.round, figures)),
        macs_ratio=_mean(figures, "macs_ratio"),
        effective_macs_ratio=_mean(figures, "effective_macs_ratio"),
        parameters_ratio=_mean(figures, "parameters_ratio"),
        energy_ratio=_mean(figures, "energy_ratio"),
        download_bytes_ratio=download + known["base_fetches"],
        reference_images=ReferenceImages(images=run.last.delivered.images, coding=run.last.delivered.coding),
        storage_ratio=known["holds_full"] + stored / world.weights_bytes,
        cluster_only=_cluster_only(figures, download),
        out_of_set=OutOfSet(
            auroc=_mean(figures, "auroc"),
            escalated_ratio=_mean(figures, "escalated"),
            accuracy=_mean(figures, "accuracy_outside"),
            abstained_ratio=_mean(figures, "abstained_outside"),
        ),
        privacy=_privacy(world, run),
        faults={"dropped": sum(phase.dropped for phase in run.phases), "refused": sum(refused.values()), **refused},
        peak_rss_bytes=peak_rss_bytes,
        marks=tuple(world.config.marks(simulated=True)),
        provenance=provenance,
        **({"tiers": _tiers(world, figures)} if world.config.tiers else {}),
        **({"looks": _looks(world, figures)} if world.config.looks else {}),
    )


def round_accuracy(round: int, figures: list[PhoneFigures]) -> RoundAccuracy:
    """Mean accuracies over the phones after `round`."""
    return RoundAccuracy(
        round=round,
        full=_mean(figures, "accuracy_full"),
        submodel=_mean(figures, "accuracy_submodel"),
        personalised=_mean(figures, "accuracy"),
    )


def _cluster_only(figures: list[PhoneFigures], download: float) -> ClusterOnly:
    macs = _mean(figures, "cluster_macs_ratio")
    return ClusterOnly(
        accuracy=_spread(figures, "accuracy_cluster"),
        accuracy_limited=_spread(figures, "accuracy_cluster_limited"),
        macs_ratio=macs,
        effective_macs_ratio=macs,  # nothing is escalated
        parameters_ratio=_mean(figures, "cluster_parameters_ratio"),
        download_bytes_ratio=download,
    )


def _privacy(world: World, run: RunRecord) -> Privacy:
    return Privacy(
        epsilon=run.epsilon,
        epsilon_server=run.epsilon_server,
        delta=world.config.privacy.spent_delta,
        mode=world.config.privacy.sums,
        sums=len(run.sums),
        delivery_leak=LEAK[world.config.delivery.mode],
    )


def _tiers(world: World, figures: list[PhoneFigures]) -> tuple[TierFigures, ...]:
    tiers = [drawn(world.config, number) for number in range(len(figures))]
    rows = []
    for tier in world.config.tiers:
        own = [f for f, drawn_tier in zip(figures, tiers, strict=True) if drawn_tier == tier]
        rows.append(
            TierFigures(
                **tier.model_dump(),
                phones=len(own),
                macs_ratio=float(np.mean([f.macs_ratio for f in own])) if own else None,
                parameters_ratio=float(np.mean([f.parameters_ratio for f in own])) if own else None,
                accuracy=_spread(own, "accuracy"),
            )
        )
    return tuple(rows)


def _looks(world: World, figures: list[PhoneFigures]) -> tuple[LookFigures, ...]:
    rows = []
    for number, look in enumerate(world.config.looks):
        own = [f for f in figures if f.look == number]
        rows.append(
            LookFigures(
                **look.model_dump(),
                phones=len(own),
                shipped=_mean(own, "accuracy_shipped"),
                full=_mean(own, "accuracy_full"),
                personalised=_mean(own, "accuracy"),
            )
        )
    return tuple(rows)


def details_of(world: World, run: RunRecord, figures: list[PhoneFigures]) -> Details:
    """What the report draws: figures of each phone without its identity, clusters, phases, sums."""
    last = run.last
    phones: dict[str, tuple[Any, ...]] = {name: tuple(getattr(f, name) for f in figures) for name in PER_PHONE}
    phones["download_bytes"] = (sum(done.delivered.bytes for done in run.rounds),) * len(figures)
    if world.config.tiers:
        tiers = (drawn(world.config, number) for number in range(len(figures)))
        phones["tier"] = tuple(tier.name for tier in tiers if tier)
    return Details(
        class_names=tuple(world.data.names),
        phones=Phones(**phones),
        clusters=tuple(_cluster(world, last, number) for number in range(len(last.submodels.plans))),
        rounds=rounds_of(run),
        phases=tuple(Phase(**phase.as_dict()) for phase in run.phases),
        sums=tuple(PrivateSum(**each) for each in run.sums),
        scores=_scores(figures),
    )


def phone_rows(world: World, figures: list[PhoneFigures]) -> Iterator[dict[str, Any]]:
    """The rows of `phones.csv`, with all `PHONE_COLUMNS`."""
    for number, found in enumerate(figures):
        tier = drawn(world.config, number)
        row = {name: getattr(found, name) for name in PHONE_COLUMNS if hasattr(found, name)}
        known = {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in row.items()}
        names = "; ".join(world.data.names[label] for label in found.own)
        yield known | {"phone": number, "tier": tier.name if tier else "", "own_classes": names}


def _scores(figures: list[PhoneFigures]) -> Scores | None:
    """Counted scores of all phones that have a submodel; None unless there were images both inside and outside."""
    scored = [f for f in figures if f.macs_ratio < 1]
    inside = np.concatenate([f.inside for f in scored]) if scored else np.zeros(0)
    outside = np.concatenate([f.outside for f in scored]) if scored else np.zeros(0)
    if not len(inside) or not len(outside):
        return None
    edges = np.histogram_bin_edges(np.concatenate([inside, outside]), SCORE_BINS)
    counts = {name: np.histogram(s, edges)[0].tolist() for name, s in (("inside", inside), ("outside", outside))}
    return Scores(edges=edges.tolist(), **counts)


def _cluster(world: World, last: RoundRecord, number: int) -> Cluster:
    """The plan `number` of the last round: of one cluster, for one tier where there are tiers."""
    tiers, groups, plan = world.config.tiers, world.base.groups, last.submodels.plans[number]
    k, t = divmod(number % (len(last.centroids) * max(len(tiers), 1)), len(tiers) or 1)
    return Cluster(
        cluster=k,
        tier=tiers[t].name if tiers else "",
        phones=float(last.counts[k]) * (tiers[t].share if tiers else 1.0),
        centroid=last.centroids[k].tolist(),
        classes=plan.classes(groups).tolist(),
        macs_ratio=groups.macs_ratio(plan.counts()),
        parameters_ratio=groups.parameters_ratio(plan.counts()),
        disagreement=last.submodels.disagreement[number],
        layers=tuple(Layer(**row) for row in last.submodels.why[number]),
    )


def _spread(figures: list[PhoneFigures] | list[Expected], name: str) -> Spread:
    values = np.array([getattr(f, name) for f in figures])
    values = values[~np.isnan(values)]
    if len(values) == 0:
        return Spread(mean=None, p5=None)
    return Spread(mean=float(values.mean()), p5=float(np.percentile(values, 5)))


def _mean(figures: list[PhoneFigures], name: str) -> float | None:
    return _spread(figures, name).mean
