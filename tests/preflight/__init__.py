"""Tests of relay/preflight: the problems of a configuration and of the files that it names, one line each."""
