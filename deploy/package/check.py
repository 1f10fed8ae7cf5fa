"""Checks what the packages contain: every file with its mode and owner, the operator's files, the scripts. The .rpm is read by `rpm`,
and as root also installed below a directory of its own, where its program must run; the .deb needs no tool.

    check.py sessiond_VERSION-1_ARCH.deb sessiond-VERSION-1.ARCH.rpm
"""

import gzip
import io
import os
import subprocess
import sys
import tarfile
import tempfile

# The mode of each file. Man pages, completions and documentation are 0644, and counted.
FILES = {
    "/usr/bin/sessiond": 0o755,
    "/usr/lib/systemd/system/sessiond.service": 0o644,
    "/usr/lib/sysusers.d/sessiond.conf": 0o644,
    "/etc/sessiond/sessiond.env": 0o600,
    "/etc/sessiond/database-password": 0o600,
    "/usr/share/doc/sessiond/copyright": 0o644,
    "/usr/share/doc/sessiond/NOTICE": 0o644,
    "/usr/share/bash-completion/completions/sessiond": 0o644,
    "/usr/share/fish/vendor_completions.d/sessiond.fish": 0o644,
}
ZSH = {"deb": "/usr/share/zsh/vendor-completions/_sessiond", "rpm": "/usr/share/zsh/site-functions/_sessiond"}
KEPT = {"/etc/sessiond/sessiond.env", "/etc/sessiond/database-password"}


def check_files(kind, files):
    """`files`: the mode and the owner of each path."""
    expected = FILES | {ZSH[kind]: 0o644}
    manual = {path for path in files if path.startswith("/usr/share/man/man1/sessiond") and path.endswith(".1.gz")}
    assert len(manual) > 20, manual
    assert files.keys() - manual == expected.keys(), files.keys() ^ expected.keys() ^ manual
    for path, (mode, owner) in files.items():
        assert mode == expected.get(path, 0o644), (path, oct(mode))
        assert owner == "root/root", (path, owner)


def members(archive):
    """The members of an `ar` archive."""
    data = open(archive, "rb").read()
    assert data.startswith(b"!<arch>\n")
    at, found = 8, {}
    while at < len(data):
        name, size = data[at : at + 16].decode().strip().rstrip("/"), int(data[at + 48 : at + 58])
        found[name] = data[at + 60 : at + 60 + size]
        at += 60 + size + size % 2
    return found


def check_deb(path):
    parts = members(path)
    assert parts["debian-binary"] == b"2.0\n"

    def unpacked(name):
        return tarfile.open(fileobj=io.BytesIO(gzip.decompress(parts[f"{name}.tar.gz"])))

    with unpacked("control") as control:
        texts = {entry.name.lstrip("./"): control.extractfile(entry).read().decode() for entry in control if entry.isfile()}
    assert set(texts["conffiles"].split()) == KEPT, texts["conffiles"]
    assert {"postinst", "prerm", "postrm"} <= texts.keys(), texts.keys()
    with unpacked("data") as data:
        entries = [(f"/{entry.name.lstrip('./')}", entry) for entry in data]
    files = {name: (entry.mode & 0o7777, f"{entry.uname}/{entry.gname}") for name, entry in entries if not entry.isdir()}
    check_files("deb", files)
    version = next(line for line in texts["control"].splitlines() if line.startswith("Version: "))
    print(f"deb: {len(files)} files, {version}")


def check_rpm(path):
    def query(form):
        return subprocess.run(["rpm", "-qp", "--queryformat", form, path], check=True, stdout=subprocess.PIPE).stdout.decode()

    lines = query("[%{FILEMODES:octal} %{FILEUSERNAME}/%{FILEGROUPNAME} %{FILEFLAGS:fflags}| %{FILENAMES}\n]").splitlines()
    files, kept = {}, set()
    for line in lines:
        mode, owner, flags, name = line.split(" ")
        if int(mode, 8) & 0o170000 == 0o040000:
            continue
        files[name] = (int(mode, 8) & 0o7777, owner)
        if flags.startswith("cn"):
            kept.add(name)
    check_files("rpm", files)
    assert kept == KEPT, kept
    print(f"rpm: {len(files)} files, Version: {query('%{VERSION}-%{RELEASE} %{ARCH}')}")
    if os.geteuid() == 0 and query("%{ARCH}") == os.uname().machine:
        with tempfile.TemporaryDirectory() as root:
            # The scripts need a system: a shell, systemd.
            # Debian's rpm advises against itself on standard error.
            subprocess.run(["rpm", "--root", root, "--nodeps", "--noscripts", "--install", path], check=True)
            said = subprocess.run([f"{root}/usr/bin/sessiond", "--version"], check=True, stdout=subprocess.PIPE).stdout.decode()
            print(f"rpm: installed, and runs: {said.strip()}")


for package in sys.argv[1:]:
    check_deb(package) if package.endswith(".deb") else check_rpm(package)
