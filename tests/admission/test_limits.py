"""The gate: each limit at its edge, and all of them against a plain model over long random histories."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, MultipleResults, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from relay import config
from relay.admission.limits import (
    DEAR_CPU_SECONDS,
    FREE_CPU_SECONDS,
    PENALTY_MIN_SECONDS,
    WEIGHTS,
    Admission,
    Allowance,
    Failure,
    Known,
    Neighbours,
    Penalties,
    Refusal,
    RefusalReason,
    Ticket,
    source_of,
)

UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a busy machine must not fail the test


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def never_dropped() -> float:
    return 0.999_999


def gate(clock: Clock | None = None, **limits: float) -> Admission:
    return Admission(config.LimitsSettings(**limits), clock or Clock(), never_dropped)  # type: ignore[arg-type]  # counts are ints, seconds floats


def enter(door: Admission, address: str = "192.0.2.1") -> Ticket:
    ticket = door.enter(address)
    assert isinstance(ticket, Ticket), ticket
    return ticket


def refused(door: Admission, address: str = "192.0.2.1") -> RefusalReason:
    answer = door.enter(address)
    assert isinstance(answer, Refusal), answer
    return answer.reason


def fail(door: Admission, kind: Failure, address: str = "192.0.2.1") -> None:
    ticket = enter(door, address)
    ticket.failed(kind)
    ticket.leave()


@pytest.mark.parametrize(
    ("address", "source"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::1", "::/64"),
        ("", "unknown"),
        ("/run/relay.sock", "unknown"),
        ("192.0.2.256", "unknown"),
    ],
)
def test_source(address: str, source: str) -> None:
    assert source_of(address) == source


# -- connections


def test_all_connections_together() -> None:
    door = gate(connections=2)
    first, _ = enter(door, "192.0.2.1"), enter(door, "192.0.2.2")
    first.authenticated()
    assert refused(door, "192.0.2.3") == "connections"
    first.leave()
    enter(door, "192.0.2.3")
    assert door.connections == 2
    assert door.refused == {"penalty": 0, "connections": 1, "source": 0, "unauthenticated": 0}


def test_connections_of_one_source() -> None:
    door = gate(connections_per_source=2)
    first, _ = enter(door, "2001:db8::1"), enter(door, "2001:db8::2")
    first.authenticated()
    assert refused(door, "2001:db8::3") == "source"
    enter(door, "2001:db8:0:1::1")
    enter(door, "192.0.2.1")
    first.leave()
    enter(door, "2001:db8::3")
    assert door.by_source == {"2001:db8::/64": 2, "2001:db8:0:1::/64": 1, "192.0.2.1": 1}


def test_a_ticket_counts_down_once_however_often_it_is_left() -> None:
    door = gate()
    ticket, other = enter(door), enter(door)
    for _ in range(3):
        ticket.authenticated()
        ticket.failed("crash")
        ticket.leave()
    ticket.authenticated()
    assert (door.connections, door.unauthenticated, door.by_source) == (1, 1, {"192.0.2.1": 1})
    other.leave()
    other.authenticated()
    assert (door.connections, door.unauthenticated, door.by_source) == (0, 0, {})


def test_a_ticket_shows_its_state() -> None:
    ticket = enter(gate())
    assert repr(ticket) == "<ticket 192.0.2.1 unauthenticated>"
    ticket.authenticated()
    assert repr(ticket) == "<ticket 192.0.2.1 authenticated>"
    ticket.leave()
    assert repr(ticket) == "<ticket 192.0.2.1 left>"


@pytest.mark.parametrize(("waiting", "expected"), [(0, 0), (49, 0), (50, 0), (51, 0.02), (60, 0.2), (75, 0.5), (99, 0.98), (100, 1)])
def test_early_drop_grows_linearly_from_half_to_all(waiting: int, expected: float) -> None:
    limits = config.LimitsSettings(unauthenticated_connections=100, connections_per_source=1000)
    drawn = [0.999_999] * waiting
    door = Admission(limits, Clock(), lambda: drawn.pop() if drawn else draw)
    draw = 0.0
    for _ in range(waiting):
        enter(door)
    for draw in (expected - 1e-6, expected + 1e-6):
        if not 0 <= draw < 1:
            continue
        answer = door.enter("192.0.2.1")
        assert isinstance(answer, Refusal) == (draw < expected)
        if isinstance(answer, Ticket):
            answer.leave()
        else:
            assert answer.reason == "unauthenticated"


def test_early_drop_in_numbers() -> None:
    """With a real random generator: at three quarters about half are dropped. 10,000 draws, within 6 standard deviations, and seeded."""
    door = Admission(config.LimitsSettings(unauthenticated_connections=100, connections_per_source=1000), Clock(), random.Random(1).random)
    while door.unauthenticated < 75:
        door.enter("192.0.2.1")
    dropped = 0
    for _ in range(10_000):
        answer = door.enter("192.0.2.1")
        if isinstance(answer, Ticket):
            answer.leave()
        else:
            dropped += 1
    assert 4_700 < dropped < 5_300


def test_authenticated_connections_take_no_place_among_the_unauthenticated() -> None:
    door = gate(unauthenticated_connections=1)
    first = enter(door)
    assert refused(door) == "unauthenticated"
    first.authenticated()
    second = enter(door)
    assert refused(door) == "unauthenticated"
    second.leave()
    enter(door)
    assert (door.connections, door.unauthenticated) == (2, 1)


# -- penalties


def test_failed_logins_keep_a_source_out_until_the_penalty_has_run_off() -> None:
    clock = Clock()
    door = gate(clock, penalty_seconds=5, penalty_max_seconds=600)
    fail(door, "auth")
    fail(door, "auth")  # 10 s: below the minimum
    fail(door, "auth", "192.0.2.2")
    fail(door, "auth")  # 15 s
    assert refused(door) == "penalty"
    enter(door, "192.0.2.2")
    clock.now += 14.9
    assert refused(door) == "penalty"
    clock.now += 0.2
    enter(door)
    assert len(door.penalties) == 0


def test_slow_failures_decay_and_never_keep_anybody_out() -> None:
    clock = Clock()
    door = gate(clock, penalty_seconds=5)
    for _ in range(100):
        fail(door, "auth")
        clock.now += 5


def test_penalties_grow_to_a_maximum() -> None:
    clock = Clock()
    door = gate(clock, penalty_seconds=5, penalty_max_seconds=60)
    tickets = [enter(door) for _ in range(40)]
    for ticket in tickets:
        ticket.failed("auth")
        ticket.leave()
    clock.now += 59.9
    assert refused(door) == "penalty"
    clock.now += 0.2
    enter(door)


@pytest.mark.parametrize("kind", WEIGHTS)
def test_each_kind_of_failure_weighs_what_it_should(kind: Failure) -> None:
    door = gate(penalty_seconds=1_000, penalty_max_seconds=86_400)
    fail(door, kind)
    assert door.penalties.remaining("192.0.2.1") == pytest.approx(1_000 * WEIGHTS[kind])


def test_an_agent_with_many_keys_is_no_attack() -> None:
    door = gate(penalty_seconds=5)
    for _ in range(20):
        ticket = enter(door)
        for _ in range(5):
            ticket.failed("auth")
        ticket.authenticated()
        ticket.leave()
    assert len(door.penalties) == 0


def test_the_heaviest_failure_of_a_connection_counts_and_it_counts_once() -> None:
    door = gate(penalty_seconds=10)
    ticket = enter(door)
    for kind in ("noauth", "grace", "auth", "noauth", "grace"):
        ticket.failed(kind)
    assert len(door.penalties) == 0, "not before it has left: it may yet authenticate"
    ticket.leave()
    ticket.leave()
    assert door.penalties.remaining("192.0.2.1") == pytest.approx(20)


def test_no_penalty_when_it_is_off() -> None:
    door = gate(penalty_seconds=0)
    for _ in range(100):
        fail(door, "crash")
    assert len(door.penalties) == 0


def test_a_maximum_below_the_minimum_still_keeps_out() -> None:
    door = gate(penalty_seconds=5, penalty_max_seconds=5)
    fail(door, "auth")
    assert refused(door) == "penalty"


def test_health_checks_of_a_load_balancer_are_neither_penalised_nor_counted_by_source() -> None:
    limits = config.LimitsSettings(connections_per_source=1, penalty_seconds=5)
    door = Admission(limits, Clock(), never_dropped, exempt=lambda address: address == "10.0.0.1")
    for _ in range(10):
        fail(door, "crash", "10.0.0.1")
    first, _ = enter(door, "10.0.0.1"), enter(door, "10.0.0.1")
    assert (door.connections, door.by_source, len(door.penalties)) == (2, {}, 0)
    first.leave()
    fail(door, "crash", "10.0.0.2")
    assert refused(door, "10.0.0.2") == "penalty"


def test_an_address_that_a_header_named_is_never_exempt() -> None:
    limits = config.LimitsSettings(connections_per_source=1, penalty_seconds=5)
    door = Admission(limits, Clock(), never_dropped, exempt=lambda address: True)
    assert not isinstance(door.enter("10.0.0.9", named_by_header=True), Refusal)
    refusal = door.enter("10.0.0.9", named_by_header=True)
    assert isinstance(refusal, Refusal) and refusal.reason == "source"
    assert not isinstance(door.enter("10.0.0.9"), Refusal), "a health check"


def test_a_flood_of_sources_forgets_the_smallest_penalties_first() -> None:
    clock = Clock()
    penalties = Penalties(600, clock, sources_limit=100)
    penalties.add("attacker", 500)
    for number in range(10_000):
        penalties.add(f"flood {number}", 20 + number / 1_000)
        assert len(penalties) <= 100
        assert len(penalties._soonest) <= 2 * 100 + 65
    assert penalties.remaining("attacker") == pytest.approx(500)
    assert penalties.remaining("flood 9999") and not penalties.remaining("flood 0")
    clock.now += 501
    assert not penalties.remaining("attacker")
    assert len(penalties) == 0 and not penalties._soonest


def test_one_source_that_fails_for_ever_takes_the_memory_of_one() -> None:
    penalties = Penalties(600, Clock())
    for _ in range(100_000):
        penalties.add("192.0.2.1", 0.001)
    assert len(penalties) == 1 and len(penalties._soonest) <= 67


@UNHURRIED
@given(st.lists(st.tuples(st.integers(0, 5), st.floats(0, 40), st.floats(0, 60)), max_size=60))
def test_penalties_are_what_a_plain_model_says(history: list[tuple[int, float, float]]) -> None:
    clock = Clock()
    penalties = Penalties(60, clock)
    model: dict[str, tuple[float, bool]] = {}
    for number, seconds, pause in history:
        source = f"source {number}"
        ends, active = model.get(source, (0.0, False))
        if ends <= clock.now:
            ends, active = clock.now, False
        if seconds > 0:
            ends = min(ends + seconds, clock.now + 60)
            model[source] = (ends, active or ends - clock.now >= PENALTY_MIN_SECONDS)
        penalties.add(source, seconds)
        clock.now += pause
        for each, (until, out) in model.items():
            assert penalties.remaining(each) == (until - clock.now if out and until > clock.now else 0)


class GateMachine(RuleBasedStateMachine):
    """A gate against counters that are recomputed from its tickets."""

    tickets: Bundle[Ticket] = Bundle("tickets")
    addresses = st.sampled_from(["192.0.2.1", "::ffff:192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::2", "2001:db8:0:1::1", ""])

    @initialize(total=st.integers(1, 6), waiting=st.integers(1, 6), per_source=st.integers(1, 4), penalty=st.sampled_from([0, 5, 20]))
    def start(self, total: int, waiting: int, per_source: int, penalty: float) -> None:
        self.limits = config.LimitsSettings(
            connections=total, unauthenticated_connections=waiting, connections_per_source=per_source, penalty_seconds=penalty
        )
        self.clock = Clock()
        self.draw = 0.5
        self.gate = Admission(self.limits, self.clock, lambda: self.draw)
        self.gate.penalties._sources_limit = 2
        self.open: dict[Ticket, bool] = {}  # -> authenticated

    @rule(target=tickets, address=addresses, draw=st.floats(0, 0.999))
    def enters(self, address: str, draw: float) -> Ticket | MultipleResults[Ticket]:
        self.draw = draw
        answer = self.gate.enter(address)
        source = source_of(address)
        here = sum(ticket.source == source for ticket in self.open)
        waiting = sum(not authenticated for authenticated in self.open.values())
        if isinstance(answer, Ticket):
            assert not self.gate.penalties.remaining(source)
            assert len(self.open) < self.limits.connections
            assert here < self.limits.connections_per_source
            assert waiting < self.limits.unauthenticated_connections
            self.open[answer] = False
            return answer
        match answer.reason:
            case "penalty":
                assert self.gate.penalties.remaining(source)
            case "connections":
                assert len(self.open) == self.limits.connections
            case "source":
                assert here == self.limits.connections_per_source
            case "unauthenticated":
                assert waiting * 2 >= self.limits.unauthenticated_connections - 1
        return multiple()

    @rule(ticket=tickets)
    def authenticates(self, ticket: Ticket) -> None:
        ticket.authenticated()
        if ticket in self.open:
            self.open[ticket] = True

    @rule(ticket=tickets, kind=st.sampled_from(list(WEIGHTS)))
    def fails(self, ticket: Ticket, kind: Failure) -> None:
        ticket.failed(kind)

    @rule(ticket=tickets)
    def leaves(self, ticket: Ticket) -> None:
        ticket.leave()
        self.open.pop(ticket, None)

    @rule(ticket=consumes(tickets))
    def leaves_for_good(self, ticket: Ticket) -> None:
        self.leaves(ticket)

    @rule(seconds=st.floats(0, 100))
    def waits(self, seconds: float) -> None:
        self.clock.now += seconds

    @invariant()
    def counts_are_right(self) -> None:
        assert self.gate.connections == len(self.open) <= self.limits.connections
        assert self.gate.unauthenticated == sum(not authenticated for authenticated in self.open.values())
        assert self.gate.unauthenticated <= self.limits.unauthenticated_connections
        assert self.gate.by_source == Counter(ticket.source for ticket in self.open)
        assert all(0 < count <= self.limits.connections_per_source for count in self.gate.by_source.values())
        assert len(self.gate.penalties) <= 2


TestGate = GateMachine.TestCase
TestGate.settings = settings(max_examples=100, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


# -- an allowance ------------------------------------------------------------------------------------------------------------


def test_an_allowance_takes_a_burst_then_a_rate() -> None:
    now = [100.0]
    allowance = Allowance(10, 50, lambda: now[0])
    assert [allowance.spend(25), allowance.spend(25)] == [0, 0]
    assert allowance.spend(5) == pytest.approx(0.5)
    assert allowance.spend(5) == pytest.approx(1.0), "who does not wait waits longer"
    now[0] += 1.0
    assert allowance.spend(0) == 0
    assert allowance.spend(1) == pytest.approx(0.1)


def test_an_allowance_never_grows_beyond_its_burst() -> None:
    now = [0.0]
    allowance = Allowance(10, 50, lambda: now[0])
    now[0] += 1_000_000
    assert allowance.spend(50) == 0
    assert allowance.spend(1) == pytest.approx(0.1)


def test_ten_hours_of_a_request_a_second_are_never_slowed() -> None:
    now = [0.0]
    allowance = Allowance(1_000, 20_000, lambda: now[0])
    for _ in range(36_000):
        now[0] += 1.0
        assert allowance.spend(1) == 0


# -- what a failure costs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("beyond", "seconds"), [(-FREE_CPU_SECONDS, 1.0), (0.0, 1.0), (DEAR_CPU_SECONDS, 6.0), (20 * DEAR_CPU_SECONDS, 101.0)]
)
def test_a_failure_that_cost_cpu_time_weighs_more(beyond: float, seconds: float) -> None:
    """Five seconds for a failed login, a fifth of it for leaving without one, and five for each 20 ms of CPU time."""
    told: list[float] = []

    class Other(Neighbours):
        def penalised(self, source: str, seconds: float) -> None:
            told.append(seconds)

    gate = Admission(config.LimitsSettings(penalty_seconds=5), neighbours=Other())
    ticket = gate.enter("192.0.2.1")
    assert isinstance(ticket, Ticket)
    ticket.failed("noauth")
    ticket.cost(FREE_CPU_SECONDS + beyond)
    ticket.leave()
    assert told == [pytest.approx(seconds)]


@pytest.mark.parametrize(("each_second", "shut_out"), [(0.1, False), (2, False), (5, False), (50, True)])
def test_checks_of_the_port_keep_nobody_out_unless_they_are_a_flood(each_second: float, shut_out: bool) -> None:
    clock = Clock()
    gate = Admission(config.LimitsSettings(penalty_seconds=5), clock=clock)
    refused = False
    for _ in range(1_000):
        ticket = gate.enter("192.0.2.1")
        if isinstance(ticket, Refusal):
            refused = True
            break
        ticket.probed()
        ticket.leave()
        clock.now += 1 / each_second
    assert refused == shut_out


# -- exempt clients, and sources where somebody logged in ----------------------------------------------------------------------


def login(door: Admission, address: str = "192.0.2.1") -> None:
    ticket = enter(door, address)
    ticket.authenticated()
    ticket.leave()


@pytest.mark.parametrize("named_by_header", [True, False])
@pytest.mark.parametrize("address", ["10.1.2.3", "::ffff:10.1.2.3", "2001:db8::1"])
def test_an_exempt_client_is_neither_penalised_nor_counted_by_source(address: str, named_by_header: bool) -> None:
    limits = config.LimitsSettings(connections_per_source=1, exempt=["10.0.0.0/8", "2001:db8::/32"])
    door = Admission(limits, Clock(), never_dropped)
    for _ in range(100):
        ticket = door.enter(address, named_by_header=named_by_header)
        assert isinstance(ticket, Ticket) and ticket.kind == "exempt"
        ticket.failed("crash")
        ticket.leave()
    held = [door.enter(address, named_by_header=named_by_header) for _ in range(5)]
    assert all(isinstance(one, Ticket) for one in held)
    assert (door.by_source, len(door.penalties), len(door.known), door.connections) == ({}, 0, 0, 5)
    fail(door, "crash", "11.0.0.1")
    assert refused(door, "11.0.0.1") == "penalty"


def test_the_limits_of_all_clients_together_hold_for_exempt_ones() -> None:
    door = Admission(config.LimitsSettings(connections=1, exempt=["10.0.0.0/8"]), Clock(), never_dropped)
    enter(door, "10.0.0.1")
    assert refused(door, "10.0.0.2") == "connections"


def failures_until_refused(door: Admission, clock: Clock) -> int:
    for count in range(1, 1000):
        fail(door, "auth")
        if isinstance(answer := door.enter("192.0.2.1"), Refusal):
            return count
        answer.leave()
    raise AssertionError("never refused")


def test_a_source_where_somebody_logged_in_lately_is_shut_out_later_than_a_stranger() -> None:
    clock = Clock()
    stranger = failures_until_refused(gate(clock), clock)
    door = gate(clock)
    login(door)
    assert failures_until_refused(door, clock) == 4 * stranger
    for door, later in ((gate(clock, known_source_seconds=0), 0.0), (gate(clock), 3600.0)):
        login(door)
        clock.now += later
        assert failures_until_refused(door, clock) == stranger, "off, or too long ago"


def test_an_internal_error_weighs_in_full_wherever_it_is_from() -> None:
    door = gate(Clock())
    login(door)
    fail(door, "crash")
    assert refused(door) == "penalty"


def test_the_sources_that_are_known_are_bounded_and_the_oldest_goes() -> None:
    clock = Clock()
    known = Known(100, clock, 2)
    for source in ("a", "b", "a", "c"):
        known.saw(source)
        clock.now += 1
    assert [known.knows(source) for source in ("a", "b", "c")] == [True, False, True]
    clock.now += 200
    assert not known.knows("a") and len(known) == 1


def test_a_ticket_says_what_its_source_is() -> None:
    door = gate()
    first = enter(door)
    assert first.kind == "stranger"
    first.authenticated()
    assert enter(door).kind == "known" and enter(door, "192.0.2.2").kind == "stranger"
