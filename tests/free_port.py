"""A free port, for a program that must know it beforehand."""

import random
import socket

# Below those that the system gives to listeners and connections (Linux: 32,768 and up): one of them might get it first.
PORTS = range(20_000, 32_000)


def free_port():
    """Returns a port of 127.0.0.1 that nobody uses."""
    while True:
        with socket.socket() as listener:
            try:
                listener.bind(("127.0.0.1", random.choice(PORTS)))
            except OSError:
                continue
            return listener.getsockname()[1]
