"""Questions to the store, one file a subject; each returns typed values."""
