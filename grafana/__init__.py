"""Dashboards and rules for whoever runs relays: the JSON is built from the pages here, the rules are written by hand."""
