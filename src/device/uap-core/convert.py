"""Takes the patterns for browsers and systems out of uap-core's regexes.yaml: python3 convert.py regexes.yaml >regexes.json

Needs PyYAML. Those for device models are left out: they are half of all, and the name of a model is not told.
"""

import json
import sys

import yaml

with open(sys.argv[1], encoding="utf-8") as file:
    patterns = yaml.safe_load(file)
kinds = []
for kind in ["user_agent_parsers", "os_parsers"]:
    lines = ",\n".join(json.dumps(pattern, ensure_ascii=False) for pattern in patterns[kind])
    kinds.append(f'"{kind}": [\n{lines}\n]')
print("{" + ",\n".join(kinds + ['"device_parsers": []']) + "}")
