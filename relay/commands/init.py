"""`relay init DIR`: writes a commented configuration, generated from the structs, and new keys, and prints the next steps."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

import asyncssh
import msgspec

from relay.config import Config, FileKeysSettings, UpstreamSettings
from relay.config.schema import notes
from relay.keys import Imported
from relay.keys.open import import_keys
from relay.text import counted

UPSTREAM = "main"
EXAMPLE = Config(upstreams={UPSTREAM: UpstreamSettings(addresses=["git.example.com:22"])})
KEYS_FOLDER = FileKeysSettings().path
PLACES = {"folder": "/var/cache/relay/packs"}  # for settings without a default, in tables that are commented out; for others their name
NAMES = {"who": ["@contractors"]}  # the same, for lists

ACCESS = """\
# Who may read or write which repositories. What no rule allows is denied.
# The relay reads it again when it changes; `relay check` lists its problems.

# A person's name is that of their key file: keys/alice.pub is "alice".
# [groups]
# core = ["alice", "bob"]

[[rule]]
repositories = "**"    # * within one path segment, ** across: "team/*" is team/app, "team/**" is team/app and team/lib/x too
who = ["*"]            # names, @groups, or "*" for everyone whose key is in the folder keys
allow = "read"         # read | write (write includes read)

# [[rule]]
# repositories = "team/**"
# who = ["@core", "carol"]
# allow = "write"

# [[rule]]
# repositories = "users/{identity}/**"   # everybody in the folder of their own name
# who = ["*"]
# allow = "write"

# [[rule]]             # a rule with refs protects them: whoever else may write the repository may not push to these
# repositories = "team/**"
# refs = ["refs/heads/main", "refs/tags/**"]   # full names
# changes = ["update", "delete"]               # create, update, delete; all of them when left out
# who = ["carol"]
# allow = "write"                              # or deny = "write", which goes before everything that allows
"""

ROUTES = f"""\
# Which git host has a repository, and under which path. The first match wins.
# The relay reads it again when it changes; `relay check` lists its problems.

# [[route]]
# repositories = "archive/**"
# upstream = "old"               # an [upstreams.old] of relay.toml
# path = "/srv/old/{{repository}}"

# [[route]]
# repositories = "team/old"
# moved_to = "team/new"          # the name that it has now; clients that ask for the old one read it

[[route]]
repositories = "**"              # `git clone ssh://git@relay:2222/team/app` asks for team/app
upstream = "{UPSTREAM}"
path = "/srv/git/{{repository}}.git"   # what the git host is asked for
"""


class NewFile(NamedTuple):
    """A file to write."""

    path: Path
    text: str
    mode: int = 0o644


def init(directory: Path, authorized_keys: Sequence[Path] = ()) -> int:
    """Writes all files or none: names files that exist already and leaves them alone. Returns the exit status.

    The keys in `authorized_keys` go into the folder of keys; each line that is left out is named on stderr, and does not change the status.
    """
    host, upstream = _key("git-ssh-relay host key"), _key("git-ssh-relay")
    public = upstream.export_public_key().decode()
    files = [
        NewFile(directory / "relay.toml", config_text(EXAMPLE)),
        NewFile(directory / "access.toml", ACCESS),
        NewFile(directory / "routes.toml", ROUTES),
        *_key_files(directory / EXAMPLE.host_keys[0], host),
        *_key_files(directory / EXAMPLE.upstreams[UPSTREAM].private_key, upstream),
    ]
    keys = directory / KEYS_FOLDER
    imported = import_keys(authorized_keys)
    problems = imported.problems
    if authorized_keys and not imported.keys and not problems:
        problems = [f"{', '.join(map(str, authorized_keys))}: no key in it can be taken"]
    sys.stderr.write("".join(f"left out: {line}\n" for line in imported.left_out))
    if problems:
        sys.stderr.write("".join(f"{line}; nothing was written\n" for line in problems))
        return 1
    files += (NewFile(keys / name, text) for name, text in sorted(imported.files.items()))
    there = [file.path for file in files if os.path.lexists(file.path)]
    if os.path.lexists(keys) and not keys.is_dir():
        there.append(keys)
    if there:
        sys.stderr.write("".join(f"{path}: is there already, must not be; nothing was written\n" for path in there))
        return 1
    written: list[Path] = []
    try:
        keys.mkdir(mode=0o755, parents=True, exist_ok=True)
        for file in files:
            _write(file, written)
    except OSError as error:
        for path in written:
            path.unlink(missing_ok=True)
        sys.stderr.write(f"{error.filename or directory}: cannot be written ({error.strerror}); nothing was written\n")
        return 1
    sys.stdout.write(_next_step(directory, public, imported))
    return 0


def config_text(config: Config) -> str:
    """The configuration as commented TOML: every setting with its value; settings without a value are commented out."""
    lines = [
        "# The configuration of `relay serve`. Paths are relative to this file.",
        "# Every setting is here with its default, and may be left out; only addresses and host_keys of a git host have none.",
        "# `relay check -c relay.toml` lists problems; `relay schema` prints a JSON Schema for editors.",
        "",
        *_table("", config),
    ]
    return "\n".join(lines) + "\n"


def _table(name: str, table: msgspec.Struct) -> Iterator[str]:
    """Plain settings first, then the inner tables, as TOML requires."""
    comments, types = notes(type(table)), get_type_hints(type(table))
    settings: list[tuple[str, str, str]] = []
    inner: list[tuple[str, msgspec.Struct]] = []
    absent: list[tuple[str, msgspec.Struct]] = []
    rows: list[tuple[str, str, msgspec.Struct]] = []
    if (tag := type(table).__struct_config__.tag_field) is not None:
        settings.append(("", f"{tag} = {_value(type(table).__struct_config__.tag)}", ""))
    for field in msgspec.structs.fields(table):
        value = getattr(table, field.name)
        key = f"{name}.{field.encode_name}" if name else field.encode_name
        choices = get_args(types[field.name]) if get_origin(types[field.name]) is Literal else ()
        note = "; ".join(part for part in (" | ".join(choices), comments.get(field.name, "")) if part)
        if isinstance(value, msgspec.Struct):
            inner.append((key, value))
        elif (row := _row_of(types[field.name])) is not None:
            example = row(**{one.name: NAMES[one.name] for one in msgspec.structs.fields(row) if one.required})
            rows += [("", key, each) for each in value] or [("# ", key, example)]
        elif isinstance(value, dict):
            inner += [(f"{key}.{one}", each) for one, each in value.items()]
        elif value is None and (kind := _table_of(types[field.name])) is not None:
            required = [one.name for one in msgspec.structs.fields(kind) if one.required]
            absent.append((key, kind(**{one: PLACES.get(one, one) for one in required})))
        elif value is None:
            settings.append(("# ", f"{field.encode_name} = {_value(field.encode_name)}", note))
        else:
            settings.append(("", f"{field.encode_name} = {_value(value)}", note))
    for off, setting, note in settings:
        yield f"{off}{setting}".ljust(36) + f"  # {note}" if note else f"{off}{setting}"
    for off, key, struct in rows:
        yield ""
        yield f"{off}[[{key}]]  # {' '.join((type(struct).__doc__ or '').split())}"
        yield from (f"{off}{line}" for line in _table(key, struct))
    kinds = [("# ", absent), ("", inner)]
    for off, tables in kinds if name else reversed(kinds):  # of the whole file first what must be changed, and is not off
        for key, struct in tables:
            yield ""
            yield f"{off}[{key}]  # {' '.join((type(struct).__doc__ or '').split())}"
            yield from (f"{off}{line}" for line in _table(key, struct))


def _table_of(type_: Any) -> type[msgspec.Struct] | None:
    """The struct of an optional table; None for other types."""
    return next((one for one in get_args(type_) if isinstance(one, type) and issubclass(one, msgspec.Struct)), None)


def _row_of(type_: Any) -> type[msgspec.Struct] | None:
    """The struct of a list of tables; None for other types."""
    inner = get_args(type_)[0] if get_origin(type_) is list else None
    return inner if isinstance(inner, type) and issubclass(inner, msgspec.Struct) else None


def _value(value: Any) -> str:
    """A TOML value; strings, numbers, booleans and lists are written as in JSON."""
    return json.dumps(value, ensure_ascii=False)


def _key(comment: str) -> asyncssh.SSHKey:
    return asyncssh.generate_private_key("ssh-ed25519", comment=comment)


def _key_files(path: Path, key: asyncssh.SSHKey) -> list[NewFile]:
    public = key.export_public_key().decode()
    return [NewFile(path, key.export_private_key().decode(), 0o600), NewFile(path.with_name(path.name + ".pub"), public)]


def _write(file: NewFile, written: list[Path]) -> None:
    """Creates the file with its mode from the start, so that a private key is never readable by others; fails if the file exists."""
    descriptor = os.open(file.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, file.mode)
    written.append(file.path)
    with open(descriptor, "w", encoding="utf-8") as opened:
        opened.write(file.text)


def _next_step(directory: Path, public: str, imported: Imported) -> str:
    config = directory / "relay.toml"
    people = f"Put people's public keys into {directory / KEYS_FOLDER}: alice.pub belongs to alice, and so does alice@laptop.pub."
    if imported.keys:
        told = f"{counted(imported.keys, 'key')} in {counted(len(imported.files), 'file')} of {directory / KEYS_FOLDER}"
        lost = f"; {counted(len(imported.left_out), 'line')} left out, named above" if imported.left_out else ""
        people = f"{told}{lost}.\n   alice.pub belongs to alice: see that the names of the files are those that access.toml should know."
    port = EXAMPLE.listen[0].rpartition(":")[2]
    return f"""\
{config} and its keys are written. What is left to do:

1. On the git host, let the relay in: add this line to ~git/.ssh/authorized_keys

   {public.strip()}

2. In {config}, under [upstreams.{UPSTREAM}], put the git host's address into addresses, and pin its host key in host_keys.
   This prints the line to put there between quotes, and its fingerprint:

   ssh-keyscan -t ed25519 -p 22 GIT_HOST | cut -d' ' -f2- | tee /dev/stderr | ssh-keygen -lf -

   Compare the fingerprint with what the git host itself says: ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub

3. {people}
   {directory / "access.toml"} as written lets everyone with a key read and nobody write; change it to your needs.
   {directory / "routes.toml"} says where on the git host repositories lie. All three are read again when they change.

4. relay check -c {shlex.quote(str(config))}
   relay serve -c {shlex.quote(str(config))}

Then clone through it: git clone ssh://git@THIS_HOST:{port}/team/app
"""
