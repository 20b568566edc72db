//! marple and dial9-tokio-telemetry on the workloads of `benches/trace`, both with tokio's hooks,
//! in one run: CPU time per operation, divided by that of the same runtime with neither.
//!
//! `benches/peers/run` runs it and the other peers. To run it alone: `RUSTFLAGS="--cfg
//! tokio_unstable" cargo run --release --manifest-path benches/peers/Cargo.toml --target-dir
//! target/peers-bench`

#[path = "../../trace/workloads.rs"]
mod workloads;

use std::time::Duration;

use dial9_core::buffer::DiskBuffer;
use dial9_core::recorder::recorder;
use dial9_tokio_telemetry::telemetry::{Dial9HandleTokioExt, TokioAttachOptions};
use marple::instrument_runtime;
use marple::internals::base::Bytes;
use marple::internals::model::TraceMode;
use marple::internals::trace::configure;
use workloads::{Spawn, WORKLOADS, Workload, builder, median};

const ROUNDS: usize = 9;
const WINDOW: Duration = Duration::from_secs(30);

/// By workload: goal for recording over plain, and goal for marple's overhead over dial9's, or
/// `None`.
const GOALS: [(f64, Option<f64>); 4] =
    [(1.10, Some(0.15)), (1.18, Some(0.35)), (1.02, None), (1.02, None)];

fn main() {
    assert!(cfg!(tokio_unstable), "build with RUSTFLAGS=\"--cfg tokio_unstable\"");
    let rounds = if std::env::args().any(|arg| arg == "--quick") { ROUNDS / 3 } else { ROUNDS };
    println!("{rounds} rounds, CPU time over plain tokio, 2 workers, hooks");
    for (workload, (recording_goal, overhead_goal)) in WORKLOADS.iter().zip(GOALS) {
        let mut ratios = [(); 3].map(|()| Vec::new());
        for round in 0..=rounds {
            let base = plain(workload);
            let runs = [plain(workload), marple(workload), dial9(workload)];
            if round > 0 {
                for (ratios, nanos) in ratios.iter_mut().zip(runs) {
                    ratios.push(nanos / base);
                }
            }
        }
        let [control, marple, dial9] = ratios.map(median);
        let name = workload.name;
        println!("{:44} {control:9.3}", format!("{name}: control over plain"));
        row(&format!("{name}: marple"), marple, recording_goal);
        println!("{:44} {dial9:9.3}", format!("{name}: dial9"));
        if let Some(goal) = overhead_goal {
            let ratio = (marple - 1.0) / (dial9 - 1.0);
            row(&format!("{name}: overhead, marple over dial9"), ratio, goal);
        }
    }
}

fn row(name: &str, value: f64, goal: f64) {
    let verdict = if value <= goal { "pass" } else { "short" };
    println!("{name:44} {value:9.3} {goal:9.2} {verdict}");
}

fn plain(workload: &Workload) -> f64 {
    workload.run(&builder().build().expect("a runtime"), Spawn::Plain)
}

fn marple(workload: &Workload) -> f64 {
    configure(TraceMode::Always, Bytes::mib(16), WINDOW);
    let runtime = instrument_runtime(&mut builder()).build().expect("a runtime");
    let nanos = workload.run(&runtime, Spawn::Plain);
    configure(TraceMode::OnDemand, Bytes::mib(16), WINDOW);
    nanos
}

fn dial9(workload: &Workload) -> f64 {
    let dir = tempfile::tempdir().expect("a directory");
    let disk = DiskBuffer::single_file(dir.path().join("trace.bin")).expect("a file");
    let recorder = recorder(disk).build();
    let runtime = recorder
        .handle()
        .attach_tokio_runtime(builder(), TokioAttachOptions::builder().build())
        .expect("a runtime");
    let nanos = workload.run(&runtime, Spawn::Plain);
    drop(runtime);
    recorder.graceful_shutdown(Duration::from_secs(5));
    nanos
}
