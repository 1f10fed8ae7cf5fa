"""Checks the image as a registry and a runtime would: every digest, what is in the layers, and who runs it. As root, and on a
machine that the image is for, it also runs the program in the image's root file system, as the image's user: it serves, on the
Postgres of a `sessiond dev` outside, and the image's health check sees it.
"""

import gzip
import hashlib
import io
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import urllib.parse

sys.path.append(str(pathlib.Path(__file__).resolve().parents[2] / "tests"))

from eventually import eventually
from free_port import free_port

MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}


def main():
    with tarfile.open(sys.argv[1]) as tar:
        files = {entry.name: tar.extractfile(entry).read() for entry in tar if entry.isfile()}
    assert json.loads(files["oci-layout"])["imageLayoutVersion"] == "1.0.0"

    def read(descriptor):
        data = files[path(descriptor)]
        assert len(data) == descriptor["size"] and descriptor["digest"] == digest(data), descriptor
        return data

    # What Docker's classic store reads.
    classic = json.loads(files["manifest.json"])
    (named,) = json.loads(files["index.json"])["manifests"]
    manifests = json.loads(read(named))["manifests"]
    assert len(classic) == len(manifests)
    for descriptor, entry in zip(manifests, classic):
        manifest = json.loads(read(descriptor))
        config = json.loads(read(manifest["config"]))
        assert config["architecture"] == descriptor["platform"]["architecture"]
        (layer,) = manifest["layers"]
        assert entry["Config"] == path(manifest["config"]) and entry["Layers"] == [path(layer)], entry
        assert entry["RepoTags"][0].startswith("sessiond:" + config["config"]["Labels"]["org.opencontainers.image.version"])
        layer = gzip.decompress(read(layer))
        assert config["rootfs"]["diff_ids"] == [digest(layer)]
        with tarfile.open(fileobj=io.BytesIO(layer)) as tar:
            entries = {entry.name: entry for entry in tar}
        names = sorted(name for name, entry in entries.items() if entry.isfile())
        expected = ["etc/group", "etc/passwd", "etc/ssl/certs/ca-certificates.crt", "usr/bin/sessiond"]
        assert names == expected, names
        # Nothing that another user could change, or that changes the user.
        assert all(entry.uid == 0 and not entry.mode & 0o6022 for entry in entries.values())
        user = config["config"]["User"]
        assert user.split(":")[0].isdigit() and user != "0:0", user
        assert config["config"]["Entrypoint"] == ["/usr/bin/sessiond"]
        assert config["config"]["Healthcheck"]["Test"] == ["CMD", "/usr/bin/sessiond", "health"]
        assert config["config"]["Labels"] == manifest["annotations"]
        print(f"image for {config['architecture']}: {len(layer)} bytes, user {user}")
        if os.geteuid() == 0 and MACHINES[config["architecture"]] == os.uname().machine:
            run(layer, user, config["config"]["Entrypoint"], config["config"]["Healthcheck"]["Test"])


def run(layer, user, entrypoint, health):
    """Runs the program with nothing around it but the image's files, and no right to write any."""
    with tempfile.TemporaryDirectory() as root:
        os.chmod(root, 0o755)
        with tarfile.open(fileobj=io.BytesIO(layer)) as tar:
            tar.extractall(root)
        chroot = ["chroot", f"--userspec={user}", root, *entrypoint]
        # A static program runs alone. One from a debug build needs the loader of this system.
        try:
            said = subprocess.run([*chroot, "--version"], check=True, capture_output=True).stdout.decode()
        except subprocess.CalledProcessError as failed:
            assert "--static" not in sys.argv and b"No such file" in failed.stderr, failed.stderr
            return print("image: SKIPPED running it, because its program is not static")
        refused = subprocess.run([*chroot, "serve"], capture_output=True)
        assert refused.returncode == 2 and b"--database-url" in refused.stderr, (refused.returncode, refused.stderr)
        with tempfile.TemporaryDirectory(prefix="sessiond-image-", ignore_cleanup_errors=True) as data:
            os.chmod(data, 0o711)
            serve(root, user, entrypoint, health[1:], pathlib.Path(data) / "dev")
        print(f"image: serves as {user} in its own root, and is healthy: {said.strip()}")


def serve(root, user, entrypoint, health, data):
    dev = [f"{root}{entrypoint[0]}", "dev", f"--data-dir={data}", "--listen=127.0.0.1:0", "--metrics-listen=127.0.0.1:0"]
    chroot = ["chroot", f"--userspec={user}", root]
    started = [subprocess.Popen(dev, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)]
    try:
        text = eventually("sessiond dev starts", lambda: (data / "dev.env").read_text())
        url = re.search(r"DATABASE_URL='?([^'\n]*)", text)[1]
        directory = urllib.parse.unquote(re.search(r"@([^/]*)/", url)[1])
        # All that the program gets from outside: the database's socket, and a key that only its user can read.
        os.mkdir(f"{root}/run")
        os.link(f"{directory}/.s.PGSQL.5432", f"{root}/run/.s.PGSQL.5432")
        os.chmod(f"{root}/run/.s.PGSQL.5432", 0o777)
        shutil.copy(data / "sealing-key", f"{root}/run/sealing-key")
        os.chown(f"{root}/run/sealing-key", *map(int, user.split(":")))
        os.chmod(f"{root}/run/sealing-key", 0o400)
        address = f"127.0.0.1:{free_port()}"
        env = {"DATABASE_URL": url.replace(url.split("@")[1].split("/")[0], "%2Frun"), "SESSIOND_LISTEN": address}
        env |= {"SESSIOND_SEALING_KEY_FILE": "/run/sealing-key", "SESSIOND_METRICS_LISTEN": f"127.0.0.1:{free_port()}"}
        env["PATH"] = os.environ["PATH"]
        subprocess.run([*chroot, *entrypoint, "migrate"], env=env, check=True, stdout=subprocess.DEVNULL)
        started.append(subprocess.Popen([*chroot, *entrypoint, "serve"], env=env, stderr=subprocess.DEVNULL))
        is_healthy = lambda: subprocess.run([*chroot, *health], env=env, capture_output=True).returncode == 0
        eventually("the server is healthy", is_healthy)
        started[1].terminate()
        assert started[1].wait() == 0 and not is_healthy()
    finally:
        for process in reversed(started):
            process.terminate()
            process.wait()


def path(descriptor):
    return f"blobs/{descriptor['digest'].replace(':', '/')}"


def digest(data):
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


if __name__ == "__main__":
    main()
