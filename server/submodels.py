"""Deliver submodels: every phone names its cluster and is sent the file of this cluster.

All phones are asked, drifted or not. Files are padded to few sizes: whoever sees only the size of a message learns less
than the server does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal

from fedcaptor.common.arrays import Tensors
from fedcaptor.common.groups import State
from fedcaptor.common.messages import DeliverRequest, digest_of
from fedcaptor.common.plan import Plan
from fedcaptor.common.submodel_file import digest, encode
from fedcaptor.server.collect import Courier, Delivery, Tally

Mode = Literal["choose", "submodel"]


def deliver_submodels(
    courier: Courier,
    offer: DeliverRequest,
    tensors: Tensors,
    plans: Sequence[Plan],
    states: Sequence[State],
    nodes: Sequence[int],
) -> Tally:
    """Deliver submodels in two steps, in place of the delivery of all plans that `offer` with `tensors` would be.

    Which node named which cluster is forgotten on return: a restart asks again.
    """
    centroids = {"centroids": tensors["centroids"]}
    choose = _request(courier, offer, "choose", centroids, {})
    named, asked = courier.deliver(choose, centroids, nodes)
    shared = {name: tensor for name, tensor in tensors.items() if not name.startswith("plan.")}
    deliveries = []
    for cluster, (plan, state) in enumerate(zip(plans, states, strict=True)):
        there = [node for node, chosen in named.items() if chosen == cluster]
        if not there:
            continue
        file = encode(state)
        sent = shared | {f"plan.{cluster}": tensors[f"plan.{cluster}"], f"submodel.{cluster}": file}
        request = _request(courier, offer, "submodel", sent, {cluster: digest(plan, file)})
        deliveries.append(Delivery(request, sent, there))
    asked.refused += Counter({"malformed": sum(cluster >= len(plans) for cluster in named.values())})
    _, sent_tally = courier.deliver_each(deliveries)
    return asked + sent_tally


def _request(
    courier: Courier, offer: DeliverRequest, mode: Mode, tensors: Tensors, digests: Mapping[int, str]
) -> DeliverRequest:
    return DeliverRequest(
        run=offer.run,
        round=offer.round,
        request=courier.request_id(str(offer.round), mode, digest_of(tensors)),
        mode=mode,
        weights=offer.weights,
        clusters=tuple(digests),
        digests=tuple(digests.values()),
        issued=offer.issued,
    )
