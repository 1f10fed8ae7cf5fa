# Sourced by the scripts that need tools from crates.io. POSIX sh. TOOLS is their directory.

# Installs a tool, unless this version is there. It is built without optimisation and debug information, because it runs
# for seconds.
cargo_tool() {
    if grep -qF "\"$1 $2 (" "$TOOLS/.crates.toml" 2>/dev/null; then return; fi
    echo "Installing $1 $2 below target/" >&2
    CARGO_PROFILE_DEV_DEBUG=0 cargo install "$1" --locked --quiet --force --debug --version "$2" --root "$TOOLS"
}
