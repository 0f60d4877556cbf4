"""A world to try it in: a simulated provider with scripted faults, and a fleet of agents."""
