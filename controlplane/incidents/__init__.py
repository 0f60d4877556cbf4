"""When many anomalies are one problem, and whether it is over."""
