"""The overview: is it up, is it well, who is turned away and why, and what to look at next."""

from __future__ import annotations

from grafana.panels import Json, dashboard, mapped, query, series, stat, table, timeline, variable

OK, WARN, BAD = "green", "yellow", "red"
SERVICES = ("git-upload-pack", "git-receive-pack", "git-upload-archive", "git-lfs-authenticate", "git-lfs-transfer", "none")
CENTURY_SECONDS = 3_155_760_000
STEP = "instance_step_le:relay_setup_seconds_bucket:rate5m"

JOB = variable("job", "Job", "label_values(relay_build_info, job)")
INSTANCE = variable("instance", "Instance", 'label_values(relay_build_info{job=~"$job"}, instance)')

ALL_UP = [mapped(("1", "ALL UP", OK), ("0", "DOWN", BAD))]

ALERTS = timeline(
    "Firing alerts",
    "Alerts of grafana/rules, while they fire. Critical ones wake somebody; each alert's runbook annotation says what to look at and do.",
    [
        query(
            'max by (alertname) (ALERTS{alertstate="firing", alertname=~"Relay.+", severity="warning", job=~"$job|"})'
            ' or 2 * max by (alertname) (ALERTS{alertstate="firing", alertname=~"Relay.+", severity="critical", job=~"$job|"})',
            "{{alertname}}",
        )
    ],
    [("1", "warning", "orange"), ("2", "critical", "red")],
    noValue="nothing fires",
)
UPSTREAMS_UP = timeline(
    "Git hosts",
    "Each upstream by health checks and dials: down when all its addresses are, as seen from any one of the relays.",
    [query("min by (upstream) (relay_upstream_up{@})", "{{upstream}}")],
    [("0", "down", "red"), ("1", "up", "green")],
)

TOP = [
    stat(
        "Relays up",
        "Share of the scrape targets that answer. A relay that does not answer may still serve: see RelayTargetDown.",
        "percentunit",
        [query("avg(up{@})", "up")],
        [(None, BAD), (0.5, WARN), (1, OK)],
        mappings=ALL_UP,
        min=0,
        max=1,
    ),
    stat(
        "Sessions",
        "Git sessions that end a second, of all results.",
        "reqps",
        [query('sum(rate(relay_sessions_total{@, service!="none"}[$__rate_interval]))', "sessions")],
        [(None, "blue")],
        decimals=1,
    ),
    stat(
        "Errors",
        "Sessions that failed for a fault of a git host or of the relay, over five minutes. What clients did wrong and what they may not do"
        " is left out. Yellow: more than the budget of 0.1 % allows; red: at this rate the month's budget is gone in two days.",
        "percentunit",
        [
            query(
                "sum(instance:relay_errors:rate5m{@}) / (sum(instance:relay_requests:rate5m{@}) > 0)"
                " or 0 * sum(instance:relay_requests:rate5m{@})",
                "errors",
            )
        ],
        [(None, OK), (0.001, WARN), (0.0144, BAD)],
        min=0,
        decimals=2,
    ),
    stat(
        "Setup p95, slowest step",
        "The time that 5 % of sessions exceed, in the slowest step: handshake, keys, access, routes or upstream.",
        "s",
        [query(f"topk(1, histogram_quantile(0.95, sum by (step, le) ({STEP}{{@}})) >= 0)", "{{step}}", instant=True)],
        [(None, OK), (0.5, WARN), (2, BAD)],
    ),
    stat(
        "Throughput",
        "Bytes a second that are carried, both directions together; they count while they move.",
        "Bps",
        [query("sum(rate(relay_bytes_total{@}[$__rate_interval]))", "throughput")],
        [(None, "blue")],
        decimals=1,
    ),
    stat(
        "Upstreams up",
        "Share of the git hosts that every relay reaches. Sessions to one that is down end with `the git host is unavailable`.",
        "percentunit",
        [query("avg(min by (upstream) (relay_upstream_up{@}))", "up")],
        [(None, BAD), (0.5, WARN), (1, OK)],
        mappings=ALL_UP,
        min=0,
        max=1,
    ),
]

SESSIONS = [
    series(
        "Sessions by result",
        "How sessions end. ok, exit: git's exit status, 0 or another; signal: git was killed; client: it left or broke the protocol;"
        " policy: refused by access rules or limits; upstream: a fault of the git host; relay: a fault of the relay.",
        "reqps",
        [query("sum by (result) (rate(relay_sessions_total{@}[$__rate_interval]))", "{{result}}")],
        stacked=True,
        names=("ok", "exit", "signal", "client", "policy", "upstream", "relay"),
    ),
    series(
        "Error ratio",
        "Failed for a fault of a git host or of the relay, of all requests but those with client faults and refusals. A fast burn is both"
        " lines above 1.44 %, fourteen times what the objective (dashed) allows.",
        "percentunit",
        [
            query('max(job:relay_error_ratio:rate5m{job=~"$job"})', "5 minutes"),
            query('max(job:relay_error_ratio:rate1h{job=~"$job"})', "1 hour"),
            query("max(relay:error_budget:ratio)", "objective"),
        ],
        names=("5 minutes", "1 hour", "objective"),
    ),
    series(
        "Throughput by direction",
        "Bytes a second, while they move. To clients: clones and fetches. To git hosts: pushes.",
        "Bps",
        [
            query('sum(rate(relay_bytes_total{@, direction="out"}[$__rate_interval]))', "to clients"),
            query('sum(rate(relay_bytes_total{@, direction="in"}[$__rate_interval]))', "to git hosts"),
        ],
        names=("to clients", "to git hosts"),
    ),
]
SESSIONS_MORE = [
    series(
        "Open sessions",
        "Sessions that run, by service. A line that only rises: sessions hang, `relay sessions` shows which.",
        "short",
        [query("sum by (service) (relay_sessions_open{@}) > 0", "{{service}}")],
        stacked=True,
        names=SERVICES,
        noValue="none",
    ),
    series(
        "Sessions by service",
        "What clients ask for; none is a shell's greeting, or what was refused before its command was known.",
        "reqps",
        [query("sum by (service) (rate(relay_sessions_total{@}[$__rate_interval])) > 0", "{{service}}")],
        stacked=True,
        names=SERVICES,
    ),
    series(
        "Session time",
        "From the command to the end of a session, all services. Long ones are large clones; a median that rises is not.",
        "s",
        [
            query(f"histogram_quantile({quantile}, sum by (le) (rate(relay_session_seconds_bucket{{@}}[$__rate_interval])))", name)
            for quantile, name in (("0.5", "p50"), ("0.95", "p95"))
        ],
        names=("p50", "p95"),
    ),
]


def _setup(quantile: str, name: str, time: str) -> Json:
    return series(
        f"Setup {name} by step",
        f"{time} in each step before the git host is connected: handshake (on the client's network), keys, access, routes, upstream.",
        "s",
        [query(f"histogram_quantile({quantile}, sum by (step, le) ({STEP}{{@}}))", "{{step}}")],
    )


SETUP = [
    _setup("0.5", "p50", "The median time"),
    _setup("0.95", "p95", "The time that 5 % of sessions exceed"),
    _setup("0.99", "p99", "The time that 1 % of sessions exceed"),
]

REFUSED = [
    series(
        "Logins",
        "Proven logins, and refused attempts by reason. unknown_key: scanners and spare keys; undecided: the keys backend did not answer.",
        "cps",
        [
            query("sum(rate(relay_auth_successes_total{@}[$__rate_interval]))", "let in"),
            query("sum by (reason) (rate(relay_auth_failures_total{@}[$__rate_interval])) > 0", "{{reason}}"),
        ],
        names=("let in", "undecided"),
        width=6,
    ),
    series(
        "Rejected commands",
        "Execs that were not carried, by reason. denied: no such repository or not theirs; undecided: a backend could not answer;"
        " ref: a push that rules for refs do not allow; identity, repository, upstream: it stood in line for a git host in vain;"
        " frozen, read_only: a push where none is taken.",
        "cps",
        [query("sum by (reason) (rate(relay_commands_rejected_total{@}[$__rate_interval])) > 0", "{{reason}}")],
        stacked=True,
        names=("denied", "not_git", "malformed", "undecided", "too_many", "ref"),
        noValue="none",
        width=6,
    ),
    series(
        "Connections by outcome",
        "How client connections end. limited and proxy are turned away at the door; no_auth is port probes; lost: reset after the login."
        " refused channels: a draining worker did not open them, and the client connects anew. session: ended since its client was idle, or"
        " asked for a repository by a name from which it has moved.",
        "cps",
        [
            query("sum by (outcome) (rate(relay_connections_total{@}[$__rate_interval])) > 0", "{{outcome}}"),
            query("sum(rate(relay_channels_refused_total{@}[$__rate_interval]))", "refused channels"),
            query("sum by (reason) (rate(relay_sessions_idle_total{@}[$__rate_interval]))", "session: {{reason}}"),
            query("sum(rate(relay_sessions_moved_total{@}[$__rate_interval]))", "session: by an old name"),
        ],
        stacked=True,
        names=("ok", "no_auth", "auth_failed", "protocol", "lost", "limited", "drained", "idle"),
        width=6,
    ),
    series(
        "Connections by source",
        "What is known of the sources of connections that ended. known: somebody logged in from there within known_source_seconds; exempt:"
        " in limits.exempt.",
        "cps",
        [query("sum by (source) (rate(relay_connections_by_source_total{@}[$__rate_interval]))", "{{source}}")],
        stacked=True,
        width=6,
    ),
]

POOLS = [
    series(
        "Pool connections",
        "Connections to all git hosts by state. No idle ones left while many are dialing: sessions wait for logins.",
        "short",
        [query("sum by (state) (relay_upstream_connections{@})", "{{state}}")],
        stacked=True,
        names=("leased", "idle", "dialing"),
    ),
    series(
        "Sessions that wait for a connection",
        "Sessions in line because connections_max of an upstream are leased. Above zero for minutes is RelayPoolExhausted.",
        "short",
        [query("sum by (upstream) (relay_upstream_waiting{@})", "{{upstream}}")],
    ),
    series(
        "Backends in trouble",
        "Questions that a backend answered neither yes nor no, and cached answers older than ttl_seconds that were used because of it.",
        "cps",
        [
            query('sum by (question) (rate(relay_cache_total{@, result="stale"}[$__rate_interval])) > 0', "{{question}} stale"),
            query(
                'sum by (question, result) (rate(relay_backend_answers_total{@, result!~"ok|no"}[$__rate_interval])) > 0',
                "{{question}} {{result}}",
            ),
        ],
        noValue="none",
    ),
]

RELAY = [
    series(
        "Connections open",
        "Client connections, by relay. A step down to zero is a restart.",
        "short",
        [query("sum by (instance) (relay_connections_open{@})", "{{instance}}")],
    ),
    series(
        "Event loop lag p99",
        "How late one timer in a hundred runs; a session waits as long for its turn. Above the dashed line for 5 minutes is RelayLoopLag.",
        "s",
        [query("instance:relay_event_loop_lag_seconds:p99_5m{@}", "{{instance}}")],
        limits=[(None, "transparent"), (0.1, "red")],
    ),
    series(
        "Workers",
        "Workers that live; those started in place of one that ended unasked, and reloads by result, within five minutes each.",
        "short",
        [
            query("sum(relay_workers{@})", "workers"),
            query("sum(increase(relay_worker_restarts_total{@}[5m]))", "restarts"),
            query("sum by (result) (increase(relay_reloads_total{@}[5m]))", "reloads {{result}}"),
        ],
        names=("workers", "restarts"),
    ),
]

RELAY_NOW = [
    stat(
        "Change not in force",
        "For how long a change of a file waits for a fault in it to be mended, the longest first; 0 when all is in force.",
        "s",
        [
            query(
                "topk(1, max by (what) (time() - (relay_change_not_taken_since_seconds{@} > 0)) or"
                " 0 * max by (what) (relay_change_not_taken_since_seconds{@}))",
                "{{what}}",
                instant=True,
            )
        ],
        [(None, OK), (1, WARN), (600, BAD)],
        width=3,
    ),
    stat(
        "Host certificate",
        "For how long clients take the certificate of a host key, the one that ends first. See RelayHostCertificateEnds.",
        "s",
        [query("min((relay_host_certificate_valid_before_seconds{@} > 0) - time())", "ends in")],
        [(None, OK), (-CENTURY_SECONDS, BAD), (1, WARN), (172_800, OK)],  # the first is the colour of "none"
        width=3,
        noValue="none",
    ),
    stat(
        "Not hardened",
        "Relays that do not use all of git-ssh-relay-native: the hardened libssh2, the extension for AES-GCM. See RelayNotHardened.",
        "short",
        [query("count(min by (instance) (relay_native{@}) == 0) or 0 * count(relay_native{@})", "relays")],
        [(None, OK), (1, WARN)],
        width=3,
        min=0,
    ),
    stat(
        "Keys left out",
        "Lines of files of keys that are not used, as faulty_lines is skip. The log at start and `relay check` name each.",
        "short",
        [query("max(relay_keys_left_out{@})", "lines")],
        [(None, OK), (1, WARN)],
        width=3,
        min=0,
    ),
    table(
        "Versions",
        "The version of each relay and of its libraries. A libssh2 with +relay is the hardened one.",
        query("relay_build_info{@}", instant=True, table=True),
        ("instance", "version", "libssh2", "asyncssh", "python", "ssh2_python", "uvloop"),
        width=12,
    ),
]

OVERVIEW = dashboard(
    "git-ssh-relay-overview",
    "Relay / Overview",
    "A git-over-SSH relay: is it up, is it well, who is turned away and why. The objective is in grafana/rules/recording.yml.",
    [JOB, INSTANCE],
    [
        ("", 4, TOP),
        ("", 5, [ALERTS, UPSTREAMS_UP]),
        ("Sessions", 8, SESSIONS),
        ("Sessions", 7, SESSIONS_MORE),
        ("Setup time: from the handshake to the git host's connection", 8, SETUP),
        ("Logins and commands that are refused", 8, REFUSED),
        ("Pools and backends", 7, POOLS),
        ("The relay itself", 7, RELAY),
        ("The relay itself", 5, RELAY_NOW),
    ],
)
