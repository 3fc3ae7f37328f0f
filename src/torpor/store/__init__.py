"""The one durable owner of state. Tables and the SQL that touches them; never a decision."""

from torpor.store.database import Database as Database
from torpor.store.database import metadata as metadata
