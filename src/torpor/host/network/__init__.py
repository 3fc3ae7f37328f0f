"""One network place per microVM, made ahead: namespace, tap, veth, addresses, rules. See `slot` and `pool`."""

from torpor.host.network.pool import SlotPool as SlotPool
from torpor.host.network.slot import Slot as Slot
