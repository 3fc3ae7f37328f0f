"""What an attacker in a guest uses: connections, datagrams, frames made by hand. Runs inside the VM."""

from __future__ import annotations

import fcntl
import socket
import struct
import subprocess

DEVICE = "eth0"
GATEWAY_MAC = bytes.fromhex("060064400001")


def tcp(address: str, port: int, text: bytes = b"hello", timeout: float = 2.0) -> str:
    """What is answered; `refused` or `silence`."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as asking:
        asking.settimeout(timeout)
        try:
            asking.connect((address, port))
            asking.sendall(text)
            return asking.recv(65536).decode("latin-1")
        except TimeoutError:
            return "silence"
        except OSError:
            return "refused"


def udp(address: str, port: int, text: bytes = b"hello", timeout: float = 1.0) -> str:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as asking:
        asking.settimeout(timeout)
        try:
            asking.connect((address, port))
            asking.send(text)
            return asking.recv(65536).decode("latin-1")
        except TimeoutError:
            return "silence"
        except OSError:
            return "refused"


def own_mac() -> bytes:
    with socket.socket() as any_socket:
        answer = fcntl.ioctl(any_socket, 0x8927, struct.pack("256s", DEVICE.encode()))  # SIOCGIFHWADDR
    return answer[18:24]


def checksum(data: bytes) -> int:
    data += b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def packet(source: str, target: str, protocol: int, content: bytes) -> bytes:
    """An IPv4 packet with any source."""
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(content), 1, 0, 64, protocol, 0,
                       socket.inet_aton(source), socket.inet_aton(target))
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + content


def syn(source: str, target: str, port: int) -> bytes:
    """A TCP segment that opens a connection."""
    segment = struct.pack("!HHIIBBHHH", 4242, port, 1, 0, 0x50, 2, 8192, 0, 0)
    pseudo = socket.inet_aton(source) + socket.inet_aton(target) + struct.pack("!BBH", 0, 6, len(segment))
    return packet(source, target, 6, segment[:16] + struct.pack("!H", checksum(pseudo + segment)) + segment[18:])


def datagram(source: str, target: str, port: int, text: bytes) -> bytes:
    return packet(source, target, 17, struct.pack("!HHHH", 4242, port, 8 + len(text), 0) + text)


def send(kind: int, payload: bytes, target: bytes = GATEWAY_MAC, source: bytes | None = None) -> None:
    """A whole Ethernet frame, past the guest's own network stack."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as wire:
        wire.bind((DEVICE, 0))
        wire.send(target + (source or own_mac()) + struct.pack("!H", kind) + payload)


def who_has(address: str, seconds: float = 1.0) -> list[str]:
    """Ask by ARP; the answers' MAC addresses."""
    me = own_mac()
    found = []
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0806)) as wire:
        wire.bind((DEVICE, 0x0806))
        wire.settimeout(seconds)
        wire.send(b"\xff" * 6 + me + struct.pack("!HHHBBH", 0x0806, 1, 0x0800, 6, 4, 1) + me
                  + socket.inet_aton("100.64.0.2") + b"\0" * 6 + socket.inet_aton(address))
        try:
            while True:
                frame = wire.recv(2048)
                if frame[20:22] == b"\0\2" and frame[28:32] == socket.inet_aton(address):
                    found.append(frame[22:28].hex(":"))
        except TimeoutError:
            return found


def claim(address: str, mac: bytes) -> None:
    """Tell everybody by ARP that an address is at a MAC address."""
    body = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 2) + mac + socket.inet_aton(address) + b"\xff" * 6
    send(0x0806, body + socket.inet_aton(address), b"\xff" * 6, mac)


def sh(command: str) -> tuple[int, str]:
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr
