"""Finds out which applications speak TLS themselves (spec 5.5, C6).

Asking costs a connection the application did not expect and may log, so it is asked only with a reason: the port is TLS
by custom, or plain text has failed the way it does on a TLS port. Addresses are fresh in each life of a microVM, so an
answer holds for the address.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import OrderedDict

CUSTOMARY_PORTS = frozenset({443, 4443, 5443, 6443, 7443, 8443, 9443, 10443})
_CONNECT_TIMEOUT = 3.0
_HANDSHAKE_TIMEOUT = 1.0
"""Seconds. A server of plain text may wait for the end of a line that a handshake does not have."""
_KEPT = 10_000


class TlsPorts:
    def __init__(self, ports: frozenset[int] = CUSTOMARY_PORTS) -> None:
        self._ports = ports
        self._asking: dict[tuple[str, int], asyncio.Task[bool]] = {}
        self._known: OrderedDict[tuple[str, int], bool] = OrderedDict()
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._context.check_hostname = False
        # Who it is, the address says; applications bring certificates of their own making.
        self._context.verify_mode = ssl.CERT_NONE
        self._context.set_alpn_protocols(["h2", "http/1.1"])

    async def speaks_tls(self, address: str, port: int) -> bool:
        """Waits for the answer on a customary port only; elsewhere it is no until it is known to be yes."""
        place = (address, port)
        if (known := self._known.get(place)) is not None:
            return known
        return port in self._ports and await self._find_out(place)

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

    async def _find_out(self, place: tuple[str, int]) -> bool:
        answer = await self._ask(*place)
        if answer is None:
            return False
        self._known[place] = answer
        if len(self._known) > _KEPT:
            self._known.popitem(last=False)
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
