"""A pruning plan says which channels of each group stay."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from fedcaptor.common.arrays import Indices
from fedcaptor.common.errors import PlanError
from fedcaptor.common.groups import ChannelGroups


@dataclass(frozen=True, eq=False)
class Plan:
    """Say which channels of a network stay.

    Attributes:
        base: `ChannelGroups.digest` of the network that is pruned.
        kept: Sorted channel numbers to keep, by group name; an absent group keeps all. The output group's channels are
            the class labels of the base model.
    """

    base: str
    kept: Mapping[str, Indices]

    @classmethod
    def of(cls, groups: ChannelGroups, kept: Mapping[str, npt.ArrayLike]) -> Plan:
        """Validate and sort `kept` channels. Raises PlanError naming the group, the value and the bound."""
        checked: dict[str, Indices] = {}
        for name, channels in kept.items():
            group = groups.by_name.get(name)
            if group is None:
                raise PlanError(f"plan names group {name!r}, the model has {sorted(groups.by_name)}: plan it again")
            index = np.unique(np.asarray(channels, dtype=np.int64))
            if index.size == 0:
                raise PlanError(f"plan empties group {name!r}, must keep at least 1 channel: raise the budget")
            if index[0] < 0 or index[-1] >= group.channels:
                raise PlanError(
                    f"plan keeps channels {index[0]}..{index[-1]} of {name!r}, must lie in 0..{group.channels - 1}"
                )
            checked[name] = index
        return cls(groups.digest, checked)

    def counts(self) -> dict[str, int]:
        """Count the kept channels of each group that the plan names."""
        return {name: len(index) for name, index in self.kept.items()}

    def classes(self, groups: ChannelGroups) -> Indices:
        """Return the original labels [k] of the submodel's outputs, in their order."""
        return self.kept.get(groups.output.name, np.arange(groups.classes))

    def to_json(self) -> str:
        """Serialise the plan; `digest` is the hash of this text."""
        kept = {name: index.tolist() for name, index in self.kept.items()}
        return json.dumps({"base": self.base, "kept": kept}, sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str, groups: ChannelGroups) -> Plan:
        """Read what `to_json` wrote. Raises PlanError when it is damaged or was made for another network."""
        try:
            raw = json.loads(text)
            base, kept = raw["base"], dict(raw["kept"])
        except (KeyError, TypeError, ValueError) as error:
            raise PlanError(f"plan is not readable ({error}): plan it again") from error
        if base != groups.digest:
            raise PlanError(f"plan was made for network {base[:12]}, this one is {groups.digest[:12]}: plan it again")
        return cls.of(groups, kept)

    @cached_property
    def digest(self) -> str:
        """Return the SHA-256 of the plan, hex."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()
