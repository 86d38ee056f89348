"""Keep the catalogue's files in one folder, each under its SHA-256, beside the signed manifest that names them.

`blobs/` has the files and `latest.json` the manifest. Both are renamed into place, files first, so a reader finds what
a manifest names at any moment. A file that neither the newest manifest nor the one before names is deleted: phones that
began with the one before can finish.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedcaptor.common.catalogue.chunks import cut
from fedcaptor.common.catalogue.manifest import MAX_BYTES, MAX_FILES, FileEntry, Manifest, opened
from fedcaptor.common.catalogue.requests import BLOB, LATEST
from fedcaptor.common.errors import ConfigError, StateError, WireError
from fedcaptor.common.files import make_folder, no_file, read_bounded, replacing
from fedcaptor.common.secure.keys import identity_of


@dataclass(frozen=True)
class Store:
    """The folder of a catalogue."""

    folder: Path

    @property
    def _manifest(self) -> Path:
        return self.folder / "latest.json"

    @property
    def _blobs(self) -> Path:
        return self.folder / "blobs"

    def path(self, resource: str) -> Path | None:
        """Return the file of a resource, None for what is no name of one. It need not exist."""
        if resource == LATEST:
            return self._manifest
        name = BLOB.fullmatch(resource)
        return self._blobs / name[1] if name else None

    def require(self) -> None:
        """Raise ConfigError unless the folder is a store."""
        if not self._blobs.is_dir():
            raise ConfigError(f"{self.folder} is no catalogue: make one with `fedcaptor catalogue add`")

    def manifest(self, operator: bytes) -> Manifest | None:
        """Return the newest manifest, None where nothing was added yet.

        Raises StateError where it is not signed by `operator`, a public key: its serial number cannot be trusted then.
        """
        if not self._manifest.exists():
            return None
        try:
            return opened(read_bounded(self._manifest, MAX_BYTES, "manifest"), operator)
        except WireError as error:
            raise StateError(
                f"{self._manifest} cannot be continued ({error}): give the key that signed it, or start another folder"
            ) from error

    def add(self, files: Sequence[Path], key: Ed25519PrivateKey, now: float, remove: Sequence[str] = ()) -> Manifest:
        """Add files under their names, in place of older ones of these names, and return the new signed manifest.

        `remove`: names that it shall no longer have. `now`: seconds since 1970, from which the serial number is taken,
        so that it grows even where the store is lost. Raises ConfigError for a file that cannot be added.
        """
        make_folder(self._blobs)
        with self._alone():
            before = self.manifest(identity_of(key))
            named = {entry.name: entry for entry in before.files} if before else {}
            for name in remove:
                if named.pop(name, None) is None:
                    raise ConfigError(f"the catalogue has no file {name!r}: it has {', '.join(named) or 'none'}")
            for path in files:
                named[path.name] = self._stored(path)
            if len(named) > MAX_FILES:
                raise ConfigError(f"the catalogue would have {len(named)} files, {MAX_FILES} at most: remove some")
            serial = max(int(now), 1 + before.serial if before else 1)
            made = Manifest(serial=serial, files=tuple(named[name] for name in sorted(named)))
            envelope = made.sealed(key)
            if len(envelope) > MAX_BYTES:
                raise ConfigError(
                    f"the manifest would have {len(envelope):,} bytes, {MAX_BYTES:,} at most: remove files"
                )
            with replacing(self._manifest, durable=True) as temporary:
                temporary.write_bytes(envelope)
            self._forget(named, {entry.name: entry for entry in before.files} if before else {})
        return made

    def _stored(self, path: Path) -> FileEntry:
        """Copy a file into the store under its hash. The copy is what is hashed: the original may change meanwhile."""
        if (problem := no_file(path)) is not None:
            raise ConfigError(problem)
        copy = self._blobs / "incoming"
        try:
            shutil.copyfile(path, copy)
            entry = FileEntry.of(path.name, cut(copy))
            with copy.open("rb+") as file:
                os.fsync(file.fileno())
            os.replace(copy, self._blobs / entry.digest)
        except ValueError:
            raise ConfigError(
                f"{path.name!r} cannot be a name: letters, digits, `.`, `_` and `-`, 128 at most"
            ) from None
        except OSError as error:
            raise ConfigError(f"{path} cannot be added ({error.strerror}): the catalogue stays as it was") from error
        finally:
            copy.unlink(missing_ok=True)
        return entry

    def _forget(self, *kept: Mapping[str, FileEntry]) -> None:
        named = {entry.digest for names in kept for entry in names.values()}
        for path in self._blobs.iterdir():
            if path.name not in named:
                path.unlink()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Wait until no other process adds files."""
        with (self.folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
