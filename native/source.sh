#!/bin/sh
# Writes the source tree of git-ssh-relay-native: the libssh2 of the ssh2-python sdist with the patches, its binding under the name relay_ssh2, relay_gcm
# and the files of package/. Only this needs a download, once; what is built of the tree needs none.
#   native/source.sh PYTHON DIRECTORY     PYTHON has pip and setuptools; DIRECTORY is made
set -eu
python=$1
mkdir -p "$2"
tree=$(cd "$2" && pwd)
case $python in */*) python=$(cd "$(dirname "$python")" && pwd)/$(basename "$python") ;; esac
cd "$(dirname "$0")/.."
say() { printf 'native: %s\n' "$*" >&2; }
version=$(sed -n 's/^version  *//p' native/sdist)
want=$(sed -n 's/^sha256  *//p' native/sdist)
pinned=$(sed -n 's/^ssh2-python==//p' constraints.txt)
[ "$version" = "$pinned" ] || { say "constraints.txt pins ssh2-python $pinned, the patches are for $version"; exit 1; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

kept=build/native/source
sdist=$(ls $kept/*.tar.gz 2>/dev/null || true)
if [ -z "$sdist" ] || ! printf '%s  %s\n' "$want" "$sdist" | sha256sum --check --status; then
    rm -rf $kept
    # pip compares the checksum before it runs anything of the source, and setup.py is run only to learn its name and version
    # (SYSTEM_LIBSSH2: which must not compile the unpatched library); what runs it is there already, pinned too.
    printf 'ssh2-python==%s --hash=sha256:%s\n' "$version" "$want" >"$work/source.txt"
    SYSTEM_LIBSSH2=1 "$python" -m pip download --quiet --disable-pip-version-check --no-deps --no-build-isolation --no-binary ssh2-python \
        --require-hashes --requirement "$work/source.txt" --dest "$work" >"$work/log" 2>&1 ||
        { cat "$work/log" >&2; say "the source of ssh2-python $version with the SHA-256 that native/sdist names could not be had"; exit 1; }
    mkdir -p $kept
    mv "$work"/*.tar.gz $kept/
    sdist=$(ls $kept/*.tar.gz)
fi
tar -xzf "$sdist" -C "$work"
source=$(ls -d "$work"/ssh2_python-*/)
for one in native/patches/*.patch; do
    patch --silent --strip=1 --fuzz=0 --directory "$source" <"$one" || { say "$one does not apply"; exit 1; }
done

mkdir -p "$tree/libssh2" "$tree/relay_ssh2" "$tree/licenses" "$tree/patches"
cp -R "$source/libssh2/include" "$source/libssh2/src" "$tree/libssh2/"
# The binding's modules import each other by the names in their string literals; renamed there, and in the sources that Cython compiled them from, they
# are a package of their own, which may be in one process with ssh2.
cp -R "$source"/ssh2/*.c "$source"/ssh2/*.pyx "$source"/ssh2/*.pxd "$source/ssh2/ext" "$tree/relay_ssh2/"
sed -i -e 's/"ssh2\./"relay_ssh2./g' -e 's/"ssh2"/"relay_ssh2"/g' "$tree"/relay_ssh2/*.c
sed -i -E -e 's/^([[:space:]]*(from|cimport|import)[[:space:]]+)ssh2([. ])/\1relay_ssh2\3/' "$tree"/relay_ssh2/*.pyx "$tree"/relay_ssh2/*.pxd
if grep -nE '"ssh2[."]' "$tree"/relay_ssh2/*.c >&2; then say "a name of ssh2-python was left in its binding"; exit 1; fi
number=$(sed -n 's/^version = "\(.*\)"$/\1/p' native/package/pyproject.toml)
printf '"""The binding of ssh2-python %s on the hardened libssh2 of git-ssh-relay-native."""\n\n__version__ = "%s"\n' "$version" "$number" >"$tree/relay_ssh2/__init__.py"
cp native/package/* native/gcm/relay_gcm.c "$tree/"
cp native/patches/*.patch "$tree/patches/"
cp LICENSE "$tree/licenses/Apache-2.0.txt"
cp "$source/libssh2/COPYING" "$tree/licenses/libssh2-BSD-3-Clause.txt"
cp "$source/LICENSE" "$tree/licenses/ssh2-python-LGPL-2.1.txt"
