"""Say what each service finds in its environment: the SuperLink alone, whose runs inherit it, what is secret."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from fedcaptor.common.errors import ConfigError
from fedcaptor.common.files import read_bounded
from fedcaptor.common.flower import QUIET
from fedcaptor.deploy.folder import Deployment
from fedcaptor.server.database import STATE

MARK = "FEDCAPTOR_DEPLOYMENT"
"""The environment variable, with the deployment's folder, by which its processes are found again."""
SIGNING_KEY = "FEDCAPTOR_SIGNING_KEY"


def environment_of(deployment: Deployment) -> dict[str, str]:
    """Return the environment variables of all services."""
    return {**QUIET, MARK: str(deployment.root), "FLWR_HOME": str(deployment.state / "flwr")}


def environment_of_runs(deployment: Deployment) -> dict[str, str]:
    """Return what the SuperLink is given beyond that, besides the variables in the deployment's `environment_file`."""
    return {SIGNING_KEY: str(deployment.operator_key)}


def environment_of_supervisor(deployment: Deployment) -> dict[str, str]:
    """Return what supervisord is started with, and hands on to every service: nothing that belongs to runs alone."""
    kept = {name: value for name, value in os.environ.items() if name not in (STATE, SIGNING_KEY)}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return {**kept, MARK: str(deployment.root), "PATH": path}


def read_environment(path: Path) -> dict[str, str]:
    """Return what the operator adds to the environment of runs: `NAME=VALUE` in a line. Raises ConfigError."""
    lines = read_bounded(path, 1 << 16, "environment").decode().splitlines() if path.is_file() else []
    given = {}
    for number, line in enumerate(lines, 1):
        if line.strip() and not line.lstrip().startswith("#"):
            name, equals, value = line.strip().partition("=")
            if not equals or not name.isidentifier():
                raise ConfigError(f"{path}, line {number} is not NAME=VALUE: correct it")
            given[name] = value
    return given


def main() -> None:
    """Become a command, with a file's variables added: supervisord, other than systemd, reads no such file."""
    file, *command = sys.argv[1:]
    os.execve(command[0], command, {**os.environ, **read_environment(Path(file))})


if __name__ == "__main__":
    main()
