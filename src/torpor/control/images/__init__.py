"""Images, their versions and builds: what the API asks, the builds that answer it, and what deletes go through."""

from torpor.control.images.images import Images as Images
from torpor.control.images.request import ImageRequest as ImageRequest
