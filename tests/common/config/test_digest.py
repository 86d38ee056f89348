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
    "demo": "5abec692247dd5b7807f2a8b6fe6a583506cd137a69d418cefc097c4ba4e6a00",
    "drift": "1c6646f70e82f3468a4c6ca15a797181fe20d02118e33d876aa4891058a8de78",
    "faults": "0fcdfe0aa5ea23b5913c5ff276a19b6260a68c9caef48f33016363d3fb9610f4",
    "flower": "7e7b6d802383be50cb9eab271f8ccf600ffab3dee83f61003eb6ea576bd28cf0",
    "owners": "0b293c8c4b221e51fb7e5fcd8370c4ce2038b5d2ddcf090d74dc8edaa672f29e",
    "partitioner": "735fb3fa36f67382fb16d9a08abf02db29db90f0aa9ce41d4c1af56ffe6ba9b7",
    "thousand": "a6a33b4952c05c3621510b5ce7e120a696d745c9afa695d34e8f01a47ba0f435",
    "tiers": "074a9db48267ebdd122ca192142bbbf71c62d43f12d5ff2a9f5dda42ce58198b",
}
"""As the schema of the keys that `COUNTED` names gave them."""


@pytest.mark.parametrize("name", FIRST)
def test_shipped_scenarios_keep_their_digest(name: str) -> None:
    assert load_config(SCENARIOS / f"{name}.toml").digest == FIRST[name]


def test_defaults_and_unusual_values_keep_their_digest() -> None:
    assert load_config().digest == "5a79f45d55f32be7bf1ddbffdd4293f478f09741178b4b2f7954daf66633d022"
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
    assert load_config(None, unusual).digest == "25ba4232a8d0012c2f91ff21dd6c6ba4a2871bea877b4f0902f7b14e1c7a1b20"


def test_every_frozen_key_is_in_the_schema_still() -> None:
    keys = {f"{section}.{key}" for section, key, _ in all_keys()}
    assert {f"{section}.{key}" for section, names in COUNTED.items() for key in names.split()} <= keys
    assert keys | set(Config.model_fields) >= NOT_COUNTED


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
