"""Run `fedcaptor phone`, by which the owner of a phone sees what it stores and decides what it answers."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from fedcaptor.cli.options import AsJson, formerly

app = typer.Typer(help="For the owner of a phone: what was spent and what is stored; switch off, on, erase.")

Folder = Annotated[Path, typer.Argument(help="The phone's own folder, as in its node configuration.")]
Command = formerly("--folder")
Settings = Annotated[
    Path | None, typer.Option("--config", help="TOML file with what the phone insists on; defaults without it.")
]


@app.command()
def run(
    config: Annotated[Path, typer.Option("--config", help="The phone's file, with a section [device].")],
    once: Annotated[
        bool, typer.Option("--once", help="Check in once, and end when no message came for 30 seconds.")
    ] = False,
) -> None:
    """Answer the SuperLink's questions from one resident process, until it is stopped (Ctrl-C or SIGTERM).

    Code that comes with a run is ignored. What happens is on standard error and in the phone's folder (`phone log`).
    """
    import logging
    import signal
    from logging.handlers import RotatingFileHandler

    from fedcaptor.client.device import Device
    from fedcaptor.client.folder import LOG_FILE
    from fedcaptor.client.resident import Resident
    from fedcaptor.client.resting import ENDING, woken
    from fedcaptor.common.files import make_folder

    device = Device.of_file(config)
    make_folder(device.folder)
    (device.folder / LOG_FILE).touch(0o600)
    handlers: list[logging.Handler] = [
        logging.StreamHandler(),
        RotatingFileHandler(device.folder / LOG_FILE, maxBytes=1 << 20, backupCount=1),
    ]
    for handler in handlers:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logging.getLogger("fedcaptor").addHandler(handler)
    logging.getLogger("fedcaptor").setLevel(logging.INFO)
    rest = woken()
    resident = Resident(
        device, once=30.0 if once else None, rests=not once and (rest is None or rest.worked), woken=rest
    )
    for number in ENDING:
        signal.signal(number, lambda *_: resident.stop.set())
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
    resident.run()


@app.command()
def enrol(
    config: Annotated[Path, typer.Option("--config", help="The phone's file, with a section [device].")],
    token: Annotated[
        str, typer.Option(prompt=True, hide_input=True, help="What the operator gave this phone; asked for without it.")
    ],
) -> None:
    """Enrol this phone by the operator's token; its key is made here, where there is none."""
    from fedcaptor.client.enrol import enrol

    enrol(config, token.strip())
    print("enrolled: start it by `fedcaptor phone run`")


@app.command()
def key(
    file: Annotated[Path, typer.Argument(help="The private key's file, `device.key` in phone.toml.")],
) -> None:
    """Make the phone's key, unless there is one, and print its public half, by which an operator enrols the phone."""
    from fedcaptor.client.node_key import make_node_key, node_key, public_line

    if not file.exists():
        make_node_key(file, file.with_name(f"{file.name}.pub"))
    print(public_line(node_key(file)).decode(), end="")


@app.command()
def fetch(
    config: Annotated[Path, typer.Option("--config", help="The phone's file, with `device.catalogue`.")],
) -> None:
    """Fetch the phone's weights and graph from the operator's catalogue, where it has newer ones.

    A download that was cut goes on where it was. `phone run` does the same before it checks in.
    """
    import logging

    from fedcaptor.client.fetch import fetch as bring

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for one in bring(config):
        print(f"{one.target}: {one.size:,} bytes, {one.received:,} of them over the network")


@app.command(cls=Command)
def log(
    folder: Folder, lines: Annotated[int, typer.Option("--lines", min=1, help="Newest lines to show.")] = 50
) -> None:
    """Show what the resident process did, and why its own work failed the last time, if it did."""
    from fedcaptor.client.folder import LOG_FILE, WORK_LOG

    for name in (LOG_FILE, WORK_LOG):
        text = (folder / name).read_text(errors="replace") if (folder / name).is_file() else ""
        for line in text.splitlines()[-lines:]:
            print(line)


@app.command(cls=Command)
def status(folder: Folder, config: Settings = None, as_json: AsJson = False) -> None:
    """Show the privacy spent in the period, its budget, and the size of what is stored.

    Towards a server that cheats the same answers spend more: at most what is shown for it.
    """
    from fedcaptor.client import folder as phone
    from fedcaptor.common.config import load_config

    found = phone.status(folder, load_config(config).privacy)
    if as_json:
        print(json.dumps({key: _finite(value) for key, value in asdict(found).items()}))
        return
    table = Table("", "", show_header=False, title=f"phone in {folder}")
    table.add_row("answers", "on" if found.answering else "off: every request is declined")
    table.add_row(f"ε spent in {found.period_days} days", f"{found.epsilon:.3g} (δ = {found.delta:g})")
    table.add_row("… if the server cheats", f"{found.epsilon_server:.3g} at most")
    table.add_row("budget", f"{found.budget:.3g}" if math.isfinite(found.budget) else "no limit")
    kinds = ", ".join(f"{kind} {count}" for kind, count in found.answers.items())
    table.add_row("answers in the period", f"{sum(found.answers.values())}" + (f" ({kinds})" if kinds else ""))
    if found.named:
        table.add_row("own cluster named in the period", f"{found.named} times")
    for name, size in found.stored.items():
        table.add_row(name, f"{size:,} bytes: {phone.CONTENTS[name]}")
    Console().print(table)


@app.command(cls=Command)
def off(folder: Folder, config: Settings = None) -> None:
    """Decline every request from now on; the server learns `declined`, as when the budget is spent.

    A phone that has not answered yet can be switched off too: a missing or empty folder becomes its own.
    """
    _switch(folder, config, False)


@app.command(cls=Command)
def on(folder: Folder, config: Settings = None) -> None:
    """Answer again, within the budget."""
    _switch(folder, config, True)


@app.command(cls=Command)
def identity(folder: Folder, config: Settings = None) -> None:
    """Print the phone's public identity, by which an operator enrolls it; a new phone's is made.

    Erasing the phone ends this identity: enroll it again afterwards.
    """
    from fedcaptor.client.folder import open_ledger
    from fedcaptor.client.identity import identity as key_in
    from fedcaptor.common.config import load_config
    from fedcaptor.common.secure.keys import identity_of

    with open_ledger(folder, load_config(config).privacy, make=True):
        print(identity_of(key_in(folder)).hex())


@app.command(cls=Command)
def erase(
    folder: Folder,
    config: Settings = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Erase usage, kept answers, own classes and submodels. Charges stay: erasing refunds nothing.

    Stop the phone's app first, or it may write its files again.
    """
    from fedcaptor.client import folder as phone
    from fedcaptor.common.config import load_config

    privacy = load_config(config).privacy
    phone.status(folder, privacy)  # asks nothing about a folder that is no phone's
    if not yes:
        question = f"Erase what the phone in {folder} knows of its owner? No privacy is refunded."
        typer.confirm(question, abort=True, err=True)
    erased = phone.erase(folder, privacy)
    if as_json:
        print(json.dumps({"deleted": erased, "charges_kept": True}))
        return
    files = ", ".join([f"{phone.DATABASE} emptied (charges stay)", *(f"{name} deleted" for name in erased)])
    Console().print(files, highlight=False)


def _switch(folder: Path, config: Path | None, answering: bool) -> None:
    from fedcaptor.client.folder import open_ledger
    from fedcaptor.common.config import load_config

    new = not folder.is_dir() or not any(folder.iterdir())
    with open_ledger(folder, load_config(config).privacy, make=not answering) as ledger:
        ledger.on() if answering else ledger.off()
    made = f": {folder} was empty, it must be the `folder` of the node's configuration" if new else ""
    Console().print(f"answers are {'on' if answering else 'off'}{made}", highlight=False, soft_wrap=True)


def _finite(value: object) -> object:
    return None if isinstance(value, float) and math.isinf(value) else value
