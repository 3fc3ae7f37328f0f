"""Torpor's own routes under `/torpor/v1`: what people ask that AWS's API cannot say. AWS's shapes stay untouched."""

from torpor.api.extras.audit import ROUTES as _AUDIT
from torpor.api.extras.images import ROUTES as _IMAGES
from torpor.api.extras.machine import ROUTES as _MACHINE
from torpor.api.extras.microvms import ROUTES as _MICROVMS
from torpor.api.extras.moving import ROUTES as _MOVING
from torpor.api.extras.request import HEALTH_PATH as HEALTH_PATH
from torpor.api.extras.request import Extra as Extra
from torpor.api.extras.request import ExtraRoute as ExtraRoute
from torpor.api.extras.sessions import ROUTES as _SESSIONS
from torpor.api.extras.sessions import SOCKETS as SOCKETS
from torpor.api.extras.sessions import UPLOADS as UPLOADS
from torpor.api.extras.simulated import ROUTES as _SIMULATED
from torpor.api.extras.usage import ROUTES as _USAGE

EXTRAS: tuple[ExtraRoute, ...] = (*_MICROVMS, *_SESSIONS, *_AUDIT, *_USAGE, *_IMAGES, *_MACHINE, *_MOVING, *_SIMULATED)
"""Method, URI, function."""
