//! marple beside dial9-tokio-telemetry on the workloads of `benches/trace`, both by tokio's hooks, in one
//! run: CPU time per operation over the same runtime with neither.
//!
//! `RUSTFLAGS="--cfg tokio_unstable" cargo run --release --manifest-path benches/peers/Cargo.toml --target-dir target`

#[path = "../../trace/workloads.rs"]
mod workloads;

use std::time::Duration;

use dial9_core::buffer::DiskBuffer;
use dial9_core::recorder::recorder;
use dial9_tokio_telemetry::telemetry::{Dial9HandleTokioExt, TokioAttachOptions};
use marple::base::Bytes;
use marple::instrument;
use marple::model::TraceMode;
use marple::trace::configure;
use workloads::{Spawn, WORKLOADS, Workload, builder, median};

const ROUNDS: usize = 9;
const WINDOW: Duration = Duration::from_secs(30);

/// What marple adds, over what dial9 adds; for the workloads that have such a goal.
const GOALS: [Option<f64>; 4] = [Some(0.15), Some(0.35), None, None];

fn main() {
    assert!(cfg!(tokio_unstable), "build with RUSTFLAGS=\"--cfg tokio_unstable\"");
    println!("{ROUNDS} rounds, CPU time over plain tokio, 2 workers, hooks");
    for (workload, goal) in WORKLOADS.iter().zip(GOALS) {
        let mut ratios = [(); 3].map(|()| Vec::new());
        for round in 0..=ROUNDS {
            let plain = plain(workload);
            let runs = [self::plain(workload), marple(workload), dial9(workload)];
            if round > 0 {
                for (ratios, nanos) in ratios.iter_mut().zip(runs) {
                    ratios.push(nanos / plain);
                }
            }
        }
        let [control, marple, dial9] = ratios.map(median);
        let name = workload.name;
        println!("{:44} {control:9.3}", format!("{name}: control over plain"));
        println!("{:44} {marple:9.3}", format!("{name}: marple"));
        println!("{:44} {dial9:9.3}", format!("{name}: dial9"));
        if let Some(goal) = goal {
            let share = (marple - 1.0) / (dial9 - 1.0);
            let verdict = if share <= goal { "pass" } else { "short" };
            println!("{:44} {share:9.3} {goal:9.2} {verdict}", format!("{name}: added, over dial9's"));
        }
    }
}

fn plain(workload: &Workload) -> f64 {
    workload.run(&builder().build().expect("a runtime"), Spawn::Plain)
}

fn marple(workload: &Workload) -> f64 {
    configure(TraceMode::Always, Bytes::mib(16), WINDOW);
    let runtime = instrument(&mut builder()).build().expect("a runtime");
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
