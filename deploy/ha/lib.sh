# Sourced by ./run and ./faults from the root of the repository: installs what they need, and builds sessiond. Sets `python`
# and `sessiond`. POSIX sh.

. .ci/install.sh
. .ci/python.sh
need cc certificates etcd postgres python system_python
if [ "$(id -u)" = 0 ]; then
    # Postgres, Patroni and etcd do not run as root: another user must be able to read the interpreter and the packages.
    base=/usr/bin/python3 venv=/var/tmp/sessiond-ha-venv
else
    base=python3 venv=target/ha/venv
fi
python=$venv/bin/python
python_packages "$venv" deploy/ha/requirements.txt "$base"
target=${CARGO_TARGET_DIR:-target}
# `SESSIOND` names another binary, for example an optimised one.
sessiond=${SESSIOND:-$target/debug/sessiond}
if [ -z "${SESSIOND:-}" ]; then cargo build --quiet --bin sessiond; fi
unset DATABASE_URL SESSIOND_BASE_PATHS
