"""Run by Alembic for each upgrade: the steps run on the connection that `upgrade` was given, in its transaction."""

from alembic import context

context.configure(connection=context.config.attributes["connection"])
context.run_migrations()
