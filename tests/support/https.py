"""A real HTTPS server on loopback, for what the gate fetches."""

from __future__ import annotations

import contextlib
import http.server
import ssl
import threading
from collections.abc import Callable

import trustme

Answer = Callable[[http.server.BaseHTTPRequestHandler], None]


class Server:
    """An HTTPS server on loopback; ``answers`` by path, ``seen`` are the requests' headers."""

    def __init__(self, authority: trustme.CA) -> None:
        self.answers: dict[str, Answer] = {}
        self.seen: list[tuple[str, str | None]] = []
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.seen.append((self.path, self.headers["Authorization"]))
                server.answers[self.path.partition("?")[0]](self)

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                self.do_GET()

            def log_message(self, *_: object) -> None:
                pass

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("localhost").configure_cert(context)
        self._http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.socket = context.wrap_socket(self._http.socket, server_side=True)
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,))
        self._thread.start()
        self.url = f"https://localhost:{self._http.server_address[1]}"

    def close(self) -> None:
        """May be called twice."""
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()


def answer(status: int, body: bytes = b"", **headers: str) -> Answer:
    def send(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        with contextlib.suppress(OSError):  # who has had enough hangs up
            handler.wfile.write(body)

    return send
