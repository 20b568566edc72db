#!/usr/bin/env python3
"""Compares the public items of the crate with tests/public_api.txt: python3 tests/public_api.py [--write]

Lists every public item that a service can name, one path a line, from rustdoc's JSON (nightly). An item that
appears or disappears is an error until the list is written again with --write, in the same commit.
"""
import json, os, subprocess, sys

root = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
target = os.path.join(root, "target", "public-api")
command = ["cargo", "+nightly", "rustdoc", "--quiet", "--lib", "--target-dir", target,
           "--features", "cpu,heap,trace,http,jemalloc,pprof,cli", "--", "-Z", "unstable-options", "--output-format", "json"]
if subprocess.run(command, cwd=root).returncode:
    sys.exit("rustdoc failed")
crate = json.load(open(os.path.join(target, "doc", "marple.json")))
index = crate["index"]
items = set()

def name_of(item):
    return item["name"]

def walk(id, path, seen):
    item = index.get(str(id))
    if item is None or str(id) in seen:
        return
    kind, inner = next(iter(item["inner"].items()))
    if kind == "use":
        if inner.get("is_glob"):
            for child in children(index.get(str(inner["id"]))):
                walk(child, path, seen)
        elif inner["id"] is not None:
            add(inner["id"], path + [inner["name"]], seen)
        return
    add(id, path + [name_of(item)] if item["name"] else path, seen)

def children(item):
    kind, inner = next(iter(item["inner"].items())) if item else (None, {})
    return inner.get("items", []) if kind == "module" else []

def add(id, path, seen):
    item = index.get(str(id))
    if item is None:
        return
    kind, inner = next(iter(item["inner"].items()))
    items.add(f"{kind} {'::'.join(path)}")
    if kind == "module":
        for child in inner["items"]:
            walk(child, path, seen | {str(id)})
    if kind in ("struct", "enum", "union"):
        for impl in inner.get("impls", []):
            block = index.get(str(impl))
            body = block["inner"]["impl"] if block else None
            if body and body["trait"] is None:
                for member in body["items"]:
                    member = index.get(str(member))
                    if member and member["visibility"] == "public":
                        items.add(f"method {'::'.join(path + [member['name']])}")
    if kind == "struct" and isinstance(inner["kind"], dict) and "plain" in inner["kind"]:
        for field in inner["kind"]["plain"]["fields"]:
            field = index.get(str(field))
            if field and field["visibility"] == "public":
                items.add(f"field {'::'.join(path + [field['name']])}")
    if kind == "enum":
        for variant in inner["variants"]:
            variant = index.get(str(variant))
            if variant:
                items.add(f"variant {'::'.join(path + [variant['name']])}")
    if kind == "trait":
        for member in inner["items"]:
            member = index.get(str(member))
            if member:
                items.add(f"member {'::'.join(path + [member['name']])}")

add(crate["root"], ["marple"], frozenset())
found = sorted(items, key=lambda item: item.split(" ", 1)[::-1])
golden = os.path.join(root, "tests", "public_api.txt")
if "--write" in sys.argv:
    open(golden, "w").write("\n".join(found) + "\n")
    sys.exit(f"{len(found)} items written")
known = open(golden).read().split("\n")[:-1]
fresh, gone = sorted(set(found) - set(known)), sorted(set(known) - set(found))
for item in fresh:
    print(f"new and not in tests/public_api.txt: {item}")
for item in gone:
    print(f"in tests/public_api.txt and gone: {item}")
print(f"{len(found)} public items")
sys.exit(1 if fresh or gone else 0)
