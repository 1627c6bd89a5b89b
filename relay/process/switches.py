"""The operator's switches for upstreams, as the supervisor keeps them: what is paused, frozen or draining, since when, by whom.

They are state, not commands: a worker gets all of them at its start and after each change. They end with the supervisor.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

from relay.address import format_address, parse_address
from relay.config import Config
from relay.text import client_text_fault, plain, quoted
from relay.upstream.switches import UpstreamSwitches

Action = Literal["pause", "resume", "drain", "ready", "freeze", "thaw"]
Kind = Literal["paused", "draining", "frozen"]

KINDS: Final[tuple[Kind, ...]] = ("paused", "draining", "frozen")
OFF: Final[tuple[Action, ...]] = ("resume", "ready", "thaw")  # actions after which an upstream is as it was before


class Thrown(NamedTuple):
    """One switch that is on."""

    since: float  # seconds since the epoch
    by: str  # the operator
    text: str = ""  # of `frozen`


class Wrong(ValueError):
    """The operator asked for something that is not there, or not possible; the text is one line that says what is."""


class Switches:
    """All switches that are on. `config` is the configuration in force, which says what there is to switch."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._on: dict[tuple[str, Kind, str], Thrown] = {}  # by upstream, kind, and the address of `draining`, else empty

    def throw(self, action: Action, upstream: str, argument: str, by: str, now: float) -> bool:
        """Whether it changed anything. `argument`: the address of drain and ready, the text of freeze. Raises Wrong."""
        if upstream not in self._config.upstreams:
            names = ", ".join(sorted(self._config.upstreams)) or "none"
            raise Wrong(f"there is no upstream {quoted(upstream)}; the upstreams are: {names}")
        match action:
            case "pause":
                return self._turn_on((upstream, "paused", ""), Thrown(now, by))
            case "resume":
                return self._turn_off((upstream, "paused", ""))
            case "drain":
                return self._drain(upstream, self._address(upstream, argument), Thrown(now, by))
            case "ready":
                return self._turn_off((upstream, "draining", self._address(upstream, argument)))
            case "freeze":
                if (fault := client_text_fault(argument)) is not None:
                    raise Wrong(f"the text that clients are to read {fault}")
                return self._turn_on((upstream, "frozen", ""), Thrown(now, by, argument))
            case "thaw":
                return self._turn_off((upstream, "frozen", ""))

    def of(self, upstream: str, kind: Kind, address: str = "") -> Thrown | None:
        """The switch, if it is on."""
        return self._on.get((upstream, kind, address))

    def state(self) -> dict[str, UpstreamSwitches]:
        """What the workers apply; upstreams without a switch are left out."""
        names = dict.fromkeys(upstream for upstream, _, _ in self._on)
        return {
            name: UpstreamSwitches(
                paused=(name, "paused", "") in self._on,
                drained=[address for upstream, kind, address in self._on if upstream == name and kind == "draining"],
                frozen=self._on[name, "frozen", ""].text if (name, "frozen", "") in self._on else "",
            )
            for name in names
        }

    def counts(self) -> dict[tuple[str, str], int]:
        """For each upstream and kind how many switches are on: addresses for `draining`, 0 or 1 for the others."""
        counts: dict[tuple[str, str], int] = {(name, kind): 0 for name in self._config.upstreams for kind in KINDS}
        for upstream, kind, _ in self._on:
            counts[upstream, kind] += 1
        return counts

    def paused(self) -> list[str]:
        """The names of the upstreams that are paused."""
        return sorted(upstream for upstream, kind, _ in self._on if kind == "paused")

    def all_on(self) -> list[str]:
        """A phrase for each switch that is on: `main is paused`."""
        return [f"{upstream} is {_what(kind, address)}" for upstream, kind, address in self._on]

    def reload(self, config: Config) -> list[str]:
        """Another configuration is in force: drops the switches of upstreams and addresses that it does not have.

        Returns a line for each.
        """
        self._config = config
        dropped = []
        for upstream, kind, address in list(self._on):
            if upstream not in config.upstreams:
                dropped.append(f"upstream {upstream} is not configured any more; it is no longer {_what(kind, address)}")
            elif kind == "draining" and address not in self._addresses(upstream):
                dropped.append(f"upstream {upstream}: {address} is not configured any more; it is no longer draining")
            else:
                continue
            del self._on[upstream, kind, address]
        return dropped

    def without_address(self) -> list[str]:
        """The upstreams whose addresses are all draining, as a reload may leave them."""
        return [
            upstream
            for upstream in self._config.upstreams
            if all((upstream, "draining", address) in self._on for address in self._addresses(upstream))
        ]

    def _drain(self, upstream: str, address: str, thrown: Thrown) -> bool:
        others = [one for one in self._addresses(upstream) if one != address and (upstream, "draining", one) not in self._on]
        if not others:
            raise Wrong(f"{address} is the last address of upstream {upstream} that takes new sessions; to stop all, pause the upstream")
        return self._turn_on((upstream, "draining", address), thrown)

    def _addresses(self, upstream: str) -> list[str]:
        return [format_address(*parse_address(address)) for address in self._config.upstreams[upstream].addresses]

    def _address(self, upstream: str, given: str) -> str:
        """The address in the form in which it is configured. Raises Wrong."""
        known = self._addresses(upstream)
        try:
            address = format_address(*parse_address(given))
        except ValueError:
            address = ""
        if address not in known:
            raise Wrong(f"upstream {upstream} has no address {quoted(given)}; its addresses are: {', '.join(known)}")
        return address

    def _turn_on(self, switch: tuple[str, Kind, str], thrown: Thrown) -> bool:
        """A switch that is on already keeps its time and operator, unless the text is another."""
        before = self._on.get(switch)
        if before is not None and before.text == thrown.text:
            return False
        self._on[switch] = thrown
        return True

    def _turn_off(self, switch: tuple[str, Kind, str]) -> bool:
        return self._on.pop(switch, None) is not None


def sentence(action: Action, upstream: str, argument: str = "") -> str:
    """What `action` has done, in words for the operator and the log."""
    match action:
        case "pause":
            return f"upstream {upstream} is paused"
        case "resume":
            return f"upstream {upstream} is not paused any more"
        case "drain":
            return f"upstream {upstream}: {argument} is draining"
        case "ready":
            return f"upstream {upstream}: {argument} takes new sessions again"
        case "freeze":
            return f"upstream {upstream} is frozen; who pushes reads: {plain(argument)}"
        case "thaw":
            return f"upstream {upstream} is not frozen any more"


def _what(kind: Kind, address: str) -> str:
    return f"{kind} at {address}" if address else kind
