//! CPU samples of an incident: in its trace on the right threads, and in its profiles labelled with
//! task and span.

use std::collections::BTreeSet;
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use marple::config::CpuSettings;
use marple::internals::base::Hertz;
use marple::internals::codec::pprof;
use marple::internals::model::{CpuEngine, Manifest};
use marple::task::Trace as _;
use marple::{CaptureKind, CaptureSet};
use rustix::time::{ClockId, clock_gettime};
use tokio::runtime::Runtime;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::prelude::*;

use crate::support::cpu_load;
use crate::support::host::{Host, WAIT_TIMEOUT, settings, wait_for};
use crate::support::peers;

const STATS: &str =
    "select name, value from stats where value > 0 and severity in ('error', 'data_loss')";

/// An SQL expression for the samples with a given function anywhere on the stack.
const SAMPLES_BELOW: &str = "with recursive
    up(sample, ts, utid, frame, parent) as (
        select p.id, p.ts, p.utid, c.frame_id, c.parent_id from perf_sample p
        join stack_profile_callsite c on p.callsite_id = c.id
        union all
        select sample, ts, utid, c.frame_id, c.parent_id from up
        join stack_profile_callsite c on up.parent = c.id
    ),
    swept as (
        select distinct sample, ts, utid from up join stack_profile_frame f on up.frame = f.id
        where f.name glob '*burn_in_sweep'
    )";

/// CPU time used by the sweeper, in nanoseconds.
static SWEEPER_CPU_NANOS: AtomicU64 = AtomicU64::new(0);

fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Burns CPU time at the same cost in every caller. `odd` keeps the compiler from merging two
/// callers.
#[inline(always)]
fn burn(odd: u64, time: Duration) -> Duration {
    let before = cpu_time();
    while cpu_time() < before + time {
        for n in 0..1000u64 {
            black_box(n.wrapping_mul(n | odd).rotate_left(7));
        }
    }
    cpu_time() - before
}

#[inline(never)]
fn burn_in_sweep(time: Duration) {
    SWEEPER_CPU_NANOS.fetch_add(burn(1, time).as_nanos() as u64, Ordering::Relaxed);
}

#[inline(never)]
fn burn_in_polish(time: Duration) {
    black_box(burn(3, time));
}

const POLL: Duration = Duration::from_millis(2);

/// Burns in polls of 2 ms, each within a span, and collects the ids of the threads it runs on.
async fn sweep(stop: Arc<AtomicBool>, threads: Arc<Mutex<BTreeSet<u32>>>) {
    while !stop.load(Ordering::Relaxed) {
        let tid = rustix::thread::gettid().as_raw_nonzero().get() as u32;
        threads.lock().unwrap().insert(tid);
        tracing::info_span!("brush").in_scope(|| burn_in_sweep(POLL));
        tokio::task::yield_now().await;
    }
}

/// Burns like [`sweep`] under another name and span. A sample with a wrong timestamp is attributed
/// to this task instead.
async fn polish(stop: Arc<AtomicBool>) {
    while !stop.load(Ordering::Relaxed) {
        tracing::info_span!("buff").in_scope(|| burn_in_polish(POLL));
        tokio::task::yield_now().await;
    }
}

/// Two tasks, `sweeper` and `polisher`, that burn alternately on one worker until this value is
/// dropped.
struct Sweeper {
    runtime: Option<Runtime>,
    stop: Arc<AtomicBool>,
    threads: Arc<Mutex<BTreeSet<u32>>>,
}

impl Sweeper {
    fn start() -> Self {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        marple::instrument_runtime(builder.worker_threads(1));
        let runtime = builder.enable_all().build().unwrap();
        let (stop, threads): (Arc<AtomicBool>, Arc<_>) = (Arc::default(), Arc::default());
        runtime.spawn(sweep(Arc::clone(&stop), Arc::clone(&threads)).traced("sweeper"));
        runtime.spawn(polish(Arc::clone(&stop)).traced("polisher"));
        Self { runtime: Some(runtime), stop, threads }
    }

    /// Waits until the sweeper has used `time` more CPU time.
    fn wait(&self, time: Duration) {
        let before = SWEEPER_CPU_NANOS.load(Ordering::Relaxed);
        wait_for("the sweeper to burn", || {
            let swept = SWEEPER_CPU_NANOS.load(Ordering::Relaxed) - before;
            (swept >= time.as_nanos() as u64).then_some(())
        });
    }

    fn tids(&self) -> Vec<String> {
        self.threads.lock().unwrap().iter().map(u32::to_string).collect()
    }
}

impl Drop for Sweeper {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.runtime.take();
    }
}

/// Runs an agent with this engine and returns its one incident of `kinds`. The sweeper burns before
/// and during it.
fn incident(engine: CpuEngine, sweeper: &Sweeper, kinds: CaptureSet) -> (Host, PathBuf, Manifest) {
    let cpu = CpuSettings {
        engine,
        frequency_hz: Hertz(200),
        lookback_frequency_hz: Hertz(99),
        ..CpuSettings::default()
    };
    let host = Host::start(marple::Settings { cpu, ..settings() });
    sweeper.wait(Duration::from_millis(600));
    host.handle().start_capture(kinds).wait(WAIT_TIMEOUT).unwrap();
    wait_for("the captures to run", || {
        let (_, manifest) = host.incidents().pop()?;
        (manifest.captures.len() == kinds.iter().count()).then_some(())
    });
    sweeper.wait(Duration::from_millis(600));
    host.handle().stop_capture().wait(WAIT_TIMEOUT).unwrap();
    let (dir, manifest) = host.wait_for_closed(1).remove(0);
    (host, dir, manifest)
}

fn artifacts_of_kind(kind: CaptureKind, dir: &Path, manifest: &Manifest) -> Vec<PathBuf> {
    let of_kind = manifest.artifacts.iter().filter(|artifact| artifact.kind == kind);
    of_kind.map(|artifact| dir.join(&artifact.file)).collect()
}

/// Returns the number of samples in a profile.
fn sample_count(file: &Path) -> i64 {
    let profile = pprof::read(&std::fs::read(file).unwrap()).unwrap();
    profile.sample.iter().map(|sample| sample.value[0]).sum()
}

/// Returns the percentage of the time of `burn_in_sweep` with this label, as Go's pprof computes
/// it.
fn label_percentage(file: &Path, label: &str, value: &str) -> f64 {
    let file = file.to_str().unwrap();
    let time = |args: &[&str]| {
        let all =
            [&["-top", "-unit=ns", "-nodefraction=0", "-focus=burn_in_sweep$"], args, &[file]];
        let top = peers::go_pprof(&all.concat());
        let line = top.lines().find(|line| line.ends_with("burn_in_sweep"));
        line.map_or(0.0, |line| {
            let cumulative = line.split_whitespace().nth(3).unwrap();
            cumulative.trim_end_matches("ns").parse::<f64>().unwrap()
        })
    };
    100.0 * time(&[&format!("-tagfocus={label}=^{value}$")]) / time(&[])
}

#[test]
fn cpu_samples_are_on_trace_thread_and_labelled_with_task() {
    let _serial = cpu_load::serial_guard();
    tracing_subscriber::registry().with(LevelFilter::INFO).with(marple::trace::layer()).init();
    for engine in cpu_load::engines() {
        let sweeper = Sweeper::start();
        let kinds = [CaptureKind::Trace, CaptureKind::Threads, CaptureKind::Cpu];
        let (host, dir, manifest) = incident(engine, &sweeper, kinds.into());
        let profiles = artifacts_of_kind(CaptureKind::Cpu, &dir, &manifest);
        let [before, during] = &profiles[..] else { panic!("{profiles:?}") };

        let tags = peers::go_pprof(&["-tags", during.to_str().unwrap()]);
        assert!(tags.contains("sweeper") && tags.contains("brush"), "{engine}: {tags}");
        for (file, label, value) in
            [(during, "task", "sweeper"), (during, "span", "brush"), (before, "task", "sweeper")]
        {
            let share = label_percentage(file, label, value);
            println!("{engine}: {label}={value} on {share:.1} % of {}", file.display());
            assert!(share > 90.0, "{engine}: {label}={value} on {share:.1} %, {tags}");
        }

        let [trace] = &artifacts_of_kind(CaptureKind::Trace, &dir, &manifest)[..] else {
            panic!("one trace")
        };
        let results = peers::perfetto_query(
            trace,
            &[
                STATS,
                "select count(*) from perf_sample",
                &format!(
                    "{SAMPLES_BELOW} select distinct t.tid from swept join thread t using (utid)"
                ),
                &format!("{SAMPLES_BELOW} select count(*) from swept"),
                &format!(
                    "{SAMPLES_BELOW} select count(distinct sample) from swept w
                     join thread_track tt on w.utid = tt.utid join slice s on s.track_id = tt.id
                     where s.name = 'sweeper' and w.ts >= s.ts
                     and (s.dur = -1 or w.ts < s.ts + s.dur)"
                ),
                "select count(*) > 3 from slice where name = 'thread stack'",
                "select count(*) from perf_sample join thread using (utid) where name is null",
            ],
        );
        let number = |result: usize| results[result][0][0].parse::<i64>().unwrap();
        assert_eq!(results[0], Vec::<Vec<String>>::new(), "{engine}");
        assert_eq!(number(1), sample_count(before) + sample_count(during), "{engine}");
        let tids = sweeper.tids();
        assert!(results[2].iter().flatten().all(|tid| tids.contains(tid)), "{results:?}, {tids:?}");
        let (swept, in_polls) = (number(3), number(4));
        println!(
            "{engine}: {} samples, {swept} of the sweeper, {in_polls} in its polls",
            number(1)
        );
        assert!(swept > 60, "{engine}: {swept} samples");
        assert!(in_polls * 10 > swept * 9, "{engine}: {in_polls} of {swept} within its polls");
        assert_eq!((number(5), number(6)), (1, 0), "{engine}");

        let packets = peers::python("perfetto_decode.py", &[trace.to_str().unwrap()]);
        let sample_packets =
            packets.lines().filter(|packet| packet.contains("\"perf_sample\"")).count();
        assert_eq!(sample_packets as i64, number(1));
        drop(host);
    }
}

#[test]
fn profile_or_trace_alone_has_no_task_labels_or_samples() {
    let _serial = cpu_load::serial_guard();
    let sweeper = Sweeper::start();
    let (host, dir, manifest) = incident(CpuEngine::Auto, &sweeper, [CaptureKind::Cpu].into());
    for file in artifacts_of_kind(CaptureKind::Cpu, &dir, &manifest) {
        let tags = peers::go_pprof(&["-tags", file.to_str().unwrap()]);
        assert!(tags.contains("thread:") && !tags.contains("task:"), "{tags}");
    }
    drop(host);
    let (_host, dir, manifest) = incident(CpuEngine::Auto, &sweeper, [CaptureKind::Trace].into());
    let [trace] = &artifacts_of_kind(CaptureKind::Trace, &dir, &manifest)[..] else {
        panic!("one trace")
    };
    let results = peers::perfetto_query(
        trace,
        &[
            STATS,
            "select count(*) from perf_sample",
            "select count(*) > 9 from slice where name = 'sweeper'",
        ],
    );
    assert_eq!(results, [vec![], vec![vec!["0".to_owned()]], vec![vec!["1".to_owned()]]]);
}
