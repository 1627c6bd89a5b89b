"""Upstream: the git hosts, reached by warm libssh2 connections."""
