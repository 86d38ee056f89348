"""What all records have in common, and how they are written and read."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from fedcaptor.common.arrays import Array
from fedcaptor.common.errors import StateError
from fedcaptor.common.files import replacing


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


Number = Annotated[int | float | None, BeforeValidator(_finite)]
"""A figure, None where it is unknown or not finite. A whole number stays one."""

Numbers = tuple[Number, ...]


class Record(BaseModel):
    """A part of a file. Its text is data from outside and is checked for shape alone.

    Unknown keys are left out, since a newer version may have written more. A key that was never given is not written
    either: a file of an older version keeps its keys, and what only some runs have is absent from the others.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    def plain(self) -> dict[str, Any]:
        """The record as JSON has it: dictionaries, lists, texts and numbers."""
        return self.model_dump(mode="json", exclude_unset=True)


R = TypeVar("R", bound=Record)


def known(values: Numbers) -> Array:
    """The values that are not None, as an array [n]."""
    return np.array([value for value in values if value is not None], dtype=np.float64)


def write(path: Path, record: Record) -> None:
    """Write a record as JSON; the file is replaced whole."""
    write_json(path, record.plain())


def write_json(path: Path, value: Any) -> None:
    """Write what JSON can hold; the file is replaced whole. Raises ValueError for numbers that are not finite."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, allow_nan=False))


def read(path: Path, kind: type[R]) -> R:
    """Read a file of a run's folder. Raises StateError that names the file when it is missing or damaged."""
    try:
        return kind.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise StateError(f"{path} is missing; run the simulation to its end or give its directory") from error
    except OSError as error:
        raise StateError(f"{path} cannot be read ({error.strerror}); check the permissions") from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "file"
        raise StateError(f"{path} is damaged ({where}: {first['msg']}); run the simulation again") from error
