"""Checks that the Helm chart makes the same objects as the Kustomize base and its migration. Their labels and images may differ, and
so may how a container gets its settings, but not which.

    compare.py CHART BASE MIGRATION
"""

import difflib
import sys

import yaml

# Each names its objects in its own way.
OWN = {"annotations", "app.kubernetes.io/instance", "image", "labels", "matchLabels", "namespace"}

# The base has an example of a setting.
EXAMPLES = {"SESSIOND_ISSUER"}


def objects(*files):
    found = [one for file in files for one in yaml.safe_load_all(open(file)) if one]
    settings = {one["metadata"]["name"]: one["data"] for one in found if one["kind"] == "ConfigMap"}

    def comparable(part):
        if isinstance(part, list):
            return [comparable(one) for one in part]
        if not isinstance(part, dict):
            return part
        kept = {key: comparable(value) for key, value in part.items() if key not in OWN | {"env", "envFrom"}}
        if "args" in part:
            names = {one["name"] for one in part.get("env", [])}
            names.update(*(settings[one["configMapRef"]["name"]] for one in part.get("envFrom", [])))
            kept["settings"] = sorted(names - EXAMPLES)
        return kept

    kinds = sorted((one for one in found if one["kind"] != "ConfigMap"), key=lambda one: (one["kind"], one["metadata"]["name"]))
    return yaml.safe_dump_all(map(comparable, kinds)).splitlines()


def main():
    chart, *base = sys.argv[1:]
    names = {"fromfile": "the base", "tofile": "the chart", "lineterm": ""}
    different = list(difflib.unified_diff(objects(*base), objects(chart), **names))
    if different:
        sys.exit("\n".join(["The chart differs from the base:", *different]))


main()
