"""The git hosts of docs/hosts/ that can be had here: gitolite behind sshd, Gerrit's parts (Apache MINA's sshd with JGit), Gitea.

with Gitolite() as host: ...        # host.port, host.key, host.user, host.root: as far as RelayProcess needs an Sshd
Each raises HostMissing, with the reason, where it cannot be started; each has `seen()`, the identities as the host itself logged them.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
import urllib.parse
import urllib.request
from operator import itemgetter
from pathlib import Path
from typing import Any

from tests.support.clients import Missing, java
from tests.support.hosts import HostMissing
from tests.support.keys import Key, make_key
from tests.support.loopback import opener, urlopen
from tests.support.machine import current_user, free_port
from tests.support.server_process import ServerProcess
from tests.support.sshd import Sshd

ROOT = Path(__file__).parents[2]
GITOLITE_SHELL = Path("/usr/share/gitolite3/gitolite-shell")
GITEA = ROOT / "build" / "peers" / "gitea" / "gitea"
COMMAND_SECONDS = 120.0


class Gitolite(Sshd):
    """Debian's gitolite3 in a home of its own, behind sshd, which hands it who the relay says it is.

    Without a `ca` by RELAY_IDENTITY, after a login with the relay's key; else by certificates of this CA, for `people`.
    """

    def __init__(self, configuration: str, ca: Key | None = None, people: tuple[str, ...] = ()) -> None:
        if shutil.which("gitolite") is None or not GITOLITE_SHELL.exists():
            raise HostMissing("gitolite is not installed (Debian's package gitolite3)")
        super().__init__()
        self._gitolite = self.folder / "gitolite"
        self._gitolite.mkdir()
        self.root = self._gitolite / "repositories"
        # where a site's gitolite has its user's home: the tests' user has another
        shell = f"/usr/bin/env HOME={self._gitolite} {GITOLITE_SHELL}"
        if ca is None:
            self.configure("AcceptEnv GIT_PROTOCOL RELAY_*", f'ForceCommand {shell} "$RELAY_IDENTITY"')
        else:
            principals = self.folder / "principals"
            principals.write_text("".join(f'command="{shell} {name}" {name}\n' for name in people))
            names = [f"TrustedUserCAKeys {ca.public}", f"AuthorizedPrincipalsFile {principals}", "AuthorizedKeysFile none"]
            self.configure("AcceptEnv GIT_PROTOCOL RELAY_*", *names, "ForceCommand none")
        self._run("setup", "-a", "admin")
        (self._gitolite / ".gitolite" / "conf" / "gitolite.conf").write_text(configuration)
        self._run("compile")
        self._run("trigger", "POST_COMPILE")

    def seen(self) -> list[tuple[str, str]]:
        """Repository and user of each command that gitolite let pass, from its log."""
        lines = "".join(path.read_text() for path in sorted((self._gitolite / ".gitolite" / "logs").glob("*.log")))
        return [(found[1], found[2]) for found in re.finditer(r"\tpre_git\t(\S+)\t(\S+)\t", lines)]

    def _run(self, *arguments: str) -> None:
        env = {"HOME": str(self._gitolite), "PATH": os.environ["PATH"], "USER": current_user()}
        subprocess.run(["gitolite", *arguments], env=env, check=True, capture_output=True, timeout=COMMAND_SECONDS)


class MinaHost(ServerProcess):
    """Apache MINA's sshd with JGit, as Gerrit is built. It accepts the relay's key, and certificates of `ca` for the user they name."""

    def __init__(self, ca: Key | None = None) -> None:
        try:
            self._java = java("mina", "MinaHost")
        except Missing as missing:
            raise HostMissing(str(missing)) from None
        super().__init__("mina")
        self.address, self.port, self.user = "127.0.0.1", 0, "gerrit"
        self.root = self.folder / "git"
        self.root.mkdir()
        self.key = make_key(self.folder, "client")
        self.host_key = make_key(self.folder, "host_key")
        (self.folder / "authorized_keys").write_text(self.key.line + "\n")
        self._ca = ca

    @property
    def host_key_line(self) -> str:
        return self.host_key.host_line

    def start(self) -> None:
        self.port = self._launch_on_port(self._start_on)

    def seen(self) -> list[tuple[str, str, str]]:
        """User, proof and RELAY_IDENTITY of each command."""
        return re.findall(r"^user=(\S+) proved=(\S+) identity=(\S+) ran=", self.log_text(), re.MULTILINE)

    def _start_on(self, port: int) -> None:
        ca = "" if self._ca is None else str(self._ca.public)
        mark = self.log_mark()
        arguments = [*self._java, str(port), str(self.root), str(self.host_key.private), str(self.folder / "authorized_keys"), ca]
        self._launch(arguments, lambda: "listening\n" in self.log_text(mark))


class Gitea(ServerProcess):
    """Gitea's own SSH server over sqlite, which trusts certificates of `ca` for the principals that its users entered."""

    def __init__(self, ca: Key, page: dict[str, str]) -> None:
        """`page` are the settings of `[server]` that the page names."""
        if not GITEA.exists():
            raise HostMissing("Gitea is not built (RELAY_PEER_GITEA=1 scripts/peers: from its Go module, six minutes of CPU time)")
        super().__init__("gitea")
        self.address, self.port, self.user = "127.0.0.1", 0, "git"
        self.key = make_key(self.folder, "client")  # that Gitea does not know: people log in by certificates
        self.host_key = make_key(self.folder, "host_key")
        self.root = self.folder / "repos"
        self._ca = ca
        self._page = page
        self._http = ""
        self._configuration = self.folder / "app.ini"

    @property
    def host_key_line(self) -> str:
        return self.host_key.host_line

    def start(self) -> None:
        self.port = self._launch_on_port(self._start_on)

    def add_user(self, name: str) -> None:
        """A user who has entered the principal that is the user's own name, as on the page of SSH keys in a browser."""
        arguments = ("admin", "user", "create", "--username", name, "--password", _password(name), "--email", f"{name}@example.com")
        self._gitea(*arguments, "--must-change-password=false")
        jar = opener(urllib.request.HTTPCookieProcessor())
        self._post(jar, "/user/login", user_name=name, password=_password(name))
        said = self._post(jar, "/user/settings/keys", type="principal", title=name, content=name)
        assert f"<strong>{name}</strong>" in said, said

    def add_repository(self, owner: str, name: str) -> None:
        """A private repository with one commit on main."""
        self.api(owner, "/user/repos", {"name": name, "auto_init": True, "private": True, "default_branch": "main"})

    def seen(self, owner: str, name: str) -> list[str]:
        """Who pushed to a repository, oldest first, as Gitea's own activity feed has it."""
        feed = self.api(owner, f"/repos/{owner}/{name}/activities/feeds")
        return [action["act_user"]["login"] for action in sorted(feed, key=itemgetter("id")) if action["op_type"] == "commit_repo"]

    def api(self, user: str, path: str, data: dict[str, Any] | None = None, method: str | None = None) -> Any:
        request = urllib.request.Request(f"{self._http}/api/v1{path}", None if data is None else json.dumps(data).encode(), method=method)
        request.add_header("Content-Type", "application/json")
        request.add_header("Authorization", "Basic " + base64.b64encode(f"{user}:{_password(user)}".encode()).decode())
        with urlopen(request, timeout=COMMAND_SECONDS) as answer:
            text = answer.read()
            return json.loads(text) if text else None

    def _post(self, jar: urllib.request.OpenerDirector, path: str, **form: str) -> str:
        with jar.open(f"{self._http}{path}", urllib.parse.urlencode(form).encode(), timeout=COMMAND_SECONDS) as answer:
            return str(answer.read().decode())

    def _start_on(self, port: int) -> None:
        http = free_port(self.address)
        self._http = f"http://{self.address}:{http}"
        sections: dict[str, dict[str, object]] = {
            "server": {
                "STATIC_ROOT_PATH": GITEA.parent,
                "HTTP_ADDR": self.address,
                "HTTP_PORT": http,
                "ROOT_URL": f"{self._http}/",
                "OFFLINE_MODE": "true",
                "SSH_LISTEN_HOST": self.address,
                "SSH_LISTEN_PORT": port,
                "SSH_SERVER_HOST_KEYS": self.host_key.private,
                **self._page,
                "SSH_TRUSTED_USER_CA_KEYS": self._ca.host_line,
            },
            "database": {"DB_TYPE": "sqlite3", "PATH": self.folder / "gitea.db"},
            "repository": {"ROOT": self.root},
            "security": {"INSTALL_LOCK": "true"},
            "log": {"LEVEL": "Info"},
        }
        lines = [f"WORK_PATH = {self.folder}", f"RUN_USER = {current_user()}", "I_AM_BEING_UNSAFE_RUNNING_AS_ROOT = true"]
        for section, values in sections.items():
            lines += [f"[{section}]", *(f"{name} = {value}" for name, value in values.items())]
        self._configuration.write_text("".join(f"{line}\n" for line in lines))
        self._launch([str(GITEA), "-c", str(self._configuration), "web"], self._answers, env=self._env(), seconds=COMMAND_SECONDS)

    def _answers(self) -> bool:
        try:
            urlopen(f"{self._http}/api/healthz", timeout=COMMAND_SECONDS).close()
        except OSError:
            return False
        return True

    def _gitea(self, *arguments: str) -> None:
        command = [str(GITEA), "-c", str(self._configuration), *arguments]
        subprocess.run(command, env=self._env(), check=True, capture_output=True, timeout=COMMAND_SECONDS)

    def _env(self) -> dict[str, str]:
        return {"PATH": os.environ["PATH"], "HOME": str(self.folder), "GITEA_WORK_DIR": str(self.folder)}


def _password(name: str) -> str:
    return f"{name}-{name}-1"
