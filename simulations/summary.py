"""`summary.json` and `details.json` of a simulation."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from server.flow import Flow
from server.journal import Journal
from simulations.oracle import PhoneFigures

if TYPE_CHECKING:
    from simulations.runner import World

LEAK = {
    "plan": "none: every phone fetches all plans and slices for itself",
    "submodel": "the server sees which cluster's submodel is fetched: log2 K bits per fetch, outside any epsilon",
}


def summary_of(
    world: World, flow: Flow, journal: Journal, figures: list[PhoneFigures], seconds: float, peak_rss_bytes: int
) -> dict[str, Any]:
    """Headline figures over all phones; accuracies over the phones that have test images."""
    last = flow.published[-1]
    refused = journal.refused()
    delivered = sum(p.delivered_bytes for p in flow.published)

    def mean(name: str) -> float | None:
        return _spread(figures, name)["mean"]

    return {
        "phones": world.phones,
        "phones_scored": sum(not math.isnan(f.accuracy) for f in figures),
        "clusters": len(last.plans),
        "rounds": len(flow.published),
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
        "download_bytes_ratio": delivered / world.weights_bytes,
        "storage_ratio": 1 + (delivered + float(np.mean([f.stored_bytes for f in figures]))) / world.weights_bytes,
        "cluster_only": {
            "accuracy": _spread(figures, "accuracy_cluster"),
            "macs_ratio": mean("cluster_macs_ratio"),
            "effective_macs_ratio": mean("cluster_macs_ratio"),
            "parameters_ratio": mean("cluster_parameters_ratio"),
            "download_bytes_ratio": delivered / world.weights_bytes,
        },
        "out_of_set": {
            "auroc": mean("auroc"),
            "escalated_ratio": mean("escalated"),
            "accuracy": mean("accuracy_outside"),
        },
        "privacy": {
            "epsilon": flow.epsilon,
            "delta": world.config.privacy.delta,
            "sums": len(flow.sums),
            "delivery_leak": LEAK[world.config.delivery.mode],
        },
        "faults": {"dropped": sum(int(p["dropped"]) for p in flow.phases), "refused": sum(refused.values()), **refused},
        "peak_rss_bytes": peak_rss_bytes,
        "marks": world.config.marks(simulated=True),
    }


def details_of(world: World, flow: Flow, figures: list[PhoneFigures]) -> dict[str, Any]:
    """What the report draws: per-phone figures without identity, clusters, phases, sums."""
    last, groups = flow.published[-1], world.base.groups
    names = ("accuracy_full", "accuracy_full_limited", "accuracy", "macs_ratio", "effective_macs_ratio", "classes")
    phones: dict[str, list[Any]] = {name: [_number(getattr(f, name)) for f in figures] for name in names}
    phones["download_bytes"] = [last.delivered_bytes] * len(figures)
    return {
        "class_names": list(world.data.names),
        "phones": phones,
        "clusters": [
            {
                "cluster": k,
                "phones": float(last.counts[k]),
                "centroid": last.centroids[k].tolist(),
                "classes": plan.classes(groups).tolist(),
                "macs_ratio": groups.macs_ratio(plan.counts()),
                "parameters_ratio": groups.parameters_ratio(plan.counts()),
                "layers": last.why[k],
            }
            for k, plan in enumerate(last.plans)
        ],
        "phases": flow.phases,
        "sums": [
            {
                "name": s.name,
                "length": s.length,
                "clip": s.clip,
                "noise_multiplier": s.noise_multiplier,
                "rho": flow.budget.charge(s),
            }
            for s in flow.sums
        ],
    }


def _spread(figures: list[PhoneFigures], name: str) -> dict[str, float | None]:
    values = np.array([getattr(f, name) for f in figures])
    values = values[~np.isnan(values)]
    if len(values) == 0:
        return {"mean": None, "p5": None}
    return {"mean": float(values.mean()), "p5": float(np.percentile(values, 5))}


def _number(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value
