"""A test run without noise: outside the lasting ledger of a device, which goes on as if it had not been; and what phone
and owner count is the same.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedcaptor.client.folder import NOISE_FREE_DATABASE, erase, open_ledger, status
from fedcaptor.client.phone import Phone
from fedcaptor.common.config import Config, load_config
from fedcaptor.common.errors import PrivacyError
from fedcaptor.common.messages import MaskedRequest, SumFields, digest_of
from fedcaptor.common.privacy.sums import SumSpec
from fedcaptor.common.privacy.zcdp import epsilon
from fedcaptor.common.secure.messages import MASKING, STEPS
from fedcaptor.server.secure_sum.server_sum import ServerSum

PHONES = 24
NOISY = SumSpec("1-usage-0", 4, 1.0, 1024.0, 6.0, cohort=PHONES, min_survivors=22, min_cohort=20)
SILENT = SumSpec("1-usage-0", 4, 1.0, 1024.0, 0.0, cohort=PHONES, min_survivors=22, min_cohort=20)
DEVICE = ["privacy.min_cohort=20", "privacy.corrupted=0.05", "privacy.epsilon=8"]


class Learner:
    def vector(self, request: Any, tensors: Any) -> np.ndarray:
        return np.full(4, 0.25)


def config(*more: str) -> Config:
    return load_config(None, [*DEVICE, *more])


def asked(spec: SumSpec, attempt: str, step: int) -> MaskedRequest:
    return MaskedRequest(
        run="a" * 64, round=1, request="b" * 64, kind="usage", sum=SumFields.of(spec), attempt=attempt, step=step,
        tensors=digest_of({}), dropout=0.1, corrupted=0.05,
    )  # fmt: skip


def cohort(folder: Path, spec: SumSpec, settings: Config, attempt: str = "0" * 32) -> None:
    """One masked sum over phones as devices are: without a seed."""
    learner: Any = Learner()
    phones = [Phone(folder / str(n), lambda: learner, settings, durable=False) for n in range(PHONES)]
    server = ServerSum(asked(spec, attempt, 0).terms(), range(PHONES))
    for step in range(STEPS):
        for node in sorted(server.waiting):
            request = np.frombuffer(server.request(node), np.uint8)
            server.add(node, phones[node].masked(asked(spec, attempt, step), {"secure": request}).tobytes())
        server.advance()


@pytest.mark.slow
def test_a_test_run_without_noise_leaves_the_lasting_budget_as_it_is(tmp_path: Path) -> None:
    quiet, noisy = config("privacy.noise=false"), config()
    cohort(tmp_path, SILENT, quiet)
    assert status(tmp_path / "0", noisy.privacy).epsilon == 0
    assert NOISE_FREE_DATABASE in status(tmp_path / "0", noisy.privacy).stored
    cohort(tmp_path, NOISY, noisy, "1" * 32)
    found = status(tmp_path / "0", noisy.privacy)
    assert 0 < found.epsilon < math.inf
    assert found.answers == {"usage": 1}
    assert NOISE_FREE_DATABASE in erase(tmp_path / "0", noisy.privacy)
    assert status(tmp_path / "0", noisy.privacy).epsilon == found.epsilon


def test_a_sum_with_noise_is_charged_for_good_whatever_the_phone_would_have_allowed(tmp_path: Path) -> None:
    cohort(tmp_path, NOISY, config("privacy.noise=false"))
    assert status(tmp_path / "0", config().privacy).epsilon > 0


def test_a_phone_that_is_switched_off_takes_part_in_no_sum_of_either_kind(tmp_path: Path) -> None:
    learner: Any = Learner()
    start = np.frombuffer(ServerSum(asked(SILENT, "0" * 32, 0).terms(), range(PHONES)).request(0), np.uint8)
    quiet = config("privacy.noise=false")
    phone = Phone(tmp_path, lambda: learner, quiet, durable=False)
    for settings in (quiet, config()):
        with open_ledger(tmp_path, settings.privacy, make=True) as ledger:
            ledger.off()
        with pytest.raises(PrivacyError, match="switched off"):
            phone.masked(asked(SILENT, "0" * 32, 0), {"secure": start})
        assert not (tmp_path / NOISE_FREE_DATABASE).exists()
        with open_ledger(tmp_path, settings.privacy) as ledger:
            ledger.on()
    phone.masked(asked(SILENT, "0" * 32, 0), {"secure": start})
    assert (tmp_path / NOISE_FREE_DATABASE).exists()


@pytest.mark.slow
@pytest.mark.parametrize("settings", [["privacy.corrupted=0.05"], ["privacy.corrupted=0.02", "privacy.dishonest=0.1"]])
def test_phone_and_status_count_the_same_noiseless_phones(settings: list[str], tmp_path: Path) -> None:
    """What the phone charges is what the owner is shown, and what the owner's view of the ledger would charge."""
    own = config(*settings)
    assert own.privacy.noiseless > 0
    cohort(tmp_path, NOISY, own)
    shown = status(tmp_path / "0", own.privacy).epsilon
    assert shown == pytest.approx(epsilon([NOISY], own.privacy.delta, own.privacy.noiseless), rel=1e-12)
    with open_ledger(tmp_path / "0", own.privacy) as ledger:
        (charged,) = ledger.entries()
        ledger.answer(NOISY, "c" * 64, lambda: np.zeros(4, np.uint32))
        assert ledger.entries()[1].rho == charged.rho


def test_the_masking_step_is_the_one_that_is_charged(tmp_path: Path) -> None:
    assert MASKING < STEPS
    learner: Any = Learner()
    phone = Phone(tmp_path, lambda: learner, config(), durable=False)
    start = np.frombuffer(ServerSum(asked(NOISY, "0" * 32, 0).terms(), range(PHONES)).request(0), np.uint8)
    phone.masked(asked(NOISY, "0" * 32, 0), {"secure": start})
    assert status(tmp_path, config().privacy).epsilon == 0
