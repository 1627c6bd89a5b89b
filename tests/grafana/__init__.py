"""Dashboards and rules against the real Prometheus, and their pictures."""
