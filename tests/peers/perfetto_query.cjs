#!/usr/bin/env node
// Asks Perfetto's trace_processor about a trace, offline.
//
//     node perfetto_query.cjs ENGINE_DIR TRACE SQL...
//
// prints, as JSON, for each SQL a list of rows, each a list of texts. ENGINE_DIR is where
// engine_bundle.js and its .wasm files lie. The bundle is made for a web worker of the browser, so this
// gives it what it looks for there: a message port, and requests that read files of that directory.
// What goes over the port is protobuf (TraceProcessorRpcStream), of which the few fields needed are
// written and read by hand below.
'use strict';
const fs = require('fs');
const path = require('path');

const [, , engineDir, tracePath, ...queries] = process.argv;

function fail(why) {
  process.stderr.write(`${why && why.stack ? why.stack : why}\n`.slice(0, 3000));
  process.exit(2);
}
process.on('uncaughtException', fail);

const varint = (value) => {
  const bytes = [];
  let rest = BigInt(value);
  for (; rest > 127n; rest >>= 7n) bytes.push(Number(rest & 127n) | 128);
  bytes.push(Number(rest));
  return Buffer.from(bytes);
};
const numberField = (field, value) => Buffer.concat([varint(field << 3), varint(value)]);
const bytesField = (field, bytes) =>
  Buffer.concat([varint((field << 3) | 2), varint(bytes.length), bytes]);

class Reader {
  constructor(bytes) {
    this.bytes = bytes;
    this.at = 0;
  }

  varint() {
    let value = 0n;
    for (let shift = 0n; ; shift += 7n) {
      const byte = this.bytes[this.at++];
      value |= BigInt(byte & 127) << shift;
      if (byte < 128) return value;
    }
  }

  take(length) {
    this.at += length;
    return this.bytes.subarray(this.at - length, this.at);
  }

  *varints() {
    while (this.at < this.bytes.length) yield BigInt.asIntN(64, this.varint());
  }

  *fields() {
    while (this.at < this.bytes.length) {
      const key = Number(this.varint());
      const value = {
        0: () => this.varint(),
        1: () => this.take(8),
        2: () => this.take(Number(this.varint())),
        5: () => this.take(4),
      }[key & 7]();
      yield [key >>> 3, value];
    }
  }
}
const fields = (bytes) => new Reader(bytes).fields();

/// Starts the engine; the result sends a request and gives the replies to it.
async function start() {
  const replies = [];
  const port = { onmessage: null, postMessage: (bytes) => replies.push(Buffer.from(bytes)) };
  const read = (url) => {
    const bytes = fs.readFileSync(path.join(engineDir, path.basename(url)));
    return bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length);
  };
  class Request {
    open(_method, url) {
      this.url = url;
    }

    setRequestHeader() {}

    send() {
      this.response = read(this.url);
      this.status = 200;
      if (this.onload) this.onload();
    }
  }
  const fetched = async (url) => ({ ok: true, status: 200, arrayBuffer: async () => read(url) });
  const location = { href: 'http://localhost/' };
  const worker = { location, importScripts() {}, navigator: {}, addEventListener() {} };
  const quiet = { log() {}, warn() {}, error: console.error };
  const bundle = fs.readFileSync(path.join(engineDir, 'engine_bundle.js'), 'utf8');
  // In this realm on purpose: the runtime tests exceptions by instanceof. Node's globals are hidden.
  new Function(
    'self', 'importScripts', 'WorkerGlobalScope', 'XMLHttpRequest', 'fetch', 'location',
    'process', 'require', 'console', 'navigator', 'window', 'document', bundle,
  )(
    worker, () => {}, function () {}, Request, fetched, location,
    undefined, undefined, quiet, {}, undefined, undefined,
  );
  worker.onmessage({ data: port });
  while (!port.onmessage) await new Promise((resolve) => setTimeout(resolve, 1));

  let sequence = 0;
  return async (method, body = Buffer.alloc(0)) => {
    const request = Buffer.concat([numberField(1, sequence++), numberField(2, method), body]);
    replies.length = 0;
    await port.onmessage({ data: new Uint8Array(bytesField(1, request)) });
    while (replies.length === 0) await new Promise((resolve) => setTimeout(resolve, 1));
    const answers = [];
    for (const [field, value] of fields(Buffer.concat(replies))) {
      if (field !== 1) continue;
      for (const [inner, text] of fields(value)) {
        if (inner === 5) throw new Error(`trace_processor: ${text}`);
        answers.push([inner, text]);
      }
    }
    return answers;
  };
}

const APPEND = 1;
const FINISH = 2;
const QUERY = 3;

function* cellsOf(batch) {
  let kinds = [];
  let numbers = [];
  let texts = [];
  const floats = [];
  const blobs = [];
  for (const [field, value] of fields(batch)) {
    if (field === 1) kinds = [...value];
    if (field === 2) numbers = typeof value === 'bigint' ? [value] : [...new Reader(value).varints()];
    if (field === 3) for (let at = 0; at < value.length; at += 8) floats.push(value.readDoubleLE(at));
    if (field === 4) blobs.push(value.toString('hex'));
    if (field === 5) texts = value.toString().split('\0');
  }
  for (const kind of kinds) {
    yield { 1: () => 'NULL', 2: () => numbers.shift(), 3: () => floats.shift(),
      4: () => texts.shift(), 5: () => blobs.shift() }[kind]();
  }
}

async function main() {
  const send = await start();
  const trace = fs.readFileSync(tracePath);
  const chunk = 16 << 20;
  for (let at = 0; at < trace.length; at += chunk) {
    const answers = await send(APPEND, bytesField(101, trace.subarray(at, at + chunk)));
    for (const [field, value] of answers) {
      if (field !== 201) continue;
      for (const [inner, text] of fields(value)) {
        if (inner === 2) throw new Error(`trace_processor cannot parse: ${text}`);
      }
    }
  }
  await send(FINISH);

  const results = [];
  for (const query of queries) {
    const answers = await send(QUERY, bytesField(103, bytesField(1, Buffer.from(query))));
    let columns = 0;
    const cells = [];
    for (const [field, result] of answers) {
      if (field !== 203) continue;
      for (const [inner, value] of fields(result)) {
        if (inner === 1) columns += 1;
        if (inner === 2) throw new Error(`${query}: ${value}`);
        if (inner === 3) cells.push(...[...cellsOf(value)].map(String));
      }
    }
    const rows = [];
    for (let at = 0; at < cells.length; at += columns) rows.push(cells.slice(at, at + columns));
    results.push(rows);
  }
  process.stdout.write(JSON.stringify(results), () => process.exit(0));
}
main().catch(fail);
