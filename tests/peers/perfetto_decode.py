"""Decodes a gzip'd trace with Perfetto's published schema and prints it as JSON, a packet a line.

Fails when any message has a field the schema does not know, or a value of an enumeration it does not
know: a field number that is wrong is nearly always one of these.
"""

import gzip
import json
import sys

try:
    from google.protobuf import json_format, unknown_fields
    from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import Trace
except ImportError as missing:
    sys.exit(f"{missing}: run tests/peers/install")


def check(message, path):
    for field in unknown_fields.UnknownFieldSet(message):
        sys.exit(f"{path} has the field {field.field_number}, which the schema does not know")
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        values = value if field.is_repeated else [value]
        for at, inner in enumerate(values):
            check(inner, f"{path}.{field.name}[{at}]")


with gzip.open(sys.argv[1]) as file:
    trace = Trace.FromString(file.read())
check(trace, "trace")
for packet in trace.packet:
    print(json.dumps(json_format.MessageToDict(packet, preserving_proto_field_name=True)))
