"""A client that reads one byte a second from its socket, until a line on its standard input tells it to hurry; then it reads to
the end. It writes out what it reads. Its receive buffer is small, which neither Node nor a browser can configure.
"""

import os
import socket
import sys
import threading

SECOND = 1.0
# The receive buffer. Linux doubles it.
KEPT_BYTES = 2048
# The server's system buffers some tens of packets; on loopback they have 64 KiB.
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
