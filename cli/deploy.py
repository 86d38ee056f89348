"""Run `fedcaptor deploy`: make a deployment, start and stop its services, follow its runs, and let phones in."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from fedcaptor.cli.options import AsJson, Overrides

app = typer.Typer(help="A deployment on this server: its services, its runs, its phones.")
console = Console(stderr=True)

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the deployment.")]


def _say(text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)


@app.command()
def init(
    folder: Folder,
    phones: Annotated[int, typer.Option(min=1, help="Phones that there are; a round begins when all are connected.")],
    host: Annotated[str, typer.Option(help="Name or IP address by which phones reach this server.")] = "localhost",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port that phones see.")] = 8443,
    bind: Annotated[str, typer.Option(help="IP address to listen on; loopback or all, by --host.")] = "",
    scenario: Annotated[Path | None, typer.Option("--config", help="TOML file with the run's settings.")] = None,
    overrides: Overrides = None,
    weights: Annotated[Path | None, typer.Option(help="Base model, by `fedcaptor train`.")] = None,
    certificate: Annotated[Path | None, typer.Option(help="Your own certificate for the host, with chain.")] = None,
    certificate_key: Annotated[Path | None, typer.Option(help="Its private key.")] = None,
    roots: Annotated[Path | None, typer.Option(help="The authorities that issued it.")] = None,
    keys: Annotated[bool, typer.Option(help="Make a key and a folder for each phone here.")] = True,
    demo: Annotated[bool, typer.Option("--demo", help="Run the phones on this machine, with embedded images.")] = False,
) -> None:
    """Make a deployment: certificates, keys, the phones' folders, and the configuration of every service.

    Everything comes from DIR/deployment.toml, which you may change. A number of phones that cannot keep the promise of
    privacy is refused.
    """
    from fedcaptor.deploy.create import Wanted, create

    wanted = Wanted(
        phones,
        host,
        bind,
        port,
        scenario,
        tuple(overrides or ()),
        weights,
        certificate,
        certificate_key,
        roots,
        keys,
        demo,
        _say,
    )
    made = create(folder, wanted)
    if demo:
        _say("a demonstration: so few phones cannot hide one another, noise is off")
    elif keys:
        _say(f"copy each folder in {made.phones} to its phone; {made.secrets} stays here")
    _say(f"next: fedcaptor deploy up {folder}")


@app.command()
def up(folder: Folder) -> None:
    """Start all services that do not run, and wait until they are ready."""
    from fedcaptor.deploy.folder import Deployment
    from fedcaptor.deploy.processes import up

    deployment = Deployment.open(folder)
    up(deployment, _say)
    _say(f"phones connect to https://{deployment.settings.host}:{deployment.settings.port}")


@app.command()
def down(folder: Folder) -> None:
    """Stop all services and runs; what they stored stays."""
    from fedcaptor.deploy.folder import Deployment
    from fedcaptor.deploy.processes import down

    down(Deployment.open(folder), _say)
    _say("nothing runs")


@app.command()
def status(folder: Folder, as_json: AsJson = False) -> None:
    """Show services, phones and the newest run. The exit status is 0 only if all that is installed runs."""
    from fedcaptor.deploy.folder import Deployment
    from fedcaptor.deploy.overview import overview

    found = overview(Deployment.open(folder))
    if as_json:
        print(json.dumps(asdict(found)))
    else:
        table = Table("service", "", "state", "pid", "since")
        for service in found.services:
            since = f"{service.since:,.0f} s" if service.since else ""
            table.add_row(
                service.name, service.about, f"{service.state} {service.note}".strip(), f"{service.pid or ''}", since
            )
        Console().print(table)
        Console().print(f"phones: {found.online} online of {found.enrolled} enrolled", highlight=False)
        Console().print(_of_run(found.run), highlight=False)
    raise typer.Exit(0 if found.healthy else 1)


def _of_run(run: dict[str, Any]) -> str:
    if not run:
        return "run: none yet"
    figure = run["fleet"]["macs_ratio"]
    macs = f", MACs {figure['value']:.1%} ± {figure['stddev']:.1%} of the full model's" if figure else ""
    moved = sum(look["moved"] for look in run["looks"])
    looks = f", looks of photos: {len(run['looks'])}, adapted to: {moved}" if run["looks"] else ""
    epsilon = "without noise" if run["epsilon"] is None else f"ε = {run['epsilon']:.3g}"
    why = f" ({run['error']})" if run["error"] else ""
    begin = f"run: {run['name']} {run['status']}{why}, round {run['round']} with {run['phones']} phones"
    return f"{begin}, {epsilon}{macs}{looks}"


@app.command()
def run(
    folder: Folder,
    name: Annotated[str, typer.Option(help="Name of the run; an unfinished one goes on, else the next number.")] = "",
    rounds: Annotated[
        int, typer.Option(min=0, help="At most so many rounds now; 0 = all that are left, one of a run without end.")
    ] = 0,
    every: Annotated[
        float | None, typer.Option(min=0.001, help="Days from the end of a round to the next, for ever.")
    ] = None,
) -> None:
    """Start a run or go on with it, and follow it to its end. The exit status is 0 only if it completed.

    Ctrl-C leaves the run to itself: the same command follows it again.
    """
    from fedcaptor.deploy.folder import Deployment
    from fedcaptor.deploy.runs import next_name, run, run_on_schedule

    deployment = Deployment.open(folder)
    if every is not None:
        run_on_schedule(deployment, every, _say)
    name = name or next_name(deployment)
    _say(f"run {name}")
    run(deployment, name, _say, rounds)
    _say(f"run {name} completed; its figures are in {deployment.runs / name}")


@app.command()
def check(folder: Folder, as_json: AsJson = False) -> None:
    """Look for what is wrong, with remedies. The exit status is 1 if anything is an error."""
    from fedcaptor.deploy.check import check
    from fedcaptor.deploy.folder import Deployment

    found = check(Deployment.open(folder))
    if as_json:
        print(json.dumps([asdict(finding) for finding in found]))
    else:
        table = Table("", "check", "found", "remedy")
        marks = {"ok": "[green]ok[/]", "warning": "[yellow]warning[/]", "error": "[red]error[/]"}
        for finding in found:
            table.add_row(marks[finding.level], finding.check, finding.text, finding.remedy)
        Console().print(table)
    raise typer.Exit(any(finding.level == "error" for finding in found))


@app.command()
def dashboard(
    folder: Folder,
    out: Annotated[Path | None, typer.Option(help="Folder for the pages; DIR/dashboards without it.")] = None,
    hours: Annotated[float, typer.Option(min=0.01, max=8760, help="How far back they go.")] = 24.0,
) -> None:
    """Write the dashboards as pages, with the figures that the deployment's Prometheus has now."""
    from fedcaptor.deploy.folder import Deployment
    from fedcaptor.simulations.report.board_page import Prometheus, write_board_pages

    deployment = Deployment.open(folder)
    prometheus = Prometheus(f"http://127.0.0.1:{deployment.settings.prometheus_port}")
    for page in write_board_pages(out or deployment.root / "dashboards", prometheus, hours):
        print(page)


@app.command()
def backup(
    folder: Folder,
    file: Annotated[Path, typer.Argument(help="File to write; it holds the private keys, so keep it as these.")],
) -> None:
    """Copy the deployment to one file, while it runs: description, keys, model, phones, databases."""
    from fedcaptor.deploy.archive import backup
    from fedcaptor.deploy.folder import Deployment

    backup(Deployment.open(folder), file)
    _say(f"{file} holds private keys: keep it where {folder} could be kept")


@app.command()
def restore(file: Annotated[Path, typer.Argument(help="File that `backup` wrote.")], folder: Folder) -> None:
    """Make a deployment of a backup, in a folder that does not exist; the old one must not run any more."""
    from fedcaptor.deploy.archive import restore

    restore(file, folder)
    _say(f"next: fedcaptor deploy up {folder}")


@app.command()
def logs(
    folder: Folder,
    service: Annotated[str, typer.Argument(help="One service; all without it.")] = "",
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, help="Newest lines to show.")] = 30,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until interrupted.")] = False,
) -> None:
    """Show what services logged."""
    from fedcaptor.common.errors import ConfigError
    from fedcaptor.deploy.folder import Deployment
    from fedcaptor.deploy.processes import log_files

    files = log_files(Deployment.open(folder))
    if service and service not in files:
        raise ConfigError(f"no log of {service!r}: there are {', '.join(files) or 'none yet'}")
    shown = {name: path for name, path in files.items() if service in ("", name)}
    ends = {}

    def show(name: str, lines: list[str]) -> None:
        for line in lines:
            print(line if service else f"{name}: {line}")

    for name, path in shown.items():
        text = path.read_text(errors="replace")
        ends[name] = path.stat().st_size
        show(name, text.splitlines()[-lines:])
    while follow:
        sys.stdout.flush()
        time.sleep(0.5)
        for name, path in shown.items():
            if path.stat().st_size < ends[name]:
                ends[name] = 0  # it was rotated
            with path.open("rb") as file:
                file.seek(ends[name])
                new = file.read()
            ends[name] += len(new)
            show(name, new.decode(errors="replace").splitlines())


@app.command()
def renew(folder: Folder) -> None:
    """Issue the services' certificate anew, for the host in DIR/deployment.toml; phones need nothing new."""
    from fedcaptor.deploy.create import issue_certificate
    from fedcaptor.deploy.folder import Deployment

    issue_certificate(Deployment.open(folder))
    _say(f"the certificate is new; put it into effect by: fedcaptor deploy down {folder}, then up")


@app.command()
def phones(folder: Folder) -> None:
    """Write the phones' folders anew, after a change of DIR/deployment.toml or of the model; keys stay."""
    from fedcaptor.deploy.folder import Deployment
    from fedcaptor.deploy.phones import write_phone

    deployment = Deployment.open(folder)
    for phone in deployment.phone_folders():
        write_phone(deployment, phone.name)
    _say(f"copy each folder in {deployment.phones} to its phone again")


@app.command()
def enrol(
    folder: Folder,
    name: Annotated[str, typer.Argument(help="Name for the phone; it stays on this server.")],
    key: Annotated[Path, typer.Argument(help="Its public key, which the phone made: `ssh-keygen -t ecdsa -b 384`.")],
) -> None:
    """Let a phone in by its public key, at once where the deployment runs, and write the files that it needs."""
    from fedcaptor.deploy import enrolment
    from fedcaptor.deploy.folder import Deployment

    deployment = Deployment.open(folder)
    made = enrolment.enrol(deployment, name, key)
    _say(f"{name} is enrolled; copy {made} to it")


@app.command()
def token(
    folder: Folder,
    name: Annotated[str, typer.Argument(help="Name for the phone; it stays on this server.")],
    days: Annotated[float, typer.Option(min=0.01, max=90, help="Days for which it serves.")] = 7.0,
) -> None:
    """Print a token by which one phone may enrol itself, once, and write the files that it needs.

    It is printed this once: the server keeps its hash. Another one for the same phone takes its place.
    """
    from fedcaptor.deploy.folder import Deployment
    from fedcaptor.deploy.tokens import make_token

    deployment = Deployment.open(folder)
    print(make_token(deployment, name, days))
    _say(f"copy {deployment.phones / name} to {name}, and there: fedcaptor phone enrol --config phone.toml")


@app.command(hidden=True)
def enrolments(folder: Folder) -> None:
    """Let phones in that have a token, until SIGTERM: a service of `deploy up`."""
    import logging

    from fedcaptor.deploy.enrolment_service import serve
    from fedcaptor.deploy.folder import Deployment

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    serve(Deployment.open(folder))


@app.command()
def revoke(folder: Folder, name: Annotated[str, typer.Argument(help="The phone's name.")]) -> None:
    """Shut a phone out, at once where the deployment runs."""
    from fedcaptor.deploy import enrolment
    from fedcaptor.deploy.folder import Deployment

    enrolment.revoke(Deployment.open(folder), name)
    _say(f"{name} is shut out")
