# Sourced by ./run, ./test and .ci/run: installs what a bare machine lacks, with its own package manager, and says so.
# Requires a Rust toolchain. POSIX sh. As root, it can also be run by itself: `sh .ci/install.sh cc postgres`.

say() { printf '%s\n' "$*" >&2; }
has() { command -v "$1" >/dev/null 2>&1; }

manager() {
    for manager in apt-get dnf yum zypper pacman apk brew; do
        if has "$manager"; then echo "$manager" && return; fi
    done
}

# For each requirement: its name, whether it is installed, and the packages that contain it.

called_cc='a C compiler'
has_cc() { has cc; }
packages_of_cc() {
    case $(manager) in
        apt-get) echo gcc libc6-dev ;;
        apk) echo gcc musl-dev ;;
        brew) ;;
        *) echo gcc ;;
    esac
}

# For libFuzzer. Not part of Debian's package of the C compiler.
called_cxx='a C++ compiler'
has_cxx() { has c++; }
packages_of_cxx() {
    case $(manager) in
        dnf | yum | zypper) echo gcc-c++ ;;
        pacman) echo gcc ;;
        brew) ;;
        *) echo g++ ;;
    esac
}

# The same places as in crates/dev-postgres/src/binaries.rs.
called_postgres='the Postgres server'
has_postgres() {
    if has postgres && has initdb && has pg_ctl; then return; fi
    for initdb in /usr/lib/postgresql/*/bin/initdb /usr/pgsql-*/bin/initdb /usr/lib/postgresql*/bin/initdb \
        /usr/libexec/postgresql*/initdb /opt/homebrew/opt/postgresql*/bin/initdb \
        /usr/local/opt/postgresql*/bin/initdb /Applications/Postgres.app/Contents/Versions/*/bin/initdb; do
        if [ -x "$initdb" ]; then return; fi
    done
    return 1
}
packages_of_postgres() {
    case $(manager) in
        dnf | yum | zypper) echo postgresql-server ;;
        brew) echo postgresql@17 ;;
        *) echo postgresql ;;
    esac
}

called_curl='curl'
has_curl() { has curl; }
packages_of_curl() { echo curl; }

# Needed for every download: crates, Node and Python packages. macOS keeps its own elsewhere.
called_certificates='the certificates of public authorities'
has_certificates() {
    for file in /etc/ssl/certs/ca-certificates.crt /etc/pki/tls/certs/ca-bundle.crt /etc/ssl/ca-bundle.pem \
        /etc/ssl/cert.pem "${SSL_CERT_FILE:-}"; do
        if [ -s "$file" ]; then return; fi
    done
    return 1
}
packages_of_certificates() { echo ca-certificates; }

# For the certificates of tests.
called_openssl='OpenSSL'
has_openssl() { has openssl; }
packages_of_openssl() { echo openssl; }

# With virtual environments, which Debian packages separately: `venv` exists without that package, `ensurepip` does not.
called_python='Python with venv'
has_python() { has python3 && python3 -c 'import ensurepip, venv' 2>/dev/null; }
packages_of_python() {
    case $(manager) in
        apt-get) echo python3 python3-venv ;;
        pacman) echo python ;;
        brew) echo python@3 ;;
        *) echo python3 ;;
    esac
}

# For root, whose servers run as another user: another Python may be in a home directory that only root can read.
called_system_python='Python of the system with venv'
has_system_python() { [ "$(id -u)" != 0 ] || /usr/bin/python3 -c 'import ensurepip, venv' 2>/dev/null; }
packages_of_system_python() { packages_of_python; }

called_etcd='etcd'
has_etcd() { has etcd; }
packages_of_etcd() { if [ "$(manager)" = apt-get ]; then echo etcd-server; else echo etcd; fi; }

called_npm='npm'
has_npm() { has npm; }
packages_of_npm() { if [ "$(manager)" = brew ]; then echo node; else echo nodejs npm; fi; }

called_go='Go'
has_go() { has go; }
packages_of_go() {
    case $(manager) in
        apt-get) echo golang-go ;;
        dnf | yum) echo golang ;;
        *) echo go ;;
    esac
}

# Debian installs it in /usr/sbin, which is only on root's PATH.
called_nginx='nginx'
has_nginx() { PATH=$PATH:/usr/sbin:/usr/local/sbin has nginx; }
packages_of_nginx() { echo nginx; }

called_caddy='Caddy'
has_caddy() { has caddy; }
packages_of_caddy() { echo caddy; }

# For the tests behind a pooler. Debian installs it in /usr/sbin, which is only on root's PATH.
called_pgbouncer='pgbouncer'
has_pgbouncer() { PATH=$PATH:/usr/sbin:/usr/local/sbin has pgbouncer; }
packages_of_pgbouncer() { echo pgbouncer; }

# Splits debug symbols from a binary, for release artefacts.
called_objcopy='objcopy'
has_objcopy() { has objcopy; }
packages_of_objcopy() { echo binutils; }

# The same for binaries of the other architecture.
called_objcopy_aarch64='objcopy for aarch64'
has_objcopy_aarch64() { has aarch64-linux-gnu-objcopy; }
packages_of_objcopy_aarch64() { echo binutils-aarch64-linux-gnu; }

called_objcopy_x86_64='objcopy for x86-64'
has_objcopy_x86_64() { has x86_64-linux-gnu-objcopy; }
packages_of_objcopy_x86_64() { echo binutils-x86-64-linux-gnu; }

# To install a .deb in a bare Debian root. With Debian's keys, without which the root's packages are not authenticated.
called_debootstrap='debootstrap'
has_debootstrap() { has debootstrap && [ -e /usr/share/keyrings/debian-archive-keyring.gpg ]; }
packages_of_debootstrap() { echo debootstrap debian-archive-keyring; }

# For benches/instructions.
called_valgrind='valgrind'
has_valgrind() { has valgrind && has callgrind_control; }
packages_of_valgrind() { echo valgrind; }

# Signs release artefacts.
called_minisign='minisign'
has_minisign() { has minisign; }
packages_of_minisign() { echo minisign; }

# Runs the artefacts for the other architecture. `emulator MACHINE` names its program.
emulator() {
    if has "qemu-$1-static"; then echo "qemu-$1-static"; else echo "qemu-$1"; fi
}
called_emulator='the user emulation of qemu'
has_emulator() { has "$(emulator aarch64)" && has "$(emulator x86_64)"; }
packages_of_emulator() {
    case $(manager) in
        apk) echo qemu-aarch64 qemu-x86_64 ;;
        zypper) echo qemu-linux-user ;;
        brew) ;;
        *) echo qemu-user-static ;;
    esac
}

# Reads and installs .rpm packages, for their check.
called_rpm='rpm'
has_rpm() { has rpm; }
packages_of_rpm() { echo rpm; }

# With promtool, for the tests of the alert rules. Debian packages both together; others may not have it.
called_prometheus='Prometheus'
has_prometheus() { has promtool && has prometheus; }
packages_of_prometheus() { echo prometheus; }

called_chromium='Chromium'
has_chromium() { has chromium || has chromium-browser || has google-chrome; }
packages_of_chromium() { echo chromium; }

# Ensures that all of these, and cargo, are installed. Lists what is missing before anything is installed or built; then
# installs it, or prints the command for root.
need() {
    # rustup installs cargo here; a shell opened earlier does not have it on its PATH.
    PATH=$PATH:${CARGO_HOME:-${HOME:-}/.cargo}/bin
    missing='' names=''
    for thing; do
        if "has_$thing"; then continue; fi
        missing="$missing $thing"
        names="$names${names:+, }$(eval "printf %s \"\$called_$thing\"")"
    done
    if ! has cargo; then names="$names${names:+, }a Rust toolchain (https://rustup.rs)"; fi
    if [ -z "$names" ]; then return; fi

    say "Missing: $names."
    if [ -n "$missing" ]; then
        # Our own words, without spaces.
        bring $missing || return
    fi
    if ! has cargo; then say "Install the Rust toolchain, then run this again." && return 1; fi
}

packages_of() { for thing; do "packages_of_$thing"; done | tr '\n' ' '; }

# Installs these packages as root, with sudo, or not at all.
bring() {
    script=$PWD/.ci/install.sh
    case $(manager) in
        '') say "No known package manager found. Install them, then run this again." && return 1 ;;
        brew) if has cc; then brew install --quiet $(packages_of "$@"); else xcode-select --install; fi ;;
        *)
            if [ "$(id -u)" = 0 ]; then sh "$script" "$@"; elif has sudo; then sudo sh "$script" "$@"; else
                say "Only root can install them, and there is no sudo. Run this as root, then run this again:

    sh $script $*

It installs with $(manager): $(packages_of "$@")"
                return 1
            fi ;;
    esac
}

# Only the programs are needed. Debian's packages also start a server on port 5432, 6432 or 80 unless configured not to.
# The configuration is removed again, so that it does not affect later installs.
start_no_servers() {
    no_cluster=/etc/postgresql-common/createcluster.d/sessiond.conf
    mkdir -p "${no_cluster%/*}"
    echo 'create_main_cluster = false' >"$no_cluster"
    policy=/usr/sbin/policy-rc.d
    if [ -e "$policy" ]; then policy=; else printf '#!/bin/sh\nexit 101\n' >"$policy" && chmod +x "$policy"; fi
    trap 'rm -f "$no_cluster" ${policy:+"$policy"}' EXIT
    trap 'exit 1' INT TERM
}

# Runs as root.
install() {
    # Package names, without spaces.
    set -- $(packages_of "$@")
    say "Installing $* with $(manager)"
    case $(manager) in
        apt-get)
            start_no_servers
            apt-get -qq update || say "Continuing with the existing package lists"
            DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300 \
                install --yes --no-install-recommends "$@" >/dev/null ;;
        dnf | yum) "$(manager)" install --quiet --assumeyes "$@" ;;
        zypper) zypper --quiet --non-interactive install "$@" ;;
        pacman) pacman --sync --needed --noconfirm "$@" ;;
        apk) apk add --quiet "$@" ;;
        *) say "No known package manager found; install: $*" && return 1 ;;
    esac
}

# Prints the section of docs/reference/cli.md for a command: the output of `--help`, without a build.
manual() {
    awk -v heading="## sessiond $1" '$0 == heading { here = 1; next } here && /^```/ { if (begun++) exit; next } begun' docs/reference/cli.md
}

# Run directly instead of being sourced.
case $0 in
    install.sh | */install.sh)
        set -eu
        install "$@" ;;
esac
