//! The SIGUSR2 toggle. A signal disposition is process-wide, so the test needs a process of its own
//! (nextest).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use marple::Settings;
use marple::config::{ToggleSettings, ToggleSignal};
use marple::internals::model::Origin;
use rustix::process::{Signal, getpid, kill_process};
use tokio::signal::unix::{SignalKind, signal};

use crate::support::host::{Host, WAIT_TIMEOUT, settings, wait_for};

#[test]
fn signal_toggles_and_still_calls_host_handler() {
    let handled = Arc::new(AtomicUsize::new(0));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut own = signal(SignalKind::user_defined2()).unwrap();
        let handled = Arc::clone(&handled);
        tokio::spawn(async move {
            while own.recv().await.is_some() {
                handled.fetch_add(1, Ordering::SeqCst);
            }
        });
    });
    let mut host = Host::start(Settings {
        toggle: ToggleSettings { signal: Some(ToggleSignal::Usr2), ..ToggleSettings::default() },
        ..settings()
    });
    let on = |host: &Host| host.handle().status().wait(WAIT_TIMEOUT).unwrap().toggle.on;
    assert!(!on(&host));
    kill_process(getpid(), Signal::USR2).unwrap();
    wait_for("the toggle to be on", || on(&host).then_some(()));
    kill_process(getpid(), Signal::USR2).unwrap();
    wait_for("the toggle to be off", || (!on(&host)).then_some(()));
    let (_, manifest) = host.wait_for_closed(1).remove(0);
    assert_eq!(manifest.reasons[0].origin, Origin::Signal);
    wait_for("the host's own handler", || (handled.load(Ordering::SeqCst) == 2).then_some(()));

    host.end();
    kill_process(getpid(), Signal::USR2).unwrap();
    wait_for("the host's own handler", || (handled.load(Ordering::SeqCst) == 3).then_some(()));
}
