"""What may pass: the rules inside a slot and the table of the host.

Inside, the guest is always 100.64.0.2 behind 100.64.0.1; outside, each slot has addresses of its own. A guest reaches
the public internet by TCP and the resolver by DNS, nothing else: not the host, not another guest, not private or
link-local ranges (spec 8.1, 8.3). IPv6 is switched off in a slot.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Final

GATEWAY: Final = "100.64.0.1"
GUEST: Final = "100.64.0.2"
AGENT: Final = "100.64.0.3"
AGENT_PORT: Final = 1024
NOT_PUBLIC: Final = (
    "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
    "192.0.2.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/3",
)  # fmt: skip
"""IANA's special-purpose IPv4 blocks (RFC 6890) and multicast."""
_RESOLVER_FILES: Final = (Path("/etc/resolv.conf"), Path("/run/systemd/resolve/resolv.conf"))


def slot_rules(traffic: IPv4Address, control: IPv4Address, resolver: IPv4Address | None) -> str:
    """The table inside a slot. `traffic` and `control` are its addresses towards the host."""
    dns = _DNS.format(resolver=resolver) if resolver else ""
    dns_forward = f"iifname tap0 ip daddr {resolver} meta l4proto {{ tcp, udp }} th dport 53 accept" if resolver else ""
    return f"""
table ip torpor {{
    chain prerouting {{
        type nat hook prerouting priority dstnat; policy accept;
        iifname veth0 ip daddr {traffic} meta l4proto tcp dnat to {GUEST}
        iifname veth0 ip daddr {control} tcp dport {AGENT_PORT} dnat to {AGENT}
        {dns}
    }}
    chain postrouting {{
        type nat hook postrouting priority srcnat; policy accept;
        oifname tap0 snat to {GATEWAY}
        oifname veth0 snat to {traffic}
    }}
    chain forward {{
        type filter hook forward priority filter; policy drop;
        iifname tap0 ip saddr != {{ {GUEST}, {AGENT} }} drop
        ct state established,related accept
        iifname veth0 oifname tap0 ct status dnat accept
        iifname tap0 ip saddr {AGENT} drop
        {dns_forward}
        iifname tap0 ip daddr {{ {", ".join(NOT_PUBLIC)} }} reject with icmp type admin-prohibited
        iifname tap0 meta l4proto tcp accept
    }}
    chain input {{
        type filter hook input priority filter; policy drop;
        iifname lo accept
        ct state established,related accept
    }}
}}
"""


_DNS = "iifname tap0 ip daddr 100.64.0.1 meta l4proto {{ tcp, udp }} th dport 53 dnat to {resolver}"


def host_rules(table: str, slots: IPv4Network, resolver: IPv4Address | None) -> str:
    """The host's own table, replaced as a whole. `active` counts segments that carry data (PSH) per slot address."""
    dns = f"ip saddr {slots} ip daddr {resolver} meta l4proto {{ tcp, udp }} th dport 53 accept" if resolver else ""
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
        ip daddr {{ {", ".join(NOT_PUBLIC)} }} drop
    }}
    chain postrouting {{
        type nat hook postrouting priority srcnat; policy accept;
        ip saddr {slots} ip daddr != {slots} masquerade
    }}
}}
"""


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
