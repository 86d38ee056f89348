"""Copy a deployment to one file while it runs, and make one of the copy."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from fedcaptor.common.errors import ConfigError, StateError
from fedcaptor.common.files import no_file, replacing
from fedcaptor.deploy.environment import read_environment
from fedcaptor.deploy.folder import Deployment
from fedcaptor.server import backup as databases
from fedcaptor.server.database import STATE, url_of

_FOREIGN = "state-database"  # in the archive: the copy of a state database that is elsewhere
_LOCKS = ".lock", ".enrolled.lock"
_LEFT_OUT = ("logs", "front", "state/prometheus", "state/alertmanager", "state/supervisor.pid", "state/work", *_LOCKS)


def backup(deployment: Deployment, file: Path) -> None:
    """Write the deployment to a tar file of mode 0600: it has the private keys.

    The state of the runs is copied before SuperLink's database: a run that goes on from the copies then finds replies
    that it knows nothing of, and not the other way round. Metrics and logs are left out. Raises StateError.
    """
    root, databases_of = deployment.root, dict(_databases(deployment))
    with TemporaryDirectory(dir=deployment.secrets) as place, replacing(file, private=True, durable=True) as temporary:
        copies = {}
        for number, (name, url) in enumerate(databases_of.items()):
            copies[name] = Path(place) / str(number)
            databases.backup(url, copies[name])
        with tarfile.open(temporary, "w") as archive:
            for path in sorted(root.rglob("*")):
                name = path.relative_to(root).as_posix()
                beside = name.removesuffix("-wal").removesuffix("-shm").removesuffix("-journal")
                if not (path.is_file() or path.is_dir()) or path.is_relative_to(place) or beside in databases_of:
                    continue
                if not any(name == left or name.startswith(f"{left}/") for left in _LEFT_OUT):
                    archive.add(path, name, recursive=False)
            for name, copy in copies.items():
                archive.add(copy, name, recursive=False)


def restore(file: Path, root: Path) -> Deployment:
    """Make a deployment of a backup; a state database elsewhere must be there and empty.

    Raises ConfigError where the folder is not empty or the file is no backup.
    """
    if (problem := no_file(file)) is not None:
        raise ConfigError(problem)
    if root.exists() and any(root.iterdir()):
        raise ConfigError(f"{root} is not empty: give a folder that does not exist")
    # The modes of folders in an archive are not kept.
    Deployment(root).secrets.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        with tarfile.open(file) as archive:
            archive.extractall(root, filter="data")
    except (tarfile.TarError, EOFError) as error:
        raise ConfigError(f"{file} is no backup of a deployment, or damaged ({error}): give another copy") from None
    deployment = Deployment.open(root)
    copies = sorted(deployment.root.glob(f"{_FOREIGN}*"))
    url = read_environment(deployment.environment_file).get(STATE, "")
    if copies and not url:
        raise StateError(f"{deployment.environment_file} does not give {STATE}: set it, and restore again")
    for copy in copies:
        databases.restore(url_of(url, copy.name.removeprefix(_FOREIGN).removeprefix("-")), copy)
        copy.unlink()
    return deployment


def _databases(deployment: Deployment) -> Iterator[tuple[str, str]]:
    """Name the databases in the archive, with their URLs, in the order in which they are copied."""
    if url := read_environment(deployment.environment_file).get(STATE, ""):
        if url == url_of(url, ""):
            yield _FOREIGN, url
        else:
            for run in sorted(path.name for path in deployment.runs.iterdir()):
                if databases.holds_run(url_of(url, run)):
                    yield f"{_FOREIGN}-{run}", url_of(url, run)
    for path in [*sorted(deployment.runs.glob("*/state.db")), deployment.superlink_database]:
        if path.is_file():
            yield path.relative_to(deployment.root).as_posix(), f"sqlite:///{path}"
