"""A score for each point of a series; pure mathematics, no I/O, no clock. High means anomalous."""
