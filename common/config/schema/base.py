"""What sections and keys are made of: bounds that many keys share, and who reads a key."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from fedcaptor.common.plugins import is_own

Share = Annotated[float, Field(ge=0, le=1)]
Ratio = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[float, Field(gt=0)]


class Reader(StrEnum):
    """A part of the system that reads a key: the server, a phone, what only a simulation does (the population of
    owners, faults, the figures of a summary), or what runs a deployment's services. A simulation runs a server and
    phones as well.
    """

    server = "server"
    phone = "phone"
    simulation = "simulation"
    deployment = "deployment"


SERVER, PHONE, SIMULATION, DEPLOYMENT = Reader.server, Reader.phone, Reader.simulation, Reader.deployment


def one_of(*known: str) -> AfterValidator:
    """Accept a shipped part by name, or one's own as `package.module:object`."""

    def check(value: str) -> str:
        if value not in known and not is_own(value):
            expected = ", ".join(f"'{name}'" for name in known)
            raise PydanticCustomError(
                "literal_error", "Input should be {expected} or package.module:object", {"expected": expected}
            )
        return value

    return AfterValidator(check)


class Section(BaseModel):
    """One section of the file. Frozen; unknown keys, infinite and undefined numbers are refused.

    Each key is annotated with its readers: `Annotated[int, SERVER, PHONE]`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def readers(key: FieldInfo) -> frozenset[Reader]:
    """The readers that a key is annotated with."""
    return frozenset(mark for mark in key.metadata if isinstance(mark, Reader))
