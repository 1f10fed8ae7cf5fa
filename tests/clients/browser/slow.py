"""A client that takes a byte a second off its socket, and no more, until a line on its own input tells it to hurry; it then
reads to the end. What it reads, it writes out. Little fits on the way to it, which neither Node nor a browser can ask for.
"""

import os
import socket
import sys
import threading

SECOND = 1.0
# What its own system keeps for it. Linux doubles it.
KEPT_BYTES = 2048
# The server's system keeps some tens of packets; those of loopback have 64 KiB.
PACKET_BYTES = 536

hurried = threading.Event()
threading.Thread(target=lambda: (sys.stdin.readline(), hurried.set()), daemon=True).start()

with socket.socket() as client:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, KEPT_BYTES)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, PACKET_BYTES)
    client.connect((os.environ["HOST"], int(os.environ["PORT"])))
    client.sendall(os.environ["REQUEST"].encode())
    while taken := client.recv(65_536 if hurried.is_set() else 1):
        sys.stdout.buffer.write(taken)
        sys.stdout.buffer.flush()
        hurried.wait(SECOND)
