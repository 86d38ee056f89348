"""An installed wheel: what is in it, and a phone's environment, which has nothing but what a phone needs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from benchmarks.deployment import write_phone
from fedcaptor.client.device import today
from fedcaptor.client.folder import DATABASE, SCORES_FILE
from fedcaptor.client.usage import last_day_of

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
PARTS = ("cli", "client", "common", "deploy", "server", "simulations")
ABSENT = ("torch", "scipy", "sklearn", "dp_accounting", "ray", "plotly", "pandas", "jinja2", "common", "benchmarks")

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]


def run(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    words = [str(word) for word in command]
    return subprocess.run(words, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, timeout=600, check=False)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a copy of the tracked files: building leaves folders where it builds."""
    folder = tmp_path_factory.mktemp("wheel")
    copied = run("git", "clone", "-q", "--depth", "1", f"file://{ROOT}", folder / "source", cwd=folder)
    if copied.returncode:
        pytest.skip("the tests do not run in a git checkout")
    built = run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, folder / "source", cwd=folder)
    if "No matching distribution" in built.stderr:
        pytest.skip("pip reaches no package index")
    assert built.returncode == 0, built.stderr
    (found,) = folder.glob("fedcaptor-*.whl")
    return found


@pytest.fixture(scope="module")
def phone(wheel: Path) -> Path:
    """The programs of a fresh environment with the extra `phone`."""
    folder = wheel.parent / "phone"
    venv.create(folder, with_pip=True)
    programs = folder / "bin"
    install = [programs / "python", "-m", "pip", "install", "-q", "--no-compile", "--disable-pip-version-check"]
    installed = run(*install, f"fedcaptor[phone] @ file://{wheel}", cwd=folder)
    if "No matching distribution" in installed.stderr:
        pytest.skip("pip reaches no package index")
    assert installed.returncode == 0, installed.stderr
    return programs


def test_a_wheel_holds_one_package_and_its_files(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    top = {name.partition("/")[0] for name in names}
    assert {name for name in top if not name.endswith(".dist-info")} == {"fedcaptor"}
    for part in PARTS:
        assert f"fedcaptor/{part}/__init__.py" in names
    folders = {name.rpartition("/")[0] for name in names if name.endswith("/__init__.py")}
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    parts = {name.rpartition("/")[0] for name in tracked if name.endswith("/__init__.py")}
    ours = {part for part in parts if part.partition("/")[0] in PARTS}
    assert folders == {"fedcaptor", *(f"fedcaptor/{part}" for part in ours)}
    for file in (
        "py.typed",
        "common/data/embedded/fashion_mnist.npz",
        "deploy/flower-app/pyproject.toml",
        "deploy/monitoring/rules/alerts.yml",
        "deploy/templates/nginx.conf",
        "simulations/models/small_cnn_fashion.safetensors",
        "simulations/report/templates/report.html.j2",
        "simulations/scenarios/demo.toml",
    ):
        assert f"fedcaptor/{file}" in names


def test_a_phone_imports_without_what_others_need(phone: Path, tmp_path: Path) -> None:
    asked = f"import importlib.util as u; print([n for n in {ABSENT} if u.find_spec(n)])"
    assert run(phone / "python", "-c", asked, cwd=tmp_path).stdout.strip() == "[]"
    assert run(phone / "python", "-c", "import fedcaptor, fedcaptor.client.app", cwd=tmp_path).stderr == ""


def test_help_explains_arguments(phone: Path, tmp_path: Path) -> None:
    shown = run(phone / "fedcaptor", "phone", "status", "--help", cwd=tmp_path).stdout
    assert "The phone's own folder" in " ".join(shown.replace("│", " ").split())


def test_what_a_phone_lacks_is_said_in_one_line(phone: Path, tmp_path: Path) -> None:
    status = run(phone / "fedcaptor", "phone", "status", tmp_path, cwd=tmp_path)
    assert status.returncode == 2
    assert "is no phone's folder" in " ".join(status.stderr.split())
    pruned = run(phone / "fedcaptor", "prune", "small-cnn", "--weights", "w", "--classes", "1", cwd=tmp_path)
    assert pruned.returncode == 2
    assert "pip install 'fedcaptor[torch]'" in " ".join(pruned.stderr.split())
    assert "Traceback" not in pruned.stderr


def test_a_phone_works_with_the_extra_alone(phone: Path, tmp_path: Path) -> None:
    """It records its images and scores filters, and its resident process says what is wrong with its settings."""
    file = write_phone(tmp_path / "phone0", 1, tmp_path / "key", (1, 4), "", "onnx")
    settings = json.dumps({"node": {"file": str(file)}, "kind": "scores"})
    work = [phone / "python", "-m", "fedcaptor.client.background"]
    done = subprocess.run(work, input=settings, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    assert last_day_of(file.parent / "own" / DATABASE) == today()
    assert (file.parent / "own" / SCORES_FILE).stat().st_size > 0
    started = run(phone / "fedcaptor", "phone", "run", "--config", file, "--once", cwd=tmp_path)
    assert started.returncode == 2
    assert "make one with `ssh-keygen" in " ".join(started.stderr.split()) or "does not exist" in started.stderr
