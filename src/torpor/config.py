"""What can be configured. Read by `server.py` alone; rooms get the part that is theirs."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import timedelta
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from torpor.model.egress import ALL, BadRule, Name, Rule
from torpor.model.errors import TorporError

DEFAULT_DATA_DIR = Path("/var/lib/torpor")
_REGION: Final = re.compile(r"[a-z][a-z0-9-]{0,61}[a-z0-9]")
_HEADER: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,256}")
_HEADER_VALUE: Final = re.compile(r"[!-~]([ -~]{0,8190}[!-~])?")
_LIST_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
NEVER_ALLOWED: Final = ("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3")
"""This host, loopback, link-local (where machines keep their credentials) and multicast: no setting opens these."""
BUILDER_VCPUS: Final = (1, 32)
"""Least and most; more are more than Firecracker has."""
BUILDER_MIB: Final = (512, 65536)
"""Least and most; with less, buildah and what it runs do not fit."""


class ConfigError(TorporError):
    """A setting that is unknown or has an impossible value; the message names it."""


@dataclass(frozen=True, slots=True)
class S3Settings:
    endpoint_url: str | None = None
    """Another S3 than the embedded one. Its keys come from the environment or ~/.aws as boto3 finds them."""
    port: int = 7061


@dataclass(frozen=True, slots=True)
class NetworkSettings:
    slots: str = "10.199.0.0/16"
    """Host-side addresses of slots, eight for each."""
    spare_slots: int = 4
    """How many are kept ready."""
    subnets: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Subnet id → `vpc` and `egress`, a list of rules, each at most. When there are any, a connector to another subnet
    FAILs; else any id is accepted. Without `egress` the subnet restricts nothing."""
    security_groups: dict[str, dict[str, Any]] = field(default_factory=dict)
    """The same for security groups. A packet needs a rule of a group and one of a subnet."""
    resolver: str | None = None
    """IPv4 address of the DNS server that microVMs' questions go to; unset, the first of this machine's own."""
    allowed_ranges: list[str] = field(default_factory=list)
    """Networks that are not public and that INTERNET_EGRESS, builds and rules for everywhere reach all the same."""
    internet_udp: bool = False
    """Let INTERNET_EGRESS send UDP and ICMP; AWS's sends TCP alone, besides DNS (spec 8.3)."""
    allow_lists: dict[str, list[str]] = field(default_factory=dict)
    """Name → domain names: what the managed connector `TORPOR_ALLOW_<name>` lets through."""
    connector_delay: timedelta = timedelta(0)
    """How long a connector stays PENDING, DELETING or its update InProgress. AWS: up to ten minutes (spec 8.2)."""

    def rules_of(self, place: Mapping[str, Any]) -> tuple[Rule, ...]:
        """The rules of a subnet or group; without any `egress` all is allowed. Raises BadRule."""
        return tuple(map(Rule.parse, place["egress"])) if "egress" in place else (ALL,)

    def names_of(self, allow_list: str) -> tuple[Name, ...]:
        """Raises BadRule; KeyError when there is no such list."""
        return tuple(map(Name.parse, self.allow_lists[allow_list]))

    @property
    def rule_networks(self) -> tuple[str, ...]:
        """Every network that a rule of a subnet or group names."""
        places = (*self.subnets.values(), *self.security_groups.values())
        return tuple({rule.network for place in places for rule in self.rules_of(place)})

    def check(self) -> None:
        """Raises ConfigError when anything in it cannot be read or would open what is never opened."""
        try:
            _ = self.rule_networks, [self.names_of(name) for name in self.allow_lists]
            ranges = [IPv4Network(text) for text in self.allowed_ranges]
            _ = self.resolver and IPv4Address(self.resolver)
        except (BadRule, ValueError, TypeError, AttributeError) as error:
            raise ConfigError(f"setting network: {error}") from error
        closed = [IPv4Network(text) for text in (self.slots, *NEVER_ALLOWED)]
        for network in ranges:
            if any(network.overlaps(each) for each in closed):
                raise ConfigError(f"setting network.allowed_ranges: {network} holds what no microVM may reach")
        for name in self.allow_lists:
            if not _LIST_NAME.fullmatch(name):
                raise ConfigError(f"setting network.allow_lists: {name!r} is not a name of letters, digits, - and _")


@dataclass(frozen=True, slots=True)
class IngressSettings:
    """How much of its endpoint each microVM may use. Unset is what AWS gives its size (spec 5.6); 0 is no limit."""

    connections: int | None = None
    """Requests and WebSockets open at a time; more are answered 429."""
    requests_per_second: int | None = None
    """As many may come at once after a quiet second; more are answered 429."""
    bandwidth: int | None = None
    """Bytes per second of both directions together; more wait."""


@dataclass(frozen=True, slots=True)
class SnapshotSettings:
    verify: str = "background"
    """When saved memory and disks are compared with their checksums: `background` reads what lies there when the
    service starts, `first-use` reads before each restore, `never` makes none."""
    verify_mib_per_second: int = 64
    """How quickly `background` reads."""
    sync_files: bool = True
    """Let the guest write its files to its disk before each suspend, so that `recover` finds them. Without, what an
    application has not synced in the last half minute may be in the saved memory alone."""
    reserve: float = 0.25
    """For each microVM that runs, this share of its guest's memory is kept free on the disk, so that it can be
    suspended; what would need more is refused. 0 refuses nothing."""
    keep_free_mib: int = 512
    """Never promised to microVMs."""


@dataclass(frozen=True, slots=True)
class BuildSettings:
    concurrent: int = 2
    vcpus: int = 2
    """Of the VM that runs a Dockerfile."""
    memory_mib: int = 2048
    """Of that VM; what the Dockerfile writes is on its disk."""
    max_zip_bytes: int = 512 * 1024 * 1024
    max_unpacked_bytes: int = 4 * 1024 * 1024 * 1024
    timeout: timedelta = timedelta(minutes=30)
    """The whole build besides its hook timeouts; AWS's own number is unknown (spec 15)."""
    base_images: dict[str, str] = field(default_factory=lambda: {
        "public.ecr.aws/lambda/microvms:al2023-minimal": "torpor/python:3.11",
    })
    """What a FROM names → the local container base to use instead."""

    def check(self) -> None:
        """Raises ConfigError."""
        for name, value, (least, most) in (("vcpus", self.vcpus, BUILDER_VCPUS),
                                           ("memory_mib", self.memory_mib, BUILDER_MIB)):  # fmt: skip
            if not least <= value <= most:
                raise ConfigError(f"setting build.{name} must be from {least} to {most}, not {value}")


@dataclass(frozen=True, slots=True)
class FirecrackerSettings:
    path: str | None = None
    """The program. None: the one in PATH, if its version is supported, else what `torpor setup` fetches."""
    url: str = (
        "https://github.com/firecracker-microvm/firecracker/releases/download/v{version}/"
        "firecracker-v{version}-{machine}.tgz"
    )
    """Where setup fetches the pinned release from; a mirror may have another place. The file's SHA-256 is checked."""


@dataclass(frozen=True, slots=True)
class AccountSettings:
    access_key_id: str | None = None
    """The default account's key, when it should not be made up at the first start; together with its secret."""
    secret_access_key: str | None = field(default=None, repr=False)
    strict_roles: bool = False
    """Roles that a request passes must exist in its account. Off, any role ARN is taken, as existing code has them."""


@dataclass(frozen=True, slots=True)
class CredentialSettings:
    """What the metadata service in a microVM gives out for its execution role (spec 13)."""

    sts_endpoint_url: str | None = None
    """An STS where the roles are assumed, with keys as boto3 finds them in the service's environment. Unset, they are
    roles of Torpor's own accounts, and good for its own API."""
    duration: timedelta = timedelta(hours=1)
    """How long credentials are good; new ones come before their end. STS gives 15 minutes at least."""
    hop_limit: int = 1
    """IP hops an answer may travel: 1 does not get through a router in the guest, such as a bridge of containers."""


@dataclass(frozen=True, slots=True)
class ImageSettings:
    strict_architecture: bool = False
    """Refuse `cpuConfigurations` that name an architecture this machine lacks, instead of building for its own."""
    run_while_updating: bool = False
    """Launch older ACTIVE versions also while an update is under way or has failed; AWS's pages say no (spec 1.5)."""


@dataclass(frozen=True, slots=True)
class ForwardSettings:
    """Where lines of applications and builds are sent besides being kept."""

    kind: str | None = None
    """`cloudwatch` or `otlp`; unset, nowhere."""
    endpoint_url: str | None = None
    """Of what speaks the API of CloudWatch Logs (unset: AWS), or of an OTLP/HTTP receiver, with or without its
    `/v1/logs`."""
    region: str | None = None
    """Of CloudWatch Logs; unset, each line goes to the region of its microVM. Keys come from the environment or ~/.aws
    as boto3 finds them."""
    headers: dict[str, str] = field(default_factory=dict, repr=False)
    """Sent with each OTLP request; they may be secret."""

    def check(self) -> None:
        """Raises ConfigError, without any header's value."""
        here = "setting logs.forward"
        if self.kind not in (None, "cloudwatch", "otlp"):
            raise ConfigError(f"{here}.kind must be cloudwatch or otlp, not {self.kind!r}")
        if self.kind is None and self != ForwardSettings():
            raise ConfigError(f"{here}.kind is missing: cloudwatch or otlp")
        if self.endpoint_url is not None:
            _check_url(f"{here}.endpoint_url", self.endpoint_url)
        elif self.kind == "otlp":
            raise ConfigError(f"{here}.endpoint_url is missing: the URL of an OTLP/HTTP receiver")
        if self.region is not None and not (self.kind == "cloudwatch" and _REGION.fullmatch(str(self.region))):
            raise ConfigError(f"{here}.region must be the name of a region, for cloudwatch alone, not {self.region!r}")
        if self.headers and self.kind != "otlp":
            raise ConfigError(f"{here}.headers are for otlp; cloudwatch takes its keys from the environment or ~/.aws")
        for name, value in self.headers.items():
            if not (_HEADER.fullmatch(name) and isinstance(value, str) and _HEADER_VALUE.fullmatch(value)):
                raise ConfigError(f"{here}.headers: {name!r} must be a header's name, and its value printable ASCII")

    def leads_to(self, port: int, *hosts: str) -> bool:
        """Whether lines would come back to where they are sent from."""
        if self.kind != "cloudwatch" or self.endpoint_url is None:
            return False
        url = urlsplit(self.endpoint_url)
        return url.port == port and url.hostname in hosts


@dataclass(frozen=True, slots=True)
class LogSettings:
    """Lines of applications and builds, which are kept on this machine (spec 9.1)."""

    retention_days: int = 30
    """How long a line is kept, unless its group says otherwise (PutRetentionPolicy)."""
    max_bytes: int = 4 * 1024 * 1024 * 1024
    """Of all lines together; the oldest go first. One stream has at most 16 MiB."""
    bytes_per_second: int = 1024 * 1024
    """Of one microVM, after a burst of eight times as much; the guest drops what comes faster, and says how many."""
    forward: ForwardSettings = ForwardSettings()


@dataclass(frozen=True, slots=True)
class AuditSettings:
    """Records of who called what, which are kept on this machine."""

    retention_days: int = 90
    """As long as CloudTrail's event history."""
    max_bytes: int = 1024 * 1024 * 1024
    """Of all records together; the oldest go first."""


@dataclass(frozen=True, slots=True)
class PriceSettings:
    """Dollars, by which `torpor usage` says what AWS would charge. Defaults: us-east-1, ARM (spec 10.2)."""

    vcpu_second: float = 0.0000276944
    gb_second: float = 0.0000036667
    read_gb: float = 0.0015467699
    """Of snapshots, at launch and resume."""
    written_gb: float = 0.0037977138
    """Of snapshots, at suspend."""
    stored_gb_hour: float = 0.0001111111


@dataclass(frozen=True, slots=True)
class LimitSettings:
    preset: str = "machine"
    """Where unset limits come from: `machine` (this machine's memory, no rates) or `aws` (spec 10.1)."""
    memory_mib: int | None = None
    """Configured memory of all VMs of an account in a region; 0 is no limit, as in the others."""
    images: int | None = None
    versions: int | None = None
    builds: int | None = None
    connectors: int | None = None
    connector_versions: int | None = None
    rates: dict[str, float] = field(default_factory=dict)
    """Operation → requests per second for one account and region; as many may come at once, but at least one."""


@dataclass(frozen=True, slots=True)
class Config:
    data_dir: Path = DEFAULT_DATA_DIR
    engine: str = "auto"
    region: str = "us-east-1"
    regions: list[str] = field(default_factory=list)
    """Further regions that are served. Each has resources of its own; what is signed for any other is denied."""
    account: str = "000000000000"
    domain: str = "localhost"
    api_address: str = "127.0.0.1"
    api_port: int = 7060
    endpoint_address: str = "127.0.0.1"
    endpoint_port: int = 443
    database: str | None = None
    """SQLAlchemy URL; None is SQLite in the data directory."""
    peak_factor: int = 4
    suspend_on_shutdown: bool = True
    suspend_hook_failure: str = "terminate"
    """`terminate` as measured, or `keep` as AWS's pages say (spec 14, C5)."""
    s3: S3Settings = S3Settings()
    network: NetworkSettings = NetworkSettings()
    ingress: IngressSettings = IngressSettings()
    snapshots: SnapshotSettings = SnapshotSettings()
    build: BuildSettings = BuildSettings()
    firecracker: FirecrackerSettings = FirecrackerSettings()
    accounts: AccountSettings = AccountSettings()
    credentials: CredentialSettings = CredentialSettings()
    images: ImageSettings = ImageSettings()
    limits: LimitSettings = LimitSettings()
    logs: LogSettings = LogSettings()
    audit: AuditSettings = AuditSettings()
    prices: PriceSettings = PriceSettings()

    @property
    def served_regions(self) -> tuple[str, ...]:
        """`region` and the others, each once."""
        return tuple(dict.fromkeys((self.region, *self.regions)))

    @property
    def database_url(self) -> str:
        return self.database or f"sqlite:///{self.data_dir / 'torpor.db'}"


def load(path: Path | None, **overrides: Any) -> Config:
    """Read a TOML file of the shape of `Config`; `overrides` that are not None win.

    Raises:
        ConfigError: naming the setting.
    """
    document = tomllib.loads(path.read_text()) if path else {}
    config: Config = _apply(Config(), document, "")
    _check_regions(config.served_regions)
    config.network.check()
    config.build.check()
    config.logs.forward.check()
    given = {name: value for name, value in overrides.items() if value is not None}
    s3 = {name.removeprefix("s3_"): given.pop(name) for name in list(given) if name.startswith("s3_")}
    config = replace(config, s3=replace(config.s3, **s3), **given)
    if config.logs.forward.leads_to(config.api_port, config.api_address, "localhost", "127.0.0.1", "::1"):
        raise ConfigError("setting logs.forward.endpoint_url is this service's own API: lines would come back for ever")
    return config


def _check_url(setting: str, url: Any) -> None:
    try:
        parts = urlsplit(url if isinstance(url, str) else "")
        is_good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_good = False
        parts = urlsplit("")
    if parts.username is not None or parts.password is not None:
        raise ConfigError(f"{setting} must have no user or password in it")
    if not is_good or parts.query or parts.fragment:
        raise ConfigError(f"{setting} must be http:// or https:// with a host, and neither ? nor #")


def _check_regions(regions: Iterable[str]) -> None:
    for region in regions:
        # Regions become labels of host names and parts of ARNs.
        if not _REGION.fullmatch(region):
            raise ConfigError(f"{region!r} is not the name of a region: lower-case letters, digits and dashes")


def _apply(settings: Any, document: dict[str, Any], prefix: str) -> Any:
    known = {f.name: getattr(settings, f.name) for f in fields(settings)}
    hidden = {f.name for f in fields(settings) if not f.repr}
    changes: dict[str, Any] = {}
    for name, value in document.items():
        if name not in known:
            raise ConfigError(f"unknown setting {prefix}{name}; known are {', '.join(sorted(known))}")
        old = known[name]
        if hasattr(old, "__dataclass_fields__"):
            if not isinstance(value, dict):
                raise ConfigError(f"setting {prefix}{name} must be a table, not {value!r}")
            changes[name] = _apply(old, value, f"{prefix}{name}.")
        elif isinstance(old, Path):
            changes[name] = Path(value)
        elif isinstance(old, timedelta):
            changes[name] = timedelta(seconds=value)
        elif old is not None and type(value) is not type(old):
            shown = repr(value) if name not in hidden else "what it is"
            raise ConfigError(f"setting {prefix}{name} must be {type(old).__name__}, not {shown}")
        elif isinstance(value, list) and not all(isinstance(each, str) for each in value):
            raise ConfigError(f"setting {prefix}{name} must hold strings alone, not {value!r}")
        else:
            changes[name] = value
    return replace(settings, **changes)
