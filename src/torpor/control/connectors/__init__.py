"""Network connectors: AWS's own by name, customers' as resources with versions and asynchronous states."""

from torpor.control.connectors.connectors import Connectors as Connectors
