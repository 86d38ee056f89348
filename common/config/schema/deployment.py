"""The section of a deployment: where its services listen, what they allow, and how phones reach them."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from fedcaptor.common.config.schema.base import DEPLOYMENT, Section

Port = Annotated[int, Field(ge=1, le=65_535)]


class DeploymentSettings(Section):
    """A deployment on a server's machine, for `fedcaptor deploy`. All but the front listen on loopback alone."""

    host: Annotated[str, DEPLOYMENT] = Field(
        "localhost",
        pattern=r"^[A-Za-z0-9]([A-Za-z0-9.:-]*[A-Za-z0-9])?$",
        description="Name or IP address by which phones reach the front; the server's certificate is for it.",
    )
    bind: Annotated[str, DEPLOYMENT] = Field(
        "127.0.0.1", pattern=r"^[0-9A-Fa-f.:]+$", description="IP address that the front listens on."
    )
    port: Annotated[Port, DEPLOYMENT] = Field(8443, description="Port of the front, the one that phones see.")
    superlink_port: Annotated[Port, DEPLOYMENT] = Field(8000, description="Port of Flower's SuperLink.")
    catalogue_port: Annotated[Port, DEPLOYMENT] = Field(8001, description="Port of the catalogue of signed files.")
    catalogue_metrics_port: Annotated[Port, DEPLOYMENT] = Field(9465, description="Port of the catalogue's metrics.")
    enrolment_port: Annotated[Port, DEPLOYMENT] = Field(8002, description="Port of enrolment by tokens.")
    exporter_port: Annotated[Port, DEPLOYMENT] = Field(9464, description="Port of the runs' metrics.")
    prometheus_port: Annotated[Port, DEPLOYMENT] = Field(9090, description="Port of Prometheus.")
    alertmanager_port: Annotated[Port, DEPLOYMENT] = Field(9093, description="Port of Alertmanager.")
    phones: Annotated[int, DEPLOYMENT] = Field(1, ge=1, description="A round begins when so many phones are connected.")
    local_phones: Annotated[bool, DEPLOYMENT] = Field(
        False, description="Run the deployment's phones on this machine too, as `deploy init --demo` does."
    )
    max_body: Annotated[int, DEPLOYMENT] = Field(
        8 << 20, ge=1 << 20, description="Most bytes of a phone's request; Flower cuts arrays into parts of 5 MB."
    )
    requests_per_second: Annotated[int, DEPLOYMENT] = Field(
        200, ge=1, description="Most requests of one address in a second; phones behind one router share an address."
    )
    connections: Annotated[int, DEPLOYMENT] = Field(200, ge=1, description="Most connections of one address at a time.")
    enrolment: Annotated[bool, DEPLOYMENT] = Field(
        False, description="Let phones enrol themselves by tokens, which `deploy token` makes."
    )
    every_days: Annotated[float, DEPLOYMENT] = Field(
        0.0,
        ge=0,
        le=365,
        description="`deploy up` starts a round so many days after the last one ended; 0 = `deploy run` alone does.",
    )
    restarts: Annotated[int, DEPLOYMENT] = Field(
        5, ge=0, description="How often `deploy run` starts a run again whose process was killed."
    )
