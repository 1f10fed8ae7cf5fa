"""Holds an SBOM against what cargo compiles into the binary.

    sbom.py prune FILE    removes what cargo-cyclonedx lists besides: it takes the features of tests and build scripts for ours
    sbom.py check FILE    fails unless it lists every package of the binary, and nothing else
"""

import json
import subprocess
import sys

TREE = "cargo tree --locked --package sessiond --edges normal --target x86_64-unknown-linux-musl --prefix none --format {p}"


def in_binary():
    """The names and versions of the packages."""
    lines = subprocess.run(TREE.split(), check=True, capture_output=True, text=True).stdout.splitlines()
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
    yield from (f"it lists {' '.join(one)}, which is not in the binary" for one in sorted(listed - wanted))
    for one in bom["components"]:
        if not one.get("purl") or not one.get("licenses"):
            yield f"{one['name']} has no purl or no license"
    refs = {one["bom-ref"] for one in bom["components"]}
    yield from (f"it depends on {ref}, and lists it not" for one in bom["dependencies"] for ref in one.get("dependsOn", []) if ref not in refs)


def main():
    what, path = sys.argv[1:]
    with open(path, encoding="utf-8") as file:
        bom = json.load(file)
    wanted = in_binary()
    if what == "prune":
        prune(bom, wanted)
        with open(path, "w", encoding="utf-8") as file:
            json.dump(bom, file, indent=2)
            file.write("\n")
        return
    found = list(problems(bom, wanted))
    if found:
        sys.exit(f"{path}: " + "\n".join(found))
    print(f"{path}: {len(wanted)} packages, as in the binary")


if __name__ == "__main__":
    main()
