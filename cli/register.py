"""Run `fedcaptor register`, by which an operator signs which phones are enrolled, and anybody verifies it.

The same key signs deliveries, on the server (`FEDCAPTOR_SIGNING_KEY`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Sign and verify the register of enrolled phones, whose masked sums hold no made-up phone.")


@app.command()
def sign(
    key: Annotated[Path, typer.Argument(help="The operator's private Ed25519 key, PEM without a password.")],
    identities: Annotated[
        Path, typer.Argument(help="File with one identity a line, each as `fedcaptor phone identity` prints it.")
    ],
    out: Annotated[Path, typer.Option(help="Register to write; give it to every phone.")],
) -> None:
    """Write a register of phones, and print the operator's public key, by which phones verify it.

    The same key signs deliveries: give the server its path as FEDCAPTOR_SIGNING_KEY.
    """
    from fedcaptor.common.files import read_bounded, write_whole
    from fedcaptor.common.secure.keys import identity_of
    from fedcaptor.common.secure.register import MAX_BYTES, sign, signing_key

    operator = signing_key(key)
    listed = read_bounded(identities, MAX_BYTES, "list of identities").decode(errors="replace")
    write_whole(out, sign(listed.splitlines(), operator))
    print(identity_of(operator).hex())


@app.command()
def verify(
    register: Annotated[Path, typer.Argument(help="Register of enrolled phones.")],
    operator: Annotated[str, typer.Argument(help="The operator's public key: 64 hex digits, or a PEM file.")],
) -> None:
    """Check that the operator signed a register, and print how many phones are enrolled."""
    from fedcaptor.common.secure.register import operator_key, read_register

    print(f"{len(read_register(register, operator_key(operator)))} phones are enrolled")
