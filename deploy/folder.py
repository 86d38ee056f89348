"""The folder of a deployment: what lies where. One file describes it, all else is made from that."""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from fedcaptor.common.config import Config, DeploymentSettings, load_config
from fedcaptor.common.errors import ConfigError

KEY = "node.key"
"""The name of a phone's private key, in its own folder."""


@dataclass(frozen=True)
class Deployment:
    """A deployment's folder, by its absolute path.

    - `deployment.toml`: the one description; server and phones read it or what is made from it.
    - `secrets/`: private keys and what must stay on the server, for its owner's eyes alone.
    - `model/`: base weights and, for phones without torch, the network's graph.
    - `enrolled/`: one public key for each phone that may take part.
    - `phones/`: one folder for each phone, made here to be copied to it.
    - `services/`: configuration of the services, made from the description.
    - `state/`: databases, runs, metrics; `logs/`: one log for each service.

    `given`: the description while it is not written yet.
    """

    root: Path
    given: Config | None = field(default=None, compare=False, repr=False)

    @classmethod
    def open(cls, root: Path) -> Deployment:
        """Return the deployment in a folder. Raises ConfigError where there is none or its description is wrong."""
        found = cls(root.absolute())
        if not found.description.is_file():
            raise ConfigError(f"{root} holds no deployment: make one with `fedcaptor deploy init {root}`")
        _ = found.config
        return found

    @cached_property
    def config(self) -> Config:
        """The description, checked."""
        return self.given or load_config(self.description)

    @property
    def settings(self) -> DeploymentSettings:
        """The section of the deployment in the description."""
        return self.config.deployment

    @property
    def description(self) -> Path:
        return self.root / "deployment.toml"

    @property
    def secrets(self) -> Path:
        return self.root / "secrets"

    @property
    def authority(self) -> Path:
        """Certificate of the deployment's own authority."""
        return self.root / "ca.pem"

    @property
    def authority_key(self) -> Path:
        return self.secrets / "ca.key"

    @property
    def certificate(self) -> Path:
        """Certificate of the services, for the host's name and loopback."""
        return self.root / "server.pem"

    @property
    def certificate_key(self) -> Path:
        return self.secrets / "server.key"

    @property
    def front_certificate(self) -> Path:
        """The operator's own certificate for the host's name, where one was given, with its chain."""
        return self.root / "front.pem"

    @property
    def front_certificates(self) -> tuple[Path, Path]:
        """The certificate that phones see, and its key."""
        if self.front_certificate.is_file():
            return self.front_certificate, self.front_key
        return self.certificate, self.certificate_key

    @property
    def front_key(self) -> Path:
        return self.secrets / "front.key"

    @property
    def roots(self) -> Path:
        """The authorities by which phones verify the front."""
        return self.root / "roots.pem"

    @property
    def operator_key(self) -> Path:
        """The operator's private key, which signs deliveries."""
        return self.secrets / "operator.pem"

    @property
    def environment_file(self) -> Path:
        """Further environment variables of runs, `NAME=VALUE` in a line, such as FEDCAPTOR_STATE."""
        return self.secrets / "environment"

    @property
    def weights(self) -> Path:
        return self.root / "model" / "base.safetensors"

    @property
    def graph(self) -> Path:
        return self.root / "model" / "graph.onnx"

    @property
    def enrolled(self) -> Path:
        return self.root / "enrolled"

    @property
    def phones(self) -> Path:
        return self.root / "phones"

    @property
    def catalogue(self) -> Path:
        """The signed files that phones fetch: base weights and graph."""
        return self.state / "catalogue"

    @property
    def catalogue_keys(self) -> Path:
        """The public keys of phones that may fetch, a line each: those in `enrolled`."""
        return self.services / "enrolled"

    @property
    def services(self) -> Path:
        return self.root / "services"

    @property
    def prometheus(self) -> Path:
        """Prometheus' configuration, rules and targets."""
        return self.services / "prometheus"

    @property
    def state(self) -> Path:
        return self.root / "state"

    @property
    def runs(self) -> Path:
        return self.state / "runs"

    @property
    def superlink_database(self) -> Path:
        return self.state / "superlink.db"

    @property
    def tokens(self) -> Path:
        """Tokens by which phones may enrol themselves, each by its hash."""
        return self.state / "tokens"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def supervisor_socket(self) -> Path:
        """Socket of the supervisor; not in the folder, as a socket's path has at most 107 characters."""
        name = hashlib.sha256(str(self.root).encode()).hexdigest()[:16]
        return Path(tempfile.gettempdir()) / f"fedcaptor-{name}.sock"

    def phone_folders(self) -> list[Path]:
        """The folders of the phones that were made here, by name."""
        return sorted(path.parent for path in self.phones.glob("*/phone.toml"))

    def enrolled_keys(self) -> dict[str, bytes]:
        """The public keys of enrolled phones in OpenSSH's format, by the phones' names."""
        return {path.stem: path.read_bytes() for path in sorted(self.enrolled.glob("*.pub"))}
