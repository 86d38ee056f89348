"""Note when phases were over, and when sums were lost; each round has its phones.

What was before has no date, and counts in every period. The phones of the run become those of its first round.
"""

from alembic import op
from sqlalchemy import Column, Float, Integer, String

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Make the table, which may be there from before there were migrations, and move the lists of phones."""
    op.create_table(
        "dates",
        Column("round", Integer, primary_key=True, autoincrement=False),
        Column("phase", String(64), primary_key=True),
        Column("attempt", String(32), primary_key=True),
        Column("at", Float, nullable=False),
        if_not_exists=True,
    )
    op.execute("UPDATE phases SET round = 1 WHERE round = 0 AND phase LIKE 'nodes%'")
