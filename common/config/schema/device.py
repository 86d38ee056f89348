"""The section of a real phone: where it finds what it needs, and when it checks in."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from fedcaptor.common.config.schema.base import PHONE, Positive, Section


class DeviceSettings(Section):
    """A real phone, for `fedcaptor phone run`: where it finds what it needs, and when it checks in.

    Paths are relative to the file's folder.
    """

    superlink: Annotated[str, PHONE] = Field(
        "", description="Address of the SuperLink or the proxy before it: `host:port`."
    )
    catalogue: Annotated[str, PHONE] = Field(
        "",
        description="Address of the catalogue of signed files, `host:port`: before it checks in the phone fetches from "
        "there what has the names of its `weights` and `graph`. Empty: it fetches nothing.",
    )
    root_certificates: Annotated[str, PHONE] = Field(
        "",
        description="PEM file of the authorities for the SuperLink's and the catalogue's certificates; "
        "empty = the system's.",
    )
    key: Annotated[str, PHONE] = Field(
        "", description="The node's private key, which the operator registered: ECDSA in OpenSSH's format."
    )
    folder: Annotated[str, PHONE] = Field("", description="The phone's own storage.")
    images: Annotated[str, PHONE] = Field("", description="Folder of the owner's images.")
    weights: Annotated[str, PHONE] = Field("", description="The base model's file.")
    weights_digest: Annotated[str, PHONE] = Field(
        "",
        pattern=r"^([0-9a-f]{64})?$",
        description="The weights' digest, as the server's log has it: the phone does not start with other ones.",
    )
    graph: Annotated[str, PHONE] = Field(
        "", description="The base model's graph, by `fedcaptor export-graph`: the phone then runs without torch."
    )
    batch: Annotated[int, PHONE] = Field(
        16,
        ge=1,
        le=1024,
        description="With a `graph`: images that a network runs on at a time. Memory grows with them, results stay.",
    )
    model: Annotated[str, PHONE] = Field("", description="The base model's name, as in `model.name`.")
    input_shape: Annotated[tuple[int, ...], PHONE] = Field(
        (), max_length=3, description="The base model's input: channels, height, width."
    )
    register_file: Annotated[str, PHONE] = Field(
        "", description="Register of enrolled phones, signed by the operator: this phone adds up with those alone."
    )
    operator: Annotated[str, PHONE] = Field(
        "",
        description="The operator's public Ed25519 key, 64 hex digits or a PEM file. It signs the register, deliveries "
        "and the catalogue's manifest: this phone takes no others.",
    )
    condition: Annotated[str, PHONE] = Field(
        "",
        description="Command of which exit status 0 allows to check in, such as one that tests for charging and Wi-Fi.",
    )
    condition_seconds: Annotated[Positive, PHONE] = Field(60.0, description="Seconds between two runs of `condition`.")
    poll_seconds: Annotated[Positive, PHONE] = Field(
        3.0, le=86_400, description="Most seconds between two looks for messages; after a message the next is sooner."
    )
    rest_seconds: Annotated[float, PHONE] = Field(
        300.0,
        ge=0,
        le=86_400,
        description="Seconds without a message after which the process becomes a smaller one, a third of the memory, "
        "until there is one; 0 = never.",
    )
    spread_seconds: Annotated[float, PHONE] = Field(
        0.0,
        ge=0,
        le=86_400,
        description="Random delay before the first check-in, at most, so that phones do not come at once.",
    )
