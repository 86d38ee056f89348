"""The schema as a list of sections and keys, for errors, files and the reference page."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

from pydantic.fields import FieldInfo

from fedcaptor.common.config.schema.base import Section
from fedcaptor.common.config.schema.configuration import Config


def section_of(name: str) -> type[Section]:
    """The section of that name; for a list of sections, such as `[[tiers]]`, what one entry is."""
    annotation: Any = Config.model_fields[name].annotation
    return get_args(annotation)[0] if get_args(annotation) else annotation


def is_list(name: str) -> bool:
    """Whether the section may be given several times, as `[[tiers]]`."""
    return bool(get_args(Config.model_fields[name].annotation))


def keys_of(name: str) -> dict[str, FieldInfo]:
    """The keys of a section."""
    return section_of(name).model_fields


def all_keys() -> Iterator[tuple[str, str, FieldInfo]]:
    """Section, key and its definition, in the schema's order."""
    for section in Config.model_fields:
        for key, field in keys_of(section).items():
            yield section, key, field
