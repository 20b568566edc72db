//! The look-back profile has the samples from before a capture, and the session those from after.

use std::fs;
use std::hint::black_box;
use std::thread;
use std::time::Duration;

use marple::CaptureKind;
use marple::config::CpuSettings;
use marple::internals::base::{Clock, Hertz, SystemClock};
use marple::internals::codec::pprof;
use marple::internals::cpu::options::Options;
use marple::internals::cpu::{CpuSession, Lookback};
use marple::internals::model::{CpuEngine, Profile};
use marple::internals::symbols;
use rustix::time::ClockId;

use crate::support::cpu_load::{
    self, burn, burn_fifty, burn_thirty, cpu_time, engines, stated_periods, sums_below,
};
use crate::support::host::{self, Host, settings, wait_for};

/// Runs `function` for 500 ms of CPU time on a thread called `burner`.
fn burn_in(function: fn(Duration) -> u64) {
    let burner =
        move || black_box(function(cpu_time(ClockId::ThreadCPUTime) + Duration::from_millis(500)));
    thread::Builder::new().name("burner".into()).spawn(burner).unwrap().join().unwrap();
}

/// Returns the samples in `burn_fifty` and in `burn_thirty`.
fn samples_by_function(mut profile: Profile) -> [i64; 2] {
    symbols::symbolize(&mut profile);
    sums_below(&profile, "burner", ["::burn_fifty", "::burn_thirty"], 0)
}

#[test]
fn lookback_and_session_samples_are_separate() {
    let _serial = cpu_load::serial_guard();
    for engine in engines() {
        let options = Options { engine, lookback_frequency: Hertz(99), ..Options::default() };
        let lookback = Lookback::start(&options).unwrap().expect("a look-back");
        assert!(lookback.engine().starts_with(engine.name()), "{}", lookback.engine());
        for round in 0..2 {
            burn_in(burn_fifty);
            let mut session =
                CpuSession::start_with_options(&options, SystemClock.anchor()).unwrap();
            let before = session.take_lookback().expect("half a second of samples");
            assert!(session.take_lookback().is_none());
            burn_in(burn_thirty);
            let during = session.stop(SystemClock.now()).unwrap();
            // Losses that the look-back reports may not include the time of the session.
            for profile in [&before, &during] {
                let (expected, got, _) = stated_periods(profile);
                assert!(got * 10 >= expected * 8, "{engine} {round}: {:?}", profile.comments);
            }
            assert!(before.started < during.started);
            let ([fifty, none], [nothing, thirty]) =
                (samples_by_function(before), samples_by_function(during));
            assert!(fifty > 20 && none == 0, "{engine} {round}: {fifty} {none}");
            assert!(thirty > 20 && nothing == 0, "{engine} {round}: {thirty} {nothing}");
        }
        drop(lookback);
        let mut alone = CpuSession::start_with_options(&options, SystemClock.anchor()).unwrap();
        assert!(alone.take_lookback().is_none(), "there is no window");
    }
}

#[test]
fn incident_has_lookback_profile() {
    let _serial = cpu_load::serial_guard();
    let cpu = CpuSettings { lookback_frequency_hz: Hertz(99), ..CpuSettings::default() };
    let host = Host::start(marple::Settings { cpu, ..settings() });
    let status = host.handle().status().wait(host::WAIT_TIMEOUT).unwrap();
    assert!(
        status.cpu.starts_with("perf: ") || status.cpu.starts_with("timer: "),
        "{}",
        status.cpu
    );
    burn(Duration::from_millis(300));
    let pending_capture = host.handle().capture([CaptureKind::Cpu], Duration::from_millis(200));
    pending_capture.wait(host::WAIT_TIMEOUT).unwrap();
    let (dir, manifest) = host.wait_for_closed(1).remove(0);
    assert_eq!(manifest.captures[0].engine, status.cpu);
    let phases: Vec<_> = manifest.artifacts.iter().map(|a| a.phase.as_deref()).collect();
    assert_eq!(phases, [Some("lookback"), None]);
    assert!(manifest.artifacts[0].taken < manifest.artifacts[1].taken);
    for (artifact, expected) in
        manifest.artifacts.iter().zip(["s before the capture", "during the capture"])
    {
        assert_eq!(artifact.kind, CaptureKind::Cpu);
        let read = pprof::read(&fs::read(dir.join(&artifact.file)).unwrap()).unwrap();
        let text = format!("{read:?}");
        assert!(text.contains(expected), "{expected}");
    }
}

#[test]
fn without_lookback_there_is_one_profile() {
    let _serial = cpu_load::serial_guard();
    let cpu = CpuSettings { lookback_frequency_hz: Hertz(0), ..CpuSettings::default() };
    let host = Host::start(marple::Settings { cpu, ..settings() });
    let status = || host.handle().status().wait(host::WAIT_TIMEOUT).unwrap();
    assert!(status().cpu.contains("no look-back"), "{}", status().cpu);
    wait_for("no thread of the profiler", || {
        let names = fs::read_dir("/proc/self/task")
            .unwrap()
            .filter_map(|task| fs::read_to_string(task.ok()?.path().join("comm")).ok());
        (!names.into_iter().any(|name| name.trim() == "marple-cpu")).then_some(())
    });
    let pending_capture = host.handle().capture([CaptureKind::Cpu], Duration::from_millis(50));
    pending_capture.wait(host::WAIT_TIMEOUT).unwrap();
    let (_, manifest) = host.wait_for_closed(1).remove(0);
    assert_eq!(manifest.artifacts.len(), 1);
    assert_eq!(manifest.artifacts[0].phase, None);
    assert_eq!(CpuEngine::default(), CpuEngine::Auto);
}
