"""Builds the extension against the system's OpenSSL, as libssh2 is."""

from setuptools import Extension, setup

FLAGS = ["-O2", "-Wall", "-Wextra", "-fstack-protector-strong"]

setup(ext_modules=[Extension("relay_gcm", ["relay_gcm.c"], libraries=["crypto"], extra_compile_args=FLAGS)])
