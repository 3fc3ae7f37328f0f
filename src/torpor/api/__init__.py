"""The AWS wire: requests into calls of `control`, its nouns and errors into answers. No business rules."""

from torpor.api.app import build_app as build_app
