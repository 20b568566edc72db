//! The shape of the source, held by a test: which module may use which, where unsafe may stand, how
//! long a file may get.
//!
//! The rules are the tables below. To let a module use another, change [`LAYERS`] in the same
//! commit and say there why the edge has to point that way; the order of the rows is the order of
//! the layers, and a row can only name rows above it, so no change here makes a cycle.
//!
//! The source is read as tokens (`proc-macro2`), not as a syntax tree: a `crate::store` inside a
//! macro's arguments or a macro's body is an import too, and only tokens show it; comments and
//! texts are not tokens and do not count. Code behind any `cfg` counts, whatever machine runs the
//! test, and so do the unit tests in a file. What cannot be followed is refused instead: a glob
//! import of the crate's root, a second name for it, and a `#[path]` or `include!` that leads into
//! another layer.

use std::fmt;
use std::fs;
use std::path::{Component, Path, PathBuf};

use proc_macro2::{TokenStream, TokenTree};

#[path = "layers/samples.rs"]
mod samples;
#[path = "layers/scan.rs"]
mod scan;

use scan::{Import, Scan, emitted_events, line_of, line_of_allow, modules_of, opens_with_allow};

/// A layer and what it may use, lowest first. `lib.rs` is the root and uses all of them.
const LAYERS: &[(&str, &[&str])] = &[
    ("base", &[]),
    ("model", &["base"]),
    ("config", &["base", "model"]),
    ("os", &["base", "model"]),
    ("unwind", &["base", "model", "os"]),
    ("codec", &["base", "model"]),
    ("symbols", &["base", "model"]),
    ("cpu", &["base", "model", "os", "unwind"]),
    ("heap", &["base", "model", "os", "unwind"]),
    ("trace", &["base", "model", "os", "unwind"]),
    ("stacks", &["base", "model", "os", "unwind"]),
    ("metrics", &["base", "model"]),
    ("vitals", &["base", "model", "os", "metrics"]),
    ("rules", &["base", "model"]),
    // The bounds it keeps are settings, and settings are plain values. Of `os` it uses the file
    // lock.
    ("store", &["base", "model", "config", "os"]),
    // One wrapper for what a trace and a dump want of a task, which may not see each other.
    ("task", &["base", "model", "os", "trace", "stacks"]),
    ("policy", &["base", "model", "config", "rules"]),
    (
        "agent",
        &[
            "base", "model", "config", "os", "unwind", "codec", "symbols", "cpu", "heap", "trace",
            "stacks", "metrics", "vitals", "rules", "store", "task", "policy",
        ],
    ),
    ("http", &["agent", "store", "codec", "config", "model", "base"]),
    ("bin", &["store", "codec", "symbols", "model", "base"]),
];

/// The files that may hold unsafe code; a name that ends in `/` is everything below it. Each opens
/// with `#![allow(unsafe_code)]` and stands under a safe face.
///
/// `stacks/waker.rs`: a waker of one's own without a count in every leaf is a table of raw
/// functions.
const UNSAFE: &[&str] = &["src/os/", "src/unwind/", "src/heap/alloc.rs", "src/stacks/waker.rs"];

/// The files that may emit `tracing` events.
const LOG: &str = "src/base/log";

/// Emits one event in a forked child, on the thread of the host that called: the child has no
/// thread of marple, and gets none unasked.
const LOG_IN_CHILD: &str = "src/os/fork.rs";

/// What of `tracing` emits events or spans, or brings all of it.
const EMITTERS: &[&str] = &[
    "debug",
    "debug_span",
    "error",
    "error_span",
    "event",
    "info",
    "info_span",
    "instrument",
    "log",
    "span",
    "trace",
    "trace_span",
    "warn",
    "warn_span",
];

/// Names that say nothing about what is inside.
const NAMELESS: &[&str] = &["util", "utils", "common", "helper", "helpers", "misc"];

/// The longest a file may get, in lines.
const LONGEST: usize = 600;

#[test]
fn every_import_goes_down() {
    let broken: Vec<Finding> = sources().iter().flat_map(Source::imports_that_climb).collect();
    assert!(broken.is_empty(), "{}", listed(&broken));
}

#[test]
fn unsafe_stands_in_its_marked_places() {
    let broken: Vec<Finding> = sources().iter().flat_map(Source::unmarked_unsafe).collect();
    assert!(broken.is_empty(), "{}", listed(&broken));
}

#[test]
fn log_events_are_emitted_by_the_log_thread_only() {
    let broken: Vec<Finding> = sources().iter().flat_map(Source::events_of_its_own).collect();
    assert!(broken.is_empty(), "{}", listed(&broken));
}

#[test]
fn every_module_has_a_name_and_a_length_one_can_read() {
    let broken: Vec<Finding> = sources().iter().flat_map(Source::shapeless).collect();
    assert!(broken.is_empty(), "{}", listed(&broken));
}

#[test]
fn a_layer_uses_only_layers_above_its_row() {
    for (row, (layer, uses)) in LAYERS.iter().enumerate() {
        for used in *uses {
            let at = LAYERS.iter().position(|(name, _)| name == used);
            assert!(
                at.is_some_and(|at| at < row),
                "`{layer}` cannot use `{used}`: not a row above"
            );
        }
    }
}

/// Something a file must not do, and where it does it.
#[derive(Debug, PartialEq)]
struct Finding {
    file: String,
    line: usize,
    text: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file, self.line, self.text)
    }
}

fn listed(findings: &[Finding]) -> String {
    findings.iter().map(|finding| format!("\n{finding}")).collect()
}

/// Every file below `src`.
fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut sources = Vec::new();
    let mut folders = vec![root.join("src")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
                sources.push(Source::new(&name, &fs::read_to_string(&path).unwrap()));
            }
        }
    }
    assert!(sources.iter().any(|source| source.file == "src/lib.rs"), "no source was read");
    sources.sort_by(|a, b| a.file.cmp(&b.file));
    sources
}

/// A file of the crate, read.
struct Source {
    /// Its name from the package's root.
    file: String,
    /// Where it stands in the tree of modules; empty for the root.
    module: Vec<String>,
    lines: usize,
    tokens: Vec<TokenTree>,
}

impl Source {
    fn new(file: &str, text: &str) -> Self {
        let tokens: TokenStream =
            text.parse().unwrap_or_else(|error| panic!("{file} is not Rust: {error}"));
        let mut module: Vec<String> = Path::new(file)
            .with_extension("")
            .components()
            .skip(1)
            .map(|part| part.as_os_str().to_str().unwrap().to_owned())
            .collect();
        if module.last().is_some_and(|last| ["mod", "lib", "main"].contains(&last.as_str())) {
            module.pop();
        }
        Self {
            file: file.to_owned(),
            module,
            lines: text.lines().count(),
            tokens: tokens.into_iter().collect(),
        }
    }

    fn layer(&self) -> Option<&str> {
        self.module.first().map(String::as_str)
    }

    fn finding(&self, line: usize, text: String) -> Finding {
        Finding { file: self.file.clone(), line, text }
    }

    fn imports_that_climb(&self) -> Vec<Finding> {
        let Some(layer) = self.layer() else { return Vec::new() };
        let Some((_, allowed)) = LAYERS.iter().find(|(name, _)| *name == layer) else {
            return vec![self.finding(1, format!("`{layer}` is not a layer of tests/layers.rs"))];
        };
        let mut scan = Scan { imports: Vec::new(), crate_is_library: layer != "bin" };
        scan.tokens(&self.tokens, &mut self.module.clone());
        let climbs = scan.imports.into_iter().filter_map(|(line, import)| match import {
            Import::Module(used) if used == layer || allowed.contains(&used.as_str()) => None,
            Import::Module(used) => Some((line, format!("`{layer}` may not use `{used}`"))),
            Import::Root => {
                Some((line, format!("`{layer}` imports the whole of the crate's root")))
            }
            Import::File(path) => {
                let folder = Path::new(&self.file).parent().unwrap_or(Path::new(""));
                let target = normal(&folder.join(&path));
                (!target.starts_with(Path::new("src").join(layer)))
                    .then(|| (line, format!("`{layer}` takes in {path}, which is not below it")))
            }
        });
        climbs.map(|(line, text)| self.finding(line, text)).collect()
    }

    fn unmarked_unsafe(&self) -> Vec<Finding> {
        let used = line_of(&self.tokens, "unsafe");
        let allowed = line_of_allow(&self.tokens);
        let marked = UNSAFE.iter().any(|place| {
            self.file == *place || (place.ends_with('/') && self.file.starts_with(place))
        });
        let (line, text) = match (used, allowed) {
            (None, None) => return Vec::new(),
            (Some(line), _) | (_, Some(line)) if !marked => {
                (line, "not a place for unsafe code, by the list in tests/layers.rs")
            }
            (Some(line), _) if !opens_with_allow(&self.tokens) => {
                (line, "unsafe code in a file that does not open with `#![allow(unsafe_code)]`")
            }
            (None, Some(line)) => {
                (line, "unsafe code is allowed here and below, and there is none")
            }
            _ => return Vec::new(),
        };
        vec![self.finding(line, text.to_owned())]
    }

    /// Events that are not handed to the queue of `base::log`: they would call the host's
    /// subscriber.
    fn events_of_its_own(&self) -> Vec<Finding> {
        if self.file.starts_with(LOG) || self.file == LOG_IN_CHILD {
            return Vec::new();
        }
        let mut lines = Vec::new();
        emitted_events(&self.tokens, &mut lines);
        let text = |name| format!("`tracing::{name}` outside of {LOG}: use `base::log`");
        lines.into_iter().map(|(line, name)| self.finding(line, text(name))).collect()
    }

    fn shapeless(&self) -> Vec<Finding> {
        let mut found = Vec::new();
        let mut modules = Vec::new();
        modules_of(&self.tokens, &mut modules);
        modules.extend(self.module.iter().map(|name| (name.clone(), 1)));
        for (name, line) in modules {
            if NAMELESS.contains(&name.as_str()) {
                found.push(self.finding(line, format!("no module is called `{name}`")));
            }
        }
        if self.lines > LONGEST {
            let text = format!("{} lines, at most {LONGEST}: what else lives here?", self.lines);
            found.push(self.finding(self.lines, text));
        }
        found
    }
}

/// `path` without `.` and `..`, by its text alone.
fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => drop(normal.pop()),
            Component::CurDir => {}
            part => normal.push(part),
        }
    }
    normal
}
