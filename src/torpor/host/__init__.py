"""What one machine does: slots, files, snapshots, the guest, builds. Nothing here knows API shapes or accounts."""

from torpor.host.base import ApplicationExited as ApplicationExited
from torpor.host.base import ApplicationLine as ApplicationLine
from torpor.host.base import BuildOrder as BuildOrder
from torpor.host.base import BuildOutcome as BuildOutcome
from torpor.host.base import Host as Host
from torpor.host.base import HostEvent as HostEvent
from torpor.host.base import HostStats as HostStats
from torpor.host.base import LaunchOrder as LaunchOrder
from torpor.host.base import Placement as Placement
from torpor.host.base import VmmDied as VmmDied
