"""Read what a phone keeps in small safetensors files of its own; one that is missing or damaged holds nothing."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open

from fedcaptor.common.arrays import Array

DAY = "day"
"""Metadata key: the day that a file's content was made on."""


def metadata_of(path: Path) -> dict[str, str]:
    """Return a file's metadata, empty where it cannot be read."""
    try:
        with safe_open(path, framework="np") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError):
        return {}


def tensors_of(path: Path) -> dict[str, Array]:
    """Return a file's tensors by name, none where it cannot be read."""
    try:
        with safe_open(path, framework="np") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dict
    except (SafetensorError, OSError):
        return {}


def day_of(path: Path) -> int:
    """Return the day of a file's content, -1 where it cannot be read."""
    try:
        return int(metadata_of(path).get(DAY, -1))
    except ValueError:
        return -1
