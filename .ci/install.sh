# Sourced by ./run, ./test and .ci/run: installs what a bare machine lacks, with its own package manager, and says so.
# A Rust toolchain is assumed. POSIX sh.

say() { printf '%s\n' "$*" >&2; }
has() { command -v "$1" >/dev/null 2>&1; }

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; elif has sudo; then sudo "$@"; else
        say "This needs root, and there is no sudo: $*"
        return 1
    fi
}

manager() {
    for manager in apt-get dnf yum zypper pacman apk brew; do
        if has "$manager"; then echo "$manager" && return; fi
    done
}

install() {
    say "Installing $* with $(manager)"
    case $(manager) in
        apt-get)
            as_root apt-get -qq update || say "Going on with the package lists that are there"
            as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300 \
                install --yes --no-install-recommends "$@" >/dev/null ;;
        dnf | yum) as_root "$(manager)" install --quiet --assumeyes "$@" ;;
        zypper) as_root zypper --quiet --non-interactive install "$@" ;;
        pacman) as_root pacman --sync --needed --noconfirm "$@" ;;
        apk) as_root apk add --quiet "$@" ;;
        brew) brew install --quiet "$@" ;;
        *) say "No known package manager here; please install: $*" && return 1 ;;
    esac
}

# The places are those where sessiond looks: src/cluster/binaries.rs.
has_postgres() {
    if has postgres && has initdb && has pg_ctl; then return; fi
    for initdb in /usr/lib/postgresql/*/bin/initdb /usr/pgsql-*/bin/initdb /usr/lib/postgresql*/bin/initdb \
        /usr/libexec/postgresql*/initdb /opt/homebrew/opt/postgresql*/bin/initdb \
        /usr/local/opt/postgresql*/bin/initdb /Applications/Postgres.app/Contents/Versions/*/bin/initdb; do
        if [ -x "$initdb" ]; then return; fi
    done
    return 1
}

# Only the programs are wanted. Debian's package also starts a server on port 5432, unless it is told not to.
need_postgres() {
    if has_postgres; then return; fi
    case $(manager) in
        apt-get)
            no_server=/etc/postgresql-common/createcluster.d/sessiond.conf
            as_root mkdir -p "${no_server%/*}"
            echo 'create_main_cluster = false' | as_root tee "$no_server" >/dev/null
            installed=0 && install postgresql || installed=$?
            # The next server that is installed here is none of our business.
            as_root rm "$no_server"
            return "$installed" ;;
        dnf | yum | zypper) install postgresql-server ;;
        brew) install postgresql@17 ;;
        *) install postgresql ;;
    esac
}

# Only the program is wanted. Debian's package also starts a server on port 80, unless a policy forbids it.
need_nginx() {
    if PATH=$PATH:/usr/sbin:/usr/local/sbin has nginx; then return; fi
    policy=/usr/sbin/policy-rc.d
    if [ "$(manager)" != apt-get ] || [ -e "$policy" ]; then install nginx; return; fi
    printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy" >/dev/null
    as_root chmod +x "$policy"
    installed=0 && install nginx || installed=$?
    # The next server that is installed here is none of our business.
    as_root rm "$policy"
    return "$installed"
}

# Some crates contain C.
need_cc() {
    if has cc; then return; fi
    case $(manager) in
        apt-get) install gcc libc6-dev ;;
        apk) install gcc musl-dev ;;
        brew) say "There is no C compiler; get one with: xcode-select --install" && return 1 ;;
        *) install gcc ;;
    esac
}

# With virtual environments, which Debian packs apart: `venv` is there without it, and `ensurepip` is not.
need_python() {
    if has python3 && python3 -c 'import ensurepip, venv' 2>/dev/null; then return; fi
    case $(manager) in
        apt-get) install python3 python3-venv ;;
        pacman) install python ;;
        brew) install python@3 ;;
        *) install python3 ;;
    esac
}

need_npm() {
    if has npm; then return; fi
    case $(manager) in
        brew) install node ;;
        *) install nodejs npm ca-certificates ;;
    esac
}

need_chromium() {
    if has chromium || has chromium-browser || has google-chrome; then return; fi
    install chromium
}

need_cargo() {
    # Where rustup puts it; a shell that was open before does not know yet.
    PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin
    if has cargo; then return; fi
    say "There is no Rust toolchain; get one at https://rustup.rs, then run this again."
    return 1
}
