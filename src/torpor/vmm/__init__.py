"""One file per engine behind one small protocol. Nothing here knows AWS, networks' meaning or databases."""

from torpor.vmm.base import DEVICE_STATE as DEVICE_STATE
from torpor.vmm.base import ENGINE_RECORD as ENGINE_RECORD
from torpor.vmm.base import MEMORY_FILE as MEMORY_FILE
from torpor.vmm.base import BootSpec as BootSpec
from torpor.vmm.base import Drive as Drive
from torpor.vmm.base import Engine as Engine
from torpor.vmm.base import Machine as Machine
from torpor.vmm.base import Probe as Probe
from torpor.vmm.base import RestoreSpec as RestoreSpec
from torpor.vmm.base import Tap as Tap
from torpor.vmm.base import Vmm as Vmm
