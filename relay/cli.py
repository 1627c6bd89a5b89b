"""The command line: demo, serve, check, init, schema, sessions, packs, upstreams, health and completion."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from relay import __version__
from relay.commands.command_tree import Command, command_tree
from relay.commands.completion import SHELLS, completion
from relay.commands.sessions_rates import ORDERS
from relay.errors import ConfigError
from relay.text import counted

CONFIG, SYSTEM_CONFIG = Path("relay.toml"), Path("/etc/relay/relay.toml")
CONFIG_HELP = f"default: {CONFIG} here, else {SYSTEM_CONFIG}"
READER_GONE = 128 + signal.SIGPIPE  # the exit status that a shell reports for SIGPIPE


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0 for success, 1 after printing problems, one line each, 2 for a wrong command line."""
    given = _parser().parse_args(arguments)
    try:
        status = int(given.run(given))
        if given.run in PIPED:
            sys.stdout.flush()  # here, where BrokenPipeError is handled
        return status
    except BrokenPipeError:
        if given.run not in PIPED:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that the interpreter's last flush succeeds
        return READER_GONE
    except ConfigError as error:
        for problem in error.problems:
            print(problem, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _config() -> Path:
    """The configuration of a command without -c."""
    return SYSTEM_CONFIG if SYSTEM_CONFIG.exists() and not CONFIG.exists() else CONFIG


def _parser() -> argparse.ArgumentParser:
    config = _config()
    parser = argparse.ArgumentParser(prog="relay", description="A git-over-SSH relay in front of git hosts.")
    parser.add_argument("--version", action="version", version=f"relay {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    demo = commands.add_parser("demo", help="start an embedded git host and a relay on loopback, and print a git clone line")
    demo.add_argument("--once", action="store_true", help="clone, commit, push and fetch through it, print the results, exit 0 or 1")
    demo.add_argument("--port", type=int, default=0, help="port of the relay; default: a free one")
    demo.set_defaults(run=_demo)

    serve = commands.add_parser("serve", help="serve in the foreground; SIGTERM drains, SIGHUP reloads")
    serve.add_argument("-c", "--config", type=Path, default=config, help=CONFIG_HELP)
    serve.set_defaults(run=_serve)

    check = commands.add_parser("check", help="check everything that serve would use, and print each problem in one line")
    check.add_argument("-c", "--config", type=Path, default=config, help=CONFIG_HELP)
    check.add_argument("--connect", action="store_true", help="also ask every backend a harmless question, and log in to every git host")
    case = "with --connect: an existing repository, to find out whether its git host ignores case"
    check.add_argument("--repository", metavar="NAME", action="append", default=[], help=case)
    check.add_argument("--strict", action="store_true", help="exit with 1 for warnings, too, such as a rule without effect")
    explain = "say which key, rule, route and upstream decide about IDENTITY, who asks for SERVICE (as git-receive-pack) of REPOSITORY"
    check.add_argument("--explain", nargs=3, metavar=("IDENTITY", "SERVICE", "REPOSITORY"), help=explain)
    check.set_defaults(run=_check)

    init = commands.add_parser("init", help="write a commented configuration and keys into a folder")
    init.add_argument("directory", type=Path)
    text = "put the keys of this file, as an sshd has it, into the folder of keys, a file for each person; may be given several times"
    init.add_argument("--from-authorized-keys", type=Path, metavar="FILE", action="append", default=[], help=text)
    init.set_defaults(run=_init)

    schema = commands.add_parser("schema", help="print the JSON Schema of the configuration, for editors, or of the audit")
    schema.add_argument("--audit", action="store_true", help="of an audit line, for programs that read the audit")
    schema.set_defaults(run=_schema)

    sessions = commands.add_parser("sessions", help="list live sessions, or end one")
    sessions.add_argument("-c", "--config", type=Path, default=config, help=CONFIG_HELP)
    ends = sessions.add_mutually_exclusive_group()
    ends.add_argument("--kill", metavar="ID", help="end this session, with a message to its client")
    ends.add_argument("--kill-identity", metavar="NAME", help="end all sessions of this identity; revoke its keys first, or it comes back")
    sessions.add_argument("--json", action="store_true", help="one JSON object for each session; with --watch for each list, with rates")
    sessions.add_argument("--watch", action="store_true", help="a live view with rates, until q or Ctrl-C")
    sessions.add_argument("--interval", type=_interval, default=1.0, metavar="SECONDS", help="between two lists of --watch; default: 1")
    sessions.add_argument("--sort", choices=list(ORDERS), default="rate", help="order with --watch; default: rate")
    sessions.set_defaults(run=_sessions)

    packs = commands.add_parser("packs", help="list the answers that are kept for equal fetches, or remove them")
    packs.add_argument("-c", "--config", type=Path, default=config, help=CONFIG_HELP)
    packs.add_argument("--json", action="store_true", help="one JSON object for each answer")
    text = "remove all answers, or those of one repository; sessions that read one go on"
    packs.add_argument("--clear", nargs="?", const=True, metavar="REPOSITORY", help=text)
    packs.set_defaults(run=_packs)

    _add_upstreams(commands.add_parser("upstreams", help="show the git hosts, or pause, drain or freeze one"), config)

    health = commands.add_parser("health", help="ask a running relay whether it is ready; 0 or 1, for probes")
    health.add_argument("-c", "--config", type=Path, default=config, help=CONFIG_HELP)
    health.add_argument("--live", action="store_true", help="only whether it answers, even if it drains or reaches no git host")
    health.set_defaults(run=_health)

    completion = commands.add_parser("completion", help="print a script that lets a shell complete this command line")
    completion.add_argument("shell", choices=SHELLS, help="source it, or write it to where this shell looks for completions")
    completion.set_defaults(run=_completion)
    return parser


def tree() -> Command:
    """All that the command line understands, for the manual page and completions."""
    parser = _parser()
    return command_tree(parser, parser.prog, parser.description or "")


def _add_upstreams(upstreams: argparse.ArgumentParser, config: Path) -> None:
    upstreams.add_argument("-c", "--config", type=Path, default=config, help=CONFIG_HELP)
    upstreams.add_argument("--json", action="store_true", help="one JSON object for each upstream; with --watch for each look")
    upstreams.add_argument("--watch", action="store_true", help="a live view, until q or Ctrl-C")
    upstreams.add_argument("--interval", type=_interval, default=1.0, metavar="SECONDS", help="between two looks of --watch; default: 1")
    upstreams.set_defaults(run=_upstreams, action="", argument="", wait=None)
    actions = upstreams.add_subparsers(metavar="ACTION", title="actions, in all workers at once until the relay is restarted")

    def action(name: str, text: str) -> argparse.ArgumentParser:
        parser = actions.add_parser(name, help=text, description=text)
        parser.add_argument("-c", "--config", type=Path, default=argparse.SUPPRESS, help=CONFIG_HELP)
        parser.add_argument("upstream", metavar="NAME", help="of the table [upstreams.NAME]")
        parser.set_defaults(action=name)
        return parser

    wait = "return when no session has a connection to it any more; exit with 1 when that is not so after SECONDS"
    action("pause", "give no session a connection: those that have one go on, others wait").add_argument(
        "--wait", type=_wait, metavar="SECONDS", help=wait
    )
    action("resume", "end a pause: sessions that wait get their connections")
    for name, text in (("drain", "give no new session to one address; others serve"), ("ready", "end a drain")):
        action(name, text).add_argument("argument", metavar="ADDRESS", help="one of its addresses, host:port")
    text = "what clients read whose push is refused"
    action("freeze", "refuse pushes with a text; fetches go on").add_argument("argument", metavar="TEXT", help=text)
    action("thaw", "end a freeze")


def _interval(text: str) -> float:
    return _seconds(text, 0.1, 3600)


def _wait(text: str) -> float:
    return _seconds(text, 0, 86_400)


def _seconds(text: str, least: float, most: float) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not least <= seconds <= most:
        raise argparse.ArgumentTypeError(f"is {text!r}, must be a number of seconds from {least:g} to {most:g}")
    return seconds


def _demo(given: argparse.Namespace) -> int:
    import uvloop

    from relay.demo.run import run_demo

    return int(uvloop.run(run_demo(once=given.once, port=given.port)))


def _serve(given: argparse.Namespace) -> int:
    import uvloop

    from relay.observe.log import configure
    from relay.preflight import load_all
    from relay.process.supervisor import Supervisor

    _library()
    loaded = load_all(given.config)
    handler = configure(loaded.config.log)

    async def serve() -> int:
        return await Supervisor(loaded).run()

    try:
        return int(uvloop.run(serve()))
    finally:
        handler.close()


def _library() -> str:
    """The name of the loaded libssh2; raises ConfigError for one whose exit statuses are not reliable."""
    from relay.upstream.libssh2 import loaded_library
    from relay.upstream.libssh2.library import UnknownLibrary

    try:
        return str(loaded_library())
    except UnknownLibrary as error:
        raise ConfigError([str(error)]) from None


def _check(given: argparse.Namespace) -> int:
    import asyncio

    from relay.commands.check import connect_all, sealer
    from relay.preflight import load_all, remarks
    from relay.process import native_parts

    loaded = load_all(given.config)
    if given.explain:
        from relay.commands.explain import explain

        return int(asyncio.run(explain(loaded, *given.explain)))
    if given.connect:
        problems = asyncio.run(connect_all(loaded, print, given.repository))
        if problems:
            raise ConfigError(problems)
    warnings = remarks(loaded)
    if stock := native_parts.unsafe():
        warnings.append(stock)
    found = f", {counted(len(warnings), 'warning')}" if warnings else ""
    print(f"{given.config}: no problems found{found}; libssh2 {_library()}; {sealer()}")
    for warning in warnings:
        print(f"warning: {warning}")
    return 1 if warnings and given.strict else 0


def _init(given: argparse.Namespace) -> int:
    from relay.commands.init import init

    return int(init(given.directory, given.from_authorized_keys))


def _schema(given: argparse.Namespace) -> int:
    from relay.config.schema import schema
    from relay.observe.audit_lines import audit_schema

    return int(schema(audit_schema() if given.audit else None))


def _sessions(given: argparse.Namespace) -> int:
    import asyncio

    from relay.commands.sessions import kill, kill_identity, show
    from relay.commands.sessions_watch import watch

    if given.kill:
        return int(asyncio.run(kill(given.config, given.kill)))
    if given.kill_identity:
        return int(asyncio.run(kill_identity(given.config, given.kill_identity)))
    if given.watch:
        return int(asyncio.run(watch(given.config, given.interval, given.sort, as_json=given.json)))
    return int(asyncio.run(show(given.config, as_json=given.json)))


def _packs(given: argparse.Namespace) -> int:
    import asyncio

    from relay.commands.packs import remove, show

    if given.clear is not None:
        return int(asyncio.run(remove(given.config, None if given.clear is True else given.clear)))
    return int(show(given.config, as_json=given.json))


def _upstreams(given: argparse.Namespace) -> int:
    import asyncio

    from relay.commands.upstreams import show, switch
    from relay.commands.upstreams_watch import watch

    if given.action:
        return int(asyncio.run(switch(given.config, given.action, given.upstream, given.argument, given.wait)))
    if given.watch:
        return int(asyncio.run(watch(given.config, given.interval, as_json=given.json)))
    return int(asyncio.run(show(given.config, as_json=given.json)))


def _completion(given: argparse.Namespace) -> int:
    print(completion(tree(), given.shell), end="")
    return 0


def _health(given: argparse.Namespace) -> int:
    from relay.commands.health import health

    return int(health(given.config, live=given.live))


PIPED = (_sessions, _upstreams, _packs, _schema, _completion)  # commands whose output a pager may close early
