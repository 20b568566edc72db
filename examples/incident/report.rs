//! Checks that the files of an incident are complete, and prints its first finding.

use std::error::Error;
use std::fmt::Write as _;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;
use marple::CaptureKind;
use marple::manifest::{Artifact, IncidentState, Manifest};
use prost::Message;
use sha2::{Digest, Sha256};

/// Minimum number of artifacts of an incident. A heap profile is taken at its start and at its end.
const EXPECTED: [(CaptureKind, usize); 3] =
    [(CaptureKind::Cpu, 1), (CaptureKind::Heap, 2), (CaptureKind::Trace, 1)];

/// An incident's directory and its manifest.
pub(crate) struct Incident {
    pub(crate) dir: PathBuf,
    pub(crate) manifest: Manifest,
}

impl Incident {
    /// Returns the incidents of this process below `dir`.
    pub(crate) fn in_dir(dir: &Path) -> Vec<Self> {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        // Hidden directories are incidents that are being created or deleted.
        let incident_dirs = entries
            .filter(|entry| !entry.file_name().as_encoded_bytes().starts_with(b"."))
            .map(|entry| entry.path());
        incident_dirs
            .filter_map(Self::read)
            .filter(|incident| incident.manifest.process.pid == std::process::id())
            .collect()
    }

    /// Returns `None` if `dir` has no readable manifest. The wait for the incident then fails with
    /// an error.
    fn read(dir: PathBuf) -> Option<Self> {
        let text = fs::read(dir.join("incident.json")).ok()?;
        let manifest = serde_json::from_slice(&text).ok()?;
        Some(Self { dir, manifest })
    }

    /// Returns `true` if every capture has ended, successfully or not.
    pub(crate) fn is_captured(&self) -> bool {
        let captures = &self.manifest.captures;
        !captures.is_empty() && captures.iter().all(|capture| capture.stopped.is_some())
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.manifest.state == IncidentState::Closed
    }

    fn artifacts(&self, kind: CaptureKind) -> impl Iterator<Item = &Artifact> {
        self.manifest.artifacts.iter().filter(move |artifact| artifact.kind == kind)
    }

    fn missing(&self) -> Vec<String> {
        EXPECTED
            .into_iter()
            .filter(|&(kind, min_count)| self.artifacts(kind).count() < min_count)
            .map(|(kind, min_count)| {
                let captures = self.manifest.captures.iter().filter(|capture| capture.kind == kind);
                let why: Vec<&str> = captures.filter_map(|c| c.error.as_deref()).collect();
                format!("{kind}: fewer than {min_count} files; capture errors: {why:?}")
            })
            .collect()
    }

    /// Returns all problems of the incident. `culprit` is a function that a profile of that kind
    /// must name.
    pub(crate) fn problems(&self, expected_function: Option<(CaptureKind, &str)>) -> Vec<String> {
        let mut problems = self.missing();
        if !self.is_closed() {
            problems.push(format!("state is {:?} instead of Closed", self.manifest.state));
        }
        let mut is_function_named = false;
        for artifact in &self.manifest.artifacts {
            match self.check(artifact) {
                Ok(names) => {
                    is_function_named |= expected_function.is_some_and(|(kind, function)| {
                        artifact.kind == kind && names.iter().any(|name| name.contains(function))
                    });
                }
                Err(error) => problems.push(format!("{}: {error}", artifact.file)),
            }
        }
        if let (false, Some((kind, function))) = (is_function_named, expected_function) {
            problems.push(format!("no profile of {kind} names `{function}`"));
        }
        problems
    }

    /// Reads a complete file and returns the names in it.
    fn check(&self, artifact: &Artifact) -> Result<Vec<String>, Box<dyn Error>> {
        let bytes = fs::read(self.dir.join(&artifact.file))?;
        if bytes.len() as u64 != artifact.bytes.get() {
            return Err(format!(
                "{} bytes, but the manifest states {}",
                bytes.len(),
                artifact.bytes.get()
            )
            .into());
        }
        let sha256 = Sha256::digest(&bytes).iter().fold(String::new(), |mut hex, byte| {
            let _ = write!(hex, "{byte:02x}");
            hex
        });
        if sha256 != artifact.sha256 {
            return Err("SHA-256 differs from the manifest".into());
        }
        match artifact.kind {
            CaptureKind::Threads | CaptureKind::Tasks if !artifact.file.ends_with(".pprof") => {
                let text = String::from_utf8(bytes)?;
                if artifact.file.ends_with(".json") {
                    serde_json::from_str::<serde_json::Value>(&text)?;
                } else if !text.starts_with("# ") {
                    return Err("first line is not a `# ` header".into());
                }
                Ok(text.lines().map(str::to_owned).collect())
            }
            CaptureKind::Cpu | CaptureKind::Heap | CaptureKind::Threads | CaptureKind::Tasks => {
                let profile = Profile::decode(&*decompress(&bytes)?)?;
                if profile.sample.is_empty() {
                    return Err("contains no samples".into());
                }
                profile.function_names()
            }
            CaptureKind::Trace => {
                let trace = Trace::decode(&*decompress(&bytes)?)?;
                for (r#type, what) in [(SLICE_BEGIN, "slice"), (COUNTER, "counter value")] {
                    let mut events = trace.packet.iter().filter_map(|packet| packet.event.as_ref());
                    if !events.any(|event| event.r#type == r#type) {
                        return Err(format!("contains no {what}").into());
                    }
                }
                Ok(Vec::new())
            }
            CaptureKind::Descriptors | CaptureKind::Panics => {
                Ok(String::from_utf8(bytes)?.lines().map(str::to_owned).collect())
            }
            // A custom collector, which this example does not register, or a later kind.
            _ => Ok(Vec::new()),
        }
    }

    /// Prints the reasons, the first finding, and the command that shows the report.
    pub(crate) fn print(&self) {
        println!();
        for reason in &self.manifest.reasons {
            println!("{}", reason.text);
        }
        match self.manifest.findings.first() {
            Some(finding) => {
                println!("  {} ({}): {}", finding.kind, finding.confidence, finding.text)
            }
            None => println!("  nothing stands out"),
        }
        println!("  less {}", self.dir.join("incident.md").display());
    }
}

fn decompress(bytes: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut content = Vec::new();
    MultiGzDecoder::new(bytes).read_to_end(&mut content)?;
    Ok(content)
}

/// The part of pprof's `Profile` that has the samples and the names of functions.
#[derive(Message)]
struct Profile {
    #[prost(message, repeated, tag = "2")]
    sample: Vec<Sample>,
    #[prost(message, repeated, tag = "5")]
    function: Vec<Function>,
    #[prost(string, repeated, tag = "6")]
    string_table: Vec<String>,
}

impl Profile {
    fn function_names(&self) -> Result<Vec<String>, Box<dyn Error>> {
        let name = |function: &Function| {
            let index = usize::try_from(function.name).ok()?;
            self.string_table.get(index).cloned()
        };
        let names: Option<Vec<String>> = self.function.iter().map(name).collect();
        names.ok_or_else(|| "a function has a name outside of the string table".into())
    }
}

#[derive(Message)]
struct Sample {
    #[prost(uint64, repeated, tag = "1")]
    location_id: Vec<u64>,
}

#[derive(Message)]
struct Function {
    /// Index in the string table.
    #[prost(int64, tag = "2")]
    name: i64,
}

const SLICE_BEGIN: i32 = 1;
const COUNTER: i32 = 4;

/// The part of Perfetto's `Trace` that distinguishes an empty trace from one with events.
#[derive(Message)]
struct Trace {
    #[prost(message, repeated, tag = "1")]
    packet: Vec<Packet>,
}

#[derive(Message)]
struct Packet {
    #[prost(message, optional, tag = "11")]
    event: Option<TrackEvent>,
}

#[derive(Message)]
struct TrackEvent {
    #[prost(int32, tag = "9")]
    r#type: i32,
}
