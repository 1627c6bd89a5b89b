"""`relay init --from-authorized-keys`: the keys of an sshd's authorized_keys as a folder of keys, one file for each person.

Whose a key is says the first of these that the line has: identity="NAME"; gitolite's forced command; environment="NAME=VALUE" with a name
of PERSON; the key's comment, of which a device is cut off as everywhere (alice@laptop is alice, alice@example.com stays), or an address
in angle brackets at its end. A line that tells nobody, or that cannot be used, is left out and named: the others are taken.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from relay.keys import Imported, identity_fault
from relay.keys.authorized_keys import HONOURED, AuthorizedKey, divided, forced_identity, read_line
from relay.keys.file import LIST_BYTES, identity_of
from relay.keys.trusted_file import read_whole
from relay.text import plain, quoted

PERSON = ("RELAY_IDENTITY", "REMOTE_USER", "GL_USER", "GIT_USER")  # variables by which sites tell their hooks who it is
KEPT = tuple(name for name in HONOURED if name not in ("command", "identity"))

_VARIABLE = re.compile(r'environment="(\w+)=([^"\\]*)"', re.IGNORECASE)
_GIT_SHELL = re.compile(r"(?:\S*/)?git[ -]shell(?: +-c +.*)?")  # lets a key do what a relay lets it do
_BRACKETS = re.compile(r"<([^<>\s]+)>$")


class Person(NamedTuple):
    """A line that was taken: whose it is, the key with its conditions, and the line for the file of this person."""

    name: str
    key: AuthorizedKey
    line: str


def import_keys(paths: Sequence[Path]) -> Imported:
    """The keys of all files together. A key that two people have is left out: the relay could not tell them apart."""
    left_out: list[str] = []
    problems: list[str] = []
    taken: dict[str, list[tuple[str, Person]]] = {}  # by fingerprint, with the place of each
    for path in paths:
        data, fault = read_whole(str(path), "a file of lines as in authorized_keys", LIST_BYTES)
        if fault is not None or data is None:
            problems.append(plain(fault or f"{path}: cannot be read"))
            continue
        for number, text in enumerate(data.decode("utf-8-sig", "replace").split("\n"), 1):
            if not (text := text.strip()) or text.startswith("#"):
                continue
            place = f"{path}:{number}"
            try:
                person = read_person(text)
            except ValueError as error:
                left_out.append(plain(f"{place}: {error}"))
            else:
                taken.setdefault(person.key.fingerprint, []).append((place, person))
    files: dict[str, str] = {}
    count = 0
    for fingerprint, found in taken.items():
        names = sorted({person.name for _, person in found})
        if len(names) > 1:
            told = f"the key {fingerprint} is that of {' and '.join(map(quoted, names))}, must be of one"
        elif len({person.key for _, person in found}) > 1:
            told = f"the key {fingerprint} of {names[0]} is listed twice with different options, must be listed once"
        else:
            name = f"{names[0]}.pub"
            files[name] = f"{files.get(name, '')}{found[0][1].line}\n"
            count += 1
            continue
        left_out += (plain(f"{place}: {told}") for place, _ in found)
    return Imported(files, count, left_out, problems)


def read_person(text: str) -> Person:
    """Raises ValueError with what is wrong with the line."""
    values, rest = divided(text)
    options = text[: len(text) - len(rest)]
    name = values.get("identity")
    if (command := values.get("command")) is not None and not _GIT_SHELL.fullmatch(command):
        if (forced := forced_identity(command)) is None:
            raise ValueError(f"forces the command {quoted(command)}: whoever has this key may do that and nothing else")
        if name not in (None, forced):
            raise ValueError(f"is {quoted(name or '')} by identity= and {quoted(forced)} by command=, must be one")
        name = forced
    kept = ",".join(_option(key, value) for key, value in values.items() if key in KEPT)
    line = f"{kept} {rest}" if kept else rest
    key = read_line(line)
    if name is None:
        name = next((value for variable, value in _VARIABLE.findall(options) if variable in PERSON), None)
    if name is None:
        name = _by_comment(rest)
    if (fault := identity_fault(name)) is not None:
        raise ValueError(f"the identity {quoted(name)} {fault}")
    if name.startswith(".") or (cut := identity_of(f"{name}.pub")) != name:
        fit = "begins with a dot" if name.startswith(".") else f"would be cut to {quoted(cut)}"
        raise ValueError(f"the identity {quoted(name)} {fit} as the name of a file of keys, must be another")
    return Person(name, key, line)


def _by_comment(rest: str) -> str:
    words = rest.split(None, 2)
    comment = words[2].strip() if len(words) > 2 else ""
    cure = 'write identity="NAME" in front of it'
    if not comment:
        raise ValueError(f"does not say whose the key is: it has no comment; {cure}")
    if (brackets := _BRACKETS.search(comment)) is not None:
        return brackets[1]
    if " " in comment:
        raise ValueError(f"does not say whose the key is: its comment {quoted(comment)} is no name; {cure}")
    return identity_of(f"{comment}.pub")


def _option(name: str, value: str) -> str:
    escaped = value.replace('"', '\\"')
    return f'{name}="{escaped}"' if value else name
