"""Where money went."""
