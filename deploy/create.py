"""Make a deployment's folder: certificates, keys, the model, the phones' folders and the services' configuration."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from fedcaptor.client.node_key import make_node_key
from fedcaptor.common.config import Config, DeploymentSettings, load_config, parse
from fedcaptor.common.config.files import toml
from fedcaptor.common.data.source import load
from fedcaptor.common.errors import ConfigError, ModelError
from fedcaptor.common.files import make_folder, write_whole
from fedcaptor.common.torch_engine.base import BaseModel
from fedcaptor.common.torch_engine.network_graph import network_graph
from fedcaptor.deploy.certificates import LOOPBACK, make_authority, make_server_certificate, names_of, read_certificate
from fedcaptor.deploy.folder import KEY, Deployment
from fedcaptor.deploy.phones import write_demo_images, write_phone
from fedcaptor.deploy.processes import is_listened_on
from fedcaptor.deploy.render import render
from fedcaptor.server.start import budget_of
from fedcaptor.simulations.runner import SHIPPED

DEMO: Mapping[str, Mapping[str, Any]] = {
    "privacy": {"noise": False, "corrupted": 0.0},
    "testing": {"small_cohorts": True},
    "delivery": {"answer_seconds": 1.0},
    "rounds": {"deadline": 300.0, "grace": 20.0, "poll": 0.2},
    "visualise": {"steps": 2},
    "device": {"poll_seconds": 1.0},
}
"""What a demonstration changes: few phones cannot hide one another, so there is no noise; answers need not wait."""
_HEAD = """\
# A FedCAPTOR deployment, made by `fedcaptor deploy init`. Change it, and `fedcaptor deploy up` puts it into effect.
# All keys: `fedcaptor config --reference`. No secret belongs in here.
"""


@dataclass(frozen=True)
class Wanted:
    """What a new deployment is to be.

    `phones`: how many phones there are; a key and a folder is made for each unless `keys` is False. `weights`: of the
    base model, shipped ones without. `certificate`, `certificate_key`: the operator's own for `host`, with its chain;
    `roots`: the authorities that issued it. `demo`: phones on this machine, with embedded images.
    """

    phones: int
    host: str = "localhost"
    bind: str = ""
    port: int = 8443
    scenario: Path | None = None
    overrides: tuple[str, ...] = ()
    weights: Path | None = None
    certificate: Path | None = None
    certificate_key: Path | None = None
    roots: Path | None = None
    keys: bool = True
    demo: bool = False
    say: Callable[[str], object] = field(default=lambda text: None, repr=False)


def create(root: Path, wanted: Wanted) -> Deployment:
    """Make a deployment in a folder, or finish one whose making was interrupted.

    The description is written last. Raises ConfigError, DataError or ModelError naming what is wrong, PrivacyError
    where so few phones cannot keep what is promised to them.
    """
    if Deployment(root.absolute()).description.exists():
        raise ConfigError(
            f"{root} holds a deployment already: change its deployment.toml and start it by "
            f"`fedcaptor deploy up {root}`, or choose another folder"
        )
    config = _configured(wanted)
    weights = wanted.weights or (Path(config.model.weights) if config.model.weights else None)
    if weights is None and (config.model.name, config.data.source) != ("small-cnn", "embedded"):
        raise ConfigError(f"weights of {config.model.name} are not given: give --weights, written by `fedcaptor train`")
    _, height, width, channels = load(config.data.source).x.shape
    shape = channels, height, width
    config = load_config(config, [f"device.input_shape={list(shape)}"])
    deployment = Deployment(root.absolute(), config)
    base = BaseModel.load(weights or SHIPPED, config.model.name, shape)
    budget = budget_of(config, base.groups, wanted.phones)  # refuses cohorts that cannot keep the promise
    wanted.say(f"{wanted.phones} phones, {budget.cohort} asked in a sum")

    make_folder(deployment.root)
    deployment.secrets.mkdir(mode=0o700, exist_ok=True)
    _make_secrets(deployment, wanted)
    deployment.weights.parent.mkdir(exist_ok=True)
    shutil.copyfile(weights or SHIPPED, deployment.weights)
    try:
        network_graph(base).save(deployment.graph)
    except ModelError as error:
        wanted.say(f"phones need torch: {error}")
    deployment.enrolled.mkdir(exist_ok=True)
    for number in range(wanted.phones if wanted.keys else 0):
        name = f"phone-{number + 1:0{max(2, len(str(wanted.phones)))}d}"
        folder = write_phone(deployment, name)
        if not (public := deployment.enrolled / f"{name}.pub").exists():  # it is written after the private one
            make_node_key(folder / KEY, public)
        if wanted.demo:
            write_demo_images(folder / "images", number)
    render(deployment)
    write_whole(deployment.description, _description(config).encode())
    return Deployment.open(deployment.root)


def _configured(wanted: Wanted) -> Config:
    """Return the description: the scenario, what a demonstration changes, overrides, and the deployment's own."""
    values = load_config(wanted.scenario).model_dump(mode="json", exclude_unset=True)
    if wanted.demo:
        away = wanted.phones // 5  # fewer than five cannot lose one
        cohorts = {"min_cohort": wanted.phones - away, "dropout": 0.2 if away else 0.0}
        for section, held in DEMO.items():
            more = cohorts if section == "privacy" else {}
            values[section] = {**held, **more, **values.get(section, {})}
    loopback = wanted.host in LOOPBACK
    values["deployment"] = {
        "host": wanted.host,
        "bind": wanted.bind or ("127.0.0.1" if loopback else "0.0.0.0"),
        "port": wanted.port,
        "phones": wanted.phones,
        "local_phones": wanted.demo,
        **_free_ports(wanted.port),
        **values.get("deployment", {}),
    }
    return load_config(parse(values), wanted.overrides)


def _free_ports(front: int) -> dict[str, int]:
    """Choose a port for each service on loopback: its usual one, or the next that nobody listens on."""
    taken, chosen = {front}, {}
    for name, info in DeploymentSettings.model_fields.items():
        if name.endswith("_port"):
            port = int(info.default)
            while port in taken or is_listened_on(port):
                port += 1
            taken.add(port)
            chosen[name] = port
    return chosen


def issue_certificate(deployment: Deployment, host: str = "") -> None:
    """Issue the services' certificate, for `host` or the one of the description, in place of an earlier one."""
    make_server_certificate(
        host or deployment.settings.host,
        deployment.certificate,
        deployment.certificate_key,
        deployment.authority,
        deployment.authority_key,
    )


def _make_secrets(deployment: Deployment, wanted: Wanted) -> None:
    """Write the authority, the services' certificate and the operator's key, each unless it is there."""
    if not deployment.authority.exists():
        make_authority(deployment.authority, deployment.authority_key)
    if not deployment.certificate.exists():
        issue_certificate(deployment, wanted.host)
    roots = deployment.authority
    if wanted.certificate is not None:
        if wanted.certificate_key is None or wanted.roots is None:
            raise ConfigError("--certificate is given without --certificate-key and --roots: give all three")
        names = names_of(read_certificate(wanted.certificate))
        if wanted.host not in names:
            raise ConfigError(f"{wanted.certificate} is for {', '.join(sorted(names))}, not for {wanted.host}")
        write_whole(deployment.front_certificate, wanted.certificate.read_bytes())
        write_whole(deployment.front_key, wanted.certificate_key.read_bytes(), private=True)
        roots = wanted.roots
    write_whole(deployment.roots, roots.read_bytes())
    if not deployment.operator_key.exists():
        pem = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        write_whole(deployment.operator_key, pem, private=True)
    if not deployment.environment_file.exists():
        text = "# Of runs: NAME=VALUE in a line, such as FEDCAPTOR_STATE=postgresql+psycopg://…\n"
        write_whole(deployment.environment_file, text.encode(), private=True)


def _description(config: Config) -> str:
    """Return the description as TOML: all keys of the deployment, and of the rest what differs from its default."""
    values = config.model_dump(mode="json", exclude_defaults=True)
    values["deployment"] = config.deployment.model_dump(mode="json")
    return _HEAD + "".join(_section(name, held) for name, held in values.items())


def _section(name: str, held: Mapping[str, Any] | Iterable[Mapping[str, Any]]) -> str:
    entries = [(f"[{name}]", held)] if isinstance(held, Mapping) else [(f"[[{name}]]", each) for each in held]
    return "".join(
        f"\n{title}\n" + "".join(f"{key} = {toml(value)}\n" for key, value in entry.items()) for title, entry in entries
    )
