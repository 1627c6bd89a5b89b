#!/bin/sh
# Makes the keys that are not there: prepare.sh RELAY_KEYS GITHOST_KEYS. The relay's folder gets its private keys and the git host's host key in known_hosts,
# the git host's its own host key and the relay's public key. Files of root that the relay's group (65532) can read.
set -eu
relay=$1 githost=$2
umask 077
make() { [ -f "$1" ] || ssh-keygen -q -t ed25519 -N '' -C "$2" -f "$1"; }
make "$relay/host_ed25519" relay
make "$relay/upstream_ed25519" relay-to-githost
make "$githost/host_ed25519" githost
printf 'githost %s\n' "$(cut -d ' ' -f 1,2 "$githost/host_ed25519.pub")" >"$relay/known_hosts"
cp "$relay/upstream_ed25519.pub" "$githost/authorized_keys"
chmod 0755 "$relay" "$githost"
chmod 0644 "$githost/authorized_keys" "$githost/host_ed25519.pub" "$relay/known_hosts" "$relay"/*.pub
if [ "$(id -u)" = 0 ]; then chown 0:65532 "$relay/host_ed25519" "$relay/upstream_ed25519"; fi
chmod 0440 "$relay/host_ed25519" "$relay/upstream_ed25519"
