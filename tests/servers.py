"""A web server on this machine, there for as long as a block lasts."""

import contextlib
import http.server
import socket
import threading


class QuietHandler(http.server.BaseHTTPRequestHandler):
    """Logs nothing."""

    def log_message(self, *_):
        pass


class _Server6(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6


@contextlib.contextmanager
def serving(handler, host="127.0.0.1", port=0, **facts):
    """The server; `facts` are attributes that its handlers find at `self.server`."""
    kind = _Server6 if ":" in host else http.server.ThreadingHTTPServer
    server = kind((host, port), handler)
    for name, value in facts.items():
        setattr(server, name, value)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def address_of(server):
    return f"http://127.0.0.1:{server.server_port}"
