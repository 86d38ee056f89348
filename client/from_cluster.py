"""The personal step of a phone without the full model: its cluster's submodel takes the full one's place."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from fedcaptor.client.personal import Offer, Personalised, personalise
from fedcaptor.common.arrays import Images, Indices
from fedcaptor.common.config import Config
from fedcaptor.common.plan import Plan
from fedcaptor.common.preference import layer_slices
from fedcaptor.common.subgroups import composed, subgroups
from fedcaptor.common.torch_engine.base import BaseModel, Submodel
from fedcaptor.common.torch_engine.factory import limited
from fedcaptor.common.torch_engine.network import state_of
from fedcaptor.common.torch_engine.prune import Evidence


def personalise_from_cluster(
    cluster: Submodel,
    offer: Offer,
    counts: npt.NDArray[np.float64],
    use: Images,
    check: Images,
    config: Config,
    seed: int = 0,
) -> Personalised:
    """`personalise` with the cluster's submodel as the base: channels, classes and agreement are those of it. The
    result speaks of the full model's channels and classes; there is always a submodel.
    """
    inner, labels = _as_base(cluster), cluster.classes
    share = cluster.macs_ratio
    ladder = tuple(ratio / share for ratio in config.personal.ladder if ratio < share)
    config = config.model_copy(update={"personal": config.personal.model_copy(update={"ladder": ladder})})
    found = personalise(inner, _narrowed(offer, cluster, inner), counts[labels], use, check, config, seed)
    # Without an image to refine it on: the network as it is with fewer classes.
    own = found.submodel or limited(inner, found.classes)
    plan = composed(cluster.base.groups, cluster.plan, own.plan)
    prior = np.full(len(counts), found.prior.min())
    prior[labels] = found.prior
    return replace(
        found,
        kind="cluster" if found.submodel is None else found.kind,
        classes=labels[found.classes],
        prior=prior / prior.sum(),
        submodel=Submodel(cluster.base, plan, own.module),
    )


def cluster_submodel(base: BaseModel, offer: Offer, cluster: int, use: Images, config: Config) -> Submodel | None:
    """The submodel of a cluster's plan, merged on the phone on reference images of its classes and the owner's images;
    None where there is no plan or no image.
    """
    if not 0 <= cluster < len(offer.plans):
        return None
    plan = offer.plans[cluster]
    images, classes = use, plan.classes(base.groups)
    if offer.reference is not None and offer.labels is not None:
        images = np.concatenate([use, offer.reference[np.isin(offer.labels, classes)]])
    if len(images) == 0:
        return None
    return Evidence.gather(base, classes, images, rows=config.personal.rows).merged(plan)


def _as_base(cluster: Submodel) -> BaseModel:
    base = cluster.base
    state = state_of(cluster.module)
    return BaseModel(base.name, state, subgroups(base.groups, cluster.plan), base.mean, base.std, cluster.module)


def _narrowed(offer: Offer, cluster: Submodel, inner: BaseModel) -> Offer:
    """The offer in the submodel's own channels and classes; its one plan keeps all of them."""
    labels = cluster.classes
    reference, known, preference = offer.reference, offer.labels, offer.preference
    if reference is not None and known is not None:
        served = np.isin(known, labels)
        reference, known = reference[served], np.searchsorted(labels, known[served])
    if preference is not None:
        preference = preference[_rows(cluster)][:, labels]
    centroids = offer.centroids[:, labels]
    centroids = centroids / np.maximum(centroids.sum(1, keepdims=True), 1e-12)
    everything = Plan.of(inner.groups, {group.name: np.arange(group.channels) for group in inner.groups.groups})
    return Offer([everything], centroids, reference, known, preference)


def _rows(cluster: Submodel) -> Indices:
    """Rows of a matrix [F, …] over all filters that the cluster's submodel has."""
    groups, kept = cluster.base.groups, cluster.plan.kept
    rows = [
        part.start + kept.get(group.name, np.arange(group.channels))
        for group, part in zip(groups.prunable, layer_slices(groups), strict=True)
    ]
    return np.concatenate(rows)
