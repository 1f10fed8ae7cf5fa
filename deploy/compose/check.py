"""Checks compose.yaml for what Compose would refuse or miss only when it starts the containers.

    check.py compose.yaml
"""

import pathlib
import sys

import yaml

path = pathlib.Path(sys.argv[1])
composition = yaml.safe_load(path.read_text())
services = composition["services"]
for name, service in services.items():
    for kind in ("configs", "secrets"):
        for used in service.get(kind, []):
            source = used if isinstance(used, str) else used["source"]
            definition = composition[kind][source]
            # Compose copies contents and variables into the container, which fails if its root file system is read-only.
            assert "file" in definition or not service.get("read_only"), f"{name}: {source} must be a file"
            assert (path.parent / definition["file"]).is_file(), f"{name}: {definition['file']} is not there"
    for volume in service.get("volumes", []):
        source = volume.split(":")[0]
        assert (path.parent / source).exists() or source in composition["volumes"], f"{name}: {source} is not there"
    for port in service.get("ports", []):
        assert port.startswith("127.0.0.1:"), f"{name}: {port} is open to the network"
    for needed, condition in service.get("depends_on", {}).items():
        if condition["condition"] == "service_healthy":
            # sessiond's image has a health check of its own.
            assert "healthcheck" in services[needed] or services[needed]["image"].startswith("sessiond:"), f"{needed}: no health check"
    network = service.get("network_mode", "service:sessiond").removeprefix("service:")
    assert network in services, f"{name}: {network} is no service"
print(f"{path}: {len(services)} services")
