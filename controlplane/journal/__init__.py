"""What was decided and by whom: the append-only event store behind catalog, incidents, playbook runs and approvals."""
