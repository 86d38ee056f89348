"""Fetch packages of Debian, verified by apt, without touching the packages of this machine."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fedcaptor.common.errors import ConfigError

_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_MIRROR = "http://deb.debian.org/debian"  # apt checks signatures


@dataclass(frozen=True)
class Archive:
    """One suite of Debian for one architecture; apt's lists and downloads are in `folder`.

    `options`: further options of apt, `Name=value`.
    """

    folder: Path
    suite: str
    architecture: str
    options: tuple[str, ...] = ()

    def unpack(self, packages: Sequence[str], target: Path) -> list[str]:
        """Unpack packages under `target` and return them as `name version`, sorted.

        Raises ConfigError where apt is missing, or cannot get a package.
        """
        for program, package in (("apt-get", "apt"), ("dpkg-deb", "dpkg")):
            if shutil.which(program) is None:
                raise ConfigError(f"{program} is not installed: build on Debian or Ubuntu, where {package} has it")
        if not _KEYRING.is_file():
            raise ConfigError(f"{_KEYRING} is missing: apt install debian-archive-keyring")
        downloads = self.folder / "downloads"
        shutil.rmtree(downloads, ignore_errors=True)
        for made in ("lists/partial", "cache/archives/partial", "etc/preferences.d", "downloads"):
            (self.folder / made).mkdir(parents=True, exist_ok=True)
        (self.folder / "status").touch()
        source = f"deb [signed-by={_KEYRING}] {_MIRROR} {self.suite} main\n"
        (self.folder / "etc/sources.list").write_text(source)
        self._apt("update")
        self._apt("download", *packages)
        target.mkdir(parents=True, exist_ok=True)
        found = []
        for file in sorted(downloads.glob("*.deb")):
            _run(["dpkg-deb", "-x", str(file), str(target)])
            found.append(_run(["dpkg-deb", "--show", "--showformat=${Package} ${Version}", str(file)]))
        shutil.rmtree(downloads)
        return found

    def _apt(self, *command: str) -> None:
        held = {
            "Dir::Etc": self.folder / "etc",
            "Dir::Etc::SourceParts": "-",
            "Dir::State": self.folder,
            "Dir::State::status": self.folder / "status",
            "Dir::Cache": self.folder / "cache",
            "APT::Architecture": self.architecture,
            "APT::Architectures": self.architecture,
            "APT::Sandbox::User": "",  # as root, apt's own user cannot write into this folder
            "Acquire::Languages": "none",
        }
        options = [f"{name}={value}" for name, value in held.items()] + list(self.options)
        flags = [part for option in options for part in ("-o", option)]
        _run(["apt-get", "-qq", *flags, *command], self.folder / "downloads")


def _run(command: list[str], folder: Path | None = None) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        last = next((line for line in reversed(done.stderr.splitlines()) if line.startswith("E:")), done.stderr.strip())
        raise ConfigError(f"{command[0]} failed ({last[:300]}): look at the network and the disk, and run it again")
    return done.stdout
