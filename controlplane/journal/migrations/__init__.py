"""Numbered changes of the journal's tables, applied when it is opened."""
