"""Tests of gatekeeper/server and app.py: real sockets, and fakes only for what goes wrong."""
