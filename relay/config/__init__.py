"""Every setting once, with its default, its unit in its name and its bounds; plain values, no live objects.

`relay.config.load` reads a file into these structs. The docstring of a field's struct and the comment behind a field are what
`relay schema` and the generated documentation show.
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
Address = Annotated[str, Meta(min_length=1, max_length=256, description="host:port, [v6]:port, or systemd where allowed")]
Word = Annotated[str, Meta(min_length=1, max_length=4096)]
RedisUrl = Annotated[str, Meta(pattern="^(redis|rediss|unix)://", max_length=2048)]
FilePath = Annotated[str, Meta(min_length=1, max_length=4096, description="relative to the configuration file, or absolute")]
HostAlgorithms = Literal["modern", "compatible"]
Policy = Literal["first", "least_sessions", "hash"]
Times = Annotated[int, Meta(ge=1, le=100)]


class Table(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True, omit_defaults=False):
    """A TOML table; a key that is not declared is refused."""


class AdminSettings(Table, frozen=True, forbid_unknown_fields=True):
    """Where /metrics, /live and /ready are served."""

    listen: Address = "127.0.0.1:9122"  # anyone who reaches it may read the metrics
    sessions_socket: FilePath = "relay.sock"  # for `relay sessions`; only the owner may open it


class LogSettings(Table, frozen=True, forbid_unknown_fields=True):
    """The log goes to stderr, the audit lines to stdout or a file."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "text", "json"] = "auto"  # auto: text on a terminal, else json
    audit: Annotated[str, Meta(min_length=1)] = "-"  # "-": stdout; or a file that is reopened on SIGHUP


class LimitsSettings(Table, frozen=True, forbid_unknown_fields=True):
    """What a stranger or a client may take up; counts are a worker's unless the name says otherwise."""

    login_grace_seconds: Seconds = 30  # from the connection to the proven key
    auth_attempts: Count = 6  # keys that a connection may offer or prove
    unauthenticated_connections: Count = 200  # beyond half of it, random early drop as OpenSSH's MaxStartups
    connections: Count = 20_000  # all together
    connections_per_source: Count = 64  # a source is an IPv4 address or an IPv6 /64; with [shared] of all relays together
    sessions_per_connection: Count = 10  # at once
    penalty_seconds: SecondsOrNever = 5  # added for each failed login of a source; 0: off
    penalty_max_seconds: Seconds = 600  # no source is kept out for longer
    stall_seconds: Seconds = 300  # no byte moved though one side was willing
    connection_idle_seconds: Seconds = 3600  # a connection that is logged in and has no session, as sshd's UnusedConnectionTimeout
    client_idle_seconds: Seconds = 3600  # a session whose client owes the git host the next word; a hook of pre-push may take long
    client_idle_busy_seconds: Seconds = 5  # the same while others wait for that connection; not with user_certificate
    drain_seconds: SecondsOrNever = 60  # on SIGTERM and reload, for running sessions to end by themselves
    keepalive_seconds: SecondsOrNever = 30  # a client that answers none of three is gone; 0: off
    buffer_bytes: Bytes = 1 << 30  # all sessions of a worker together


class ProxyProtocolSettings(Table, frozen=True, forbid_unknown_fields=True):
    """Whether a load balancer in front says who the client is (HAProxy's PROXY protocol, versions 1 and 2)."""

    mode: Literal["off", "allow", "require"] = "off"  # require: a connection without a header is refused
    trusted: list[str] = field(default_factory=list)  # addresses or networks whose header is believed


class AlgorithmsSettings(Table, frozen=True, forbid_unknown_fields=True):
    """What is offered to clients; docs/security.md has the lists."""

    profile: Literal["modern", "compatible"] = "modern"  # compatible: for older clients


class CertificatesSettings(Table, frozen=True, forbid_unknown_fields=True):
    """OpenSSH user certificates of trusted CAs, and the list of what is revoked: keys, too, that the keys backend knows."""

    ca_keys: list[FilePath] = field(default_factory=list)  # public keys of the CAs, read again when changed; none: certificates are refused
    revoked: FilePath | None = None  # a KRL of ssh-keygen -k, or revoked public keys line by line; read again when changed
    identity: Literal["key_id", "principal"] = "key_id"  # who it is: the key id, or the first principal that is not among `principals`
    principals: list[Word] = field(default_factory=list)  # it must list one of them; none: the user, or any with identity = "principal"


class CacheSettings(Table, frozen=True, forbid_unknown_fields=True):
    """How long a worker keeps answers of a backend; what was denied is never served as allowed."""

    ttl_seconds: SecondsOrNever = 60  # a yes is used again for so long; 0: never
    negative_seconds: SecondsOrNever = 5  # a no likewise; 0: never
    stale_seconds: SecondsOrNever = 3600  # while the backend cannot answer, a yes up to this old still serves; 0: never
    entries: Count = 10_000  # of each kind, yes and no; beyond it the one that was longest unused goes


class HttpSettings(Table, frozen=True, forbid_unknown_fields=True):
    """An authority asked by HTTP, as docs/authority.openapi.json says."""

    url: Annotated[str, Meta(min_length=1, max_length=2048, pattern="^https?://")]  # the paths of the API are appended to it
    token_file: FilePath | None = None  # a bearer token; read again when changed
    jwt_key_file: FilePath | None = None  # instead of it: signs a JWT a request; Ed25519 in PEM (EdDSA), or 32 random bytes or more (HS256)
    jwt_audience: Annotated[str, Meta(max_length=2048)] = ""  # the JWT's aud; empty: the url
    ca_file: FilePath | None = None  # PEM; trusted instead of the system's CAs
    plain_http: bool = False  # http:// to another machine: whoever is on the way can answer yes
    timeout_seconds: Seconds = 2  # of one attempt; one that fails is repeated once
    connections: Count = 16  # at most, a worker; they are kept and used again
    cache: CacheSettings = field(default_factory=CacheSettings)


class RedisServerSettings(Table, frozen=True, forbid_unknown_fields=True):
    """Where a Redis is, and who the relay is there."""

    urls: list[RedisUrl]
    mode: Literal["single", "sentinel", "cluster"] = "single"  # sentinel: the urls are the sentinels'; cluster: of some of its nodes
    service: Annotated[str, Meta(min_length=1, max_length=255)] = "mymaster"  # whom the sentinels are asked for
    username: Annotated[str, Meta(max_length=255)] = ""  # an ACL user; empty: the default user
    password_file: FilePath | None = None  # read again when changed
    ca_file: FilePath | None = None  # PEM; trusted instead of the system's CAs, for rediss://
    prefix: Annotated[str, Meta(max_length=255)] = "relay:"  # of every key and of the channel
    timeout_seconds: Seconds = 1  # of one attempt; one that fails is repeated once
    connections: Count = 16  # questions at once, a worker; the others wait


class RedisSettings(RedisServerSettings, frozen=True, forbid_unknown_fields=True):
    """A Redis with hashes and sets as docs/backends.md says."""

    urls: Annotated[list[RedisUrl], Meta(min_length=1)]  # as redis-py's
    cache: CacheSettings = field(default_factory=CacheSettings)


class SharedSettings(RedisServerSettings, frozen=True, forbid_unknown_fields=True):
    """A Redis through which all relays behind one address share penalties, connections by source, and answers about keys."""

    urls: list[RedisUrl] = field(default_factory=list)  # as redis-py's; empty: nothing is shared
    prefix: Annotated[str, Meta(max_length=255)] = "relay:shared:"  # of every key and of the channel; the same for all who share
    connections: Count = 4  # questions at once, a worker; the others wait
    secret_file: FilePath | None = None  # 32 random bytes or more, the same for all; with it keys of http and exec are shared, signed by it


class FileKeysSettings(Table, frozen=True, forbid_unknown_fields=True, tag_field="source", tag="file"):
    """A folder of public keys, as gitolite's keydir: alice.pub and alice@laptop.pub belong to alice. Or one file of lines."""

    path: FilePath = "keys"  # a folder, or a file as authorized_keys: identity="alice" ssh-ed25519 AAAA..., or gitolite's lines


class HttpKeysSettings(HttpSettings, frozen=True, forbid_unknown_fields=True, tag_field="source", tag="http"):
    """GET {url}/keys?fingerprint=SHA256:...&key=... answers with the identity, or 404."""


class RedisKeysSettings(RedisSettings, frozen=True, forbid_unknown_fields=True, tag_field="source", tag="redis"):
    """The hash {prefix}keys: fingerprint -> identity."""


class ExecKeysSettings(Table, frozen=True, forbid_unknown_fields=True, tag_field="source", tag="exec"):
    """A program that writes the identity to stdout, or nothing, and ends with status 0; as sshd's AuthorizedKeysCommand."""

    command: Annotated[list[Word], Meta(min_length=1)]  # no shell; %f is the key's fingerprint, %t its type, %k its base64
    timeout_seconds: Seconds = 5  # then its process group is killed
    processes: Count = 8  # at once, a worker; the others wait
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

    ca_key: FilePath  # the relay's own CA, a private key that nothing else uses
    valid_seconds: Annotated[float, Meta(ge=10, le=86_400)] = 300  # from the login on; a key and a certificate are made for each
    key_id: Annotated[str, Meta(min_length=1, max_length=255)] = "{identity}"  # what sshd's log shows as ID
    principals: Annotated[list[Annotated[str, Meta(min_length=1, max_length=255)]], Meta(min_length=1)] = field(
        default_factory=lambda: ["{identity}"]
    )  # what sshd's AuthorizedPrincipalsFile must list, or the user's name without one
    user: Annotated[str, Meta(max_length=255)] = ""  # whom it logs in as; {identity} may stand in it; empty: the upstream's user
    identities_max: Count = 64  # with connections at once, a worker; who comes then takes the place of who was longest without a session
    connections_max: Count = 16  # of one identity to each address, a worker; git-lfs has eight transfers at once beside a push
    idle_seconds: Seconds = 60  # an identity's connections are closed after this without a session
    refused_seconds: SecondsOrNever = 60  # an identity that a git host refused logs in there no sooner again, from any worker; 0: at once
    check_identity: Word = "relay-check"  # whom `relay check --connect` logs in as; it need not exist anywhere else


class UpstreamSettings(Table, frozen=True, forbid_unknown_fields=True):
    """A git host, or several that hold the same repositories: where they are, who the relay is there, and which host keys prove them."""

    addresses: Annotated[list[Address], Meta(min_length=1)]  # one that does not answer is followed by the next
    policy: Policy = "first"  # of several addresses: in order; the fewest sessions; hash: a repository sticks to one
    user: Annotated[str, Meta(min_length=1, max_length=255)] = "git"  # whom the relay logs in as
    private_key: FilePath = "upstream_ed25519"  # what it logs in with, unless by user_certificate
    user_certificate: UserCertificateSettings | None = None  # instead of private_key: a login for each identity
    host_keys: list[str] = field(default_factory=list)  # pinned, as in a .pub file: "ssh-ed25519 AAAA..."
    known_hosts: FilePath | None = None  # instead of host_keys
    algorithms: HostAlgorithms = "modern"  # compatible: for hosts under FIPS, or with chacha20 only; docs/security.md has the lists
    connections_max: Count = 64  # to each address, a worker
    idle_connections: CountOrNone = 4  # kept warm to each address, a worker
    idle_seconds: Seconds = 300  # a connection beyond idle_connections is closed after this
    connect_seconds: Seconds = 10  # until git runs; all of it for a lone address, else a share for each that is asked
    refused_seconds: SecondsOrNever = 30  # after a git host refused private_key no worker logs in there; 0: as after any failure
    health_seconds: SecondsOrNever = 30  # between checks of an address: of its connections, else one key exchange a relay; 0: off
    health_fall: Times = 3  # checks, or dials, that fail in a row take an address down
    health_rise: Times = 2  # checks in a row bring it back, and so does one login
    keepalive_seconds: Annotated[float, Meta(ge=2, le=3600)] = 15  # a git host that gives no sign of life to three is lost
    ignore_case: bool = False  # it takes team/APP for team/app: names and refs are folded before any rule or route is asked
    send_identity: bool = True  # RELAY_IDENTITY and RELAY_KEY as environment; sshd needs AcceptEnv RELAY_*


class Config(Table, frozen=True, forbid_unknown_fields=True):
    """The configuration of `relay serve`."""

    upstreams: dict[str, UpstreamSettings]  # the git hosts, by a name that routes use
    user: Annotated[str, Meta(min_length=1, max_length=255, pattern="^[A-Za-z0-9._-]+$")] = "git"  # whom clients log in as: git@...
    listen: Annotated[list[Address], Meta(min_length=1)] = field(default_factory=lambda: ["0.0.0.0:2222"])  # [::]:2222 for IPv6
    host_keys: Annotated[list[FilePath], Meta(min_length=1)] = field(default_factory=lambda: ["host_ed25519"])  # one of each type
    workers: Annotated[int, Meta(ge=0, le=256)] = 0  # 0: one per core
    greeting: Annotated[str, Meta(max_length=4096)] = "Hi {identity}! You are authenticated. This host serves git only."  # for a shell
    admin: AdminSettings = field(default_factory=AdminSettings)
    log: LogSettings = field(default_factory=LogSettings)
    limits: LimitsSettings = field(default_factory=LimitsSettings)
    proxy_protocol: ProxyProtocolSettings = field(default_factory=ProxyProtocolSettings)
    algorithms: AlgorithmsSettings = field(default_factory=AlgorithmsSettings)
    shared: SharedSettings = field(default_factory=SharedSettings)
    keys: AnyKeys = field(default_factory=FileKeysSettings)
    certificates: CertificatesSettings = field(default_factory=CertificatesSettings)
    access: AnyAccess = field(default_factory=FileAccessSettings)
    routes: AnyRoutes = field(default_factory=FileRoutesSettings)

    @property
    def ignoring(self) -> frozenset[str]:
        """The upstreams that ignore case."""
        return frozenset(name for name, upstream in self.upstreams.items() if upstream.ignore_case)

    @property
    def folds(self) -> bool:
        """Whether every name is folded, wherever it leads."""
        return bool(self.upstreams) and len(self.ignoring) == len(self.upstreams)


def connections_most(upstream: UpstreamSettings) -> int:
    """To all addresses and of all identities together, a worker."""
    certificate = upstream.user_certificate
    each = upstream.connections_max if certificate is None else certificate.connections_max * certificate.identities_max
    return each * len(upstream.addresses)
