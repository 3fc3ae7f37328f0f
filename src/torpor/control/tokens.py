"""Endpoint tokens: a compact JWE that only this service can open, and that is good for one microVM (spec 5.3).

A bearer secret: it is never logged, and what it says cannot be read or changed without the key in the store.
"""

from __future__ import annotations

import json
import secrets
import uuid
from collections import OrderedDict
from datetime import datetime, timedelta
from typing import Any, Final

from joserfc import jwe
from joserfc.errors import JoseError
from joserfc.jwk import OctKey
from sqlalchemy import Connection

from torpor.control.microvm.face import Microvms
from torpor.model.caller import Caller
from torpor.model.clock import Clock
from torpor.model.connector import ALL_INGRESS, SHELL_INGRESS
from torpor.model.endpoint import LAST_PORT, Grant, PortRange
from torpor.model.errors import GateDenied, Invalid
from torpor.model.ids import MicrovmId
from torpor.model.microvm import Microvm, MicrovmState
from torpor.model.moments import from_microseconds
from torpor.store import tokens as store
from torpor.store.database import Database
from torpor.store.tokens import TokenKey

LONGEST_MINUTES: Final = 60
LONGEST_TOKEN: Final = 8000
"""Characters: the model's limit for a value of `authToken`."""
REMEMBERED: Final = 4096
"""Opened tokens kept in memory, so that each request of a session does not decrypt again."""
MISSING: Final = "Request missing authentication"
FAILED: Final = "Token authentication failed"
_ALGORITHMS: Final = ["dir", "A256GCM"]


class Seal:
    """Makes and opens tokens with the keys it is given; no I/O."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._keys: dict[str, tuple[OctKey, datetime | None]] = {}
        self._kid = ""
        self._opened: OrderedDict[str, Grant] = OrderedDict()

    def use(self, keys: list[TokenKey]) -> None:
        """Use these keys and no others; the one without an end seals."""
        self._keys = {key.kid: (OctKey.import_key(key.secret), key.opens_until) for key in keys}
        self._kid = next((key.kid for key in keys if key.opens_until is None), "")
        self._opened.clear()

    def seal(self, grant: Grant) -> str:
        claims = {
            "vm": grant.microvm_id, "exp": grant.expires_at.timestamp(), "kind": "shell" if grant.is_shell else "http",
            "ports": [[ports.start, ports.end] for ports in grant.ports],
        }
        key, _ = self._keys[self._kid]
        header = {"kid": self._kid, "alg": "dir", "enc": "A256GCM"}
        return jwe.encrypt_compact(header, json.dumps(claims, separators=(",", ":")).encode(), key, _ALGORITHMS)

    def open(self, token: str | None) -> Grant:
        """What the token allows now.

        Raises:
            GateDenied: `Request missing authentication` when there is none or it is not a token at all,
                `Token authentication failed` when it is one and no good.
        """
        grant = self._opened.get(token or "")
        if grant is None:
            grant = self._decrypt(token)
            self._opened[token or ""] = grant
            if len(self._opened) > REMEMBERED:
                self._opened.popitem(last=False)
        if grant.expires_at <= self._clock.now():
            raise GateDenied(FAILED)
        return grant

    def _decrypt(self, token: str | None) -> Grant:
        header = _header(token)
        if token is None or header is None:
            raise GateDenied(MISSING)
        found = self._keys.get(header["kid"])
        if found is None or (found[1] is not None and found[1] <= self._clock.now()):
            raise GateDenied(FAILED)
        try:
            claims = json.loads(jwe.decrypt_compact(token, found[0], _ALGORITHMS).plaintext or b"")
        except (JoseError, ValueError) as error:
            raise GateDenied(FAILED) from error
        return Grant(
            MicrovmId(claims["vm"]), tuple(PortRange(start, end) for start, end in claims["ports"]),
            from_microseconds(claims["exp"] * 1_000_000), claims["kind"] == "shell",
        )


def _header(token: str | None) -> dict[str, Any] | None:
    """The protected header of what looks like a token of ours; None when it does not."""
    if not token or len(token) > LONGEST_TOKEN or not token.isascii() or token.count(".") != 4:
        return None
    parts = token.split(".")
    if parts[1] or not all(parts[i] for i in (0, 2, 3, 4)):
        return None
    try:
        header = json.loads(_decode(parts[0]))
    except ValueError:
        return None
    is_ours = isinstance(header, dict) and header.get("alg") == "dir" and header.get("enc") == "A256GCM"
    return header if is_ours and isinstance(header.get("kid"), str) else None


def _decode(text: str) -> bytes:
    from base64 import urlsafe_b64decode

    return urlsafe_b64decode(text + "=" * (-len(text) % 4))


class Tokens:
    """CreateMicrovmAuthToken, CreateMicrovmShellAuthToken, and the keys behind them."""

    def __init__(self, database: Database, clock: Clock, microvms: Microvms, seal: Seal) -> None:
        self._database = database
        self._clock = clock
        self._microvms = microvms
        self._seal = seal

    async def start(self) -> None:
        """Read the keys; make the first one when there is none."""
        keys = await self._database.read(store.read)
        if not any(key.opens_until is None for key in keys):
            await self.rotate()
        else:
            self._seal.use(keys)

    async def rotate(self) -> None:
        """Seal with a new key from now on; tokens that exist stay good until they expire."""
        now = self._clock.now()
        key = TokenKey(str(uuid.uuid4()), secrets.token_bytes(32), now, None)

        def replace_key(connection: Connection) -> list[TokenKey]:
            store.delete_expired(connection, now)
            store.retire(connection, now + timedelta(minutes=LONGEST_MINUTES))
            store.insert(connection, key)
            return store.read(connection)

        self._seal.use(await self._database.write(replace_key))

    async def mint(self, caller: Caller, microvm_id: MicrovmId, ports: tuple[PortRange, ...], minutes: int) -> str:
        """A token for some ports of one microVM, whatever state it is in, unless it has been terminated.

        Raises:
            Invalid: with AWS's text.
        """
        microvm = await self._microvms.authorized(caller, microvm_id, "lambda:CreateMicrovmAuthToken")
        _check(microvm, minutes)
        for port in ports:
            if not 1 <= port.start <= port.end <= LAST_PORT:
                raise Invalid(f"The port range {port.start}-{port.end} is not valid.")
        return self._seal.seal(Grant(microvm.microvm_id, ports, self._until(minutes)))

    async def mint_shell(self, caller: Caller, microvm_id: MicrovmId, minutes: int) -> str:
        """A token for a shell; the microVM must have been launched with SHELL_INGRESS (spec 7)."""
        microvm = await self._microvms.authorized(caller, microvm_id, "lambda:CreateMicrovmShellAuthToken")
        _check(microvm, minutes)
        names = ingress_names(microvm)
        if ALL_INGRESS in names and len(names) > 1:
            raise Invalid("ALL_INGRESS cannot be combined with other ingress network connectors; "
                          "use HTTP_INGRESS and/or SHELL_INGRESS instead")
        if SHELL_INGRESS not in names:
            raise Invalid("Shell access requires SHELL_INGRESS network connector to be configured on the MicroVM.")
        return self._seal.seal(Grant(microvm.microvm_id, (), self._until(minutes), is_shell=True))

    def _until(self, minutes: int) -> datetime:
        return self._clock.now() + timedelta(minutes=minutes)


def ingress_names(microvm: Microvm) -> set[str]:
    """`HTTP_INGRESS`, … of a microVM's managed ingress connectors."""
    return {arn.rpartition(":")[2] for arn in microvm.ingress_connectors}


def _check(microvm: Microvm, minutes: int) -> None:
    if minutes > LONGEST_MINUTES:
        raise Invalid(f"ExpirationMinutes {minutes} exceeded max allowed of {LONGEST_MINUTES}.")
    if minutes < 1:
        raise Invalid(f"ExpirationMinutes {minutes} must be at least 1.")
    if microvm.state in (MicrovmState.TERMINATING, MicrovmState.TERMINATED):
        raise Invalid(f"The MicroVM {microvm.microvm_id} has been terminated and its state cannot be changed.")
