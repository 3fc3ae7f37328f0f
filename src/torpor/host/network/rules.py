"""What may pass: the table inside a slot and the table of the host, as text for nft.

Inside, the guest is always 100.64.0.2 behind 100.64.0.1; outside, each slot has addresses of its own. A slot's table is
made with the slot, for a tenant like the last one; for any other it is one more transaction before the VM exists.
The host's table is the second wall: it knows no tenants and refuses what none of them may reach. IPv6 is switched off
in a slot and refused besides.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Final

from torpor.host.network.tenant import Tenant
from torpor.host.network.walls import NEVER, Walls, is_private
from torpor.model.egress import EgressKind, Rule

GATEWAY: Final = "100.64.0.1"
GUEST: Final = "100.64.0.2"
AGENT: Final = "100.64.0.3"
AGENT_PORT: Final = 1024
METADATA: Final = "169.254.169.254"
CHECKED_PORTS: Final = {80: 9080, 443: 9443}
"""Where connections that name the host they want are looked at: port of the guest's choice → port of ours."""
BURST: Final = 256 * 1024
"""Bytes: a few of the 64 KiB segments that local TCP sends at once. The kernel adds a second's worth to it."""
CONNECTIONS: Final = 4096
"""Outward connections of one guest at a time: the kernel's table of them is one for the whole machine."""
_RESOLVER_FILES: Final = (Path("/etc/resolv.conf"), Path("/run/systemd/resolve/resolv.conf"))
_TENANTS: Final = ("names", "bandwidth", "open", "subnets", "egress", "services")
"""The chains that differ from tenant to tenant."""
_DNS: Final = "meta l4proto { tcp, udp } th dport 53"
_REFUSE: Final = "goto refuse"


def slot_rules(traffic: IPv4Address, control: IPv4Address, tenant: Tenant, walls: Walls) -> str:
    """The tables inside a slot. `traffic` and `control` are its addresses to the host."""
    return f"""
table ip torpor {{
    set named {{
        type ipv4_addr . inet_service
        flags timeout
        size 65536
    }}
    chain names {{}}
    chain refuse {{
        meta l4proto tcp reject with tcp reset
        reject with icmp type admin-prohibited
    }}
    chain prerouting {{
        type nat hook prerouting priority dstnat; policy accept;
        iifname veth0 ip daddr {traffic} meta l4proto tcp dnat to {GUEST}
        iifname veth0 ip daddr {control} tcp dport {AGENT_PORT} dnat to {AGENT}
        iifname tap0 jump names
    }}
    chain postrouting {{
        type nat hook postrouting priority srcnat; policy accept;
        oifname tap0 snat to {GATEWAY}
        oifname veth0 snat to {traffic}
    }}
    chain bandwidth {{}}
    chain open {{}}
    chain subnets {{}}
    chain egress {{}}
    chain forward {{
        type filter hook forward priority filter; policy drop;
        iifname tap0 ip saddr != {{ {GUEST}, {AGENT} }} drop
        ct original ip daddr {traffic} jump bandwidth
        ct original ip saddr {{ {GUEST}, {AGENT} }} jump open
        ct state established,related accept
        iifname veth0 oifname tap0 ct status dnat accept
        iifname tap0 ip saddr {GUEST} oifname veth0 jump egress
    }}
    chain services {{}}
    chain input {{
        type filter hook input priority filter; policy drop;
        iifname lo accept
        iifname tap0 ip saddr != {GUEST} drop
        ct state established,related accept
        iifname tap0 ip daddr {METADATA} tcp dport 80 accept
        iifname tap0 jump services
        iifname tap0 {_REFUSE}
    }}
}}
table ip6 torpor {{
    chain input {{ type filter hook input priority filter; policy drop; }}
    chain forward {{ type filter hook forward priority filter; policy drop; }}
    chain output {{ type filter hook output priority filter; policy drop; }}
}}
""" + tenant_rules(tenant, walls)


def tenant_rules(tenant: Tenant, walls: Walls) -> str:
    """Commands that make a slot's chains those of one tenant, whatever they were."""
    lines = [f"flush chain ip torpor {chain}" for chain in _TENANTS]
    lines += [f"add rule ip torpor {rule}" for rule in (*_bandwidth(tenant.bandwidth), *_egress(tenant, walls))]
    return "\n".join(lines) + "\n"


def _bandwidth(bandwidth: int | None) -> Iterable[str]:
    if bandwidth is not None:
        yield f"bandwidth limit rate over {bandwidth} bytes/second burst {BURST} bytes drop"


def _egress(tenant: Tenant, walls: Walls) -> Iterable[str]:
    """A packet that meets the end of `egress` is refused."""
    kind = tenant.egress.kind
    yield f"egress ct count over {CONNECTIONS} {_REFUSE}"
    if kind is EgressKind.NONE:
        # Of a tenant that had more before, what is open ends as well.
        yield f"open {_REFUSE}"
    if kind in (EgressKind.INTERNET, EgressKind.RULES) and walls.resolver is not None:
        yield f"names ip daddr {GATEWAY} {_DNS} dnat to {walls.resolver}"
        yield f"egress ip daddr {walls.resolver} {_DNS} accept"
    yield f"egress ip daddr {_set((walls.slots, *NEVER))} {_REFUSE}"
    if kind is EgressKind.INTERNET:
        yield f"egress ip daddr {_set(walls.private)} {_REFUSE}"
        # A resolver of one's own choice is a way out for whatever is hidden in names.
        yield f"egress {_DNS} {_REFUSE}"
        yield f"egress meta l4proto {'{ tcp, udp, icmp }' if walls.allows_udp else 'tcp'} accept"
    elif kind is EgressKind.RULES:
        yield from (f"egress {_match(rule, walls.private)} goto subnets" for rule in tenant.egress.groups)
        # What is private is up to the groups' rules alone: a subnet's rule for everywhere means everywhere.
        yield from (f"subnets {_match(rule, ())} accept" for rule in tenant.egress.subnets)
        yield f"subnets {_REFUSE}"
    elif kind is EgressKind.NAMES:
        yield f"services ip daddr {GATEWAY} {_DNS} accept"
        for asked, ours in CHECKED_PORTS.items():
            yield f"names tcp dport {asked} ip daddr != {{ {GATEWAY}, {METADATA} }} redirect to :{ours}"
            yield f"services tcp dport {ours} accept"
        yield f"egress ip daddr {_set(walls.private)} {_REFUSE}"
        yield "egress ip daddr . tcp dport @named accept"
    yield f"egress {_REFUSE}"


def _match(rule: Rule, private: tuple[IPv4Network, ...]) -> str:
    """The packets of a rule; those to `private` networks only where it names such a network."""
    network = IPv4Network(rule.network)
    words = [f"ip daddr {network}"]
    if private and not is_private(network):
        words.append(f"ip daddr != {_set(private)}")
    if rule.protocol in ("tcp", "udp"):
        words.append(f"{rule.protocol} dport {rule.first_port}-{rule.last_port}")
    elif rule.protocol != "all":
        words.append(f"meta l4proto {rule.protocol}")
    return " ".join(words)


def _set(networks: Iterable[IPv4Network]) -> str:
    return f"{{ {', '.join(map(str, networks))} }}"


def host_rules(table: str, walls: Walls) -> str:
    """The host's own table, replaced as a whole. `active` counts segments that carry data (PSH) per slot address."""
    slots, resolver = walls.slots, walls.resolver
    dns = f"ip saddr {slots} ip daddr {resolver} {_DNS} accept" if resolver else ""
    return f"""
table ip {table} {{}}
delete table ip {table}
table ip {table} {{
    set active {{
        type ipv4_addr
        flags dynamic
        counter
        size 65536
    }}
    chain output {{
        type filter hook output priority filter; policy accept;
        ip daddr {slots} tcp flags & psh == psh update @active {{ ip daddr }}
    }}
    chain input {{
        type filter hook input priority filter; policy accept;
        ip saddr != {slots} accept
        tcp flags & psh == psh update @active {{ ip saddr }}
        ct state established,related accept
        {dns}
        drop
    }}
    chain forward {{
        type filter hook forward priority filter; policy accept;
        ip daddr {slots} ct state established,related accept
        ip daddr {slots} drop
        ip saddr != {slots} accept
        {dns}
        ip daddr {_set(walls.beyond)} drop
    }}
    chain postrouting {{
        type nat hook postrouting priority srcnat; policy accept;
        ip saddr {slots} ip daddr != {slots} masquerade
    }}
}}
"""


def resolver_of(configured: str | None) -> IPv4Address | None:
    return first_resolver() if configured is None else IPv4Address(configured)


def first_resolver(files: tuple[Path, ...] = _RESOLVER_FILES) -> IPv4Address | None:
    """The first resolver of this machine that a guest's packets can be sent to; loopback stubs cannot."""
    for file in files:
        lines = file.read_text().splitlines() if file.is_file() else []
        for line in lines:
            words = line.split()
            if len(words) < 2 or words[0] != "nameserver":
                continue
            try:
                address = IPv4Address(words[1])
            except ValueError:
                continue
            if not address.is_loopback:
                return address
    return None
