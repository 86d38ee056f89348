"""Run `fedcaptor exporter`, `config` and `messages`: they serve a run's metrics and print reference pages."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

app = typer.Typer()


class Participant(StrEnum):
    """Choose whose file is written."""

    phone = "phone"


@app.command()
def exporter(
    directory: Annotated[Path, typer.Argument(help="Folder of a run, or one with a folder for each run.")],
    host: Annotated[str, typer.Option(help="Address to bind; loopback unless you mean it.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535)] = 9464,
    tls_certificate: Annotated[Path | None, typer.Option(help="Serve by TLS with this certificate (PEM).")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="The certificate's private key (PEM).")] = None,
    password: Annotated[Path | None, typer.Option(help="File with the user:password to ask for.")] = None,
    certificate: Annotated[
        list[Path] | None, typer.Option(help="Export when this certificate (PEM) expires; may be repeated.")
    ] = None,
) -> None:
    """Serve aggregate figures of runs to Prometheus until interrupted."""
    from fedcaptor.server.exporter import Access, start_exporter

    access = Access(tls_certificate, tls_key, password)
    with start_exporter(directory, host, port, access, certificate or ()) as serving:
        Console(stderr=True).print(f"metrics: {serving.url}", highlight=False)
        serving.wait()


@app.command()
def dashboards(
    out: Annotated[Path, typer.Argument(help="Folder to write to.")],
    prometheus: Annotated[
        str | None, typer.Option(metavar="URL", help="Write pages with the figures of this Prometheus instead.")
    ] = None,
    hours: Annotated[float, typer.Option(min=0.01, max=8760, help="How far back the pages go.")] = 24.0,
) -> None:
    """Write the dashboards: as Grafana's JSON, or as pages of what a Prometheus has now."""
    if prometheus is None:
        from fedcaptor.server.grafana import write_dashboards

        written = write_dashboards(out)
    else:
        from fedcaptor.simulations.report.board_page import Prometheus, write_board_pages

        written = write_board_pages(out, Prometheus(prometheus), hours)
    for path in written:
        print(path)


@app.command()
def config(
    scenario: Annotated[Path | None, typer.Argument(help="Check this TOML file and print all its values.")] = None,
    reference: Annotated[bool, typer.Option("--reference", help="Print the reference page of all keys.")] = False,
    reader: Annotated[Participant | None, typer.Option("--for", help="Print this one's file, in TOML.")] = None,
) -> None:
    """Check a scenario, print what can be configured, or the part of a scenario that a phone reads."""
    from fedcaptor.common.config import load_config, phone_config, reference_page

    if reader is not None:
        print(phone_config(load_config(scenario)), end="")
        return
    print(reference_page() if reference else load_config(scenario).model_dump_json(indent=1) + "\n", end="")


@app.command()
def messages() -> None:
    """Print the reference page of the messages between server and phones."""
    from fedcaptor.common.messages_page import reference_page

    print(reference_page(), end="")
