#!/bin/sh
# Builds the hardened libssh2 into a wheel of ssh2-python, and relay_gcm (gcm/), and installs both into an environment; quick when they are there.
#   native/build.sh [--check] [ENVIRONMENT]     ENVIRONMENT: a virtual environment, default .venv
#   --check: says in one line whether it can be built here, and what is missing; exit 0 or 1.
set -eu
cd "$(dirname "$0")/.."
say() { printf 'native: %s\n' "$*" >&2; }

check=
[ "${1-}" = --check ] && { check=1; shift; }
environment=${1-.venv}
python=$environment/bin/python
version=$(sed -n 's/^ssh2-python==//p' constraints.txt)
want=$(sed -n 's/^sha256  *//p' native/sdist)
named=$(sed -n 's/^version  *//p' native/sdist)

missing=
command -v cc >/dev/null || command -v gcc >/dev/null || missing="$missing gcc"
command -v cmake >/dev/null || missing="$missing cmake"
command -v make >/dev/null || missing="$missing make"
command -v patch >/dev/null || missing="$missing patch"
[ -e /usr/include/openssl/evp.h ] || [ -n "$(printf '#include <openssl/evp.h>\n' | cc -E - 2>/dev/null || true)" ] || missing="$missing libssl-dev"
header=$("$python" -c 'import sysconfig; print(sysconfig.get_paths()["include"])' 2>/dev/null)/Python.h
[ -e "$header" ] || missing="$missing python3-dev"
if [ -n "$missing" ]; then
    say "the hardened libssh2 cannot be built: apt-get install$missing"
    exit 1
fi
[ "$version" = "$named" ] || { say "constraints.txt pins ssh2-python $version, the patches are for $named"; exit 1; }
[ -z "$check" ] || exit 0

# One wheel for each set of patches, source and Python; it is built once and installed where it is not.
python_tag=$("$python" -c 'import sys, sysconfig; print(sys.implementation.cache_tag, sysconfig.get_platform())')
mark=$({ cat native/patches/*.patch native/sdist native/build.sh native/gcm/*.*; echo "$python_tag"; } | sha256sum | cut -c1-16)
stamp=$environment/.native
loaded=$("$python" -c 'import ssh2, pathlib; print(pathlib.Path(ssh2.__file__).parent)' 2>/dev/null || true)
if [ "$(cat "$stamp" 2>/dev/null || true)" = "$mark" ] && ls "$loaded"/libssh2.so* >/dev/null 2>&1 && "$python" -c 'import relay_gcm' 2>/dev/null; then
    exit 0
fi

"$python" -c 'import sys, setuptools; sys.exit(int(setuptools.__version__.split(".")[0]) < 77)' 2>/dev/null || {
    say "setuptools 77 or later is missing in $environment: $python -m pip install --require-hashes --no-deps -r requirements/run.txt"
    exit 1
}
wheels=build/native/$mark
if ! ls "$wheels"/*.whl >/dev/null 2>&1; then
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    say "building libssh2 with its patches (under a minute)"
    # pip compares the checksum before it runs anything of the source, and setup.py is run only to learn its name and version
    # (SYSTEM_LIBSSH2: which must not compile the unpatched library); what builds it is there already, pinned too.
    printf 'ssh2-python==%s --hash=sha256:%s\n' "$version" "$want" >"$work/source.txt"
    SYSTEM_LIBSSH2=1 "$python" -m pip download --quiet --disable-pip-version-check --no-deps --no-build-isolation --no-binary ssh2-python \
        --require-hashes --requirement "$work/source.txt" --dest "$work" >"$work/log" 2>&1 ||
        { cat "$work/log" >&2; say "the source of ssh2-python $version with the SHA-256 that native/sdist names could not be had"; exit 1; }
    sdist=$(ls "$work"/*.tar.gz)
    tar -xzf "$sdist" -C "$work"
    source=$(ls -d "$work"/ssh2_python-*/)
    for one in native/patches/*.patch; do
        patch --silent --strip=1 --fuzz=0 --directory "$source" <"$one" || { say "$one does not apply"; exit 1; }
    done
    # A local version (PEP 440), which satisfies ==$version too: `pip list` tells the two libraries apart.
    number=$(sed -n 's/^#define LIBSSH2_RELAY_BUILD "relay-\([0-9]*\)"$/\1/p' "$source/libssh2/include/libssh2.h")
    sed -i "s/\"version\": \"$version\"/\"version\": \"$version+relay$number\"/" "$source/ssh2/_version.py"
    grep -q "+relay[0-9]" "$source/ssh2/_version.py" || { say "the version of the source was not found"; exit 1; }
    mkdir -p "$wheels" "$work/gcm"
    cp native/gcm/*.* "$work/gcm" # the build leaves files beside its sources
    "$python" -m pip wheel --quiet --disable-pip-version-check --no-deps --no-index --no-build-isolation --use-pep517 --wheel-dir "$work/wheel" "$source" "$work/gcm" >"$work/log" 2>&1 ||
        { tail -40 "$work/log" >&2; say "the build failed"; exit 1; }
    mv "$work"/wheel/*.whl "$wheels/"
fi
"$python" -m pip install --quiet --disable-pip-version-check --no-deps --no-index --force-reinstall "$wheels"/*.whl
printf '%s\n' "$mark" >"$stamp"
"$python" -c 'import relay_gcm' || { say "relay_gcm was built and cannot be loaded"; exit 1; }
say "installed: relay_gcm, libssh2 1.11.1+$("$python" -c '
import ctypes, ssh2.session
with open("/proc/self/maps") as maps:
    path = next(line.split()[-1] for line in maps if "libssh2" in line)
name = ctypes.CDLL(path).libssh2_relay_build
name.restype = ctypes.c_char_p
print(name().decode())')"
