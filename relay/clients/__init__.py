"""Clients of what keys, access and routes are asked for: one connection pool, deadline and retry for each backend."""
