"""Torpor: real virtual machines behind the AWS Lambda MicroVMs API, on machines you own."""

__version__ = "0.1.0"
