"""Write docs/messages.md from the schema itself: what is not in the code is not on the page."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from fedcaptor.common import messages, wire
from fedcaptor.common.messages import Body, Header, Rules
from fedcaptor.common.privacy.sums import MAX_LENGTH, MIN_COHORT, SumSpec


def reference_page() -> str:
    """Return the text of docs/messages.md."""
    headers = [_message(header) for header in _defined(Header)]
    bodies = [_part(body) for body in _defined(Body) if body is not Header]
    parts = [_introduction(), _limits(), *headers, *bodies, _reasons()]
    return "\n".join(line for part in parts for line in [*part, ""]).removesuffix("\n") + "\n"


def _defined(base: type[Body]) -> list[type[Any]]:
    """List the classes of the schema directly below `base`, in their order."""
    return [found for found in base.__subclasses__() if found.__module__ == messages.__name__]


def _introduction() -> list[str]:
    return [
        "# Messages",
        "",
        "Made by `make docs`; do not edit by hand.",
        "",
        f"Version {messages.VERSION} of what server and phones send each other. A message is one Flower `RecordDict` "
        f"with the record `{wire.HEADER}`: its entry `json` is the header as JSON text, its entry `{wire.INLINE}` the "
        f"tensors as safetensors bytes. Above {_number(wire.DEFAULT_LIMITS.inline_bytes)} of these, a second record, "
        f"`{wire.TENSORS}`, takes the entry's place: named arrays of stype `{wire.STYPE}`, raw little-endian bytes. "
        "Nothing is ever unpickled.",
        "",
        "Unknown fields and tensors are refused, as are numbers that are not finite. A bound is checked before memory "
        "is taken. A change of meaning raises the version.",
    ]


def _limits() -> list[str]:
    limits = wire.DEFAULT_LIMITS
    return [
        "## Limits",
        "",
        *_table(
            ("what", "at most"),
            [
                ("bytes of a header", _number(limits.header_bytes)),
                ("bytes of all tensors of a message", _number(limits.tensor_bytes)),
                ("tensors of a message", _number(limits.tensors)),
                ("dimensions of a tensor", _number(wire.MAX_DIMENSIONS)),
                ("entries of a sum", _number(MAX_LENGTH)),
                ("clusters", _number(messages.MAX_CLUSTERS)),
                ("phones in a cohort", f"{_number(messages.MAX_PHONES)}, at least {MIN_COHORT} outside tests"),
            ],
        ),
    ]


def _message(header: type[Header]) -> list[str]:
    name = header.model_fields["message"].default
    return [f"## `{name}`", "", *_doc(header), "", *_fields(header), "", *_tensors(header.TENSORS)]


def _part(body: type[Body]) -> list[str]:
    meaning = ["", *_doc(SumSpec)] if body is messages.SumFields else []
    return [f"## `{body.__name__}`", "", *_doc(body), *meaning, "", *_fields(body)]


def _reasons() -> list[str]:
    intro = "Refused messages are counted by reason, never by sender."
    rows = [(f"`{reason}`", meaning) for reason, meaning in messages.REASONS.items()]
    return ["## Reasons for refusing", "", intro, "", *_table(("reason", "meaning"), rows)]


def _doc(thing: type[Any]) -> list[str]:
    return (inspect.getdoc(thing) or "").splitlines()


def _fields(body: type[Body]) -> list[str]:
    schema = body.model_json_schema()
    needed = schema.get("required", ())
    rows = []
    for name, field in schema["properties"].items():
        default = "" if name in needed else f"`{_literal(field.get('default'))}`"
        rows.append((f"`{name}`", _type(field), default, field.get("description", "")))
    return _table(("field", "type", "default", "meaning"), rows)


def _tensors(rules: Rules) -> list[str]:
    if not rules:
        return ["No tensors."]
    rows = [
        (f"`{name}`", " or ".join(rule.dtypes), _number(rule.max_elements), "yes" if rule.required else "")
        for name, rule in rules.items()
    ]
    return _table(("tensor", "dtype", "elements, at most", "required"), rows)


def _type(field: Mapping[str, Any]) -> str:
    """Describe one JSON schema in words."""
    if "$ref" in field:
        return f"`{field['$ref'].rpartition('/')[2]}`, see below"
    if "anyOf" in field:
        return " or ".join(_type(option) for option in field["anyOf"])
    if "const" in field:
        return f"`{_literal(field['const'])}`"
    if "enum" in field:
        return ", ".join(f"`{_literal(value)}`" for value in field["enum"])
    if field["type"] == "array":
        return f"list of at most {field['maxItems']}: {_type(field['items'])}"
    if "pattern" in field:
        return f"text `{field['pattern'].removeprefix('^').removesuffix('$')}`"
    bounds = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    return ", ".join(
        [str(field["type"]), *(f"{sign} {_number(field[key])}" for key, sign in bounds.items() if key in field)]
    )


def _literal(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    head = list(head)
    escaped = ([cell.replace("|", "\\|") for cell in row] for row in rows)
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *escaped)]
