# Sourced by the scripts that test a running server with external programs: installs their packages and starts a server.
# Source it from the root of the repository. POSIX sh.

. ./.ci/python.sh
temporary=${TMPDIR:-/tmp}

# Stops the `sessiond dev` of one of our directories, if it runs. The process id in its lock file may belong to another
# program by now, so the command line must name the directory.
stop_in() {
    pid=$(sed -n 's/^process \([0-9]*\).*/\1/p' "$1/sessiond/dev.lock" 2>/dev/null) || :
    if [ -n "$pid" ] && tr '\0' '\n' 2>/dev/null <"/proc/$pid/cmdline" | grep -q "^$1/"; then kill "$pid" 2>/dev/null || :; fi
}

# Deletes one of our directories. Postgres may still be stopping.
delete() {
    tries=0
    until rm -rf "$1" 2>/dev/null; do
        tries=$((tries + 1))
        if [ "$tries" -gt 200 ]; then return; fi
        sleep 0.1
    done
}

# Cleans up after a run that was killed; its process id is in the directory's name.
for left in "$temporary"/sessiond-clients-*; do
    pid=${left#"$temporary/sessiond-clients-"} && pid=${pid%%-*}
    if [ -d "$left" ] && [ -O "$left" ] && ! kill -0 "$pid" 2>/dev/null; then stop_in "$left" && delete "$left"; fi
done

# Others cannot list it, but can pass through: Postgres of root runs under another user, and stores its data below.
data=$(mktemp -d "$temporary/sessiond-clients-$$-XXXXXX")
chmod 711 "$data"
server=
stop() {
    if [ -n "$server" ]; then kill "$server" 2>/dev/null || :; wait "$server" || :; fi
    stop_in "$data"
    delete "$data"
}
trap stop EXIT
trap 'exit 1' HUP INT TERM
# Use our own Postgres, and the defaults.
unset DATABASE_URL SESSIOND_BASE_PATHS

sessiond=${CARGO_TARGET_DIR:-target}/debug/sessiond

# The oldest Node that the clients' packages support. Some distributions have an older one; npm installs a newer one.
NODE_MAJOR_MIN=20
need_node() {
    major=$(node --version 2>/dev/null | sed -n 's/^v\([0-9]*\)\..*/\1/p')
    if [ "${major:-0}" -ge "$NODE_MAJOR_MIN" ]; then return; fi
    echo "Node $NODE_MAJOR_MIN or later is needed, found ${major:+only version }${major:-none}; installing one with npm" >&2
    node=$PWD/target/tools/node
    if ! "$node/node_modules/node/bin/node" --version >/dev/null 2>&1; then
        npm install --prefix "$node" --no-save --no-audit --no-fund --loglevel=error node@22
    fi
    PATH=$node/node_modules/node/bin:$PATH
}

# npm runs with the Node that it came with, which trusts the system's certificates.
system_path=$PATH
npm() { PATH=$system_path command npm "$@"; }

# Copies a JavaScript directory below `target`, with what it imports from above, and installs its packages there. An incomplete
# installation is repeated. Sets `client`.
npm_client() {
    client=target/${1#tests/}
    mkdir -p "$client"
    cp -R "$1/." "$client"
    cp tests/free-port.mjs target/
    if ! cmp -s "$1/package-lock.json" "$client/node_modules/installed"; then
        npm ci --prefix "$client" --ignore-scripts --no-audit --no-fund --loglevel=error
        cp "$1/package-lock.json" "$client/node_modules/installed"
    fi
    need_node
}

# Installs the Python packages of a directory, below `target`. Sets `python`.
python_client() {
    venv=target/${1#tests/}/venv
    python=$venv/bin/python
    python_packages "$venv" "$1/requirements.txt"
}

# Finds a free port, for a server that must know it beforehand. Sets `port`.
free_port() {
    need_node
    port=$(node tests/free-port.mjs)
}

# Starts `sessiond dev` with these arguments, at `port` if it is set, and reads its environment.
start_server() {
    cargo build --quiet --bin sessiond
    "$sessiond" dev --listen "127.0.0.1:${port:-0}" --data-dir "$data/sessiond" "$@" >"$data/log" 2>&1 &
    server=$!
    tries=0
    until [ -f "$data/sessiond/dev.env" ]; do
        tries=$((tries + 1))
        if [ "$tries" -gt 600 ] || ! kill -0 "$server" 2>/dev/null; then cat "$data/log" >&2 && exit 1; fi
        sleep 0.1
    done
    . "$data/sessiond/dev.env"
}
