"""Gatekeeper: RabbitMQ's authentication and access control, enforced in front of a broker.

The map of the package is the table of rooms in README.md ("Architecture"); imports point
down that list and never up, which tests/test_architecture.py keeps true.
"""

__version__ = "0.1.0"
