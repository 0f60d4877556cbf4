"""What Alembic runs to migrate; the connection is handed in by `controlplane.journal.connect`."""

from __future__ import annotations

from alembic import context

from controlplane.journal.tables import METADATA

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=METADATA,
    transactional_ddl=True,
    version_table="journal_version",
)
with context.begin_transaction():
    context.run_migrations()
