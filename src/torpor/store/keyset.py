"""Pages by key instead of offset: stable while rows come and go."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, Select, and_, or_

from torpor.model.moments import from_microseconds


def newest_first(
    query: Select[Any], created: ColumnElement[Any], identity: ColumnElement[Any], before: tuple[int, str] | None
) -> Select[Any]:
    """`query` by (created, identity) descending, starting after the position `before` (microseconds, identity)."""
    if before is not None:
        at = from_microseconds(before[0])
        query = query.where(or_(created < at, and_(created == at, identity < before[1])))
    return query.order_by(created.desc(), identity.desc())
