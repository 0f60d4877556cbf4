"""What was decided and by whom: the append-only event store."""
