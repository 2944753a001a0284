"""Ports that several processes will share, held by one that serves nobody.

Strategy: SO_REUSEPORT lets *any* process of the same user share a port, so a second gate would
silently take a part of the first one's clients. The supervisor therefore first opens each port
the ordinary way, which fails if anybody at all has it, and only then lets it be shared. As long
as it holds the port, nobody without SO_REUSEPORT can have it, and another gate's supervisor asks
without.
"""

from __future__ import annotations

import socket

from gatekeeper.config.settings import Address, SocketOptions
from gatekeeper.server.listener import listening_socket


class HeldPorts:
    """The addresses, with the ports that the system chose for 0. Raises ConfigError."""

    def __init__(self, wanted: tuple[Address, ...], options: SocketOptions) -> None:
        self._sockets: list[socket.socket] = []
        addresses = []
        try:
            for address in wanted:
                sock = _hold(address, options)
                self._sockets.append(sock)
                addresses.append(Address(host=address.host, port=sock.getsockname()[1]))
        except BaseException:
            self.close()
            raise
        self.addresses = tuple(addresses)

    def close(self) -> None:
        for sock in self._sockets:
            sock.close()


def _hold(address: Address, options: SocketOptions) -> socket.socket:
    """A socket that is bound to the address, alone, and does not listen."""
    if address.port == 0:
        # A port that the system chose is lost when the socket stops listening.
        with listening_socket(address, options) as chosen:
            port = chosen.getsockname()[1]
        address = Address(host=address.host, port=port)
    # It listens: the kernel has checked that nobody else does, with whatever options.
    sock = listening_socket(address, options)
    # In this order: at no moment can somebody else bind or listen, other than our workers.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    # Listening no more, still bound: connections must go to the workers' sockets only.
    sock.shutdown(socket.SHUT_RDWR)
    return sock
