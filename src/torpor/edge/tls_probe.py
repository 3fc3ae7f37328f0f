"""Finds out which applications speak TLS themselves (spec 5.5, C6).

Asking costs a connection the application did not expect and may log, so only ports that are TLS by custom are asked;
the rest is spoken to in plain text. Addresses are fresh in each life of a microVM, so an answer holds for the address.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import OrderedDict

CUSTOMARY_PORTS = frozenset({443, 4443, 5443, 6443, 7443, 8443, 9443, 10443})
_CONNECT_TIMEOUT = 3.0
_HANDSHAKE_TIMEOUT = 2.0
"""Seconds. A server of plain text may wait for the end of a line that a handshake does not have."""
_KEPT = 10_000


class TlsPorts:
    def __init__(self, ports: frozenset[int] = CUSTOMARY_PORTS) -> None:
        self._ports = ports
        self._known: OrderedDict[tuple[str, int], bool] = OrderedDict()
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._context.check_hostname = False
        # Who it is, the address says; applications bring certificates of their own making.
        self._context.verify_mode = ssl.CERT_NONE
        self._context.set_alpn_protocols(["h2", "http/1.1"])

    async def speaks_tls(self, address: str, port: int) -> bool:
        if port not in self._ports:
            return False
        place = (address, port)
        if (known := self._known.get(place)) is not None:
            return known
        answer = await self._ask(address, port)
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
