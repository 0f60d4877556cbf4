"""Grafana dashboards as code: `build` writes and compares the files under grafana/dashboards, `push` sends them to a running Grafana."""
