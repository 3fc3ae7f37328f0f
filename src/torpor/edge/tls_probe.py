"""Finds out which applications speak TLS themselves (spec 5.5, C6).

Asking costs a connection the application did not expect and may log, so it is asked only with a reason: the port is TLS
by custom, plain text has failed the way it does on a TLS port, or it was TLS in an earlier life of the same microVM.
Addresses are fresh in each life of a microVM, so an answer holds for the address.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import OrderedDict
from typing import TypeVar

T = TypeVar("T")
CUSTOMARY_PORTS = frozenset({443, 4443, 5443, 6443, 7443, 8443, 9443, 10443})
_CONNECT_TIMEOUT = 3.0
_HANDSHAKE_TIMEOUT = 1.0
"""Seconds. A server of plain text may wait for the end of a line that a handshake does not have."""
_KEPT = 10_000


class TlsPorts:
    def __init__(self, ports: frozenset[int] = CUSTOMARY_PORTS) -> None:
        self._ports = ports
        self._asking: dict[tuple[str, int], asyncio.Task[bool | None]] = {}
        self._known: OrderedDict[tuple[str, int], bool] = OrderedDict()
        self._earlier: OrderedDict[tuple[str, int], None] = OrderedDict()
        """By microVM and port: those that were TLS the last time."""
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._context.check_hostname = False
        # Who it is, the address says; applications bring certificates of their own making.
        self._context.verify_mode = ssl.CERT_NONE
        self._context.set_alpn_protocols(["h2", "http/1.1"])

    async def speaks_tls(self, microvm_id: str, address: str, port: int) -> bool:
        """Waits for the answer where TLS is likely; elsewhere it is no until it is known to be yes."""
        place, owner = (address, port), (microvm_id, port)
        known = self._known.get(place)
        if known is None and (port in self._ports or owner in self._earlier):
            known = await self._find_out(place)
        if known:
            _remember(self._earlier, owner, None)
        elif known is not None:
            self._earlier.pop(owner, None)
        return bool(known)

    def suspect(self, address: str, port: int) -> None:
        """Plain text was answered strangely: ask, unless it is known already, without making anybody wait."""
        place = (address, port)
        if place not in self._known and place not in self._asking:
            asking = asyncio.create_task(self._find_out(place), name=f"tls:{address}:{port}")
            self._asking[place] = asking
            asking.add_done_callback(lambda _: self._asking.pop(place, None))

    async def stop(self) -> None:
        asking = list(self._asking.values())
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)

    async def _find_out(self, place: tuple[str, int]) -> bool | None:
        answer = await self._ask(*place)
        if answer is None:
            return None
        _remember(self._known, place, answer)
        return answer

    async def _ask(self, address: str, port: int) -> bool | None:
        """None when nobody listens yet: that is no answer to remember."""
        try:
            async with asyncio.timeout(_CONNECT_TIMEOUT):
                _, writer = await asyncio.open_connection(address, port)
        except (OSError, TimeoutError):
            return None
        try:
            await writer.start_tls(self._context, ssl_handshake_timeout=_HANDSHAKE_TIMEOUT)
        except (OSError, TimeoutError):  # an alert, nonsense, a hang-up, or silence
            return False
        finally:
            writer.transport.abort()
        return True


def _remember(among: OrderedDict[tuple[str, int], T], key: tuple[str, int], value: T) -> None:
    among[key] = value
    if len(among) > _KEPT:
        among.popitem(last=False)
