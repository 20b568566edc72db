//! Checks of the shape of the source: permitted imports between modules, files with unsafe code,
//! and the length of files.
//!
//! The tables below are the rules. To let a module use another, change [`LAYERS`] in the same
//! commit and give the reason for the direction of the edge there. The order of the rows is the
//! order of the layers. A row can only name rows above it, so no change here makes a cycle.
//!
//! The source is read as tokens (`proc-macro2`), not as a syntax tree. A `crate::store` in a
//! macro's arguments or body is an import too, and only tokens show it; comments and strings do not
//! count. Code behind any `cfg` counts on any machine, and so do the unit tests in a file. Imports
//! that cannot be resolved are errors: a glob import of the crate root, an alias of it, and a
//! `#[path]` or `include!` that leads into another layer.

use std::fmt;
use std::fs;
use std::path::{Component, Path, PathBuf};

use proc_macro2::{TokenStream, TokenTree};

#[path = "layers/cycles.rs"]
mod cycles;
#[path = "layers/samples.rs"]
mod samples;
#[path = "layers/scan.rs"]
mod scan;

use scan::{Import, Scan, emitted_events, line_of, line_of_allow, modules_of, opens_with_allow};

/// Layers and the layers each may use, lowest first. `lib.rs` is the root and uses all of them.
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
    // The store's limits are settings, and settings are plain values. Of `os` it uses the file
    // lock.
    ("store", &["base", "model", "config", "os"]),
    // One wrapper serves both the trace and task dumps, which may not use each other.
    ("task", &["base", "model", "os", "trace", "stacks"]),
    // The threshold and the permission to signal threads are settings, which are plain values.
    (
        "stalls",
        &["base", "model", "config", "os", "unwind", "symbols", "trace", "stacks", "vitals"],
    ),
    // Pure, so that an old incident gives the same findings again. Of `symbols` it uses the owners
    // of function names.
    ("analysis", &["base", "model", "symbols"]),
    ("render", &["base", "model", "analysis"]),
    ("policy", &["base", "model", "config", "rules"]),
    (
        "capture",
        &[
            "base", "model", "config", "os", "unwind", "codec", "symbols", "cpu", "heap", "trace",
            "stacks", "metrics", "vitals", "store", "stalls", "analysis", "render", "policy",
        ],
    ),
    (
        "agent",
        &[
            "base", "model", "config", "os", "trace", "metrics", "vitals", "rules", "store",
            "stalls", "policy", "capture",
        ],
    ),
    ("http", &["agent", "store", "codec", "config", "model", "base"]),
    ("cli", &["store", "codec", "symbols", "model", "base"]),
    ("bin", &["cli"]),
    // The door for the tests: it only re-exports, and nothing uses it.
    (
        "internals",
        &[
            "base", "model", "config", "os", "unwind", "codec", "symbols", "cpu", "heap", "trace",
            "stacks", "metrics", "vitals", "rules", "store", "agent",
        ],
    ),
];

/// Files that may contain unsafe code; a name that ends in `/` covers everything below it. Each
/// opens with `#![allow(unsafe_code, reason = "...")]` and has a safe API.
///
/// `stacks/waker.rs`: a custom waker without a reference count per leaf needs a table of raw
/// functions.
const UNSAFE_FILES: &[&str] =
    &["src/os/", "src/unwind/", "src/heap/alloc.rs", "src/stacks/waker.rs"];

/// Files that may emit `tracing` events.
const LOG_MODULE: &str = "src/base/log";

/// Emits one event in a forked child, on the calling thread of the host: the child has no thread of
/// marple, and starts none unless requested.
const LOG_IN_CHILD: &str = "src/os/fork/unwatched.rs";

/// Names in `tracing` that emit events or spans, or import everything.
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

/// Module names that do not describe the content.
const VAGUE_NAMES: &[&str] = &["util", "utils", "common", "helper", "helpers", "misc"];

/// Longest permitted file, in lines.
const MAX_LINES: usize = 400;

#[test]
fn imports_point_to_lower_layers_only() {
    let broken: Vec<Finding> = sources().iter().flat_map(Source::upward_imports).collect();
    assert!(broken.is_empty(), "{}", format_findings(&broken));
}

#[test]
fn unsafe_code_is_only_in_listed_files() {
    let broken: Vec<Finding> = sources().iter().flat_map(Source::unlisted_unsafe).collect();
    assert!(broken.is_empty(), "{}", format_findings(&broken));
}

#[test]
fn log_events_are_emitted_by_log_thread_only() {
    let broken: Vec<Finding> = sources().iter().flat_map(Source::direct_log_events).collect();
    assert!(broken.is_empty(), "{}", format_findings(&broken));
}

#[test]
fn module_names_and_file_lengths_are_valid() {
    let broken: Vec<Finding> = sources().iter().flat_map(Source::bad_names_and_lengths).collect();
    assert!(broken.is_empty(), "{}", format_findings(&broken));
}

#[test]
fn layers_use_only_layers_in_rows_above() {
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

#[test]
fn files_do_not_import_from_each_other() {
    let sources = sources();
    let graph = cycles::FileGraph::new(
        sources.iter().map(|source| (&source.module[..], &source.file[..], &source.tokens[..])),
    );
    let found = graph.cycles();
    assert!(found.is_empty(), "files that import from each other: {found:#?}");
}

/// A violation of a rule and its position.
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

fn format_findings(findings: &[Finding]) -> String {
    findings.iter().map(|finding| format!("\n{finding}")).collect()
}

/// Returns every file below `src`.
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

/// A parsed source file of the crate.
struct Source {
    /// Path from the root of the package.
    file: String,
    /// Path in the module tree; empty for the root.
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

    fn upward_imports(&self) -> Vec<Finding> {
        let Some(layer) = self.layer() else { return Vec::new() };
        let Some((_, allowed)) = LAYERS.iter().find(|(name, _)| *name == layer) else {
            return vec![self.finding(1, format!("`{layer}` is not a layer of tests/layers.rs"))];
        };
        let mut scan = Scan { imports: Vec::new(), crate_is_library: layer != "bin" };
        scan.scan_tokens(&self.tokens, &mut self.module.clone());
        let climbs = scan.imports.into_iter().filter_map(|(line, import)| match import {
            Import::Module(used) if used == layer || allowed.contains(&used.as_str()) => None,
            Import::Module(used) => Some((line, format!("`{layer}` may not use `{used}`"))),
            Import::Root => {
                Some((line, format!("`{layer}` imports the whole of the crate's root")))
            }
            Import::File(path) => {
                let folder = Path::new(&self.file).parent().unwrap_or(Path::new(""));
                let target = normalize(&folder.join(&path));
                (!target.starts_with(Path::new("src").join(layer)))
                    .then(|| (line, format!("`{layer}` takes in {path}, which is not below it")))
            }
        });
        climbs.map(|(line, text)| self.finding(line, text)).collect()
    }

    fn unlisted_unsafe(&self) -> Vec<Finding> {
        let used = line_of(&self.tokens, "unsafe");
        let allowed = line_of_allow(&self.tokens);
        let marked = UNSAFE_FILES.iter().any(|place| {
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

    /// Returns events that bypass the queue of `base::log`: they would call the host's subscriber.
    fn direct_log_events(&self) -> Vec<Finding> {
        if self.file.starts_with(LOG_MODULE) || self.file == LOG_IN_CHILD {
            return Vec::new();
        }
        let mut lines = Vec::new();
        emitted_events(&self.tokens, &mut lines);
        let text = |name| format!("`tracing::{name}` outside of {LOG_MODULE}: use `base::log`");
        lines.into_iter().map(|(line, name)| self.finding(line, text(name))).collect()
    }

    fn bad_names_and_lengths(&self) -> Vec<Finding> {
        let mut found = Vec::new();
        let mut modules = Vec::new();
        modules_of(&self.tokens, &mut modules);
        modules.extend(self.module.iter().map(|name| (name.clone(), 1)));
        for (name, line) in modules {
            if VAGUE_NAMES.contains(&name.as_str()) {
                found.push(self.finding(line, format!("no module is called `{name}`")));
            }
        }
        if self.lines > MAX_LINES {
            let text = format!("{} lines, at most {MAX_LINES}: what else lives here?", self.lines);
            found.push(self.finding(self.lines, text));
        }
        found
    }
}

/// Resolves `.` and `..` in `path` by its text alone.
fn normalize(path: &Path) -> PathBuf {
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
