"""Run `fedcaptor devices`: Android phones on a cable, from nothing to a private contribution."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fedcaptor.cli.options import AsJson

if TYPE_CHECKING:
    from fedcaptor.deploy.android.bundle import Bundle
    from fedcaptor.deploy.android.install import Installation

app = typer.Typer(help="Android phones on a cable: install the client, enrol, start, measure, remove.")
console = Console(stderr=True)

Serials = Annotated[list[str] | None, typer.Option("-s", "--serial", help="A device's serial; may be repeated.")]
Every = Annotated[bool, typer.Option("--all", help="All devices that are attached.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and change nothing.")]
Folder = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the deployment, on this machine.")]
Cache = Annotated[
    Path | None, typer.Option(help="Where what phones need is built and kept; ~/.cache/fedcaptor/android without it.")
]
Say = Callable[[str], object]


def _say(text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def _build(cache: Path | None) -> Bundle:
    from fedcaptor.deploy.android.bundle import build, default_cache

    return build(cache or default_cache(), _say)


def _on_each(
    serials: list[str] | None,
    every: bool,
    as_json: bool,
    work: Callable[[Installation, Say], dict[str, Any]],
    show: Callable[[list[dict[str, Any]]], object] = lambda results: None,
) -> None:
    """Do something with each chosen device, side by side; one that fails stops no other.

    Prints what came of it: as JSON, or `said` of each, and what `show` makes of those that did not fail. The exit
    status is 1 where one failed, or found an error.
    """
    from fedcaptor.common.errors import FedcaptorError
    from fedcaptor.deploy.android.adb import attached, choose
    from fedcaptor.deploy.android.install import Installation

    devices = choose(attached(), serials or (), every)

    def one(installation: Installation) -> dict[str, Any]:
        serial = installation.device.serial
        try:
            return {"serial": serial, **work(installation, lambda text: _say(f"{serial}: {text}"))}
        except (FedcaptorError, OSError) as error:
            return {"serial": serial, "error": str(error)}

    with ThreadPoolExecutor(len(devices)) as pool:
        results = list(pool.map(one, map(Installation, devices)))
    if as_json:
        print(json.dumps(results))
    else:
        for result in results:
            if "said" in result:
                print(f"{result['serial']}: {result['said']}")
        if good := [result for result in results if "error" not in result]:
            show(good)
    for result in results:
        if "error" in result:
            console.print(f"[red]error:[/red] {escape(result['error'])}", highlight=False, soft_wrap=True)
    if any("error" in result or not result.get("right", True) for result in results):
        raise typer.Exit(1)


def _planned(plan: list[str]) -> dict[str, Any]:
    """What `--dry-run` says of a device."""
    return {"plan": plan, "said": f"would {'; '.join(plan)}" if plan else "nothing to do"}


@app.command("list")
def list_devices(as_json: AsJson = False) -> None:
    """List what adb sees, and what to do about a device that cannot be used."""
    from fedcaptor.deploy.android.adb import attached

    found = attached()
    if as_json:
        print(json.dumps([{**asdict(one), "remedy": one.remedy} for one in found]))
        return
    table = Table("serial", "state", "remedy")
    for one in found:
        table.add_row(one.serial, one.state, one.remedy)
    Console().print(table)


@app.command()
def build(cache: Cache = None, as_json: AsJson = False) -> None:
    """Build what phones need: a Python for arm64, its libraries, this package. What is built already is kept.

    From Debian's packages and the wheels of PyPI; on Debian or Ubuntu, with Python 3.11.
    """
    made = _build(cache)
    if as_json:
        print(json.dumps([asdict(layer) for layer in made.layers]))
        return
    table = Table("layer", "digest", "MiB", "of")
    for layer in made.layers:
        table.add_row(layer.name, layer.digest[:16], f"{layer.size / 2**20:.0f}", f"{len(layer.contents)} packages")
    Console().print(table)


@app.command()
def check(serials: Serials = None, every: Every = False, as_json: AsJson = False) -> None:
    """Look at what a device allows, before anything is on it. The exit status is 1 if anything is an error."""

    def work(installation: Installation, say: Say) -> dict[str, Any]:
        told, found = installation.check(None)
        right = all(one.level != "error" for one in found)
        return {"told": told, "findings": [asdict(one) for one in found], "right": right}

    def show(results: list[dict[str, Any]]) -> None:
        marks = {"ok": "[green]ok[/]", "warning": "[yellow]warning[/]", "error": "[red]error[/]"}
        for result in results:
            table = Table("", "check", "found", "remedy", title=result["serial"])
            for one in result["findings"]:
                table.add_row(marks[one["level"]], one["check"], one["text"], one["remedy"])
            Console().print(table)

    _on_each(serials, every, as_json, work, show)


@app.command()
def push(
    folder: Annotated[Path | None, typer.Argument(metavar="DIR", help="Folder of the deployment to enrol in.")] = None,
    serials: Serials = None,
    every: Every = False,
    name: Annotated[str, typer.Option(help="The phone's name in the deployment; of its key's digest without it.")] = "",
    images: Annotated[
        str, typer.Option(help="Folder of the owner's images on the device, such as /sdcard/DCIM/Camera.")
    ] = "",
    demo: Annotated[bool, typer.Option("--demo", help="Give it embedded images, where it has none.")] = False,
    start: Annotated[bool, typer.Option("--start", help="Start the client too.")] = False,
    cache: Cache = None,
    as_json: AsJson = False,
    dry_run: DryRun = False,
) -> None:
    """Install the client, and enrol the key that the device makes. What is there already is not sent again.

    Without DIR the software alone is installed, enough for `bench`. After a cut cable the same command goes on.
    """
    from fedcaptor.common.errors import ConfigError
    from fedcaptor.deploy.android import plans
    from fedcaptor.deploy.folder import Deployment
    from fedcaptor.deploy.phones import write_demo_images

    if folder is None and (start or demo or name or images):
        raise ConfigError("DIR is not given: the phone of these options is one of a deployment, give its folder")
    if demo and images:
        raise ConfigError("--demo is given with --images: the phone learns from one folder, give one of the two")
    deployment = Deployment.open(folder) if folder else None
    bundle = _build(cache)

    def work(installation: Installation, say: Say) -> dict[str, Any]:
        if dry_run:
            return _planned(plans.of_push(installation, bundle, deployment, name, demo, start))
        sent = installation.push(bundle, say)
        said = f"{sent / 2**20:.0f} MiB sent, all of {bundle.size / 2**20:.0f} is there"
        if deployment is None:
            return {"sent": sent, "said": said}
        enrolled = installation.enrol(deployment, name, images)
        said = f"{said}; enrolled as {enrolled}"
        if demo:
            number = sorted(deployment.enrolled_keys()).index(enrolled)
            with tempfile.TemporaryDirectory() as made:
                write_demo_images(Path(made) / "images", number)
                installation.bring_images(Path(made) / "images")
        if start:
            said = f"{said}; {installation.start(deployment.settings.port)}"
        return {"sent": sent, "name": enrolled, "said": said}

    _on_each(serials, every, as_json, work)


@app.command()
def start(
    folder: Folder, serials: Serials = None, every: Every = False, as_json: AsJson = False, dry_run: DryRun = False
) -> None:
    """Lead the devices to the deployment's front, and start the client on them. A replugged cable needs it again."""
    from fedcaptor.deploy.android import plans
    from fedcaptor.deploy.folder import Deployment

    port = Deployment.open(folder).settings.port

    def work(installation: Installation, say: Say) -> dict[str, Any]:
        return _planned(plans.of_start(installation, port)) if dry_run else {"said": installation.start(port)}

    _on_each(serials, every, as_json, work)


@app.command()
def stop(serials: Serials = None, every: Every = False, as_json: AsJson = False, dry_run: DryRun = False) -> None:
    """Stop the client; what it stored stays."""
    from fedcaptor.deploy.android import plans

    def work(installation: Installation, say: Say) -> dict[str, Any]:
        return _planned(plans.of_stop(installation)) if dry_run else {"said": installation.stop()}

    _on_each(serials, every, as_json, work)


@app.command()
def status(serials: Serials = None, every: Every = False, cache: Cache = None, as_json: AsJson = False) -> None:
    """Show what is installed, whether it is this version, and whether it runs."""
    from fedcaptor.deploy.android.bundle import default_cache, last_built

    bundle = last_built(cache or default_cache())

    def show(results: list[dict[str, Any]]) -> None:
        known = {True: "yes", False: "no", None: "unknown"}
        table = Table("serial", "installed", "newest build", "process", "restarts", "leads here", "MiB")
        for one in results:
            ports = ", ".join(map(str, one.get("ports", ())))
            figures = (
                f"{one.get('running') or ''}",
                f"{one.get('restarts', '')}",
                ports,
                f"{one.get('mebibytes', '')}",
            )
            table.add_row(one["serial"], known[one["installed"]], known[one.get("current")], *figures)
        Console().print(table)

    _on_each(serials, every, as_json, lambda installation, say: installation.status(bundle), show)


@app.command()
def logs(
    serials: Serials = None,
    every: Every = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, help="Newest lines to show.")] = 50,
    as_json: AsJson = False,
) -> None:
    """Show what the client and its service logged."""

    def show(results: list[dict[str, Any]]) -> None:
        for result in results:
            for line in result["log"].splitlines():
                print(f"{result['serial']}: {line}")

    _on_each(serials, every, as_json, lambda installation, say: {"log": installation.logs(lines)}, show)


@app.command()
def bench(
    models: Annotated[list[Path] | None, typer.Argument(help="Programs (.onnx) to measure.")] = None,
    serials: Serials = None,
    every: Every = False,
    threads: Annotated[int, typer.Option(min=1, help="Threads that compute.")] = 1,
    seconds: Annotated[float, typer.Option(min=0, help="Seconds of timing at least; 60 for energy.")] = 1.0,
    data: Annotated[Path | None, typer.Option(help="Labelled images (.npz) for the accuracy.")] = None,
    own: Annotated[bool, typer.Option("--own", help="The phone's own submodel too, which stays there.")] = False,
    as_json: AsJson = False,
) -> None:
    """Measure programs on the devices: latency, memory and, where the device tells them, energy and temperature."""
    from fedcaptor.common.errors import ConfigError
    from fedcaptor.deploy.android.bench import bench as measured

    if not models and not own:
        raise ConfigError("no program is given: name .onnx files, or --own for the phone's submodel")
    columns = (
        ("precision", "precision"),
        ("ms", "latency_ms_median"),
        ("ms, p90", "latency_ms_p90"),
        ("bytes", "peak_rss_bytes"),
        ("J", "energy_joules"),
        ("°C", "temperature_c"),
        ("accuracy", "accuracy"),
    )

    def work(installation: Installation, say: Say) -> dict[str, Any]:
        return {"rows": measured(installation, models or (), say, threads, seconds, data, own)}

    def show(results: list[dict[str, Any]]) -> None:
        rows = [(result["serial"], row) for result in results for row in result["rows"]]
        table = Table("serial", "model", *(title for title, _ in columns))
        for serial, row in rows:
            table.add_row(serial, row["model"], *(_figure(row.get(name)) for _, name in columns))
        Console().print(table)
        for serial, row in rows:
            for note in row.get("notes") or ():
                Console().print(f"{serial}, {row['model']}: {note}", highlight=False, markup=False, soft_wrap=True)

    _on_each(serials, every, as_json, work, show)


def _figure(value: object) -> str:
    return "" if value is None else f"{value:.3g}" if isinstance(value, float) else f"{value}"


@app.command()
def update(
    serials: Serials = None, every: Every = False, cache: Cache = None, as_json: AsJson = False, dry_run: DryRun = False
) -> None:
    """Send what changed since, and start the client anew where it ran. The phone's key and storage stay."""
    from fedcaptor.deploy.android import plans

    bundle = _build(cache)

    def work(installation: Installation, say: Say) -> dict[str, Any]:
        if dry_run:
            return _planned(plans.of_update(installation, bundle))
        sent = installation.update(bundle, say)
        return {"sent": sent, "said": f"{sent / 2**20:.0f} MiB sent" if sent else "is up to date"}

    _on_each(serials, every, as_json, work)


@app.command()
def remove(
    folder: Annotated[
        Path | None, typer.Argument(metavar="DIR", help="Folder of the deployment, to shut the phone out of it too.")
    ] = None,
    serials: Serials = None,
    every: Every = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: AsJson = False,
    dry_run: DryRun = False,
) -> None:
    """Stop the client and delete its folder, with the phone's key, what it stored, and its record of spent privacy."""
    from fedcaptor.deploy.android import plans
    from fedcaptor.deploy.folder import Deployment

    deployment = Deployment.open(folder) if folder else None
    if not yes and not dry_run:
        typer.confirm("Delete the client, its key and all that it stored on the chosen devices?", abort=True, err=True)

    def work(installation: Installation, say: Say) -> dict[str, Any]:
        if dry_run:
            return _planned(plans.of_remove(installation, deployment))
        revoked = installation.remove(deployment)
        return {"revoked": revoked, "said": "removed" + (f"; {revoked} is shut out" if revoked else "")}

    _on_each(serials, every, as_json, work)
