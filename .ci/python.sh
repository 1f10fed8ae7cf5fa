# Sourced by the scripts that need Python packages. POSIX sh.

# Installs the packages of a requirements file into a virtual environment, unless they are there. An incomplete installation
# is repeated. The third argument names the interpreter, if it is not the one on the PATH.
python_packages() {
    if cmp -s "$2" "$1/installed"; then return; fi
    echo "Installing the packages in $2" >&2
    rm -rf "$1"
    "${3:-python3}" -m venv "$1"
    "$1/bin/python" -m pip install --quiet --disable-pip-version-check --requirement "$2"
    cp "$2" "$1/installed"
}
