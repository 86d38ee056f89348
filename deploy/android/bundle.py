"""Build what a phone needs to run the client: a Python for arm64, its libraries, and this package.

Android has another C library than Linux's wheels are made for, so the phone gets Debian's loader, C library and
Python, started by path. Each layer is one archive, known by its digest: an update sends the layers that changed.
"""

from __future__ import annotations

import compileall
import hashlib
import json
import os
import shutil
import struct
import subprocess
import sys
import tarfile
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from importlib.metadata import requires, version
from pathlib import Path
from py_compile import PycInvalidationMode

from packaging.requirements import Requirement

from fedcaptor.common.errors import ConfigError
from fedcaptor.common.files import replacing, write_whole
from fedcaptor.deploy.android.apt import Archive

SUITE, PYTHON = "bookworm", (3, 11)
"""The release of Debian, and the Python that it has."""
PAGE = 1 << 14
"""The largest page size of an Android device: segments of shared objects must be aligned to it."""
LAYERS = ("runtime", "libraries", "program")
_PACKAGES = tuple(
    [
        "libc6",
        "libgcc-s1",
        "libstdc++6",
        "zlib1g",
        "libbz2-1.0",
        "liblzma5",
        "libexpat1",
        "libffi8",
        "libssl3",
        "libsqlite3-0",
        "libuuid1",
        "python3.11-minimal",
        "libpython3.11-minimal",
        "libpython3.11-stdlib",
    ]
)
_PLATFORMS = ("manylinux2014_aarch64", "manylinux_2_27_aarch64", "manylinux_2_28_aarch64")
_NEVER_IMPORTED = ("uv", "sqlalchemy", "alembic", "greenlet", "uvloop", "onnx/backend/test", "bin", "include")
"""What Flower and onnx install, and a phone's client never imports: 90 MB."""
_PARTS = ("cli", "client", "common")
"""The folders of this package that a phone runs."""
_PACKAGE = Path(__file__).parents[2]
_SCRIPTS = Path(__file__).parent / "scripts"


@dataclass(frozen=True)
class Layer:
    """One archive of the bundle. `size` is the archive's, `contents` names what it was made of, with versions."""

    name: str
    digest: str
    size: int
    contents: list[str]

    @property
    def folder(self) -> str:
        """Name of the folder that it becomes on a device."""
        return f"{self.name}-{self.digest[:16]}"


@dataclass(frozen=True)
class Bundle:
    """The layers of an installation and the folder of their archives."""

    cache: Path
    layers: tuple[Layer, ...]

    def archive(self, layer: Layer) -> Path:
        return self.cache / f"{layer.folder}.tar"

    @property
    def size(self) -> int:
        return sum(layer.size for layer in self.layers)

    def launcher(self, home: str) -> bytes:
        """The script `fedcaptor` of a device: it names the layers, so its replacement is what installs them."""
        text = (_SCRIPTS / "launcher.sh").read_text().replace("@home@", home)
        for layer in self.layers:
            text = text.replace(f"@{layer.name}@", layer.folder)
        return text.encode()


def default_cache() -> Path:
    """Folder of what was built, for all deployments of this user."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fedcaptor" / "android"


def build(cache: Path, say: Callable[[str], object] = lambda text: None) -> Bundle:
    """Build the layers that are not in `cache`, and write `cache/manifest.json`.

    Raises ConfigError where this machine cannot build them, naming what it lacks.
    """
    if sys.version_info[:2] != PYTHON:
        found, wanted = (".".join(map(str, held[:2])) for held in (sys.version_info, PYTHON))
        raise ConfigError(f"this is Python {found}, and phones get {wanted}, compiled here: build with {wanted}")
    cache.mkdir(parents=True, exist_ok=True)
    recipes: dict[str, tuple[list[str], Callable[[Path], list[str]]]] = {
        "runtime": ([SUITE, *_PACKAGES], lambda tree: _runtime(cache, tree)),
        "libraries": ([*_requirements(), *_PLATFORMS, *_NEVER_IMPORTED], _libraries),
        "program": (list(_digests(_sources())), _program),
    }
    layers = tuple(_layer(cache, name, *recipes[name], say) for name in LAYERS)
    write_whole(cache / "manifest.json", json.dumps([asdict(layer) for layer in layers], indent=1).encode())
    return Bundle(cache, layers)


def last_built(cache: Path) -> Bundle | None:
    """Return what was built last, None where nothing was."""
    path = cache / "manifest.json"
    if not path.is_file():
        return None
    return Bundle(cache, tuple(Layer(**held) for held in json.loads(path.read_text())))


def _layer(
    cache: Path, name: str, recipe: list[str], make: Callable[[Path], list[str]], say: Callable[[str], object]
) -> Layer:
    own = _digests({f"{number}": path for number, path in enumerate((Path(__file__), _SCRIPTS / "python.sh"))})
    key = hashlib.sha256("\n".join([*recipe, *own]).encode()).hexdigest()[:16]
    record = cache / f"{name}-recipe-{key}.json"
    if record.is_file():
        layer = Layer(**json.loads(record.read_text()))
        if (path := cache / f"{layer.folder}.tar").is_file() and path.stat().st_size == layer.size:
            return layer
    say(f"building {name}")
    tree = cache / f"{name}.tree"
    shutil.rmtree(tree, ignore_errors=True)
    tree.mkdir()
    contents = make(tree)
    _check_alignment(tree)
    with replacing(cache / f"{name}.tar") as archive:
        pack(tree, archive)
        with archive.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        layer = Layer(name, digest, archive.stat().st_size, contents)
        for old in cache.glob(f"{name}-*"):
            old.unlink()
        shutil.copyfile(archive, cache / f"{layer.folder}.tar")
    (cache / f"{name}.tar").unlink()
    shutil.rmtree(tree)
    write_whole(record, json.dumps(asdict(layer)).encode())
    return layer


def _runtime(cache: Path, tree: Path) -> list[str]:
    """Debian's loader, C library and Python, in `bin` and `lib`."""
    system = tree / "system"
    found = Archive(cache / "apt", SUITE, "arm64").unpack(_PACKAGES, system)
    library = tree / "lib"
    library.mkdir()
    for folder in (system / "lib" / "aarch64-linux-gnu", system / "usr" / "lib" / "aarch64-linux-gnu"):
        for file in sorted(folder.glob("*.so*")):
            if not file.is_symlink() or file.exists():
                shutil.copy(file, library / file.name)
    shutil.copytree(system / "usr/lib/python3.11", library / "python3.11", ignore=shutil.ignore_patterns("test"))
    _compile(library / "python3.11")
    (tree / "bin").mkdir()
    shutil.copy(system / "usr/bin/python3.11", tree / "bin")
    shutil.copy(_SCRIPTS / "python.sh", tree / "bin" / "python")
    (tree / "bin" / "python").chmod(0o755)
    shutil.rmtree(system)
    return found


def _libraries(tree: Path) -> list[str]:
    """The wheels that the client imports, as pip installs them for arm64."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"]
    command += ["--target", str(tree), "--only-binary=:all:", "--implementation", "cp", "--python-version", "311"]
    for platform in _PLATFORMS:
        command += ["--platform", platform]
    done = subprocess.run([*command, *_requirements()], capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise ConfigError(f"pip cannot get the libraries for arm64 ({last[:300]}): look at the network and the disk")
    for name in _NEVER_IMPORTED:
        shutil.rmtree(tree / name, ignore_errors=True)
    found = sorted(" ".join(path.stem.rsplit("-", 1)) for path in tree.glob("*.dist-info"))
    _compile(tree)
    return found


def _program(tree: Path) -> list[str]:
    """This package without its server, and the scripts of a device."""
    for name, path in _sources().items():
        target = tree / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    (tree / f"fedcaptor-{version('fedcaptor')}.dist-info").mkdir()
    metadata = f"Metadata-Version: 2.1\nName: fedcaptor\nVersion: {version('fedcaptor')}\n"
    (tree / f"fedcaptor-{version('fedcaptor')}.dist-info" / "METADATA").write_text(metadata)
    _compile(tree)
    return [f"fedcaptor {version('fedcaptor')}"]


def _requirements() -> list[str]:
    """What `fedcaptor[phone]` asks for; in a checkout by its own file, as the installed record may be older."""
    project = _PACKAGE.parent / "pyproject.toml"
    if project.is_file():
        declared = tomllib.loads(project.read_text())["project"]
        return sorted([*declared["dependencies"], *declared["optional-dependencies"]["phone"]])
    held = [Requirement(text) for text in requires("fedcaptor") or ()]
    wanted = [one for one in held if one.marker is None or one.marker.evaluate({"extra": "phone"})]
    return sorted(f"{one.name}{one.specifier}" for one in wanted)


def _sources() -> dict[str, Path]:
    """The files of the program layer, by their names in it."""
    files = {f"fedcaptor/{path.name}": path for path in _PACKAGE.iterdir() if path.suffix in (".py", ".typed")}
    for part in _PARTS:
        folder = (_PACKAGE / part).resolve()
        for path in folder.rglob("*"):
            within = path.relative_to(folder)
            if path.is_file() and "__pycache__" not in within.parts and "torch_engine" not in within.parts:
                files[f"fedcaptor/{part}/{within.as_posix()}"] = path
    files |= {f"scripts/{path.name}": path for path in _SCRIPTS.glob("*.sh")}
    return dict(sorted(files.items()))


def _digests(files: dict[str, Path]) -> Iterable[str]:
    return (f"{name} {hashlib.sha256(path.read_bytes()).hexdigest()}" for name, path in files.items())


def _compile(tree: Path) -> None:
    """Compile all modules: a phone must not spend a minute on it, and its folder needs no later change."""
    mode = PycInvalidationMode.UNCHECKED_HASH
    compileall.compile_dir(tree, quiet=2, stripdir=str(tree), invalidation_mode=mode, maxlevels=20)


def _check_alignment(tree: Path) -> None:
    """Raise ConfigError where a shared object could not be loaded on a device with pages of 16 KiB."""
    for path in sorted(tree.rglob("*")):
        least = alignment(path.read_bytes()) if path.is_file() else None
        if least is not None and least % PAGE:
            raise ConfigError(f"{path.name} is aligned to {least} bytes, must be {PAGE}: choose another version")


def alignment(content: bytes) -> int | None:
    """Return the least alignment of the segments that a loader maps, None for what is no 64-bit ELF file."""
    if content[:6] != b"\x7fELF\x02\x01":
        return None
    (start,) = struct.unpack_from("<Q", content, 32)
    size, count = struct.unpack_from("<HH", content, 54)
    loaded = [start + number * size for number in range(count)]
    held = [struct.unpack_from("<Q", content, at + 48)[0] for at in loaded if content[at : at + 4] == b"\x01\0\0\0"]
    return min(held, default=None)


def pack(tree: Path, archive: Path) -> None:
    """Write a tree as an archive that depends on nothing but its content."""

    def plain(info: tarfile.TarInfo) -> tarfile.TarInfo:
        info.uid = info.gid = info.mtime = 0
        info.uname = info.gname = ""
        info.mode = 0o700 if info.isdir() or info.mode & 0o100 else 0o600
        return info

    with tarfile.open(archive, "w", format=tarfile.GNU_FORMAT) as out:
        for path in sorted(tree.rglob("*")):
            out.add(path, path.relative_to(tree).as_posix(), recursive=False, filter=plain)
