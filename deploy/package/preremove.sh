#!/bin/sh
set -e
# deb: "remove"; rpm: 0. An upgrade leaves the service running.
case ${1:-} in
    remove | 0) if [ -d /run/systemd/system ]; then systemctl --no-reload disable --now sessiond.service; fi ;;
esac
