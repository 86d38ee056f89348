"""Say what is wrong with the state database, and never by which URL."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.exc import SQLAlchemyError

from fedcaptor.common.errors import StateError


@contextmanager
def explained(
    what: str = "the state database cannot be used", check: str = "the URL, its driver and the disk"
) -> Iterator[None]:
    """Turn the database's errors into StateError without their text, which may hold the URL's password.

    `what` cannot be done; `check`: what to look at.
    """
    try:
        yield
    except (SQLAlchemyError, ImportError, ValueError) as error:
        detail = type(getattr(error, "orig", None) or error).__name__
        raise StateError(f"{what} ({detail}); check {check}") from None
