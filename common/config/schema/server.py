"""Sections of what the server works out: filter scores, pictures of filters, clusters, plans."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from fedcaptor.common.config.schema.base import PHONE, SERVER, SIMULATION, Ratio, Section, Share, one_of


class Scores(Section):
    enabled: Annotated[bool, SERVER] = Field(
        True, description="Collect Taylor scores of filters by class in one private sum."
    )
    clusters_per_layer: Annotated[int, SERVER] = Field(
        8,
        ge=1,
        le=65536,
        description="Filter clusters a layer, by which scores are pooled; as many as filters or more: each alone.",
    )
    weight: Annotated[Share, SERVER, PHONE] = Field(
        0.1, description="Exponent of the preference in the cost of removing a filter; 0 = ignore it."
    )
    measured: Annotated[Share, SERVER] = Field(
        0.5, description="Weight of the phones' scores against feature visualisation."
    )
    images: Annotated[int, PHONE] = Field(48, ge=1, description="Most images that a phone scores its filters with.")
    shrink: Annotated[float, SERVER] = Field(
        20.0, ge=0, description="Phones of a class at which their scores count half of `measured`."
    )


class Visualise(Section):
    enabled: Annotated[bool, SERVER] = Field(
        True, description="Feature visualisation of every filter, on the server, without user data."
    )
    steps: Annotated[int, SERVER] = Field(10, ge=1, le=10_000, description="Ascent steps a picture.")


class Clusters(Section):
    method: Annotated[str, one_of("kmeans", "topics"), SERVER] = Field(
        "kmeans",
        description="How phones are clustered by noisy sums: `kmeans`, each in one cluster; `topics`, each a mixture "
        "of several, for networks with many classes; or your own, `package.module:object`.",
    )
    k: Annotated[int, SERVER] = Field(0, ge=0, le=32, description="Clusters or topics; 0 = chosen, see `most`.")
    alike: Annotated[float, SERVER] = Field(
        0.05, ge=0, le=1, description="Centroids closer than this (bits) merge where `k` is 0."
    )
    most: Annotated[int, SERVER] = Field(
        8, ge=1, le=32, description="Clusters to begin with where `k` is 0; small and alike ones merge."
    )
    iterations: Annotated[int, SERVER] = Field(
        2, ge=1, le=8, description="Private iterations in the first round; later rounds take one. Topics want six."
    )


class Domain(Section):
    """How phones' photos look, where that differs from the images that the network was trained on."""

    enabled: Annotated[bool, SERVER, PHONE, SIMULATION] = Field(
        False,
        description="Learn how phones' photos look, in private sums, and adapt batch norms, plans and reference images "
        "to it. It costs a part of the budget, and brings nothing where photos look like the training images.",
    )
    looks: Annotated[int, SERVER] = Field(4, ge=1, le=8, description="Most looks that are told apart.")
    iterations: Annotated[int, SERVER] = Field(
        3, ge=1, le=10, description="Private k-means iterations over looks; with one look there is one."
    )
    moments: Annotated[bool, SERVER] = Field(
        False,
        description="Correct the batch norms by one sum of phones' own statistics, as far as it stands out of its "
        "noise. Beside the looks it was seen to bring one point or nothing, with thousands of phones.",
    )
    alone: Annotated[bool, PHONE, SIMULATION] = Field(
        True,
        description="Where the server publishes no looks, adapt to the look of the phone's own photos if that is not "
        "the look of the delivered reference images: no sum is needed, and usage is counted by the model as it was "
        "shipped until then.",
    )
    images: Annotated[int, PHONE] = Field(64, ge=2, description="Most images that a phone measures its look on.")


class Planner(Section):
    macs: Annotated[Ratio, SERVER] = Field(
        0.3, description="MACs of a cluster's submodel over those of the full model; the fewest, with a `tolerance`."
    )
    multiple: Annotated[int, SERVER, PHONE] = Field(8, ge=1, description="Kept channels are multiples of this.")
    tolerance: Annotated[Share, SERVER] = Field(
        0.04,
        description="Disagreement with the full model that is accepted, on a validation set of a third of `images`: "
        "the cluster's submodel has the smallest MACs ratio from `macs` on that is within it; 0 = off.",
    )
    images: Annotated[int, SERVER] = Field(
        600, ge=1, description="Reference images that the server plans each cluster with."
    )
    coverage: Annotated[Ratio, SERVER] = Field(
        0.98, description="A cluster's submodel serves its most used classes up to this share."
    )
    by_usage: Annotated[bool, SERVER] = Field(
        True, description="Plan for the classes that a cluster uses, as it uses them; false: for all classes alike."
    )
