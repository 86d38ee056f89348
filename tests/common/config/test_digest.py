"""The digest seeds the noise of a run: a change of the schema must not move it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pytest
from pydantic import Field

from fedcaptor.common.config import Clusters, Config, Section, load_config
from fedcaptor.common.config.digest import COUNTED, NOT_COUNTED, digest
from fedcaptor.common.config.schema.base import SERVER
from fedcaptor.common.config.schema.sections import all_keys

SCENARIOS = Path(__file__).parents[3] / "simulations" / "scenarios"
FIRST = {
    "demo": "69e1dfdcd111f0a0cc108691123169fe816c8a67c04dc5a2ae4bf8331342fc26",
    "drift": "532250bd7761c0128342aeafa1fbca16d4ccabc0ab2b0c546789a782848c4231",
    "faults": "31301616f472de1036947167c2f29c60f7bdcc9fdd5659dca605510b586044e0",
    "flower": "c1c1ee0490208b900858c21213de0c69cc2e6b2c1e066eb464b2b2545c7c3997",
    "owners": "656d82d5fcd04417ac2d05811285e83d64548a3c499d0cc725752dcb20a6a959",
    "partitioner": "cd420bd2f812d320896e327b70dcfad93379e5b4c22781dee93852f8594dc4d7",
    "thousand": "48f81921de747e2e2bfbebc9c7a72251f146cef6bd81fe8f74e4f272332944a2",
    "tiers": "fda6c5c4597759be7d15d72b125379dbdae0b8b3dacc5a67e94eb139c06f2d1f",
}
"""As the first schema gave them, one class of pydantic whose whole JSON text was hashed."""


@pytest.mark.parametrize("name", FIRST)
def test_shipped_scenarios_keep_their_digest(name: str) -> None:
    assert load_config(SCENARIOS / f"{name}.toml").digest == FIRST[name]


def test_defaults_and_unusual_values_keep_their_digest() -> None:
    assert load_config().digest == "2abe856d191587824a794c23b5eba3b8ca9898da1a5ecf685cb3fa8852b3a0c4"
    unusual = [
        "run.seed=1234567890123456789",
        "privacy.delta=1e-7",
        "population.law=partitioner",
        "population.partitioner_arguments={alpha=0.3, sizes=[1,2.5], name='ü\"x', deep=true}",
        "personal.ladder=[1e-5,1.0]",
        "faults.malformed=0.25",
        "delivery.fetches=3",
        "delivery.answer_seconds=1",
        "rounds.deadline=1e22",
    ]
    assert load_config(None, unusual).digest == "5b17400cc8416b22819a9397f2d2278be5185567f2a6a52c6c3086f2e8f14866"


def test_every_frozen_key_is_in_the_schema_still() -> None:
    keys = {f"{section}.{key}" for section, key, _ in all_keys()}
    assert {f"{section}.{key}" for section, names in COUNTED.items() for key in names.split()} <= keys
    assert keys >= NOT_COUNTED


class Grown(Clusters):
    method: Annotated[str, SERVER] = Field("k-means", description="Came later.")
    depth: Annotated[int, SERVER] = Field(1, description="Came later too.")


class Added(Section):
    size: Annotated[int, SERVER] = Field(4, description="Of a section that came later.")


class Later(Config):
    clusters: Grown = Grown()  # type: ignore[assignment]
    added: Added = Added()


def test_a_key_that_came_later_counts_only_where_it_is_not_its_default() -> None:
    assert digest(Later()) == Config().digest
    values = [{}, {"clusters": {"method": "x"}}, {"clusters": {"depth": 2}}, {"added": {"size": 5}}]
    digests = [digest(Later.model_validate(value)) for value in values]
    assert len(set(digests)) == len(values)
    assert digest(Later.model_validate({"clusters": {"method": "k-means"}, "added": {"size": 4}})) == digests[0]
