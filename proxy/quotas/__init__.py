"""What counts use and holds it within limits: accounts, their windows, and the plans that say which of them a call moves."""
