#!/bin/sh
# Builds the wheel of git-ssh-relay-native (the hardened libssh2 with its binding, and relay_gcm) and installs it into an environment; quick when it is there.
#   native/build.sh [--check | --if-built | --wheel] [ENVIRONMENT]     ENVIRONMENT: a virtual environment, default .venv
#   --check: says in one line whether it can be built here, and what is missing; exit 0 or 1.
#   --if-built: installs what was built before; exit 3 where it has to be built first.
#   --wheel: prints the path of the wheel, and installs nothing.
set -eu
cd "$(dirname "$0")/.."
say() { printf 'native: %s\n' "$*" >&2; }

mode=install
case ${1-} in --check | --if-built | --wheel) mode=${1#--}; shift ;; esac
environment=${1-.venv}
python=$environment/bin/python

missing=
command -v cc >/dev/null || command -v gcc >/dev/null || missing="$missing gcc"
command -v patch >/dev/null || missing="$missing patch"
[ -e /usr/include/openssl/evp.h ] || [ -n "$(printf '#include <openssl/evp.h>\n' | cc -E - 2>/dev/null || true)" ] || missing="$missing libssl-dev"
header=$("$python" -c 'import sysconfig; print(sysconfig.get_paths()["include"])' 2>/dev/null)/Python.h
[ -e "$header" ] || missing="$missing python3-dev"
if [ -n "$missing" ]; then
    say "the hardened libssh2 cannot be built: apt-get install$missing"
    exit 1
fi
[ $mode != check ] || exit 0

# One wheel for each set of sources and each Python; it is built once and installed where it is not.
python_tag=$("$python" -c 'import sys, sysconfig; print(sys.implementation.cache_tag, sysconfig.get_platform())')
mark=$({ cat native/patches/*.patch native/sdist native/source.sh native/package/*.py native/package/*.toml native/package/*.h native/gcm/*.c; echo "$python_tag ${RELAY_LIBSSH2_CFLAGS-}"; } | sha256sum | cut -c1-16)
stamp=$environment/.native
if [ $mode != wheel ] && [ "$(cat "$stamp" 2>/dev/null || true)" = "$mark" ] && "$python" -c 'import relay_ssh2, relay_gcm' 2>/dev/null; then
    exit 0
fi

"$python" -c 'import sys, setuptools; sys.exit(int(setuptools.__version__.split(".")[0]) < 77)' 2>/dev/null || {
    say "setuptools 77 or later is missing in $environment: $python -m pip install --require-hashes --no-deps -r requirements/run.txt"
    exit 1
}
wheels=build/native/$mark
if ! ls "$wheels"/*.whl >/dev/null 2>&1; then
    [ $mode != if-built ] || exit 3
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    say "${NATIVE_STEP-}building libssh2 with its patches (half a minute of CPU time)"
    native/source.sh "$python" "$work/source"
    # a session of its own, so that the compilers end with pip when this script is ended
    setsid "$python" -m pip wheel --quiet --disable-pip-version-check --no-deps --no-index --no-build-isolation --use-pep517 --wheel-dir "$work/wheel" \
        "$work/source" >"$work/log" 2>&1 &
    build=$! waited=0
    trap 'kill -- -$build 2>/dev/null || true; rm -rf "$work"' EXIT
    trap 'exit 143' TERM
    trap 'exit 130' INT
    while kill -0 $build 2>/dev/null; do
        sleep 0.2
        waited=$((waited + 1))
        [ $((waited % 50)) != 0 ] || say "${NATIVE_STEP-}still compiling, $((waited / 5)) s"
    done
    wait $build || { tail -40 "$work/log" >&2; say "the build failed"; exit 1; }
    mkdir -p "$wheels"
    mv "$work"/wheel/*.whl "$wheels/"
fi
if [ $mode = wheel ]; then
    ls "$wheels"/*.whl
    exit 0
fi
"$python" -m pip install --quiet --disable-pip-version-check --no-deps --no-index --force-reinstall "$wheels"/*.whl
printf '%s\n' "$mark" >"$stamp"
loaded=$("$python" -c 'import relay_gcm, relay_ssh2.session, ctypes, pathlib
name = ctypes.CDLL(str(pathlib.Path(relay_ssh2.__file__).with_name("librelay_ssh2.so"))).libssh2_relay_build
name.restype = ctypes.c_char_p
print(name().decode())') || { say "relay_ssh2 or relay_gcm was built and cannot be loaded"; exit 1; }
say "installed: relay_gcm, libssh2 1.11.1+$loaded"
