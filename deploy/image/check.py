"""Checks the image as a registry and a runtime would: every digest, what is in the layers, and who runs it."""

import gzip
import hashlib
import io
import json
import sys
import tarfile


def main():
    with tarfile.open(sys.argv[1]) as tar:
        files = {entry.name: tar.extractfile(entry).read() for entry in tar if entry.isfile()}
    assert json.loads(files["oci-layout"])["imageLayoutVersion"] == "1.0.0"

    def read(descriptor):
        data = files[f"blobs/{descriptor['digest'].replace(':', '/')}"]
        assert len(data) == descriptor["size"] and descriptor["digest"] == digest(data), descriptor
        return data

    (named,) = json.loads(files["index.json"])["manifests"]
    manifests = json.loads(read(named))["manifests"]
    for descriptor in manifests:
        manifest = json.loads(read(descriptor))
        config = json.loads(read(manifest["config"]))
        assert config["architecture"] == descriptor["platform"]["architecture"]
        (layer,) = manifest["layers"]
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
        print(f"image for {config['architecture']}: {len(layer)} bytes, user {user}")


def digest(data):
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


if __name__ == "__main__":
    main()
