"""Fetch the phone's weights and graph from the operator's catalogue, as its signed manifest names them.

Every phone asks for the same: what the manifest has under the names of its two files. No image, class or submodel is
looked at. What an update costs depends only on the version that the phone has.

`python -m fedcaptor.client.fetch FILE` is what the resident process runs, in a process that gives its memory back.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fedcaptor.client.catalogue import Catalogue, connected
from fedcaptor.client.download import Downloaded, download, is_current, patiently
from fedcaptor.client.folder import FETCH_LOCK, phone_ledger
from fedcaptor.client.issued import IssueLedger
from fedcaptor.client.node_key import node_key
from fedcaptor.client.process_lock import acquire
from fedcaptor.common.catalogue.manifest import FileEntry, Manifest
from fedcaptor.common.config import Config, load_config
from fedcaptor.common.errors import ConfigError, FedcaptorError, LinkError, StateError
from fedcaptor.common.files import read_bounded
from fedcaptor.common.secure.register import operator_key
from fedcaptor.common.weights_file import digest_of_file

MAX_CERTIFICATE_BYTES = 1 << 20


@dataclass(frozen=True)
class Fetched:
    """A file of the phone that is now the catalogue's. `received`: bytes that came over the network for it."""

    target: Path
    size: int
    received: int


def fetch(file: Path, sleep: Callable[[float], object] = time.sleep) -> list[Fetched]:
    """Bring the files of a phone (`file`: its TOML) up to date; returns those that were not.

    All are verified before the first is installed. Raises ConfigError, LinkError, WireError or StateError; the old
    files stay then.
    """
    config, place = load_config(file), file.absolute().parent
    settings = config.device
    for key in ("catalogue", "operator", "key", "folder", "weights"):
        if not getattr(settings, key):
            raise ConfigError(f"{file}: device.{key} is not given: see `fedcaptor config --reference`")
    roots = settings.root_certificates
    certificates = read_bounded(place / roots, MAX_CERTIFICATE_BYTES, "certificate") if roots else None
    targets = [place / name for name in (settings.weights, settings.graph) if name]
    with (
        _alone(place / settings.folder),
        connected(settings.catalogue, certificates, node_key(place / settings.key)) as catalogue,
    ):
        manifest = _newest(catalogue, config, place, sleep)
        wanted = [(_entry(manifest, target), target) for target in targets]
        stale = [(entry, target) for entry, target in wanted if not is_current(entry, target)]
        found = [download(entry, target, catalogue.read, sleep) for entry, target in stale]
        for one in found:
            if one.target == targets[0]:
                _require_pinned(one, config)
        for one in found:
            one.install()
    return [Fetched(one.target, one.target.stat().st_size, one.received) for one in found]


def _newest(catalogue: Catalogue, config: Config, place: Path, sleep: Callable[[float], object]) -> Manifest:
    """Return the newest manifest. Raises WireError where the phone knows a newer one."""
    operator = operator_key(config.device.operator, place)
    manifest, envelope = patiently(lambda: catalogue.manifest(operator), lambda: 0, sleep)
    with phone_ledger(place / config.device.folder, config.privacy, IssueLedger) as ledger:
        ledger.require_newest_manifest(manifest.serial, hashlib.sha256(envelope).hexdigest())
    return manifest


def _entry(manifest: Manifest, target: Path) -> FileEntry:
    if (entry := manifest.file(target.name)) is None:
        names = ", ".join(entry.name for entry in manifest.files) or "nothing"
        raise LinkError(f"the catalogue has no {target.name}, but {names}: name device.weights and device.graph so")
    return entry


def _require_pinned(weights: Downloaded, config: Config) -> None:
    """Raise ConfigError unless these are the weights that the phone's settings name, if they do."""
    pinned, shape = config.device.weights_digest, config.device.input_shape
    if pinned and (found := digest_of_file(weights.file, shape[0] if shape else 0)) != pinned:
        raise ConfigError(
            f"the catalogue's {weights.target.name} holds weights of the digest {found[:12]}, device.weights_digest is "
            f"{pinned[:12]}: the old file stays until the operator has published those"
        )


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    lock = acquire(folder / FETCH_LOCK)
    if lock is None:
        raise StateError(f"{folder} has a process that fetches already: wait for it")
    try:
        yield
    finally:
        os.close(lock)


def main() -> None:
    """Fetch for the phone whose file is named. What went wrong is the one line on standard error."""
    try:
        for one in fetch(Path(sys.argv[1])):
            print(f"fetched {one.target}: {one.size:,} bytes, {one.received:,} of them over the network")
    except FedcaptorError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
