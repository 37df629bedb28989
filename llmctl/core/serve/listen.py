"""Listen: the address of a server, taken before anything that takes long."""

import errno
import os
import socket

from llmctl.errors import Exit, UserError


def bound(host: str, port: int) -> socket.socket:
    """A socket that has its address; nobody is let in yet.

    Raises:
        UserError: the address is not this machine's, or in use.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(
            host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        made = socket.socket(family, kind)
    except OSError as error:
        raise UserError(f"--host is {host!r}: {error.strerror}.", "Use 127.0.0.1.", Exit.USAGE) from error
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
    except OSError as error:
        made.close()
        hint = "Another process listens there: use another --port; 0 takes any that is free."
        hint = hint if error.errno == errno.EADDRINUSE else "Use --host 127.0.0.1, and a --port of 1024 or more."
        raise UserError(f"--host {host} --port {port}: {os.strerror(error.errno or 0)}.", hint) from error
    return made


def url_of(listener: socket.socket) -> str:
    """What clients call a listening socket."""
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"
