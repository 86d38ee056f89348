"""Make the table of dates, by which a run's budget is one of 90 days.

What was stored before has no date, and counts in any 90 days.
"""

from alembic import op
from sqlalchemy import Column, Float, Integer, String

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Make it; a database may have it from before there were migrations."""
    op.create_table(
        "dates",
        Column("round", Integer, primary_key=True, autoincrement=False),
        Column("phase", String(64), primary_key=True),
        Column("attempt", String(32), primary_key=True),
        Column("at", Float, nullable=False),
        if_not_exists=True,
    )
