"""Implement the phases of a round, in the server's order: adapt, cluster, prefer, plan, deliver, evaluate, collect.

Each is a function of the flow and may be exchanged, see `fedcaptor.server.flow.Phases`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from fedcaptor.common.arrays import Array, Floats
from fedcaptor.common.config import Config
from fedcaptor.common.filter_clusters import filter_clusters
from fedcaptor.common.preference import importance, join, layer_slices, normalise, share_out
from fedcaptor.common.statistics import BUILT_IN, COOCCURRENCE, OUTCOME, SCORES, TOPICS, USAGE, registered
from fedcaptor.common.torch_engine.forward import normalise as to_input
from fedcaptor.common.torch_engine.scores import taylor_scores
from fedcaptor.common.weights_file import narrow
from fedcaptor.server import cluster_submodels, clusters, local
from fedcaptor.server.adapt import adapt
from fedcaptor.server.budget import Step
from fedcaptor.server.cluster_submodels import ClusterSubmodels
from fedcaptor.server.flow import Flow, Phases
from fedcaptor.server.journal import Result
from fedcaptor.server.painting import Visualisation
from fedcaptor.server.planning import ClusterPlan, plan_cluster
from fedcaptor.server.record import Delivered
from fedcaptor.server.reference import packed
from fedcaptor.server.submodels import deliver_submodels
from fedcaptor.server.visualise import visualise


def cluster_by_sums(flow: Flow, round: int, centroids: Floats | None, counts: Floats) -> tuple[Floats, Floats]:
    """Cluster phones by federated k-means, or find topics by federated expectation maximisation.

    First centroids come from the co-occurrence of classes; each further step takes one private sum of usage.
    """
    classes, settings = flow.base.groups.classes, flow.config.clusters
    for step in flow.steps(round, COOCCURRENCE):
        centroids = _first_centroids(flow, step)
    assert centroids is not None  # every run begins with co-occurrence
    for step in flow.steps(round, USAGE, TOPICS):
        sent = rounded(centroids)
        name = "topics" if step.statistic is TOPICS else "centroids"
        blocks = flow.sum(step, {name: sent.astype(np.float32)}, len(sent))
        deviation = flow.budget.spec(step, len(sent)).deviation
        centroids, counts = clusters.next_centroids(blocks, sent, deviation, settings.method)
        floor = flow.config.privacy.min_cohort + 2 * deviation * float(np.sqrt(classes))
        centroids, counts = clusters.publishable(centroids, counts, floor, settings.alike, settings.k == 0)
    return rounded(centroids), counts


def _first_centroids(flow: Flow, step: Step) -> Floats:
    """Take the sum of co-occurrences, of coarse classes where there are many."""
    classes, settings, seed = flow.base.groups.classes, flow.config.clusters, flow.config.run.seed
    k = settings.k or min(settings.most, classes)
    blocks = COOCCURRENCE.blocks(flow.base.groups)
    if blocks == 1:
        return clusters.first_centroids(flow.sum(step, {}), k, seed, settings.method)
    coarse = clusters.coarse_classes(flow.base.output_weights, blocks, seed)
    found = clusters.first_centroids(flow.sum(step, {"coarse": coarse}, blocks), k, seed, settings.method)
    return clusters.spread(found, coarse)


def cluster_by_answers(flow: Flow, round: int, centroids: Floats | None, counts: Floats) -> tuple[Floats, Floats]:
    """Cluster phones by their own local answers, which are forgotten when the phase ends.

    They are asked once a run, as phones would send that answer again.
    """
    if centroids is not None:
        return centroids, counts
    spec, name = flow.budget.spec, "usage-0"

    def compute() -> Result:
        answers = local.Answers(spec, flow.budget.cohort)
        tally = flow.courier.answers(round, spec, flow.cohort(spec.digest), answers.add)
        found, phones = local.published(answers, flow.config.clusters, flow.config.run.seed)
        return flow.tallied(round, name, tally, {"centroids": found, "counts": phones})

    _, stored = flow.phase(round, name, compute)
    flow.charge(spec)
    return rounded(stored["centroids"]), stored["counts"]


def prefer(flow: Flow) -> Array | None:
    """Find the filter preference [F, classes]: profiles from pictures joined with the phones' private scores.

    Returns None where no phone is asked for scores.
    """
    return prefer_by(flow, visual_profiles(flow))


def prefer_by(flow: Flow, visual: Array) -> Array | None:
    """Do what `prefer` does, with given profiles from pictures [F, classes]."""
    settings, groups = flow.config.scores, flow.base.groups
    assignment = filter_clusters(visual, groups, settings.clusters_per_layer, flow.config.run.seed)
    for group, rows in zip(groups.prunable, layer_slices(groups), strict=True):
        flow.atlas[f"profile.{group.name}"] = visual[rows]
        flow.atlas[f"cluster.{group.name}"] = assignment[rows]
    joined = None
    for step in flow.steps(1, SCORES):
        sent = {"pool": assignment.astype(np.int32)}
        mean, presence = flow.sum(step, sent, int(assignment.max()) + 1)
        measured = share_out(mean, assignment, visual)
        joined = join(measured, presence, visual, 1 - settings.measured, settings.shrink)
        for group, rows in zip(groups.prunable, layer_slices(groups), strict=True):
            flow.atlas[f"profile.{group.name}"] = joined[rows]
    return joined


def visual_profiles(flow: Flow) -> Array:
    """Return the class profiles of all filters [F, classes], rows summing to one.

    They come from feature visualisation, or from Taylor scores on reference images where it is off.
    """
    groups = flow.base.groups
    if not flow.config.visualise.enabled:
        x = to_input(flow.reference.x[:512], flow.base.mean, flow.base.std)
        scores = taylor_scores(flow.base.module, groups, x, flow.reference.y[:512])
        profile = normalise(list(scores.scores.values()))
        return np.asarray((profile + 1e-9) / (profile + 1e-9).sum(1, keepdims=True), dtype=np.float32)

    def compute() -> Result:
        settings = Visualisation(steps=flow.config.visualise.steps, seed=flow.config.run.seed)
        found = visualise(
            flow.base, settings, flow.pictures, lambda done, total: flow.on_progress("visualise", done, total)
        )
        tensors: dict[str, Array] = {}
        for name, seen in found.items():
            tensors |= {f"picture.{name}": seen.pictures, f"profile.{name}": seen.profile}
        return {}, tensors

    _, stored = flow.phase(1, "visualise", compute)
    flow.atlas |= stored
    return np.concatenate([stored[f"profile.{group.name}"] for group in groups.prunable])


def plan(flow: Flow, round: int, centroids: Floats, preference: Array | None) -> ClusterSubmodels:
    """Plan and build every cluster's submodel, from the server's reference images; in each look, if there are looks."""
    config, groups = flow.config, flow.base.groups

    def compute() -> Result:
        made: list[ClusterPlan] = []
        looks = 1 if flow.adaptation is None else len(flow.adaptation.looks)
        for base, reference in flow.in_looks():
            for centroid in centroids:
                factors = importance(groups, preference, centroid, config.scores.weight)
                made += plan_cluster(base, centroid, reference, config.planner, factors, config.run.seed, config.tiers)
                flow.on_progress("plans", len(made), looks * len(centroids) * max(len(config.tiers), 1))
        return cluster_submodels.pack(made, groups)

    return cluster_submodels.unpack(*flow.phase(round, "plans", compute), groups)


def deliver(flow: Flow, round: int, centroids: Floats, made: ClusterSubmodels, preference: Array | None) -> Delivered:
    """Offer the plans to all phones, and as many reference images as `delivery.download` leaves room for."""
    config, courier, base = flow.config, flow.courier, flow.base

    def compute() -> Result:
        plans = made.plans if config.delivery.plans else []
        tensors = cluster_submodels.offered(config, base.groups, centroids, plans, preference, flow.calibrations)
        if flow.adaptation is not None:
            tensors |= flow.adaptation.tensors
        room = config.delivery.download * sum(narrow(tensor).nbytes for tensor in base.state.values())
        room -= sum(tensor.nbytes for tensor in tensors.values())
        pack = packed(flow.reference, config.personal.reference, room, config.run.seed)
        tensors |= pack.tensors if pack else {}
        request = cluster_submodels.offer(
            config, courier, round, tensors, plans, base.weights_digest, flow.issued(round), flow.reference.synthetic
        )
        if config.delivery.mode == "submodel":
            tally = deliver_submodels(courier, request, tensors, made.plans, made.states, flow.nodes)
        else:
            _, tally = courier.deliver(request, tensors, flow.nodes)
        outcome, nothing = flow.tallied(round, "deliver", tally, {})
        sent = {"images": len(pack.labels), "coding": pack.coding} if pack else {}
        others = sorted({*tally.others, *flow.others.intersection(tally.silent)})
        return {**outcome, "reference": sent, **({"other_weights": others} if others else {})}, nothing

    outcome, _ = flow.phase(round, "deliver", compute)
    size = float(outcome["tally"]["bytes_down"]) / max(len(flow.nodes), 1)
    return Delivered(size, **outcome["reference"], other_weights=frozenset(outcome.get("other_weights", ())))


def evaluate(flow: Flow, round: int, centroids: Floats) -> Floats | None:
    """Sum the phones' outcomes by cluster [K, figures]; None where there are no sums."""
    fleet: Floats | None = None
    for step in flow.steps(round, OUTCOME):
        fleet = flow.sum(step, {"centroids": centroids.astype(np.float32)}, len(centroids))
    return fleet


def collect(flow: Flow, round: int, centroids: Floats) -> dict[str, Any]:
    """Take the sums of statistics that others have registered; returns them decoded, by name, the last of a round."""
    found = {}
    for step in flow.steps(round, *(statistic for statistic in registered() if statistic not in BUILT_IN)):
        by_cluster = "centroids" in step.statistic.tensors
        tensors = {"centroids": centroids.astype(np.float32)} if by_cluster else {}
        found[step.statistic.name] = flow.sum(step, tensors, len(centroids) if by_cluster else 1)
    return found


def rounded(centroids: Floats) -> Floats:
    """Round centroids as phones receive them: to six decimals, in single precision."""
    return np.round(centroids, 6).astype(np.float32).astype(np.float64)


BY_SUMS = Phases(adapt, cluster_by_sums, prefer, plan, deliver, evaluate, collect)
BY_ANSWERS = replace(BY_SUMS, cluster=cluster_by_answers)


def phases_of(config: Config) -> Phases:
    """Return the phases of a configuration: by sums, or by each phone's own answer."""
    return BY_ANSWERS if config.privacy.sums == "local" else BY_SUMS
