"""Accounts, access keys and what their principals may do.

Everything is held in memory, since each request needs it twice (signature, permission), and is loaded again when the
store's revision says that someone changed it, be it this process or another one.
"""

from __future__ import annotations

import asyncio
import base64
import re
import secrets
from collections.abc import Awaitable, Callable, Mapping
from datetime import timedelta
from typing import Any, Final

from torpor.config import Config
from torpor.control.policy import Decision, Policy, decide
from torpor.model.account import (
    ACCOUNT_ID,
    Account,
    Credential,
    Principal,
    PrincipalKind,
    identity_of,
    root_arn,
)
from torpor.model.arn import AWS, Arn
from torpor.model.caller import Caller
from torpor.model.clock import Clock
from torpor.model.errors import Conflict, Denied, Invalid, NotFound
from torpor.model.ids import AccountId
from torpor.store import Database
from torpor.store import accounts as store

RELOAD_EVERY: Final = 1.0
"""Seconds after which a key made by another process works, at the latest."""
PASS_ROLE: Final = "iam:PassRole"  # noqa: S105 - an action
LONGEST_SESSION: Final = timedelta(hours=12)
TOLD_EXPIRED: Final = timedelta(days=1)
"""For so long whoever still uses an ended session is told that it has expired; then its key is unknown."""
CONDITION_KEYS: Final = frozenset({
    "aws:principalarn", "aws:principalaccount", "aws:username", "aws:requestedregion", "aws:resourceaccount",
    "aws:currenttime", "aws:epochtime", "iam:passedtoservice", "s3:prefix", "s3:delimiter", "s3:max-keys",
})  # fmt: skip
"""What conditions may ask for, besides `aws:ResourceTag/…`. A policy with another key is refused: a Deny that never
sees its key would never deny."""
_RESOURCE_TAG: Final = "aws:resourcetag/"
_PRINCIPAL_NAME: Final = re.compile(r"[\w+=,.@-]{1,64}", re.ASCII)


class Accounts:
    def __init__(self, config: Config, database: Database, clock: Clock) -> None:
        self._database = database
        self._settings = config.accounts
        self._default = AccountId(config.account)
        self._clock = clock
        self._revision = -1
        self._accounts: dict[AccountId, Account] = {}
        self._credentials: dict[str, Credential] = {}
        self._principals: dict[str, Principal] = {}
        self._policies: dict[str, tuple[Policy, ...]] = {}
        self._asks_tags: frozenset[str] = frozenset()
        self.tags_of: Callable[[Caller, str], Awaitable[Mapping[str, str]]] = _no_tags
        """The tags of a resource by ARN, none when there is no such resource; asked only where a policy needs them."""
        self.limits: Mapping[tuple[str, str], Any] = {}
        """Limits of single accounts: (account, name) → value."""

    async def start(self) -> None:
        """Load what there is; the default account exists afterwards."""
        await self.ensure_default()

    async def run(self) -> None:
        """Take over the changes of other processes, for ever."""
        while True:
            # Not the injected clock: another process lives in the machine's own time.
            await asyncio.sleep(RELOAD_EVERY)
            if await self._database.read(store.current_revision) != self._revision:
                await self._reload()

    def credential(self, access_key_id: str) -> Credential | None:
        """What a signature of this key is checked with; None when there is no such key or it has expired."""
        found = self._credentials.get(access_key_id)
        return None if found is None or self._has_ended(found) else found

    def has_expired(self, access_key_id: str) -> bool:
        """Whether it was the key of a session that has ended not long ago."""
        found = self._credentials.get(access_key_id)
        return found is not None and self._has_ended(found)

    def _has_ended(self, credential: Credential) -> bool:
        return credential.expires_at is not None and credential.expires_at <= self._clock.now()

    async def authorize(
        self, caller: Caller, action: str, resource: str | None = None, context: Mapping[str, str] | None = None
    ) -> None:
        """Let the caller do `action` (`lambda:RunMicrovm`) to `resource` (an ARN, None for `*`), or refuse.

        `context` adds condition keys.

        Raises:
            Denied: with AWS's text (spec 9.4).
            Invalid: iam:PassRole of a role that does not exist, where roles must.
        """
        target = resource or "*"
        owner = self._owner(target, action)
        if action == PASS_ROLE and self._settings.strict_roles and target not in self._principals:
            raise Invalid(f"The role {target} does not exist or cannot be assumed by Lambda.")
        if owner not in ("", AWS, caller.account):
            raise Denied(denial(caller.principal, action, target, "no resource-based policy allows"))
        identity = identity_of(caller.principal)
        if identity == root_arn(caller.account):
            return
        policies = self._policies.get(identity, ())
        more = dict(context or {})
        if action == PASS_ROLE:
            more["iam:PassedToService"] = "lambda.amazonaws.com"
        if identity in self._asks_tags:
            more.update((_RESOURCE_TAG + key, value) for key, value in (await self.tags_of(caller, target)).items())
        decision = decide(policies, action, target, self._context(caller, owner, more))
        if decision is Decision.DENIED:
            raise Denied(denial(caller.principal, action, target, None))
        if decision is Decision.NOT_ALLOWED:
            raise Denied(denial(caller.principal, action, target, "no identity-based policy allows"))

    def _owner(self, resource: str, action: str) -> str:
        arn = Arn.parse(resource)
        if arn is None or (action == PASS_ROLE and not self._settings.strict_roles):
            # A role ARN of someone's real account works here unless roles are strict: existing code passes those.
            return ""
        return arn.account

    def _context(self, caller: Caller, owner: str, more: Mapping[str, str]) -> dict[str, str | tuple[str, ...]]:
        now = self._clock.now()
        context: dict[str, str | tuple[str, ...]] = {
            "aws:principalarn": identity_of(caller.principal),
            "aws:principalaccount": caller.account,
            "aws:username": caller.principal.rpartition("/")[2],
            "aws:requestedregion": caller.region,
            "aws:resourceaccount": owner or caller.account,
            "aws:currenttime": now.isoformat(),
            "aws:epochtime": str(int(now.timestamp())),
        }
        context.update((key.lower(), value) for key, value in more.items())
        return context

    async def ensure_default(self) -> Credential:
        """The default account and a root key of it, made at the first start (or the ones the configuration names).

        The tables must exist; nothing else needs to have started.
        """
        await self._reload()
        if self._default not in self._accounts:
            await self.create_account(self._default, "default")
        wanted, secret = self._settings.access_key_id, self._settings.secret_access_key
        root = root_arn(self._default)
        if wanted is not None and secret is not None:
            known = self._credentials.get(wanted)
            if known is None or known.secret != secret:
                return await self._put_key(Credential(wanted, secret, None, self._default, root))
            return known
        for credential in self._credentials.values():
            if credential.principal == root and credential.expires_at is None:
                return credential
        return await self.create_key(root)

    def list_accounts(self) -> list[Account]:
        return sorted(self._accounts.values(), key=lambda account: account.account)

    def list_principals(self, account: AccountId) -> list[Principal]:
        found = (one for one in self._principals.values() if one.account == account)
        return sorted(found, key=lambda principal: principal.arn)

    def list_keys(self, account: AccountId) -> list[Credential]:
        """For people: show ids and principals, never the secrets."""
        found = (one for one in self._credentials.values() if one.account == account)
        return sorted(found, key=lambda credential: credential.access_key_id)

    async def create_account(self, account: AccountId, name: str) -> Account:
        """Raises Invalid for an id that is not twelve digits, Conflict for one that exists."""
        if not ACCOUNT_ID.fullmatch(account):
            raise Invalid(f"An account id has twelve digits, not {account!r}")
        if account in self._accounts:
            raise Conflict(f"Account {account} exists already")
        made = Account(account, name, self._clock.now())
        await self._write(lambda connection: store.insert_account(connection, made))
        return made

    async def put_principal(
        self, account: AccountId, kind: PrincipalKind, name: str, policies: Mapping[str, dict[str, Any]]
    ) -> Principal:
        """Make a user or role, or replace its policies. Raises Invalid for a bad name or policy, NotFound."""
        if account not in self._accounts:
            raise NotFound(f"No account {account}")
        if kind is PrincipalKind.ROOT or not _PRINCIPAL_NAME.fullmatch(name):
            raise Invalid(f"Not the name of a user or role: {name!r}")
        for document in policies.values():
            _check_keys(Policy.parse(document))
        arn = f"arn:aws:iam::{account}:{kind}/{name}"
        made = Principal(arn, account, kind, self._clock.now(), dict(policies))
        await self._write(lambda connection: store.put_principal(connection, made))
        return made

    async def delete_principal(self, arn: str) -> None:
        """Take away a user or role and its keys. Raises NotFound."""
        self._principal(arn)
        await self._write(lambda connection: store.remove_principal(connection, arn))

    async def create_key(self, principal: str) -> Credential:
        """A lasting access key for a root or user. Raises NotFound, Invalid for a role."""
        account = self._account_of(principal)
        if not principal == root_arn(account) and self._principal(principal).kind is PrincipalKind.ROLE:
            raise Invalid("A role has no lasting keys; create a session of it")
        return await self._put_key(Credential(_key_id("AKIA"), _secret(), None, account, principal))

    async def create_session(self, principal: str, duration: timedelta, name: str = "session", *,
                             must_exist: bool = True) -> Credential:
        """A temporary key with a session token, as a principal or, for a role, as somebody in that role.

        A role that need not exist may do nothing until it does.
        """
        if not timedelta(0) < duration <= LONGEST_SESSION:
            raise Invalid(f"A session lasts more than 0 and at most {LONGEST_SESSION}")
        if not _PRINCIPAL_NAME.fullmatch(name):
            raise Invalid(f"Not the name of a session: {name!r}")
        account = self._account_of(principal)
        acting = principal
        role = principal.partition(":role/")[2]
        is_role = bool(role) if not must_exist else (
            principal != root_arn(account) and self._principal(principal).kind is PrincipalKind.ROLE)
        if not must_exist and not is_role:
            raise Invalid(f"Not a role: {principal}")
        if is_role:
            acting = f"arn:aws:sts::{account}:assumed-role/{role}/{name}"
        token = base64.b64encode(secrets.token_bytes(96)).decode()
        ends = self._clock.now() + duration
        return await self._put_key(Credential(_key_id("ASIA"), _secret(), token, account, acting, ends))

    async def delete_key(self, access_key_id: str) -> None:
        """Raises NotFound."""
        if access_key_id not in self._credentials:
            raise NotFound(f"No access key {access_key_id}")
        await self._write(lambda connection: store.remove_key(connection, access_key_id))

    async def set_limit(self, account: AccountId, name: str, value: Any) -> None:
        """Give an account its own limit; None returns to the default. `Limits` checks names and values."""
        if account not in self._accounts:
            raise NotFound(f"No account {account}")
        await self._write(lambda connection: store.put_limit(connection, account, name, value))

    def _account_of(self, principal: str) -> AccountId:
        arn = Arn.parse(principal)
        if arn is None or arn.account not in self._accounts:
            raise NotFound(f"No principal {principal}")
        return arn.account

    def _principal(self, arn: str) -> Principal:
        try:
            return self._principals[arn]
        except KeyError:
            raise NotFound(f"No principal {arn}") from None

    async def _put_key(self, credential: Credential) -> Credential:
        now = self._clock.now()

        def put(connection: Any) -> None:
            store.remove_expired_keys(connection, now - TOLD_EXPIRED)
            store.remove_key(connection, credential.access_key_id)
            store.insert_key(connection, credential, now)

        await self._write(put)
        return credential

    async def _write(self, work: Any) -> None:
        await self._database.write(work)
        await self._reload()

    async def _reload(self) -> None:
        found = await self._database.read(store.load)
        if found.revision < self._revision:
            return  # a slower reader must not bring back what a faster one already replaced
        self._accounts = {account.account: account for account in found.accounts}
        self._credentials = {credential.access_key_id: credential for credential in found.credentials}
        self._principals = {principal.arn: principal for principal in found.principals}
        self._policies = {
            principal.arn: tuple(Policy.parse(document) for document in principal.policies.values())
            for principal in found.principals
        }
        self._asks_tags = frozenset(
            arn for arn, policies in self._policies.items()
            if any(key.startswith(_RESOURCE_TAG) for policy in policies for key in policy.asks)
        )
        self.limits = found.limits
        self._revision = found.revision


def denial(principal: str, action: str, resource: str, why: str | None) -> str:
    """The text of an AccessDeniedException (spec 9.4); without `why` for an explicit deny."""
    start = f"User: {principal} is not authorized to perform: {action} on resource: {resource} "
    if why is None:
        return start + "with an explicit deny in an identity-based policy"
    return start + f"because {why} the {action} action"


def _check_keys(policy: Policy) -> None:
    for key in sorted(policy.asks):
        if key not in CONDITION_KEYS and not key.startswith(_RESOURCE_TAG):
            raise Invalid(f"Condition key {key} is not known here; known are aws:ResourceTag/… and "
                          f"{', '.join(sorted(CONDITION_KEYS))}")  # fmt: skip


async def _no_tags(caller: Caller, arn: str) -> Mapping[str, str]:
    return {}


def _key_id(prefix: str) -> str:
    return prefix + base64.b32encode(secrets.token_bytes(10)).decode()


def _secret() -> str:
    return base64.b64encode(secrets.token_bytes(30)).decode()
