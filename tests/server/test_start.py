"""What names a run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from fedcaptor.common.config import load_config
from fedcaptor.server.start import run_digest
from tests import tiny


def test_configuration_weights_normalisation_and_name_each_make_another_run(tmp_path: Path) -> None:
    base, config = tiny.base_model(tiny.write(tmp_path)[1]), load_config(None)
    name = next(iter(base.state))
    other = replace(base, state={**base.state, name: base.state[name] + 1})
    assert other.groups.digest == base.groups.digest  # which is of the structure alone
    found = [
        run_digest(config, base, 100),
        run_digest(load_config(None, ["run.seed=1"]), base, 100),
        run_digest(config, other, 100),
        run_digest(config, replace(base, mean=(0.4,) * len(base.mean)), 100),
        run_digest(config, base, "evening"),
    ]
    assert len(set(found)) == len(found)
    assert run_digest(config, replace(base, state=dict(reversed(base.state.items()))), 100) == found[0]
