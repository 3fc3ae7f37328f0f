"""What is on the machine, for `torpor doctor` and `torpor gc`."""

from torpor.host.inventory.estate import Estate as Estate
from torpor.host.inventory.estate import estate_of as estate_of
from torpor.host.inventory.survey import remove as remove
from torpor.host.inventory.survey import saved as saved
from torpor.host.inventory.survey import take_simulated_stock as take_simulated_stock
from torpor.host.inventory.survey import take_stock as take_stock
from torpor.host.inventory.survey import used_by_living as used_by_living
