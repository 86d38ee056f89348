"""The package's face: what it offers, and that looking at it costs nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import fedcaptor
from fedcaptor import protocols

HEAVY = ("torch", "scipy", "sklearn", "pandas", "plotly", "jinja2", "ray", "dp_accounting", "sqlalchemy", "numpy")


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", fedcaptor.__all__)
def test_every_name_is_there_and_documented(name: str) -> None:
    found = getattr(fedcaptor, name)
    assert found.__doc__
    assert name in dir(fedcaptor)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'prun'"):
        fedcaptor.prun  # noqa: B018


@pytest.mark.parametrize("name", [name for name in protocols.__all__ if name in vars(protocols)])
def test_every_protocol_says_what_comes_in_and_out(name: str) -> None:
    protocol = getattr(protocols, name)
    methods = [getattr(protocol, method) for method in ("__call__", "first", "next") if method in vars(protocol)]
    assert methods
    assert all("Returns:" in method.__doc__ for method in methods)


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = f"import sys, fedcaptor, fedcaptor.protocols; print([n for n in {HEAVY} if n in sys.modules])"
    assert python(code) == "[]\n"


@pytest.mark.slow
def test_a_phones_app_is_imported_without_torch() -> None:
    code = "import sys, fedcaptor.client.app; print([n for n in ('torch', 'pandas', 'plotly') if n in sys.modules])"
    assert python(code) == "[]\n"


def test_a_missing_library_is_said_in_one_line() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import fedcaptor\n"
        "try: fedcaptor.prune\n"
        "except ImportError as error: print(type(error).__name__, error)\n"
        "sys.argv = ['fedcaptor', 'prune', 'small-cnn', '--weights', 'w', '--classes', '3']\n"
        "from fedcaptor.cli.main import main\n"
        "try: main()\n"
        "except SystemExit as end: print(end.code)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    remedy = "torch is not installed: pip install 'fedcaptor[torch]'"
    assert done.stdout.splitlines() == [f"MissingError {remedy}", "2"]
    assert done.stderr == f"error: {remedy}\n"


@pytest.mark.slow
def test_a_simulation_names_its_whole_extra_at_once() -> None:
    code = (
        "import sys; sys.modules['flwr'] = None\n"
        "import fedcaptor\n"
        "try: fedcaptor.simulate\n"
        "except fedcaptor.MissingError as error: print(error)\n"
    )
    assert python(code) == "flwr is not installed: pip install 'fedcaptor[simulation]'\n"


@pytest.mark.slow
def test_onnx_runtime_reports_to_nobody(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in ("ORT_DISABLE_TELEMETRY", "CI")}
    code = "import fedcaptor.common.onnx_session; from onnxruntime.capi import onnxruntime_pybind11_state as library; "
    code += "print(library.__file__)"
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, env={**environment, "HOME": str(tmp_path)}, check=True, capture_output=True, text=True
    )
    assert b"ORT_DISABLE_TELEMETRY" in Path(done.stdout.strip()).read_bytes()  # another name would switch off nothing
    assert not list(tmp_path.rglob("deviceid"))
