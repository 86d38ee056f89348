"""The digest of a configuration: it names a run and seeds its noise, so a result can be repeated while it stays.

It is the SHA-256 of the JSON text that the first version of the schema gave. A change of the schema must not change it
for a configuration that means what it meant before, or every published figure with noise would move. Hence the rule:

1. The keys of `COUNTED` always count, in this order and under these names, wherever the schema has them today.
2. A renamed key counts under its former name (`FORMER`).
3. A key whose default now follows the network counts there as the value that it had for ten classes (`FORMER_VALUES`).
4. A key that was added later is not in `COUNTED`; it counts only where it is not its default, after the others. Its
   default must therefore mean what was done before the key came. `domain.alone` does for photos like the server's, to
   the bit; before the first release it became true for all others too.
5. The keys and sections of `NOT_COUNTED` are for devices and engines alone and change no result, but for rounding.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel
from pydantic_core import to_json

COUNTED: Mapping[str, str] = {
    "run": "seed rounds",
    "data": "source",
    "model": "name weights",
    "population": "phones law groups classes_min classes_max typical concentration exponent partitioner "
    "partitioner_arguments use_images check_images test_images out_of_set drift_round drift_share",
    "usage": "half_life corrections prior min_share max_classes drift",
    "scores": "enabled clusters_per_layer weight measured images shrink",
    "visualise": "enabled steps",
    "clusters": "k alike most iterations",
    "planner": "macs multiple tolerance images coverage by_usage",
    "personal": "enabled ladder tolerance reference rows start tune_steps tier",
    "delivery": "mode plans",
    "fallback": "mode score outputs retention",
    "privacy": "sums noise epsilon delta min_cohort dropout corrupted dishonest outcome_share scores_share",
    "rounds": "cohort deadline attempts poll",
    "faults": "dropout silence stall stall_seconds malformed",
    "testing": "small_cohorts",
    "tiers": "name share macs bytes",
}
"""Keys by section. Frozen: a change here changes the noise of every run."""

FORMER: Mapping[str, str] = {"faults.malformed": "rubbish"}
FORMER_VALUES: Mapping[str, Any] = {"usage.min_share": 0.03, "usage.max_classes": 8}
NOT_COUNTED = frozenset(
    {
        "deployment",
        "device",
        "rounds.grace",
        "run.engine",
        "usage.images",
        *(f"delivery.{key}" for key in ("answer_seconds", "fetches", "max_bytes", "max_images", "max_class_images")),
    }
)


def digest(config: BaseModel) -> str:
    """SHA-256 (hex) of the values of all sections that count."""
    later = sorted(set(type(config).model_fields) - set(COUNTED) - NOT_COUNTED)
    values = {name: _counted(name, getattr(config, name)) for name in [*COUNTED, *later]}
    text = to_json({name: held for name, held in values.items() if held or name in COUNTED}, inf_nan_mode="null")
    return hashlib.sha256(text).hexdigest()


def _counted(name: str, section: Any) -> Any:
    """What counts of a section, or of each section of a list."""
    if not isinstance(section, BaseModel):
        return [_counted(name, each) for each in section]
    always = COUNTED.get(name, "").split()
    values = {}
    for key in always:
        path, value = f"{name}.{key}", getattr(section, key)
        values[FORMER.get(path, key)] = value or FORMER_VALUES.get(path, value)
    for key, field in sorted(type(section).model_fields.items()):
        value = getattr(section, key)
        if key not in always and f"{name}.{key}" not in NOT_COUNTED and value != field.get_default():
            values[key] = value
    return values
