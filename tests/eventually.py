"""Waits for something in the programs that tests and checks start."""

import http.client
import sys
import time


def eventually(what, check, seconds=60):
    deadline = time.monotonic() + seconds
    while True:
        try:
            found = check()
        except (OSError, http.client.HTTPException, ValueError):
            found = None
        if found:
            return found
        if time.monotonic() > deadline:
            sys.exit(f"{what}: not within {seconds} s")
        time.sleep(0.2)
