"""What docs/own-network.md says works as it stands there."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "own-network.md").read_text()
PROGRAMS = dict(re.findall(r"^```python\n# (\S+)\n(.*?)^```", PAGE, re.M | re.S))
COMMANDS = "".join(re.findall(r"^```sh\n(.*?)^```", PAGE, re.M | re.S)).replace("\\\n", " ").splitlines()


def run(folder, *words):
    done = subprocess.run([sys.executable, *words], cwd=folder, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.long
def test_the_page_from_its_first_line_to_its_last(tmp_path):
    rng = np.random.default_rng(0)
    for name in "abc":
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(60):
            pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{number}.png")
    for name, text in PROGRAMS.items():
        (tmp_path / name).write_text(text)
    run(tmp_path, "weights.py")
    for command in COMMANDS:
        assert run(tmp_path, "-m", "fedcaptor.cli.main", *shlex.split(command)[1:])
    for name in ("in_torch.py", "in_onnx.py"):
        assert set(re.findall(r"\d+", run(tmp_path, name))) <= {"0", "2"}
    assert run(tmp_path, "again.py").startswith("[0 2] ResNet(")
    ratios = [float(line.split()[0]) for line in run(tmp_path, "ladder.py").splitlines()]
    assert 0.5 >= ratios[0] > 0.25 >= ratios[1]
    assert len(PROGRAMS) == 6
    assert len(COMMANDS) == 3
