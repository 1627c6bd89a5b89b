#!/bin/sh
# One exec on the test sshd: stub services below $STUB_ROOT/stub (the table is in sshd.py), else the real git shell.
# Plain sh, because it starts in a millisecond; the process that sshd started is this one, so its exit is the session's.
set -fu
command=${SSH_ORIGINAL_COMMAND-}
printf '%s\t%s\t%s\t%s\n' "${GIT_PROTOCOL-}" "${RELAY_IDENTITY-}" "${RELAY_KEY-}" "$command" >>"$STUB_STATE/commands"

case $command in
"git "*) line=git-${command#git } ;;
*) line=$command ;;
esac
service=${line%% *}
path=${line#* }
operation=
case $service in
git-upload-pack | git-receive-pack | git-upload-archive) ;;
git-lfs-authenticate | git-lfs-transfer)
    operation=${path##* }
    path=${path% *}
    ;;
*)
    echo "test sshd: not a git command: $command" >&2
    exit 126
    ;;
esac
path=${path#\'}
path=${path%\'}

cd "$STUB_ROOT" || exit 125
case $path in
"$STUB_ROOT"/stub/*) ;;
*)
    [ -z "$operation" ] || exec "$STUB_STATE/$service" "$path" "$operation"
    exec "$STUB_GIT_SHELL" -c "$command"
    ;;
esac

python() {
    exec "$STUB_PYTHON" -I -S "$STUB_STATE/service.py" "$@"
}

emit() {
    left=$1
    while [ "$left" -ge "$STUB_PATTERN_BYTES" ]; do
        cat "$STUB_PATTERN" || exit 141
        left=$((left - STUB_PATTERN_BYTES))
    done
    [ "$left" -eq 0 ] || head -c "$left" "$STUB_PATTERN" || exit 141
}

stub=${path#"$STUB_ROOT"/stub/}
stub=${stub%.git}
IFS=/
# shellcheck disable=SC2086 # splitting at the slashes is meant
set -- $stub
IFS=' '
case $1 in
emit)
    emit "$2"
    exit "${3-0}"
    ;;
stderr)
    emit "$2" >&2
    exit "${3-0}"
    ;;
mixed) python mixed "$2" "${3-0}" "$STUB_PATTERN" ;;
exit) exit "$2" ;;
signal)
    emit "${3-0}"
    kill -s "$2" $$
    ;;
checksum) python checksum "${2-0}" ;;
cat) exec cat ;;
env)
    if [ "${2-}" = all ]; then
        env | grep '^RELAY_' | sort
        exit
    fi
    printf 'GIT_PROTOCOL=%s\nRELAY_IDENTITY=%s\nRELAY_KEY=%s\n' \
        "${GIT_PROTOCOL-(unset)}" "${RELAY_IDENTITY-(unset)}" "${RELAY_KEY-(unset)}"
    ;;
sleep) exec sleep "$2" ;;
hang) exec sleep infinity ;;
slowstart)
    sleep "$2"
    emit "$3"
    ;;
half)
    emit "$2"
    exec cat >/dev/null
    ;;
eof)
    echo eof
    exec >&- 2>&-
    sleep "$2"
    exit "${3-0}"
    ;;
*)
    echo "test sshd: no such stub: $stub" >&2
    exit 127
    ;;
esac
