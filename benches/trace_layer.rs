//! Cost of the `tracing` layer per operation, as ratios to the registry without it: installed but
//! off, recording, and recording with a full buffer. Rounds are interleaved and medians are shown.
//!
//! `cargo bench --bench trace_layer`

use std::hint::black_box;
use std::time::Instant;

use marple::internals::base::{Bytes, Clock, SystemClock};
use marple::internals::trace::TraceSession;
use marple::trace::layer;
use tracing::subscriber::with_default;
use tracing::{Span, info, info_span};
use tracing_subscriber::prelude::*;

const ROUNDS: usize = 15;
const CALLS: u32 = 20_000;

type Operation = fn(&Span);

/// Returns nanoseconds per call.
fn nanos_per_call(operation: Operation) -> f64 {
    let span = info_span!("existing", id = 7);
    let start = Instant::now();
    for _ in 0..CALLS {
        operation(black_box(&span));
    }
    start.elapsed().as_nanos() as f64 / f64::from(CALLS)
}

fn time_while_recording(max_bytes: Bytes, operation: Operation) -> f64 {
    let session = TraceSession::start(max_bytes, SystemClock.anchor()).expect("no session runs");
    let nanos = nanos_per_call(operation);
    drop(session);
    nanos
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    let operations: [(&str, Operation); 3] = [
        ("enter and exit a span", |span| span.in_scope(|| ())),
        ("create, enter, exit and close a span", |_| {
            info_span!("request", id = black_box(7), path = "/orders").in_scope(|| ());
        }),
        ("event", |_| info!(status = black_box(200), "answered")),
    ];
    println!("{:36} {:>9} {:>7} {:>11} {:>7}", "", "no layer", "off", "recording", "full");
    for (name, operation) in operations {
        let mut columns: [Vec<f64>; 4] = Default::default();
        for _ in 0..ROUNDS {
            let plain = with_default(tracing_subscriber::registry(), || nanos_per_call(operation));
            let [off, on, full] =
                with_default(tracing_subscriber::registry().with(layer()), || {
                    [
                        nanos_per_call(operation),
                        time_while_recording(Bytes::gib(1), operation),
                        time_while_recording(Bytes::kib(64), operation),
                    ]
                });
            for (column, nanos) in columns.iter_mut().zip([plain, off, on, full]) {
                column.push(nanos);
            }
        }
        let [plain, off, on, full] = columns.map(median);
        let ratio = |nanos: f64| nanos / plain;
        println!(
            "{name:36} {plain:6.0} ns {:7.2} {:11.2} {:7.2}   (+{:.0}, +{:.0}, +{:.0} ns)",
            ratio(off),
            ratio(on),
            ratio(full),
            off - plain,
            on - plain,
            full - plain,
        );
    }
}
