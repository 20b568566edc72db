"""Prints what Python's parsers find in an incident's manifest, strictly: no NaN, no duplicate key."""

import datetime
import json
import sys


def refuse(constant):
    sys.exit(f"{constant} is not JSON")


def unique(pairs):
    if len(dict(pairs)) != len(pairs):
        sys.exit(f"a key stands twice in {pairs}")
    return dict(pairs)


with open(sys.argv[1], encoding="utf-8") as file:
    manifest = json.load(file, parse_constant=refuse, object_pairs_hook=unique)

print(manifest["state"], datetime.datetime.fromisoformat(manifest["opened"]).isoformat())
for reason in manifest["reasons"]:
    print(reason["origin"], reason["metric"], reason["value"], reason["threshold"])
for capture in manifest["captures"]:
    print(capture["kind"], capture["outcome"], capture.get("error", ""))
    for loss in capture.get("losses", []):
        print("lost", loss["count"], loss["cause"])
for artifact in manifest["artifacts"]:
    print(artifact["file"], artifact["kind"], artifact["bytes"])
for row in manifest["vitals"]:
    for name in sorted(row.keys() - {"at"}):
        print(name, row[name])
