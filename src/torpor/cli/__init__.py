"""What people type. Everything here goes through the API, but for preparing the machine and starting the service."""

from torpor.cli.main import main as main
