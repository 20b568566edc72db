//! The look-back profile has the samples from before a capture, and the session those from after.
#![cfg(all(feature = "cpu", target_os = "linux", target_env = "gnu"))]

mod cpu_support;
mod host;

use std::fs;
use std::hint::black_box;
use std::thread;
use std::time::Duration;

use cpu_support::{account, burn, burn_fifty, burn_thirty, cpu_time, engines, under};
use host::{Host, settings, wait_for};
use marple::CaptureKind;
use marple::base::{Clock, Hertz, SystemClock};
use marple::codec::pprof;
use marple::config::CpuSettings;
use marple::cpu::{CpuSession, Lookback, Options};
use marple::model::{CpuEngine, Profile};
use marple::symbols;
use rustix::time::ClockId;

/// Runs `function` for 500 ms of CPU time on a thread called `burner`.
fn burn_in(function: fn(Duration) -> u64) {
    let burner =
        move || black_box(function(cpu_time(ClockId::ThreadCPUTime) + Duration::from_millis(500)));
    thread::Builder::new().name("burner".into()).spawn(burner).unwrap().join().unwrap();
}

/// Returns the samples in `burn_fifty` and in `burn_thirty`.
fn both(mut profile: Profile) -> [i64; 2] {
    symbols::name_functions(&mut profile);
    under(&profile, "burner", ["::burn_fifty", "::burn_thirty"], 0)
}

#[test]
fn what_was_before_and_what_was_during_are_told_apart() {
    let _turn = cpu_support::turn();
    for engine in engines() {
        let options = Options { engine, lookback_frequency: Hertz(99), ..Options::default() };
        let lookback = Lookback::start(&options).unwrap().expect("a look-back");
        assert!(lookback.engine().starts_with(engine.name()), "{}", lookback.engine());
        for round in 0..2 {
            burn_in(burn_fifty);
            let mut session = CpuSession::with(&options, SystemClock.anchor()).unwrap();
            let before = session.take_before().expect("half a second of samples");
            assert!(session.take_before().is_none());
            burn_in(burn_thirty);
            let during = session.stop(SystemClock.now()).unwrap();
            // Losses that the look-back reports may not include the time of the session.
            for profile in [&before, &during] {
                let (expected, got, _) = account(profile);
                assert!(got * 10 >= expected * 8, "{engine} {round}: {:?}", profile.comments);
            }
            assert!(before.started < during.started);
            let ([fifty, none], [nothing, thirty]) = (both(before), both(during));
            assert!(fifty > 20 && none == 0, "{engine} {round}: {fifty} {none}");
            assert!(thirty > 20 && nothing == 0, "{engine} {round}: {thirty} {nothing}");
        }
        drop(lookback);
        let mut alone = CpuSession::with(&options, SystemClock.anchor()).unwrap();
        assert!(alone.take_before().is_none(), "there is no window");
    }
}

#[test]
fn an_incident_has_a_profile_of_the_time_before_it() {
    let _turn = cpu_support::turn();
    let cpu = CpuSettings { lookback_frequency: Hertz(99), ..CpuSettings::default() };
    let host = Host::start(marple::Settings { cpu, ..settings() });
    let status = host.handle().status().wait(host::PATIENCE).unwrap();
    assert!(
        status.cpu.starts_with("perf: ") || status.cpu.starts_with("timer: "),
        "{}",
        status.cpu
    );
    burn(Duration::from_millis(300));
    let asked = host.handle().capture([CaptureKind::Cpu], Duration::from_millis(200));
    asked.wait(host::PATIENCE).unwrap();
    let (dir, manifest) = host.closed(1).remove(0);
    assert_eq!(manifest.captures[0].engine, status.cpu);
    let parts: Vec<_> = manifest.artifacts.iter().map(|a| a.part.as_deref()).collect();
    assert_eq!(parts, [Some("before"), None]);
    assert!(manifest.artifacts[0].taken < manifest.artifacts[1].taken);
    for (artifact, said) in
        manifest.artifacts.iter().zip(["s before the capture", "the capture itself"])
    {
        assert_eq!(artifact.kind, CaptureKind::Cpu);
        let read = pprof::read(&fs::read(dir.join(&artifact.file)).unwrap()).unwrap();
        let text = format!("{read:?}");
        assert!(text.contains(said), "{said}");
    }
}

#[test]
fn without_a_look_back_there_is_one_profile() {
    let _turn = cpu_support::turn();
    let cpu = CpuSettings { lookback_frequency: Hertz(0), ..CpuSettings::default() };
    let host = Host::start(marple::Settings { cpu, ..settings() });
    let status = || host.handle().status().wait(host::PATIENCE).unwrap();
    assert!(status().cpu.contains("no look-back"), "{}", status().cpu);
    wait_for("no thread of the profiler", || {
        let names = fs::read_dir("/proc/self/task")
            .unwrap()
            .filter_map(|task| fs::read_to_string(task.ok()?.path().join("comm")).ok());
        (!names.into_iter().any(|name| name.trim() == "marple-cpu")).then_some(())
    });
    let asked = host.handle().capture([CaptureKind::Cpu], Duration::from_millis(50));
    asked.wait(host::PATIENCE).unwrap();
    let (_, manifest) = host.closed(1).remove(0);
    assert_eq!(manifest.artifacts.len(), 1);
    assert_eq!(manifest.artifacts[0].part, None);
    assert_eq!(CpuEngine::default(), CpuEngine::Auto);
}
