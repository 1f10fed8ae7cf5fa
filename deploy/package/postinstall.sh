#!/bin/sh
# Creates the user. Starts and enables nothing: the service needs settings first.
set -e
if command -v systemd-sysusers >/dev/null 2>&1; then
    systemd-sysusers sessiond.conf
elif ! getent passwd sessiond >/dev/null; then
    useradd --system --user-group --no-create-home --home-dir / --shell /usr/sbin/nologin sessiond
fi
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload
    # An upgrade: a running service goes on with the new program.
    systemctl try-restart sessiond.service
fi
