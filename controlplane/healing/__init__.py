"""What is done about an incident: playbooks, runs, steps, gates, actions."""
