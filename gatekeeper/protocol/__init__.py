"""AMQP 0-9-1, pure: bytes in, values out; no sockets, no clock, no event loop."""
