"""The reference page of all keys, docs/configuration.md."""

from __future__ import annotations

from fedcaptor.common.config.files import toml
from fedcaptor.common.config.schema.base import Reader, readers
from fedcaptor.common.config.schema.configuration import Config
from fedcaptor.common.config.schema.sections import is_list, keys_of

_HEAD = """\
# Configuration

Made by `make docs`; do not edit by hand.

One TOML file configures a simulation, a server or a phone. A key that is not given has its default.
`fedcaptor config FILE` checks a file and prints all its values; `--set section.key=value` overrides one of them where a
command takes it.

*Read by* says who uses a key: the **server**, a **phone**, what is special to a **simulation** (its owners, its faults,
the figures of its summary), or what runs the services of a **deployment** (`fedcaptor deploy`). A simulation runs a
server and phones too, so it takes all keys. A phone's file needs the phone's keys alone: `fedcaptor config FILE --for
phone` writes it. Server and phones need not have the same file: a phone keeps to its own values, and declines a request
that does not fit them.
"""


def reference_page() -> str:
    """The page: a table of keys for each section."""
    lines = [_HEAD]
    for name in Config.model_fields:
        title = f"## [[{name}]]" if is_list(name) else f"## [{name}]"
        lines += [title, "", "| key | default | read by | meaning |", "|---|---|---|---|"]
        for key, field in keys_of(name).items():
            default = "–" if field.is_required() else f"`{toml(field.default)}`"
            read_by = ", ".join(reader.value for reader in Reader if reader in readers(field))
            lines.append(f"| `{key}` | {default} | {read_by} | {field.description} |")
        lines.append("")
    return "\n".join(lines)
