//! A service in a child process, and the incidents it leaves.

use std::fs;
use std::io::Read as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use flate2::read::GzDecoder;
use jiff::Timestamp;
use marple::internals::model::{Finding, FindingKind, Manifest};
use tempfile::TempDir;

use crate::healthy;
use crate::support::host::{incidents, wait_for};
use crate::support::rerun;

/// Environment variable with the name of the service that this binary runs as.
pub(crate) const SERVICE_ENV: &str = "MARPLE_SERVICE";

/// The file that a service writes when its fault starts.
pub(crate) const FAULT_STARTED_FILE: &str = "begun";

#[derive(Clone, Copy, Debug)]
pub(crate) enum Neighbours {
    None,
    /// Two busy processes: one on each core of a small machine.
    TwoBusy,
}

/// The expected first finding of an incident.
#[derive(Debug)]
pub(crate) struct Cause {
    pub(crate) kinds: &'static [FindingKind],
    /// Part of its subject, text or stack.
    pub(crate) word: &'static str,
}

impl Cause {
    fn is_stated_by(&self, finding: &Finding) -> bool {
        let mut texts = [&finding.subject, &finding.text].into_iter().chain(&finding.stack);
        self.kinds.contains(&finding.kind) && texts.any(|text| text.contains(self.word))
    }
}

pub(crate) struct Service {
    name: String,
    process: Child,
    neighbours: Vec<Child>,
    dir: TempDir,
}

impl Service {
    /// Starts the service called `name` in a temporary directory.
    pub(crate) fn start(name: &str, neighbours: Neighbours) -> Self {
        let dir = TempDir::new().unwrap();
        let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/minimal.toml");
        let settings = fs::read_to_string(shipped).unwrap();
        // The disk of the test machine may be nearly full.
        let settings = format!("{settings}\n[store]\nmin_free_space = \"0B\"\n");
        fs::write(dir.path().join("minimal.toml"), settings).unwrap();
        let busy = || Command::new("sh").args(["-c", "while :; do :; done"]).spawn().unwrap();
        let neighbours = match neighbours {
            Neighbours::None => Vec::new(),
            Neighbours::TwoBusy => vec![busy(), busy()],
        };
        let mut program = std::env::current_exe().unwrap();
        if name == healthy::BINARY {
            let copy = dir.path().join("program");
            fs::copy(&program, &copy).unwrap();
            program = copy;
        }
        let process = Command::new(program)
            .args(rerun::args("service_process"))
            .env(SERVICE_ENV, name)
            .current_dir(dir.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self { name: name.to_owned(), process, neighbours, dir }
    }

    /// Waits for incident files that contain these words, and a first finding that states the
    /// cause. Prints the time from the fault to the start of the first incident with all of them,
    /// and that finding.
    pub(crate) fn wait_for_evidence(&mut self, evidence: &[(&str, &[&str])], cause: &Cause) {
        let captures = self.dir.path().join("captures");
        let description = format!("{evidence:?} and {cause:?} of the fault `{}`", self.name);
        let holds = |dir: &Path, manifest: &Manifest| {
            evidence.iter().all(|(form, words)| {
                let files =
                    manifest.artifacts.iter().filter(|recorded| recorded.file.ends_with(form));
                let mut texts =
                    files.filter_map(|artifact| read_contents(&dir.join(&artifact.file)));
                texts.any(|text| words.iter().all(|word| text.contains(word)))
            })
        };
        let (manifest, fault_start) = wait_for(&description, || {
            let fault_start_text =
                fs::read_to_string(self.dir.path().join(FAULT_STARTED_FILE)).ok()?;
            let fault_start: Timestamp = fault_start_text.parse().ok()?;
            let found = incidents(&captures);
            let is_explained = |manifest: &Manifest| {
                manifest.findings.first().is_some_and(|finding| cause.is_stated_by(finding))
            };
            let mut complete = found.into_iter().filter(|(dir, manifest)| holds(dir, manifest));
            let first = complete.find(|(_, manifest)| is_explained(manifest))?;
            Some((first.1, fault_start))
        });
        let after =
            Duration::try_from(manifest.opened.duration_since(fault_start)).unwrap_or_default();
        println!(
            "{}{}: incident {:.1} s after the fault began: {}",
            self.name,
            if self.neighbours.is_empty() { "" } else { " beside two busy neighbours" },
            after.as_secs_f64(),
            manifest.reasons[0].text
        );
        println!("{}: {}", manifest.findings[0].kind, manifest.findings[0].text);
        assert!(
            manifest.opened >= fault_start,
            "an incident of something else: {:?}",
            manifest.reasons
        );
    }

    /// Waits for the end of the service, which must succeed. Returns the reasons of its incidents.
    pub(crate) fn reasons_at_end(mut self) -> Vec<String> {
        assert!(self.process.wait().unwrap().success(), "{} failed", self.name);
        let found = incidents(&self.dir.path().join("captures"));
        let reasons = found.into_iter().flat_map(|(_, manifest)| manifest.reasons);
        reasons.map(|reason| format!("{}: {}", self.name, reason.text)).collect()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for (dir, manifest) in incidents(&self.dir.path().join("captures")) {
                let reasons = manifest.reasons.iter().map(|reason| &reason.text);
                let findings = manifest.findings.iter().map(|finding| &finding.text);
                println!("{}: {:#?}", dir.display(), reasons.chain(findings).collect::<Vec<_>>());
            }
        }
        for process in self.neighbours.iter_mut().chain([&mut self.process]) {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// Returns the contents of a file as lossy UTF-8, decompressed if it is gzip.
fn read_contents(path: &Path) -> Option<String> {
    let bytes = fs::read(path).ok()?;
    let mut plain = Vec::new();
    if GzDecoder::new(&bytes[..]).read_to_end(&mut plain).is_err() {
        plain = bytes;
    }
    Some(String::from_utf8_lossy(&plain).into_owned())
}
