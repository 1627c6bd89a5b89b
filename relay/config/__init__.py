"""Declares every setting, with default and bounds; a setting with a unit has it in its name. Plain values, no live objects.

`relay.config.load` reads a file into these structs. `relay schema` and docs/configuration.md show the docstring of each struct and the
comment behind each field.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta, field

Seconds = Annotated[float, Meta(gt=0, le=86_400)]
SecondsOrNever = Annotated[float, Meta(ge=0, le=86_400)]
Count = Annotated[int, Meta(ge=1, le=1_000_000)]
CountOrNone = Annotated[int, Meta(ge=0, le=1_000_000)]
Bytes = Annotated[int, Meta(ge=65_536, le=1 << 40)]
BytesOrNone = Annotated[int, Meta(ge=0, le=1 << 40)]
Address = Annotated[str, Meta(min_length=1, max_length=256, description="host:port, [v6]:port, or systemd where allowed")]
Word = Annotated[str, Meta(min_length=1, max_length=4096)]
RedisUrl = Annotated[str, Meta(pattern="^(redis|rediss|unix)://", max_length=2048)]
FilePath = Annotated[str, Meta(min_length=1, max_length=4096, description="relative to the configuration file, or absolute")]
PathStart = Annotated[str, Meta(min_length=2, max_length=1024)]
HostAlgorithms = Literal["modern", "compatible"]
Policy = Literal["first", "least_sessions", "hash"]
Times = Annotated[int, Meta(ge=1, le=100)]


class Table(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True, omit_defaults=False):
    """A TOML table. An unknown key is refused."""


class AdminSettings(Table, frozen=True, forbid_unknown_fields=True):
    """Where /metrics, /live and /ready are served."""

    listen: Address = "127.0.0.1:9122"  # everyone who can connect to it may read the metrics
    sessions_socket: FilePath = "relay.sock"  # for `relay sessions`, `relay upstreams` and `relay packs`; only the owner may open it


class LogSettings(Table, frozen=True, forbid_unknown_fields=True):
    """The log goes to stderr, the audit lines to stdout or a file."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "text", "json"] = "auto"  # auto: text on a terminal, else json
    audit: Annotated[str, Meta(min_length=1)] = "-"  # "-": stdout; or a file that is reopened on SIGHUP
    audit_required: bool = False  # true: no session begins whose beginning cannot be written to the audit; others go on


class LimitsSettings(Table, frozen=True, forbid_unknown_fields=True):
    """Limits on clients and strangers. Counts are for each worker, unless the name or the description says otherwise."""

    login_grace_seconds: Seconds = 30  # from connecting to the end of the login
    auth_attempts: Count = 6  # keys that one connection may offer or sign with
    unauthenticated_connections: Count = 200  # beyond half of it, random early drop as OpenSSH's MaxStartups
    connections: Count = 20_000  # of all clients together
    connections_per_source: Count = 64  # a source is an IPv4 address or an IPv6 /64; with [shared] for all relays together
    sessions_per_connection: Count = 10  # at once
    leases_per_identity: CountOrNone = 0  # connections to git hosts that sessions of one identity use at once; 0: no limit of its own
    leases_per_repository: CountOrNone = 0  # the same for one repository; sessions beyond a limit wait in line
    waiting: CountOrNone = 1000  # sessions in line for a connection to a git host; the next is refused
    penalty_seconds: SecondsOrNever = 5  # added for each failed login of a source; 0: off
    penalty_max_seconds: Seconds = 600  # no source is refused for longer
    known_source_seconds: SecondsOrNever = 3600  # so long after a login the failed logins of its source weigh a quarter; 0: in full
    exempt: list[str] = field(default_factory=list)  # networks of clients that are neither penalised nor counted by source: CI behind NAT
    stall_seconds: Seconds = 300  # a session ends in which bytes wait but do not move, or whose git host ended its output but not itself
    connection_idle_seconds: Seconds = 3600  # a connection that is logged in and has no session, as sshd's UnusedConnectionTimeout
    client_idle_seconds: Seconds = 3600  # of a session whose client must send next; a pre-push hook may take long
    client_idle_busy_seconds: Seconds = 5  # the same while others wait for that connection to the git host; not with user_certificate
    drain_seconds: SecondsOrNever = 60  # after SIGTERM or a reload: how long running sessions may go on
    keepalive_seconds: SecondsOrNever = 30  # between keepalives; a client that answers none of three in a row is disconnected; 0: off
    buffer_bytes: Bytes = 1 << 30  # data of all sessions of a worker that waits to be sent


class ProxyProtocolSettings(Table, frozen=True, forbid_unknown_fields=True):
    """The PROXY protocol, versions 1 and 2, with which a load balancer passes on the client's address."""

    mode: Literal["off", "allow", "require"] = "off"  # require: a connection without a header is refused
    trusted: list[str] = field(default_factory=list)  # addresses or networks of load balancers; only their header is used


class AlgorithmsSettings(Table, frozen=True, forbid_unknown_fields=True):
    """The algorithms that clients may use; docs/security.md lists them."""

    profile: Literal["modern", "compatible"] = "modern"  # compatible: for older clients


class PacksSettings(Table, frozen=True, forbid_unknown_fields=True):
    """Answers to fetches are kept on the disk for equal ones; off without this table. docs/packs.md says for whom that is."""

    folder: FilePath  # mode 0700, of the relay's user, on a disk of this machine; for nothing else. Made when its parent is there
    max_bytes: Bytes = 20_000_000_000  # of all answers; beyond it those longest unused go
    free_bytes: BytesOrNone = 2_000_000_000  # nothing is kept while the file system has less for the relay's user
    ttl_seconds: Seconds = 300  # an answer goes so long after it was made, whether it is used or not
    first: bool = False  # true: already the first of equal fetches is kept; false: from the second within ttl_seconds on


class NamesSettings(Table, frozen=True, forbid_unknown_fields=True):
    """The names of repositories as clients write them."""

    strip: list[PathStart] = field(default_factory=list)  # taken off the paths of clients: "/srv/git/", "~/"; old remotes work on


class TracingSettings(Table, frozen=True, forbid_unknown_fields=True):
    """Traces of logins and sessions, sent by OTLP over HTTP; off without this table. Needs the extra: git-ssh-relay[tracing]."""

    url: Annotated[str, Meta(min_length=1, max_length=2048, pattern="^https?://")]  # where traces go, as https://collector:4318/v1/traces
    token_file: FilePath | None = None  # a bearer token; read at the start and at a reload
    ca_file: FilePath | None = None  # PEM; trusted instead of the system's CAs
    plain_http: bool = False  # allows http:// to another machine: who is on the way reads names of identities and repositories
    sample_one_in: Count = 1  # of so many logins one is traced, with all its sessions; the others are not at all
    queue_spans: Count = 10_000  # that wait for the collector, for each worker; further ones are dropped and counted
    timeout_seconds: Annotated[float, Meta(gt=0, le=60)] = 10  # of a request to the collector, with its repetitions


class CertificatesSettings(Table, frozen=True, forbid_unknown_fields=True):
    """OpenSSH user certificates of trusted CAs, and revoked keys and certificates; also keys of the keys backend can be revoked."""

    ca_keys: list[FilePath] = field(default_factory=list)  # public keys of the CAs, read again when changed; none: certificates are refused
    revoked: FilePath | None = None  # a KRL of ssh-keygen -k, or revoked public keys line by line; read again when changed
    identity: Literal["key_id", "principal"] = "key_id"  # who it is: the key id, or the first principal not in `principals`
    principals: list[Word] = field(default_factory=list)  # one must be listed; none: the user, or with identity = "principal" any


KeyType = Literal[
    "ssh-ed25519",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "ssh-rsa",
    "sk-ssh-ed25519@openssh.com",
    "sk-ecdsa-sha2-nistp256@openssh.com",
]


class RequirementsSettings(Table, frozen=True, forbid_unknown_fields=True):
    """What a key must be like, and how a security key must sign."""

    key_types: list[KeyType] = field(default_factory=list)  # that may log in, by key or certificate; none: all
    rsa_bits: Annotated[int, Meta(ge=2048, le=16_384)] = 2048  # fewest of an RSA key, and of an RSA key of a certificate's CA
    security_keys_only: bool = False  # FIDO: only the two types that begin with sk-
    verify_required: bool = False  # a security key must have asked for its PIN or a fingerprint; any other key is refused


class PolicyRuleSettings(RequirementsSettings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is asked of some identities besides; every rule that names an identity holds for it."""

    who: Annotated[list[Word], Meta(min_length=1)]  # identities, @groups of access.toml or Redis, or * for everybody
    exempt: list[Word] = field(default_factory=list)  # the same: for these the rule does not hold
    from_networks: list[str] = field(default_factory=list)  # networks or addresses from which they may log in; none: any
    expires: Annotated[str, Meta(min_length=8, max_length=15)] | None = None  # as expiry-time of a key: "20300102Z"; then no login


class PolicySettings(RequirementsSettings, frozen=True, forbid_unknown_fields=True):
    """What is asked of every client's key, whatever backend it is from."""

    ca_key_types: list[KeyType] = field(default_factory=list)  # that may have signed a certificate; none: all
    touch_required: bool = True  # false: a key or certificate with no-touch-required may sign without a touch, as with sshd
    rule: list[PolicyRuleSettings] = field(default_factory=list)


class CacheSettings(Table, frozen=True, forbid_unknown_fields=True):
    """How long a worker caches answers of a backend; a no is never served as a yes."""

    ttl_seconds: SecondsOrNever = 60  # how long a yes is used again; 0: never
    negative_seconds: SecondsOrNever = 5  # how long a no is used again; 0: never
    stale_seconds: SecondsOrNever = 3600  # while the backend cannot answer, a yes up to this old is used; 0: never
    entries: Count = 10_000  # of each kind, yes and no; beyond it the least recently used one is dropped


class HttpSettings(Table, frozen=True, forbid_unknown_fields=True):
    """An HTTP authority; docs/authority.openapi.json is its API."""

    url: Annotated[str, Meta(min_length=1, max_length=2048, pattern="^https?://")]  # the paths of the API are appended to it
    token_file: FilePath | None = None  # a bearer token; read again when changed
    jwt_key_file: FilePath | None = None  # instead: signs a JWT a request; Ed25519 in PEM (EdDSA), or 32 random bytes or more (HS256)
    jwt_audience: Annotated[str, Meta(max_length=2048)] = ""  # the JWT's aud; empty: the url
    ca_file: FilePath | None = None  # PEM; trusted instead of the system's CAs
    plain_http: bool = False  # allows http:// to another machine: whoever can change traffic on the way can answer yes
    timeout_seconds: Seconds = 2  # of one attempt; a failed one is repeated once
    connections: Count = 16  # at most, for each worker; they are kept open
    cache: CacheSettings = field(default_factory=CacheSettings)


class RedisServerSettings(Table, frozen=True, forbid_unknown_fields=True):
    """The address of a Redis, and how the relay authenticates there."""

    urls: list[RedisUrl]
    mode: Literal["single", "sentinel", "cluster"] = "single"  # sentinel: the urls are the sentinels'; cluster: of some of its nodes
    service: Annotated[str, Meta(min_length=1, max_length=255)] = "mymaster"  # the name that the sentinels have for the primary
    username: Annotated[str, Meta(max_length=255)] = ""  # an ACL user; empty: the default user
    password_file: FilePath | None = None  # read again when changed
    ca_file: FilePath | None = None  # PEM; trusted instead of the system's CAs, for rediss://
    prefix: Annotated[str, Meta(max_length=255)] = "relay:"  # of every key and of the channel
    timeout_seconds: Seconds = 1  # of one attempt; a failed one is repeated once
    connections: Count = 16  # questions at once, for each worker; further ones wait


class RedisSettings(RedisServerSettings, frozen=True, forbid_unknown_fields=True):
    """A Redis; docs/backends.md describes its hashes and sets."""

    urls: Annotated[list[RedisUrl], Meta(min_length=1)]  # as redis-py's
    cache: CacheSettings = field(default_factory=CacheSettings)


class SharedSettings(RedisServerSettings, frozen=True, forbid_unknown_fields=True):
    """A Redis through which all relays behind one address share penalties, connections by source, and answers about keys."""

    urls: list[RedisUrl] = field(default_factory=list)  # as redis-py's; empty: nothing is shared
    prefix: Annotated[str, Meta(max_length=255)] = "relay:shared:"  # of every key and of the channel; the same for all relays that share
    connections: Count = 4  # questions at once, for each worker; further ones wait
    secret_file: FilePath | None = None  # 32 random bytes or more, the same for all; with it answers about keys (http, exec) are shared


class FileKeysSettings(Table, frozen=True, forbid_unknown_fields=True, tag_field="source", tag="file"):
    """A folder of public keys, like gitolite's keydir: alice.pub and alice@laptop.pub belong to alice. Or one file of lines."""

    path: FilePath = "keys"  # a folder, or a file like authorized_keys: identity="alice" ssh-ed25519 AAAA..., or gitolite's lines
    faulty_lines: Literal["refuse", "skip"] = "refuse"  # skip: a line that cannot be used is left out and told, all others are used


class HttpKeysSettings(HttpSettings, frozen=True, forbid_unknown_fields=True, tag_field="source", tag="http"):
    """GET {url}/keys?fingerprint=SHA256:...&key=... answers with the identity, or 404."""


class RedisKeysSettings(RedisSettings, frozen=True, forbid_unknown_fields=True, tag_field="source", tag="redis"):
    """The hash {prefix}keys: fingerprint -> identity."""


class ExecKeysSettings(Table, frozen=True, forbid_unknown_fields=True, tag_field="source", tag="exec"):
    """A program that writes the identity to stdout, or nothing, and ends with status 0; as sshd's AuthorizedKeysCommand."""

    command: Annotated[list[Word], Meta(min_length=1)]  # no shell; %f is the key's fingerprint, %t its type, %k its base64
    timeout_seconds: Seconds = 5  # then the program's process group is killed
    processes: Count = 8  # at once, for each worker; further questions wait
    cache: CacheSettings = field(default_factory=CacheSettings)


class FileAccessSettings(Table, frozen=True, forbid_unknown_fields=True, tag_field="source", tag="file"):
    """Rules in a TOML file; what no rule allows is denied."""

    path: FilePath = "access.toml"


class HttpAccessSettings(HttpSettings, frozen=True, forbid_unknown_fields=True, tag_field="source", tag="http"):
    """POST {url}/access answers with read or write, and perhaps the route, or 403."""


class RedisAccessSettings(RedisSettings, frozen=True, forbid_unknown_fields=True, tag_field="source", tag="redis"):
    """The hashes {prefix}access:REPOSITORY and the sets {prefix}groups:IDENTITY."""


class FileRoutesSettings(Table, frozen=True, forbid_unknown_fields=True, tag_field="source", tag="file"):
    """Routes in a TOML file; the first match wins."""

    path: FilePath = "routes.toml"


class HttpRoutesSettings(HttpSettings, frozen=True, forbid_unknown_fields=True, tag_field="source", tag="http"):
    """GET {url}/routes?repository=... answers with upstream and path, or 404."""


class RedisRoutesSettings(RedisSettings, frozen=True, forbid_unknown_fields=True, tag_field="source", tag="redis"):
    """The hashes {prefix}route:REPOSITORY: upstream and path."""


AnyKeys = FileKeysSettings | HttpKeysSettings | RedisKeysSettings | ExecKeysSettings
AnyAccess = FileAccessSettings | HttpAccessSettings | RedisAccessSettings
AnyRoutes = FileRoutesSettings | HttpRoutesSettings | RedisRoutesSettings


class UserCertificateSettings(Table, frozen=True, forbid_unknown_fields=True):
    """The relay logs in as the identity whose session it carries, by a certificate that it signs itself: sshd's TrustedUserCAKeys."""

    ca_key: FilePath  # private key of the relay's own CA; use it for nothing else
    valid_seconds: Annotated[float, Meta(ge=10, le=86_400)] = 300  # of each certificate; every login has a new key and certificate
    key_id: Annotated[str, Meta(min_length=1, max_length=255)] = "{identity}"  # sshd's log shows it as ID
    principals: Annotated[list[Annotated[str, Meta(min_length=1, max_length=255)]], Meta(min_length=1)] = field(
        default_factory=lambda: ["{identity}"]
    )  # sshd's AuthorizedPrincipalsFile must list one of them; without that file one must be the user's name
    user: Annotated[str, Meta(max_length=255)] = ""  # user name at the git host, may contain {identity}; empty: the upstream's user
    identities_max: Count = 64  # with connections at once, for each worker; beyond it the one longest without a session loses them
    connections_max: Count = 16  # of one identity to each address, for each worker; git-lfs runs eight transfers beside a push
    idle_seconds: Seconds = 60  # then the connections of an identity without a session are closed
    refused_seconds: SecondsOrNever = 60  # before an identity that a git host refused logs in there again; 0: at once
    check_identity: Word = "relay-check"  # with which `relay check --connect` logs in; it need not exist anywhere else


class UpstreamSettings(Table, frozen=True, forbid_unknown_fields=True):
    """A git host, or several with the same repositories: addresses, the relay's login, and host keys."""

    addresses: Annotated[list[Address], Meta(min_length=1)]  # after one that does not answer the next is tried
    policy: Policy = "first"  # order of addresses: as listed; fewest sessions first; hash: by repository
    user: Annotated[str, Meta(min_length=1, max_length=255)] = "git"  # user name with which the relay logs in
    private_key: FilePath = "upstream_ed25519"  # key with which the relay logs in, without user_certificate
    user_certificate: UserCertificateSettings | None = None  # instead of private_key: a login for each identity
    host_keys: list[str] = field(default_factory=list)  # pinned, as in a .pub file: "ssh-ed25519 AAAA..."
    known_hosts: FilePath | None = None  # instead of host_keys
    algorithms: HostAlgorithms = "modern"  # compatible: for hosts under FIPS, or with chacha20 only; docs/security.md has the lists
    connections_max: Count = 64  # to each address, for each worker
    idle_connections: CountOrNone = 4  # kept warm to each address, for each worker
    idle_seconds: Seconds = 300  # then an idle connection beyond idle_connections is closed
    connect_seconds: Seconds = 10  # to a running command, divided among the addresses that are tried; before it, as long in line
    wait_seconds: SecondsOrNever = 20  # for a git host that is paused or has no address up, before a session is refused; 0: at once
    notice_seconds: SecondsOrNever = 3  # after so long a session that waits reads why, once; 0: never
    replay_budget: CountOrNone = 20  # sessions that go on after they lost their git host, a second and worker; others wait; 0: none
    refused_seconds: SecondsOrNever = 30  # before any worker logs in again after a git host refused private_key; 0: as after any failure
    health_seconds: SecondsOrNever = 30  # between checks of an address, by idle connections or one key exchange; 0: off
    health_fall: Times = 3  # failed checks or dials in a row that take an address down
    health_rise: Times = 2  # successful checks in a row that bring it back; one login does too
    keepalive_seconds: Annotated[float, Meta(ge=2, le=3600)] = 15  # a git host that answers none of three in a row is given up
    ignore_case: bool = False  # team/APP is team/app there: names and refs are folded before rules and routes apply
    send_identity: bool = True  # as RELAY_IDENTITY, RELAY_KEY, RELAY_CLIENT and RELAY_SESSION; sshd needs AcceptEnv RELAY_*


class Config(Table, frozen=True, forbid_unknown_fields=True):
    """The configuration of `relay serve`."""

    upstreams: dict[str, UpstreamSettings]  # the git hosts, by the name that routes use
    user: Annotated[str, Meta(min_length=1, max_length=255, pattern="^[A-Za-z0-9._-]+$")] = "git"  # user name of clients: git@...
    listen: Annotated[list[Address], Meta(min_length=1)] = field(default_factory=lambda: ["0.0.0.0:2222"])  # [::]:2222 for IPv6
    host_keys: Annotated[list[FilePath], Meta(min_length=1)] = field(default_factory=lambda: ["host_ed25519"])  # one of each type
    host_certificates: list[FilePath] = field(default_factory=list)  # of host_keys, by ssh-keygen -h; clients: @cert-authority
    workers: Annotated[int, Meta(ge=0, le=256)] = 0  # 0: one per core
    greeting: Annotated[str, Meta(max_length=4096)] = "Hi {identity}! You are authenticated. This host serves git only."  # for a shell
    banner: Annotated[str, Meta(max_length=4096)] = ""  # before the login, on the user's terminal; empty: none
    notice: Annotated[str, Meta(max_length=400)] = ""  # a line on stderr at each fetch, push, archive and shell; empty: none
    admin: AdminSettings = field(default_factory=AdminSettings)
    log: LogSettings = field(default_factory=LogSettings)
    limits: LimitsSettings = field(default_factory=LimitsSettings)
    proxy_protocol: ProxyProtocolSettings = field(default_factory=ProxyProtocolSettings)
    algorithms: AlgorithmsSettings = field(default_factory=AlgorithmsSettings)
    shared: SharedSettings = field(default_factory=SharedSettings)
    packs: PacksSettings | None = None  # off when left out
    names: NamesSettings = field(default_factory=NamesSettings)
    tracing: TracingSettings | None = None  # off when left out
    keys: AnyKeys = field(default_factory=FileKeysSettings)
    certificates: CertificatesSettings = field(default_factory=CertificatesSettings)
    policy: PolicySettings = field(default_factory=PolicySettings)
    access: AnyAccess = field(default_factory=FileAccessSettings)
    routes: AnyRoutes = field(default_factory=FileRoutesSettings)

    @property
    def banner_lines(self) -> str:
        """As SSH_MSG_USERAUTH_BANNER has it: lines that end in CR LF (RFC 4252 section 5.4)."""
        return "".join(f"{line}\r\n" for line in self.banner.splitlines())

    @property
    def ignoring(self) -> frozenset[str]:
        """The upstreams that ignore case."""
        return frozenset(name for name, upstream in self.upstreams.items() if upstream.ignore_case)

    @property
    def folds(self) -> bool:
        """Whether every name is folded, whatever its upstream."""
        return bool(self.upstreams) and len(self.ignoring) == len(self.upstreams)


def connections_most(upstream: UpstreamSettings) -> int:
    """The most connections of one worker to all addresses, for all identities together."""
    certificate = upstream.user_certificate
    each = upstream.connections_max if certificate is None else certificate.connections_max * certificate.identities_max
    return each * len(upstream.addresses)
