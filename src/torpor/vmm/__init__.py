"""One file per engine behind one small protocol. Nothing here knows AWS, networks' meaning or databases."""

from torpor.vmm.base import BootSpec as BootSpec
from torpor.vmm.base import Drive as Drive
from torpor.vmm.base import Engine as Engine
from torpor.vmm.base import Machine as Machine
from torpor.vmm.base import Probe as Probe
from torpor.vmm.base import RestoreSpec as RestoreSpec
from torpor.vmm.base import Tap as Tap
from torpor.vmm.base import Vmm as Vmm
