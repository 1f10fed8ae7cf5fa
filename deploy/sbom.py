"""Removes from an SBOM what is not in the binary: cargo-cyclonedx takes the features of tests and build scripts for the binary's,
and lists macros, which run in the compiler. Fails if a package of the binary is missing.

    sbom.py FILE
"""

import json
import subprocess
import sys

TREE = "cargo tree --locked --package sessiond --edges normal,no-proc-macro --target x86_64-unknown-linux-musl --prefix none --format {p}"


def in_binary():
    """The names and versions of the packages."""
    lines = subprocess.run(TREE.split(), check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    packages = {tuple(line.split(" ")[:2]) for line in lines if line}
    return {(name, version.removeprefix("v")) for name, version in packages if name != "sessiond"}


def package(component):
    return component["name"], component["version"]


def prune(bom, wanted):
    bom["components"] = [one for one in bom["components"] if package(one) in wanted]
    kept = {one["bom-ref"] for one in [*bom["components"], bom["metadata"]["component"]]}
    bom["dependencies"] = [
        {**one, "dependsOn": [ref for ref in one.get("dependsOn", []) if ref in kept]}
        for one in bom["dependencies"]
        if one["ref"] in kept
    ]


def problems(bom, wanted):
    if (bom["bomFormat"], bom["specVersion"]) != ("CycloneDX", "1.5"):
        yield f"it is {bom['bomFormat']} {bom['specVersion']}"
    listed = {package(one) for one in bom["components"]}
    yield from (f"it lacks {' '.join(one)}" for one in sorted(wanted - listed))
    for one in bom["components"]:
        if not one.get("purl") or not one.get("licenses"):
            yield f"{one['name']} has no purl or no license"


def main():
    [path] = sys.argv[1:]
    with open(path, encoding="utf-8") as file:
        bom = json.load(file)
    wanted = in_binary()
    prune(bom, wanted)
    found = list(problems(bom, wanted))
    if found:
        sys.exit(f"{path}: " + "\n".join(found))
    with open(path, "w", encoding="utf-8") as file:
        json.dump(bom, file, indent=2)
        file.write("\n")


if __name__ == "__main__":
    main()
