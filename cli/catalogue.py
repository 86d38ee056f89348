"""Run `fedcaptor catalogue`, by which an operator publishes signed files and serves them to enrolled phones."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Publish signed files (weights, graphs) and serve them to enrolled phones.")

SigningKey = Annotated[
    Path,
    typer.Option(
        "--key", envvar="FEDCAPTOR_SIGNING_KEY", help="The operator's private Ed25519 key, PEM without a password."
    ),
]


@app.command()
def add(
    store: Annotated[Path, typer.Argument(help="The catalogue's folder; made where there is none.")],
    key: SigningKey,
    files: Annotated[list[Path] | None, typer.Argument(help="Files to publish under their names.")] = None,
    remove: Annotated[list[str] | None, typer.Option(help="Name that is no longer published; may be repeated.")] = None,
) -> None:
    """Publish files in place of older ones of their names, and sign the new manifest.

    What the newest manifest and the one before it do not name is deleted from the folder.
    """
    from fedcaptor.common.secure.register import signing_key
    from fedcaptor.server.catalogue.store import Store

    manifest = Store(store).add(files or [], signing_key(key), time.time(), remove or [])
    print(f"manifest {manifest.serial}")
    for entry in manifest.files:
        print(f"{entry.digest}  {entry.name}  {entry.size:,} bytes")


@app.command()
def serve(
    folder: Annotated[Path, typer.Option(help="The catalogue's folder, by `fedcaptor catalogue add`.")],
    keys: Annotated[
        Path, typer.Option(help="Public keys of enrolled phones, an OpenSSH line each; read again when it changes.")
    ],
    host: Annotated[str, typer.Option(help="Address to bind; other ones than loopback need TLS.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535)] = 8001,
    certificate: Annotated[Path | None, typer.Option(help="PEM chain for TLS; none behind a proxy.")] = None,
    key: Annotated[Path | None, typer.Option(help="The certificate's private key, PEM.")] = None,
    metrics_port: Annotated[int, typer.Option(min=0, max=65535, help="Port of metrics, on loopback.")] = 9465,
    most: Annotated[int, typer.Option(min=1, help="Reads at a time; phones beyond that try again later.")] = 256,
) -> None:
    """Serve the newest manifest and its files to enrolled phones until SIGTERM or Ctrl-C."""
    import logging

    from fedcaptor.server.catalogue.process import Settings
    from fedcaptor.server.catalogue.process import serve as run

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    run(Settings(folder, keys, host, port, certificate, key, metrics_port, most))
