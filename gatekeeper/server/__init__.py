"""Sockets, timers and tasks: everything that makes the pure protocol rooms run."""
