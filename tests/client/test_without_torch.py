"""Steps that need no network run without heavy libraries, as on a device, where each message starts a process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

STEP = """
import sys
from pathlib import Path

import numpy as np
from flwr.app import Context, RecordDict

from fedcaptor.client.app import app
from fedcaptor.client.secure_sum import phone_sum

HEAVY = {"torch", "torchvision", "scipy", "sklearn", "dp_accounting", "pandas", "plotly", "jinja2", "sqlalchemy", "ray"}


def check(when):
    assert not HEAVY & set(sys.modules), (when, HEAVY & set(sys.modules))


check("on import")
from fedcaptor.common.messages import MaskedReply, MaskedRequest, SumFields, digest_of
from fedcaptor.common.privacy.sums import SumSpec
from fedcaptor.common.secure.messages import Start
from fedcaptor.common.wire import pack, unpack
from fedcaptor.simulations.local_grid import LocalGrid

check("on import of what the test needs")
folder = Path(sys.argv[1])
(folder / "phone.toml").write_text("[privacy]\\nmin_cohort = 20")
node = {name: str(folder / name) for name in ("own", "images", "weights")}
node |= {"folder": node.pop("own"), "model": "small-cnn", "input-shape": "1x28x28"}
node["config"] = str(folder / "phone.toml")
spec = SumSpec("usage", 4, 1.0, 1000.0, 30.0, cohort=40, min_survivors=30, min_cohort=20)
request = MaskedRequest(
    run="a" * 64, round=1, request="b" * 64, kind="usage", sum=SumFields.of(spec), attempt="0" * 32,
    tensors=digest_of({}), dropout=0.1, corrupted=0.05,
)
start = np.frombuffer(Start().to_bytes(request.terms().binding), np.uint8)
grid = LocalGrid(app, 1, node_config=node)
message = grid.create_message(pack(request, {"secure": start}), "query.masked", 1001, "g")
(reply,) = grid.send_and_receive([message])
header, tensors = unpack(reply.content, MaskedReply)
assert header.step == 0 and len(tensors["secure"]) > 160
check("on a step of keys")
"""

DRAWS = """
import sys

from fedcaptor.client.secure_sum import steps
from fedcaptor.common.secure.terms import Terms
from fedcaptor.common.secure.topology import check_topology, plan_topology

terms = Terms("0" * 64, 4, 16, 40, 20, 30, 0.1, 0.05)
shape = plan_topology(terms, 40)
assert check_topology(terms, 40, shape.holders, shape.threshold) == shape
assert "scipy" not in sys.modules
"""


def run(code: str, *words: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_first_step_of_a_masked_sum_needs_neither_heavy_libraries_nor_weights(tmp_path: Path) -> None:
    """There are no weights in the folder at all."""
    run(STEP, str(tmp_path))
    assert (tmp_path / "own" / "phone.db").exists()


def test_the_graph_of_a_sum_is_checked_without_scipy() -> None:
    run(DRAWS)
