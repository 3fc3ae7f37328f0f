"""What the service decides. Speaks to a machine only through `Host`, to the database only through `store`."""

from torpor.control.gate import Admission as Admission
from torpor.control.images import ImageRequest as ImageRequest
from torpor.control.microvm.request import RunRequest as RunRequest
from torpor.control.service import Control as Control
from torpor.model.endpoint import PortRange as PortRange
