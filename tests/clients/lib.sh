# Sourced by the scripts that hold a running server against programs that know nothing of it: where those get their packages,
# and a server for them. Whoever sources it stands at the top of the tree. POSIX sh.

data=$(mktemp -d)
server=
stop() {
    if [ -n "$server" ]; then kill "$server" 2>/dev/null || :; wait "$server" || :; fi
    rm -rf "$data"
}
trap stop EXIT
trap 'exit 1' INT TERM
# A Postgres of its own, and the defaults.
unset DATABASE_URL SESSIOND_BASE_PATHS

sessiond=${CARGO_TARGET_DIR:-target}/debug/sessiond

# Copies a directory of JavaScript to below `target`, where its packages may be, and installs those: what was left half done
# is done again. Sets `client`.
npm_client() {
    client=target/${1#tests/}
    mkdir -p "$client"
    cp -R "$1/." "$client"
    if ! cmp -s "$1/package-lock.json" "$client/node_modules/installed"; then
        npm ci --prefix "$client" --ignore-scripts --no-audit --no-fund --loglevel=error
        cp "$1/package-lock.json" "$client/node_modules/installed"
    fi
}

# Installs what a directory of Python asks for, below `target`. Sets `python`.
python_client() {
    venv=target/${1#tests/}/venv
    python=$venv/bin/python
    if ! cmp -s "$1/requirements.txt" "$venv/installed"; then
        rm -rf "$venv"
        python3 -m venv "$venv"
        "$python" -m pip install --quiet --disable-pip-version-check --requirement "$1/requirements.txt"
        cp "$1/requirements.txt" "$venv/installed"
    fi
}

# Takes note of a free port, for a server that has to know it beforehand. Sets `port`.
free_port() {
    port=$(node -e 'const s = require("net").createServer().listen(0, "127.0.0.1", () => { console.log(s.address().port); s.close() })')
}

# Starts `sessiond dev` with these arguments, at `port` if there is one, and reads its environment.
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
