"""Upstreams and backends: which git host or which source of answers is slow or gone, and what that costs sessions."""

from __future__ import annotations

from grafana.overview import ALL_UP, BAD, INSTANCE, JOB, OK, WARN
from grafana.panels import Json, dashboard, query, series, stat, timeline, variable

LEASE = "instance_upstream_le:relay_upstream_lease_seconds_bucket:rate5m"
ANSWER = "instance_question_le:relay_backend_seconds_bucket:rate5m"
HERE = '@, upstream=~"$upstream"'
NOT_ANSWERED = ("unreachable", "timeout", "failed", "invalid", "busy")
QUANTILES = (("0.5", "p50"), ("0.95", "p95"), ("0.99", "p99"))

UPSTREAM = variable("upstream", "Upstream", 'label_values(relay_upstream_up{job=~"$job"}, upstream)')

TOP = [
    stat(
        "Upstreams up",
        "Share of the chosen git hosts that every relay reaches.",
        "percentunit",
        [query(f"avg(min by (upstream) (relay_upstream_up{{{HERE}}}))", "up")],
        [(None, BAD), (0.5, WARN), (1, OK)],
        mappings=ALL_UP,
        min=0,
        max=1,
    ),
    stat(
        "Sessions waiting",
        "In line for a connection: connections_max are leased, or the git host is paused or away.",
        "short",
        [query(f"sum(relay_upstream_waiting{{{HERE}}})", "waiting")],
        [(None, OK), (1, WARN), (10, BAD)],
        min=0,
    ),
    stat(
        "Warm leases",
        "Share of sessions that found a connection ready, logged in and with a channel open. The others waited for a whole SSH login.",
        "percentunit",
        [
            query(
                f'sum(rate(relay_upstream_leases_total{{{HERE}, warm="true"}}[$__rate_interval]))'
                f" / (sum(rate(relay_upstream_leases_total{{{HERE}}}[$__rate_interval])) > 0)",
                "warm",
            )
        ],
        [(None, BAD), (0.5, WARN), (0.9, OK)],
        min=0,
        max=1,
    ),
    stat(
        "Failed dials",
        "Connections to git hosts that could not be made, a second; dialing goes on by itself with growing pauses.",
        "cps",
        [query(f'sum(rate(relay_upstream_dials_total{{{HERE}, result!="ok"}}[$__rate_interval]))', "failed")],
        [(None, OK), (0.01, WARN), (1, BAD)],
        min=0,
        decimals=1,
    ),
    stat(
        "Undecided",
        "Share of the questions to keys, access and routes that were answered neither yes nor no.",
        "percentunit",
        [
            query(
                'sum(rate(relay_backend_answers_total{@, result!~"ok|no"}[$__rate_interval]))'
                " / (sum(rate(relay_backend_answers_total{@}[$__rate_interval])) > 0)"
                " or 0 * sum(rate(relay_backend_answers_total{@}[$__rate_interval]))",
                "undecided",
            )
        ],
        [(None, OK), (0.001, WARN), (0.05, BAD)],
        min=0,
        decimals=1,
    ),
    stat(
        "Stale answers",
        "Cached answers older than ttl_seconds that were used, because the backend did not answer, a second.",
        "cps",
        [query('sum(rate(relay_cache_total{@, result="stale"}[$__rate_interval]))', "stale")],
        [(None, OK), (0.001, WARN), (10, BAD)],
        min=0,
        decimals=1,
    ),
]

SWITCHES = [
    timeline(
        "Paused, draining, frozen",
        "What an operator has switched with `relay upstreams`, on any of the relays. paused: sessions wait; frozen: pushes are refused;"
        " draining: an address gets no new sessions.",
        [query(f"clamp_max(max by (upstream, switch) (relay_upstream_switches{{{HERE}}}), 1) > 0", "{{upstream}} {{switch}}")],
        [("1", "on", "yellow")],
        width=24,
        noValue="none",
    ),
]
HOSTS = [
    series(
        "Pool by state",
        "Connections to the chosen git hosts. leased carry a session, idle stand ready, dialing are on their way.",
        "short",
        [
            query(f"sum by (state) (relay_upstream_connections{{{HERE}}})", "{{state}}"),
        ],
        stacked=True,
        names=("leased", "idle", "dialing"),
    ),
    series(
        "Pool in use",
        "Share of connections_max that is leased, of the relay where it is greatest. At 100 % sessions wait; each worker has a part of it.",
        "percentunit",
        [
            query(
                f'max by (upstream) (relay_upstream_connections{{{HERE}, state="leased"}}'
                f" / ignoring (state) relay_upstream_connections_max{{{HERE}}})",
                "{{upstream}}",
            )
        ],
        limits=[(None, "transparent"), (0.9, "red")],
        max=1,
    ),
    series(
        "Sessions that wait",
        "In line for a connection, by upstream; refused after connect_seconds, or wait_seconds for a host that is paused or away.",
        "short",
        [query(f"sum by (upstream) (relay_upstream_waiting{{{HERE}}})", "{{upstream}}")],
    ),
]
LEASES = [
    series(
        "Lease time",
        "How long a session waits for its connection, over all chosen git hosts. Warm ones take a round trip.",
        "s",
        [query(f"histogram_quantile({q}, sum by (le) ({LEASE}{{{HERE}}}))", name) for q, name in QUANTILES],
        names=("p50", "p95", "p99"),
    ),
    series(
        "Lease time p95 by upstream",
        "The time that 5 % of sessions exceed while they wait for a connection to this git host.",
        "s",
        [query(f"histogram_quantile(0.95, sum by (upstream, le) ({LEASE}{{{HERE}}}))", "{{upstream}}")],
    ),
    series(
        "Leases, warm and cold",
        "Connections given to sessions: warm ones stood ready, for cold ones the session waited. More cold ones: raise idle_connections.",
        "cps",
        [
            query(f'sum(rate(relay_upstream_leases_total{{{HERE}, warm="true"}}[$__rate_interval]))', "warm"),
            query(f'sum(rate(relay_upstream_leases_total{{{HERE}, warm="false"}}[$__rate_interval]))', "cold"),
        ],
        stacked=True,
        names=("warm", "cold"),
    ),
]
WAITS = [
    series(
        "Sessions that stood in line",
        "Sessions that found no connection free, by what they waited for: all are in use (upstream), a limit of their identity or"
        " repository, a host that is paused or away.",
        "cps",
        [query(f"sum by (reason) (rate(relay_upstream_wait_seconds_count{{{HERE}}}[$__rate_interval])) > 0", "{{reason}}")],
        stacked=True,
        names=("upstream", "identity", "repository", "paused", "away"),
        noValue="none",
    ),
    series(
        "Time in line p95",
        "The time that 5 % of those exceeded, by what they waited for. The limits are connect_seconds and wait_seconds.",
        "s",
        [
            query(
                f"histogram_quantile(0.95, sum by (reason, le) (rate(relay_upstream_wait_seconds_bucket{{{HERE}}}[$__rate_interval])))",
                "{{reason}}",
            )
        ],
        names=("upstream", "identity", "repository", "paused", "away"),
        noValue="none",
    ),
    series(
        "Refused in line",
        "Sessions of all git hosts that waited too long or found the line full: connections in use (upstream), or a limit of their"
        " identity or repository. See RelaySessionsCrowdedOut.",
        "cps",
        [
            query(
                'sum by (reason) (rate(relay_commands_rejected_total{@, reason=~"identity|repository|upstream"}[$__rate_interval])) > 0',
                "{{reason}}",
            )
        ],
        stacked=True,
        names=("upstream", "identity", "repository"),
        noValue="none",
    ),
]
DIALS = [
    timeline(
        "Addresses",
        "Each address of the chosen git hosts, by health checks and dials: down when any one of the relays finds it down. Sessions go to"
        " those that are up.",
        [query(f"min by (upstream, address) (relay_upstream_address_up{{{HERE}}})", "{{upstream}} {{address}}")],
        [("0", "down", "red"), ("1", "up", "green")],
    ),
    series(
        "Dials by result",
        "Connections to git hosts, by how it went. dial and timeout: network or sshd. auth: the relay's key. host_key: not the pinned one,"
        " see RelayUpstreamHostKey.",
        "cps",
        [query(f"sum by (upstream, result) (rate(relay_upstream_dials_total{{{HERE}}}[$__rate_interval])) > 0", "{{upstream}} {{result}}")],
        width=12,
        noValue="none",
    ),
]
REPLAYS = [
    series(
        "Sessions that lost their git host",
        "Fetches and untouched sessions that could go on elsewhere. served: the client did not notice; the others ended. differed: the next"
        " address has other refs; budget: see replay_budget; unavailable: none came within wait_seconds. RelayHostLostOften.",
        "cps",
        [query(f"sum by (result) (rate(relay_replays_total{{{HERE}}}[$__rate_interval]))", "{{result}}")],
        stacked=True,
        names=("served", "differed", "lost", "budget", "unavailable", "ended"),
        width=12,
    ),
    series(
        "Sessions that lost their git host, by upstream",
        "The same for each git host: whether it is one that restarts, or the network to all of them.",
        "cps",
        [query(f"sum by (upstream) (rate(relay_replays_total{{{HERE}}}[$__rate_interval]))", "{{upstream}}")],
        width=12,
    ),
]
PACKS = [
    series(
        "Fetches that packs could answer",
        "hit: from an answer that was kept; joined: from one that was being made; filled: by the git host, and kept; passed: by the git"
        " host, and not kept. failed: the answer that a fetch was read from broke off.",
        "cps",
        [query("sum by (result) (rate(relay_packs_total{@}[$__rate_interval])) > 0", "{{result}}")],
        stacked=True,
        names=("hit", "joined", "filled", "passed", "failed"),
        width=5,
        noValue="no fetch, or [packs] is not set",
    ),
    series(
        "Answered by packs",
        "Share of these fetches that cost the git host no pack. Low with many passed: equal fetches are further apart than ttl_seconds.",
        "percentunit",
        [
            query(
                'sum(rate(relay_packs_total{@, result=~"hit|joined"}[$__rate_interval]))'
                " / (sum(rate(relay_packs_total{@}[$__rate_interval])) > 0)",
                "hit or joined",
            )
        ],
        width=5,
        max=1,
    ),
    series(
        "Bytes that git hosts did not send",
        "What clients got from packs, less what git hosts sent to fill them: what was saved of the git hosts' work and of their network.",
        "Bps",
        [
            query(
                'sum(rate(relay_packs_bytes_total{@, direction="out"}[$__rate_interval]))'
                ' - sum(rate(relay_packs_bytes_total{@, direction="in"}[$__rate_interval]))',
                "saved",
            )
        ],
        width=5,
        minimum=None,
    ),
    series(
        "Packs on the disk",
        "Of each relay, up to max_bytes. At max_bytes with few hits: entries leave before they are used again.",
        "decbytes",
        [query("max by (instance) (relay_packs_disk_bytes{@})", "{{instance}}")],
        width=5,
    ),
    stat(
        "Keep nothing",
        "Relays on which [packs] is set and nothing can be kept, for their folder or a full disk. See RelayPacksUnusable.",
        "short",
        [query("sum(max by (instance) (relay_packs_unusable{@}))", "relays")],
        [(None, OK), (1, WARN)],
        min=0,
    ),
]


def _answers(quantile: str, name: str) -> Json:
    return series(
        f"Answer time {name}",
        "How long keys, access and routes take to answer what no cache could.",
        "s",
        [query(f"histogram_quantile({quantile}, sum by (question, le) ({ANSWER}{{@}}))", "{{question}}")],
    )


BACKENDS = [
    *(_answers(quantile, name) for quantile, name in QUANTILES[:2]),
    series(
        "Questions to backends",
        "Questions that reach a backend, by its kind. A step up with steady sessions: the cache was emptied or its time is too short.",
        "cps",
        [query("sum by (question, source) (rate(relay_backend_answers_total{@}[$__rate_interval]))", "{{question}} ({{source}})")],
    ),
]
ANSWERS = [
    series(
        "Answers by result",
        "ok and no are answers; timeout, unreachable, failed, invalid, busy and error are not: who is not in the cache is refused.",
        "cps",
        [query("sum by (result) (rate(relay_backend_answers_total{@}[$__rate_interval])) > 0", "{{result}}")],
        stacked=True,
        names=("ok", "no", *NOT_ANSWERED, "error"),
        width=6,
    ),
    series(
        "Cache by result",
        "hit: a known yes, negative: a known no, joined: asked already by another, shared: known to another relay,"
        " miss: the backend is asked, stale: it cannot answer.",
        "cps",
        [query("sum by (result) (rate(relay_cache_total{@}[$__rate_interval])) > 0", "{{result}}")],
        stacked=True,
        names=("hit", "negative", "joined", "shared", "miss", "stale"),
        width=6,
    ),
    series(
        "Answered from the cache",
        "Share of questions that did not reach a backend, by question. File backends have no cache.",
        "percentunit",
        [
            query(
                'sum by (question) (rate(relay_cache_total{@, result!="miss"}[$__rate_interval]))'
                " / (sum by (question) (rate(relay_cache_total{@}[$__rate_interval])) > 0)",
                "{{question}}",
            )
        ],
        width=6,
        max=1,
    ),
    series(
        "Exchanges between relays",
        "With the other relays, through the Redis of [shared]: ok, or why not. Without it each worker has its own limits and penalties.",
        "cps",
        [query("sum by (result) (rate(relay_shared_exchanges_total{@}[$__rate_interval])) > 0", "{{result}}")],
        stacked=True,
        names=("ok", *NOT_ANSWERED),
        width=6,
        noValue="nothing is shared",
    ),
]

TRACES = [
    series(
        "Spans of traces",
        "Spans of [tracing] that the collector took, those that it did not, and those that were dropped because too many waited for it.",
        "cps",
        [query("sum by (result) (rate(relay_trace_spans_total{@}[$__rate_interval])) > 0", "{{result}}")],
        stacked=True,
        names=("sent", "failed", "dropped"),
        width=24,
        noValue="nothing is traced",
    ),
]

UPSTREAMS = dashboard(
    "git-ssh-relay-upstreams",
    "Relay / Upstreams and backends",
    "The git hosts behind a git-over-SSH relay and the sources of its answers: which is slow or gone, and what that costs sessions.",
    [JOB, INSTANCE, UPSTREAM],
    [
        ("", 4, TOP),
        ("Git hosts", 5, DIALS),
        ("Git hosts", 4, SWITCHES),
        ("Git hosts", 8, HOSTS),
        ("Git hosts", 8, LEASES),
        ("Git hosts", 8, WAITS),
        ("Git hosts", 8, REPLAYS),
        ("Packs: answers that are kept for equal fetches", 8, PACKS),
        ("Keys, access and routes", 8, BACKENDS),
        ("Keys, access and routes", 8, ANSWERS),
        ("Traces", 6, TRACES),
    ],
)
