"""`summary.json` and `details.json` of a simulation."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from fedcaptor.common.tiers import drawn
from fedcaptor.server.record import RoundRecord, RunRecord
from fedcaptor.simulations.oracle import PhoneFigures
from fedcaptor.simulations.rounds import rows_of

if TYPE_CHECKING:
    from fedcaptor.simulations.runner import World

PER_PHONE = (
    "accuracy_full",
    "accuracy_full_limited",
    "accuracy",
    "macs_ratio",
    "effective_macs_ratio",
    "escalated",
    "stored_bytes",
    "classes",
)
LEAK = {
    "plan": "none: every phone fetches all plans and slices for itself",
    "submodel": "the server sees which cluster's submodel is fetched: log2 K bits per fetch, outside any epsilon",
}


def summary_of(
    world: World, record: RunRecord, figures: list[PhoneFigures], seconds: float, peak_rss_bytes: int
) -> dict[str, Any]:
    """Headline figures over all phones; accuracies over the phones that have test images."""
    last = record.last
    refused, dropped = record.refused, sum(phase.dropped for phase in record.phases)
    delivered = sum(p.delivered_bytes for p in record.rounds)

    def mean(name: str) -> float | None:
        return _spread(figures, name)["mean"]

    def known(name: str) -> float:
        return float(np.mean([getattr(f, name) for f in figures]))

    return {
        "phones": world.phones,
        "phones_scored": sum(not math.isnan(f.accuracy) for f in figures),
        "clusters": len(last.centroids),
        "rounds": len(record.rounds),
        "seconds": round(seconds, 2),
        "model": world.config.model.name,
        "data": world.data.name,
        "seed": world.config.run.seed,
        "accuracy": {
            "full": _spread(figures, "accuracy_full"),
            "full_limited": _spread(figures, "accuracy_full_limited"),
            "personalised": _spread(figures, "accuracy"),
        },
        "macs_ratio": mean("macs_ratio"),
        "effective_macs_ratio": mean("effective_macs_ratio"),
        "parameters_ratio": mean("parameters_ratio"),
        "download_bytes_ratio": delivered / world.weights_bytes + known("base_fetches"),
        "storage_ratio": known("holds_full") + known("stored_bytes") / world.weights_bytes,
        "cluster_only": {
            "accuracy": _spread(figures, "accuracy_cluster"),
            "accuracy_limited": _spread(figures, "accuracy_cluster_limited"),
            "macs_ratio": mean("cluster_macs_ratio"),
            "effective_macs_ratio": mean("cluster_macs_ratio"),
            "parameters_ratio": mean("cluster_parameters_ratio"),
            "download_bytes_ratio": delivered / world.weights_bytes,
        },
        "out_of_set": {
            "auroc": mean("auroc"),
            "escalated_ratio": mean("escalated"),
            "accuracy": mean("accuracy_outside"),
            "abstained_ratio": mean("abstained_outside"),
        },
        "privacy": {
            "epsilon": record.epsilon,
            "epsilon_server": record.epsilon_server,
            "delta": world.config.privacy.spent_delta,
            "mode": world.config.privacy.sums,
            "sums": len(record.sums),
            "delivery_leak": LEAK[world.config.delivery.mode],
        },
        "faults": {"dropped": dropped, "refused": sum(refused.values()), **refused},
        "peak_rss_bytes": peak_rss_bytes,
        "marks": world.config.marks(simulated=True),
    } | ({"tiers": _tiers(world, figures)} if world.config.tiers else {})


def _tiers(world: World, figures: list[PhoneFigures]) -> list[dict[str, Any]]:
    """What the phones of each tier ended with."""
    tiers = [drawn(world.config, number) for number in range(len(figures))]
    rows = []
    for tier in world.config.tiers:
        own = [f for f, drawn_tier in zip(figures, tiers, strict=True) if drawn_tier == tier]
        rows.append(
            {
                **tier.model_dump(),
                "phones": len(own),
                "macs_ratio": float(np.mean([f.macs_ratio for f in own])) if own else None,
                "parameters_ratio": float(np.mean([f.parameters_ratio for f in own])) if own else None,
                "accuracy": _spread(own, "accuracy"),
            }
        )
    return rows


def details_of(world: World, record: RunRecord, figures: list[PhoneFigures]) -> dict[str, Any]:
    """What the report draws: per-phone figures without identity, clusters, phases, sums."""
    last, tiers = record.last, world.config.tiers
    phones: dict[str, list[Any]] = {name: [_number(getattr(f, name)) for f in figures] for name in PER_PHONE}
    phones["download_bytes"] = [sum(p.delivered_bytes for p in record.rounds)] * len(figures)
    if tiers:
        phones["tier"] = [tier.name for number in range(len(figures)) if (tier := drawn(world.config, number))]
    return {
        "class_names": list(world.data.names),
        "phones": phones,
        "clusters": [_cluster(world, last, number) for number in range(len(last.catalogue.plans))],
        "rounds": rows_of(record),
        "phases": [phase.as_dict() for phase in record.phases],
        "sums": list(record.sums),
        "scores": _scores(figures),
    }


def _scores(figures: list[PhoneFigures], bins: int = 25) -> dict[str, list[Any]] | None:
    """Out-of-set scores of all phones that have a submodel, counted; None where no image was outside or inside."""
    scored = [f for f in figures if f.macs_ratio < 1]
    inside = np.concatenate([f.inside for f in scored]) if scored else np.zeros(0)
    outside = np.concatenate([f.outside for f in scored]) if scored else np.zeros(0)
    if not len(inside) or not len(outside):
        return None
    edges = np.histogram_bin_edges(np.concatenate([inside, outside]), bins)
    counts = {name: np.histogram(s, edges)[0].tolist() for name, s in (("inside", inside), ("outside", outside))}
    return {"edges": edges.tolist(), **counts}


def _cluster(world: World, last: RoundRecord, number: int) -> dict[str, Any]:
    """One cluster's plan, for one tier where there are tiers."""
    tiers, groups, plan = world.config.tiers, world.base.groups, last.catalogue.plans[number]
    k, t = divmod(number, len(tiers) or 1)
    return {
        "cluster": k,
        "tier": tiers[t].name if tiers else "",
        "phones": float(last.counts[k]) * (tiers[t].share if tiers else 1.0),
        "centroid": last.centroids[k].tolist(),
        "classes": plan.classes(groups).tolist(),
        "macs_ratio": groups.macs_ratio(plan.counts()),
        "parameters_ratio": groups.parameters_ratio(plan.counts()),
        "disagreement": last.catalogue.disagreement[number],
        "layers": last.catalogue.why[number],
    }


def _spread(figures: list[PhoneFigures], name: str) -> dict[str, float | None]:
    values = np.array([getattr(f, name) for f in figures])
    values = values[~np.isnan(values)]
    if len(values) == 0:
        return {"mean": None, "p5": None}
    return {"mean": float(values.mean()), "p5": float(np.percentile(values, 5))}


def _number(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value
