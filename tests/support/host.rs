//! A host process for tests: a directory, an agent in it, and helpers that wait for its results.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use marple::config::{DiskReserve, Settings, StoreSettings, ToggleSettings};
use marple::internals::base::Bytes;
use marple::internals::model::{Manifest, Metric, Rule};
use marple::{Agent, AgentHandle, Builder, CaptureSet};
use tempfile::TempDir;

/// Timeout of every wait, far beyond the time it takes on a busy machine.
pub(crate) const WAIT_TIMEOUT: Duration = Duration::from_secs(60);

/// One agent may run in a process, and the tests of a binary may share the process.
static SERIAL: Mutex<()> = Mutex::new(());

/// Waits until no other test of this binary has an agent. None can start while the guard is held.
pub(crate) fn serial_guard() -> MutexGuard<'static, ()> {
    SERIAL.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) struct Host {
    pub(crate) agent: Option<Agent>,
    pub(crate) dir: TempDir,
    _serial: MutexGuard<'static, ()>,
}

impl Host {
    /// Starts an agent with these settings, in a temporary directory.
    pub(crate) fn start(settings: Settings) -> Self {
        let serial = serial_guard();
        let dir = TempDir::new().unwrap();
        let settings = Settings { dir: dir.path().join("captures"), ..settings };
        let agent = Builder::from_settings(settings).start().unwrap();
        Self { agent: Some(agent), dir, _serial: serial }
    }

    pub(crate) fn handle(&self) -> AgentHandle {
        self.agent.as_ref().unwrap().handle()
    }

    /// Drops the agent; its files stay on disk.
    pub(crate) fn end(&mut self) {
        self.agent = None;
    }

    pub(crate) fn captures(&self) -> PathBuf {
        self.dir.path().join("captures")
    }

    pub(crate) fn incidents(&self) -> Vec<(PathBuf, Manifest)> {
        incidents(&self.captures())
    }

    /// Waits until there are `n` incidents and all are closed.
    pub(crate) fn wait_for_closed(&self, n: usize) -> Vec<(PathBuf, Manifest)> {
        wait_for(&format!("{n} closed incidents"), || {
            let found = self.incidents();
            let closed = found.iter().all(|(_, manifest)| manifest.closed.is_some());
            (found.len() == n && closed).then_some(found)
        })
    }
}

/// Returns settings for a test: no signal, short ticks.
pub(crate) fn settings() -> Settings {
    Settings {
        service: "orders".into(),
        instance: "eu-1".into(),
        interval: Duration::from_millis(20),
        toggle: ToggleSettings { signal: None, ..ToggleSettings::default() },
        // The disk of the test machine may be nearly full. Other tests cover that case.
        store: StoreSettings {
            min_free_space: DiskReserve::Bytes(Bytes(0)),
            ..StoreSettings::default()
        },
        ..Settings::default()
    }
}

/// Returns a rule over a gauge that fires above 10 and clears below.
pub(crate) fn gauge_rule(name: &str, capture: impl Into<CaptureSet>, duration: Duration) -> Rule {
    Rule {
        name: name.into(),
        abs: Some(10.0),
        cooldown: Duration::from_secs(3600),
        capture: capture.into(),
        duration,
        ..Rule::new(Metric::Gauge(name.into()))
    }
}

/// Returns the incidents in `captures`, oldest first. Panics if a manifest is incomplete.
pub(crate) fn incidents(captures: &Path) -> Vec<(PathBuf, Manifest)> {
    let mut incident_list: Vec<(PathBuf, Manifest)> = fs::read_dir(captures)
        .map(|entries| entries.map(|entry| entry.unwrap().path()).collect::<Vec<_>>())
        .unwrap_or_default()
        .into_iter()
        .filter(|path| {
            path.is_dir() && !path.file_name().unwrap().to_string_lossy().starts_with('.')
        })
        .filter_map(|path| {
            // Retention may delete a directory between the listing and this read.
            let text = fs::read(path.join("incident.json")).ok()?;
            let manifest = serde_json::from_slice(&text)
                .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            Some((path, manifest))
        })
        .collect();
    incident_list.sort_by(|a, b| a.0.cmp(&b.0));
    incident_list
}

/// Waits until `condition` returns a value.
pub(crate) fn wait_for<T>(condition_name: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(
            start.elapsed() < WAIT_TIMEOUT,
            "waited {WAIT_TIMEOUT:?} in vain for {condition_name}"
        );
        thread::sleep(Duration::from_millis(5));
    }
}

/// Returns the names of an incident's files without the service and the instance.
pub(crate) fn artifact_names(manifest: &Manifest) -> Vec<String> {
    manifest
        .artifacts
        .iter()
        .map(|artifact| artifact.file.trim_start_matches("orders_eu-1.").to_owned())
        .collect()
}
