"""Bring the state database to the newest schema: each step is a module in `versions`, in Alembic's form.

A change of the tables in `journal` or `sum_log` comes with a new step. It runs once, when a server first opens an older
database. There is no way back but a backup.
"""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from fedcaptor.common.errors import StateError

FOLDER = Path(__file__).parent


def upgrade(connection: Connection, folder: Path = FOLDER) -> None:
    """Run the steps that are missing, in the transaction of `connection`. Raises StateError for a newer schema."""
    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(folder).replace("%", "%%"))
    scripts = ScriptDirectory.from_config(config)
    steps = {script.revision for script in scripts.walk_revisions()}
    found = MigrationContext.configure(connection).get_current_heads()
    if unknown := set(found) - steps:
        raise StateError(
            f"the state database has schema {', '.join(sorted(unknown))}, this version of fedcaptor knows none newer "
            f"than {scripts.get_current_head()}: install the version that wrote it, or give another database"
        )
    if found != (scripts.get_current_head(),):
        command.upgrade(config, "head")
