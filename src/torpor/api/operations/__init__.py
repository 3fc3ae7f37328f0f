"""One small function per operation; importing the package registers them all."""

from torpor.api.operations import build as build
from torpor.api.operations import connector as connector
from torpor.api.operations import image as image
from torpor.api.operations import managed as managed
from torpor.api.operations import microvm as microvm
from torpor.api.operations import tag as tag
from torpor.api.operations import token as token
from torpor.api.operations.registry import OPERATIONS as OPERATIONS
from torpor.api.operations.registry import Call as Call
