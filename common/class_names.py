"""Class names: labels by name, and the names of a data set held against those of a network."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from fedcaptor.common.arrays import Indices
from fedcaptor.common.errors import ConfigError, DataError

SHOWN = 20  # names in a message

Names = tuple[str, ...]
"""One name for each label, in the order of the labels."""


def labels_of(classes: Iterable[int | str], names: Sequence[str] | None) -> Indices:
    """Return the labels [k] of classes, ascending: each a label, a name, or text of a label. Case does not matter.

    Raises ConfigError for a name that is not among `names`, and for a number that is one class's label and another's
    name.
    """
    return np.unique(np.array([_label(one, names) for one in classes], dtype=np.int64))


def _label(given: int | str, names: Sequence[str] | None) -> int:
    if not isinstance(given, str):
        return int(given)
    text, known = given.strip(), list(names or ())
    same = [text] if text in known else [name for name in known if name.casefold() == text.casefold()]
    named = known.index(same[0]) if len(same) == 1 else None
    if not (text.isascii() and text.isdigit()):
        if named is not None:
            return named
        if names is None:
            raise ConfigError(f"class {text!r} is no label, and nothing names the classes: give labels such as 3,5")
        raise ConfigError(f"class {text!r} is none of {_shown(known)}: give names of these, or labels such as 3,5")
    if named is not None and named != int(text) and int(text) < len(known):
        raise ConfigError(
            f"class {text} is the label of {known[int(text)]!r} and the name of label {named}: rename the classes"
        )
    return int(text) if named is None else named


def fitting_names(outputs: int, of_network: Names | None, of_data: Names, data: str) -> Names | None:
    """Return the names of a network's classes, from its weights or from the data; None where neither names them.

    Data that numbers its classes may have fewer of them than the network has `outputs`.

    Raises DataError where the data's classes are not those of the network, in number or by name.
    """
    numbered = of_data == tuple(map(str, range(len(of_data))))
    if len(of_data) > outputs or (len(of_data) < outputs and not numbered):
        raise DataError(
            f"{data} has {len(of_data)} classes ({_shown(of_data)}), the network {outputs}: give the data that it was "
            "trained on, with all of its classes in the same order"
        )
    if numbered:
        return of_network
    for label, (ours, theirs) in enumerate(zip(of_network or of_data, of_data, strict=True)):
        if ours != theirs:
            raise DataError(
                f"label {label} is {theirs!r} in {data} and {ours!r} in the network's weights: give the data that it "
                "was trained on, with its classes in the same order"
            )
    return of_data


def named(labels: Indices, names: Sequence[str] | None) -> list[int | str]:
    """Return labels [k] as their names, or as numbers where there are none."""
    return labels.tolist() if names is None else [names[label] for label in labels]


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (" …" if len(names) > SHOWN else "")
