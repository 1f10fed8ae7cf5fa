"""Checks the image as a registry and a runtime would: every digest, what is in the layers, and who runs it. As root, and on a
machine that the image is for, it also runs the program in the image's root file system, as the image's user.
"""

import gzip
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile

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
            run(layer, user, config["config"]["Entrypoint"])


def run(layer, user, entrypoint):
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
        print(f"image: runs as {user} in its own root: {said.strip()}")


def path(descriptor):
    return f"blobs/{descriptor['digest'].replace(':', '/')}"


def digest(data):
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


if __name__ == "__main__":
    main()
