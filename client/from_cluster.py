"""Do the personal step on a phone without the full model: its cluster's submodel takes the full one's place."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from fedcaptor.client.engine import Engine, Submodel
from fedcaptor.client.images import spread
from fedcaptor.client.offer import Offer
from fedcaptor.client.personal import Personalised, personalise
from fedcaptor.common.arrays import Images, Indices
from fedcaptor.common.config import Config
from fedcaptor.common.groups import ChannelGroups
from fedcaptor.common.plan import Plan
from fedcaptor.common.preference import layer_slices
from fedcaptor.common.subgroups import composed


def personalise_from_cluster(
    engine: Engine,
    cluster: Submodel,
    offer: Offer,
    memory: npt.NDArray[np.float64],
    use: Images,
    check: Images,
    config: Config,
    seed: int = 0,
    corrections: npt.NDArray[np.integer] | None = None,
) -> Personalised:
    """Personalise with the cluster's submodel as the base: agreement is measured with it.

    The result is in terms of the full model's channels and classes; there is always a submodel.
    """
    inner, labels = engine.within(cluster), cluster.classes
    share = cluster.macs_ratio
    ladder = tuple(ratio / share for ratio in config.personal.ladder if ratio < share)
    config = config.model_copy(update={"personal": config.personal.model_copy(update={"ladder": ladder})})
    if corrections is not None:
        known = np.isin(corrections, labels)
        corrections = np.where(known, np.searchsorted(labels, np.where(known, corrections, labels[0])), -1)
    found = personalise(
        inner,
        _narrowed(offer, cluster, engine.groups, inner.groups),
        memory[labels],
        use,
        check,
        config,
        seed,
        corrections,
    )
    # Without an image to refine it on: the network as it is with fewer classes.
    own = found.submodel or inner.restricted(found.classes)
    plan = composed(engine.groups, cluster.plan, own.plan)
    prior = np.full(len(memory), found.prior.min())
    prior[labels] = found.prior
    return replace(
        found,
        kind="cluster" if found.submodel is None else found.kind,
        classes=labels[found.classes],
        prior=prior / prior.sum(),
        submodel=engine.widened(own, plan),
    )


def cluster_submodel(engine: Engine, offer: Offer, cluster: int, use: Images, config: Config) -> Submodel | None:
    """Build the submodel of a cluster's plan on the phone; None where there is no plan or no image.

    Its weights are reconstructed on the owner's images and on reference images of its classes.
    """
    if not 0 <= cluster < len(offer.plans):
        return None
    plan = offer.plans[cluster]
    images, classes = use, plan.classes(engine.groups)
    if offer.reference is not None and offer.labels is not None:
        images = np.concatenate([use, offer.reference[np.isin(offer.labels, classes)]])
    if len(images) == 0:
        return None
    images = spread(images, config.personal.images)
    return engine.observe(classes, images, rows=config.personal.rows).build(plan)


def _narrowed(offer: Offer, cluster: Submodel, groups: ChannelGroups, inner: ChannelGroups) -> Offer:
    """Translate the offer to the submodel's own channels and classes; its one plan keeps all of them."""
    labels = cluster.classes
    reference, known, preference = offer.reference, offer.labels, offer.preference
    if reference is not None and known is not None:
        served = np.isin(known, labels)
        reference, known = reference[served], np.searchsorted(labels, known[served])
    if preference is not None:
        preference = preference[_rows(groups, cluster.plan)][:, labels]
    centroids = offer.centroids[:, labels]
    centroids = centroids / np.maximum(centroids.sum(1, keepdims=True), 1e-12)
    everything = Plan.of(inner, {group.name: np.arange(group.channels) for group in inner.groups})
    calibration = None if offer.calibration is None else offer.calibration.of(labels)
    return Offer([everything], centroids, reference, known, preference, calibration, mixed=offer.mixed)


def _rows(groups: ChannelGroups, plan: Plan) -> Indices:
    """Return the rows of a matrix [F, …] over all filters that `plan` keeps."""
    rows = [
        part.start + plan.kept.get(group.name, np.arange(group.channels))
        for group, part in zip(groups.prunable, layer_slices(groups), strict=True)
    ]
    return np.concatenate(rows)
