"""Writes an OCI image (image-spec 1.1) of static binaries: no daemon, no base image, no shell. Standard library and certifi.

The output is the layout as a tar archive, for `docker load`, `podman load` and `skopeo copy oci-archive:FILE`. Docker with its
classic image store reads manifest.json instead of the index: there each machine's image has a name of its own. The same binaries
and SOURCE_DATE_EPOCH give the same bytes.
"""

import argparse
import datetime
import gzip
import hashlib
import io
import json
import os
import pathlib
import tarfile

import certifi

# Without a name on the host. Kubernetes checks `runAsNonRoot` by this number.
UID = 65532
NANOSECONDS = 1_000_000_000
PLATFORMS = {"x86_64": "amd64", "aarch64": "arm64"}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--binary", action="append", required=True, metavar="ARCH=FILE")
    parser.add_argument("--version", required=True)
    parser.add_argument("--revision", default="")
    parser.add_argument("--output", required=True, type=pathlib.Path)
    args = parser.parse_args()
    epoch = int(os.environ.get("SOURCE_DATE_EPOCH", "0"))
    created = datetime.datetime.fromtimestamp(epoch, datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")

    layout = {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}'}
    labels = {
        "org.opencontainers.image.created": created,
        "org.opencontainers.image.description": "A session service over Postgres",
        "org.opencontainers.image.licenses": "Apache-2.0",
        "org.opencontainers.image.title": "sessiond",
        "org.opencontainers.image.version": args.version,
    }
    if args.revision:
        labels["org.opencontainers.image.revision"] = args.revision

    manifests, classic = [], []
    for binary in args.binary:
        arch, _, path = binary.partition("=")
        manifest = add_image(layout, PLATFORMS[arch], pathlib.Path(path).read_bytes(), labels, created, epoch)
        manifests.append(manifest | {"platform": {"architecture": PLATFORMS[arch], "os": "linux"}})
        parts = json.loads(layout[blob(manifest)])
        tag = args.version if not classic else f"{args.version}-{PLATFORMS[arch]}"
        layers = [blob(layer) for layer in parts["layers"]]
        classic.append({"Config": blob(parts["config"]), "RepoTags": [f"sessiond:{tag}"], "Layers": layers})
    index = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": manifests}
    # One name for the image of all machines: `skopeo copy` and `docker load` choose.
    named = add(layout, index["mediaType"], encode(index))
    named["annotations"] = {
        "io.containerd.image.name": f"docker.io/library/sessiond:{args.version}",
        "org.opencontainers.image.ref.name": args.version,
    }
    layout["index.json"] = encode({"schemaVersion": 2, "mediaType": index["mediaType"], "manifests": [named]})
    layout["manifest.json"] = encode(classic)
    args.output.write_bytes(archive({name: (0o644, data) for name, data in layout.items()}, epoch))


def add_image(layout, architecture, binary, labels, created, epoch):
    """Adds the layer, the configuration and the manifest of one machine; returns the manifest's descriptor."""
    files = {
        "etc/passwd": (0o644, f"sessiond:x:{UID}:{UID}:sessiond:/:/sbin/nologin\n".encode()),
        "etc/group": (0o644, f"sessiond:x:{UID}:\n".encode()),
        # For a database or a back-channel with a certificate of a public authority.
        "etc/ssl/certs/ca-certificates.crt": (0o644, pathlib.Path(certifi.where()).read_bytes()),
        "usr/bin/sessiond": (0o755, binary),
    }
    layer = archive(files, epoch)
    packed = add(layout, "application/vnd.oci.image.layer.v1.tar+gzip", gzip.compress(layer, 9, mtime=0))
    config = {
        "architecture": architecture,
        "os": "linux",
        "created": created,
        "config": {
            "User": f"{UID}:{UID}",
            "Entrypoint": ["/usr/bin/sessiond"],
            "Cmd": ["serve"],
            "Env": [
                "PATH=/usr/bin",
                # The container's own network: publish 8080 only.
                "SESSIOND_LISTEN=0.0.0.0:8080",
                "SESSIOND_METRICS_LISTEN=0.0.0.0:9464",
                "SESSIOND_LOG_FORMAT=json",
            ],
            "ExposedPorts": {"8080/tcp": {}, "9464/tcp": {}},
            "Labels": labels,
            "StopSignal": "SIGTERM",
            "WorkingDir": "/",
            # Not part of OCI: Docker and Compose use it, Kubernetes has probes of its own.
            "Healthcheck": {
                "Test": ["CMD", "/usr/bin/sessiond", "health"],
                "Interval": 10 * NANOSECONDS,
                "Timeout": 3 * NANOSECONDS,
                "StartPeriod": 10 * NANOSECONDS,
                "Retries": 3,
            },
        },
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
        "history": [{"created": created, "created_by": "deploy/build"}],
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": add(layout, "application/vnd.oci.image.config.v1+json", encode(config)),
        "layers": [packed],
        "annotations": labels,
    }
    return add(layout, manifest["mediaType"], encode(manifest))


def add(layout, media_type, data):
    """Adds a blob to the layout; returns its descriptor."""
    descriptor = {"mediaType": media_type, "digest": f"sha256:{hashlib.sha256(data).hexdigest()}", "size": len(data)}
    layout[blob(descriptor)] = data
    return descriptor


def blob(descriptor):
    """The path of a blob in the layout."""
    return f"blobs/{descriptor['digest'].replace(':', '/')}"


def encode(value):
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def archive(files, epoch):
    """A tar archive of these files and their directories, all owned by root."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as tar:
        directories = {str(parent) for name in files for parent in pathlib.PurePosixPath(name).parents} - {"."}
        for directory in sorted(directories):
            entry = tarfile.TarInfo(directory)
            entry.type, entry.mode, entry.mtime = tarfile.DIRTYPE, 0o755, epoch
            tar.addfile(entry)
        for name, (mode, data) in sorted(files.items()):
            entry = tarfile.TarInfo(name)
            entry.mode, entry.mtime, entry.size = mode, epoch, len(data)
            tar.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


if __name__ == "__main__":
    main()
