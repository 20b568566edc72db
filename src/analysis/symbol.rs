//! Function names: which belong to the application, and how they are shown.

use std::sync::Arc;

use crate::model::{FrameHandle, Profile, StackHandle};

/// The name of a function, shared between the rows of all tables that contain it.
pub(crate) type Symbol = Arc<str>;

/// Maximum number of frames of a stack in a table. The innermost ones are kept.
const MAX_FRAMES: usize = 96;

/// Crates of the language: never the cause, only the place where it shows.
const LANGUAGE_CRATES: &[&str] = &[
    "__rustc",
    "alloc",
    "compiler_builtins",
    "core",
    "panic_unwind",
    "proc_macro",
    "std",
    "std_detect",
    "test",
];

/// Crates that run, connect or store what the application wants. Sorted.
const LIBRARY_CRATES: &[&str] = &[
    "actix_http",
    "actix_rt",
    "actix_server",
    "actix_web",
    "addr2line",
    "aho_corasick",
    "anyhow",
    "arc_swap",
    "async_channel",
    "async_executor",
    "async_io",
    "async_std",
    "axum",
    "axum_core",
    "backtrace",
    "bytes",
    "crossbeam",
    "crossbeam_channel",
    "crossbeam_deque",
    "crossbeam_epoch",
    "crossbeam_queue",
    "crossbeam_utils",
    "dashmap",
    "event_listener",
    "flate2",
    "flume",
    "futures",
    "futures_channel",
    "futures_core",
    "futures_executor",
    "futures_util",
    "gimli",
    "h2",
    "hashbrown",
    "http",
    "http_body",
    "http_body_util",
    "hyper",
    "hyper_util",
    "indexmap",
    "itertools",
    "lock_api",
    "log",
    "marple",
    "memchr",
    "mimalloc",
    "mio",
    "once_cell",
    "parking_lot",
    "parking_lot_core",
    "pin_project_lite",
    "prost",
    "rayon",
    "rayon_core",
    "regex",
    "regex_automata",
    "regex_syntax",
    "reqwest",
    "rustix",
    "rustls",
    "serde",
    "serde_core",
    "serde_json",
    "signal_hook_registry",
    "slab",
    "smallvec",
    "socket2",
    "thiserror",
    "tikv_jemallocator",
    "tokio",
    "tokio_rustls",
    "tokio_stream",
    "tokio_util",
    "tonic",
    "tower",
    "tower_http",
    "tower_layer",
    "tower_service",
    "tracing",
    "tracing_core",
    "tracing_subscriber",
    "warp",
    "zlib_rs",
];

/// The part of the program that a function belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Origin {
    /// C code, the runtime of the language, or no name at all.
    Language,
    Library,
    Application,
}

/// Returns the innermost function of the application in a stack whose innermost frame is first.
/// Without one, returns the innermost function of a library, then the innermost function. Returns
/// `None` for an empty stack.
pub(crate) fn application_frame(stack: &[Symbol]) -> Option<&Symbol> {
    let innermost_of = |origin| stack.iter().find(|name| origin_of(name) == origin);
    innermost_of(Origin::Application)
        .or_else(|| innermost_of(Origin::Library))
        .or_else(|| stack.first())
}

/// Returns `true` if the function belongs to the application.
pub(crate) fn is_application(name: &str) -> bool {
    origin_of(name) == Origin::Application
}

/// Returns a name without the parts that are no help in a search: closures at its end, and the hash
/// of a symbol.
pub(crate) fn display_name(name: &str) -> &str {
    let mut shown = name;
    if let Some((rest, hash)) = shown.rsplit_once("::h")
        && hash.len() == 16
        && hash.bytes().all(|byte| byte.is_ascii_hexdigit())
    {
        shown = rest;
    }
    while let Some(rest) = strip_closure(shown) {
        shown = rest;
    }
    if shown.is_empty() { name } else { shown }
}

/// Returns a name without the closure at its end: `::{{closure}}` in the older form of symbols,
/// `::{closure#0}` in the newer one.
fn strip_closure(name: &str) -> Option<&str> {
    if let Some(rest) = name.strip_suffix("::{{closure}}") {
        return Some(rest);
    }
    let (rest, number) = name.strip_suffix('}')?.rsplit_once("::{closure#")?;
    number.bytes().all(|byte| byte.is_ascii_digit()).then_some(rest)
}

fn origin_of(name: &str) -> Origin {
    let Some(krate) = crate_of(name) else { return Origin::Language };
    if LANGUAGE_CRATES.contains(&krate) {
        Origin::Language
    } else if LIBRARY_CRATES.binary_search(&krate).is_ok() {
        Origin::Library
    } else {
        Origin::Application
    }
}

/// Returns the crate of a Rust function: of the type for `<T as Trait>::method`. Returns `None` for
/// functions of C, addresses and markers, whose names are no paths.
fn crate_of(name: &str) -> Option<&str> {
    let mut rest = name;
    // `<<a::T as b::U>::V as c::W>::f` belongs to `a`; `<&mut a::T as ...>`, `<[a::T]>` too.
    while let Some(inner) = rest.strip_prefix(['<', '&', '[', '(', '*']) {
        rest = inner.trim_start();
        for word in ["mut ", "const ", "dyn ", "impl "] {
            rest = rest.strip_prefix(word).unwrap_or(rest);
        }
    }
    let (krate, _) = rest.split_once("::")?;
    let is_identifier =
        !krate.is_empty() && krate.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    is_identifier.then_some(krate)
}

/// Names of the frames of a profile, looked up once per frame.
pub(super) struct FrameNames<'a> {
    profile: &'a Profile,
    names: Vec<Option<Vec<Symbol>>>,
    functions: Vec<Option<Symbol>>,
}

impl<'a> FrameNames<'a> {
    pub(super) fn new(profile: &'a Profile) -> Self {
        Self {
            profile,
            names: vec![None; profile.frames.iter().len()],
            functions: vec![None; profile.functions.len()],
        }
    }

    /// Returns the function names of a stack, innermost first, at most [`MAX_FRAMES`]. Frames
    /// without a name are left out.
    pub(super) fn stack(&mut self, stack: Option<StackHandle>) -> Vec<Symbol> {
        let mut names = Vec::new();
        for frame in self.profile.stacks.frames(stack) {
            names.extend_from_slice(self.frame(frame));
            if names.len() >= MAX_FRAMES {
                break;
            }
        }
        names.truncate(MAX_FRAMES);
        names
    }

    fn frame(&mut self, frame: FrameHandle) -> &[Symbol] {
        let Self { profile, names, functions } = self;
        let Some(known) = names.get_mut(frame.index()) else { return &[] };
        known.get_or_insert_with(|| {
            let lines = profile.frames.get(frame).lines.iter();
            let name = |line: &crate::model::Line| {
                let index = line.function.index();
                let function = profile.functions.get(index)?;
                let known = functions.get_mut(index)?;
                Some(Symbol::clone(
                    known.get_or_insert_with(|| profile.strings.get(function.name).into()),
                ))
            };
            lines.filter_map(name).collect()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn library_crates_are_sorted() {
        assert!(LIBRARY_CRATES.is_sorted());
    }

    #[test]
    fn crate_is_that_of_the_implementing_type() {
        for (name, krate) in [
            ("orders::cache::insert", Some("orders")),
            ("<orders::Cache as core::ops::Drop>::drop", Some("orders")),
            ("<&mut orders::Cache as core::fmt::Debug>::fmt", Some("orders")),
            ("<<orders::A as b::U>::V as c::W>::f", Some("orders")),
            ("<alloc::vec::Vec<orders::A> as core::clone::Clone>::clone", Some("alloc")),
            ("<[orders::A]>::sort", Some("orders")),
            ("malloc", None),
            ("clock_nanosleep@GLIBC_2.2.5", None),
            ("[frames omitted]", None),
            ("0x7f00 in libc.so", None),
        ] {
            assert_eq!(crate_of(name), krate, "{name}");
        }
    }

    #[test]
    fn application_frame_is_innermost_outside_language_and_libraries() {
        let stack = |names: &[&str]| names.iter().map(|&name| name.into()).collect::<Vec<Symbol>>();
        for (names, expected) in [
            (&["memcpy", "alloc::vec::Vec<T>::push", "orders::a", "orders::b"][..], "orders::a"),
            (&["__rustc::__rust_alloc", "alloc::alloc::alloc", "orders::a"], "orders::a"),
            (&["syscall", "std::thread::sleep", "tokio::runtime::x"], "tokio::runtime::x"),
            (&["memcpy", "std::x"], "memcpy"),
        ] {
            let stack = stack(names);
            assert_eq!(application_frame(&stack).map(|name| &**name), Some(expected));
        }
        assert_eq!(application_frame(&[]), None);
    }

    #[test]
    fn display_name_has_no_trailing_closures_and_hash() {
        for (name, shown) in [
            ("orders::run::{{closure}}::{{closure}}", "orders::run"),
            ("orders::run::{closure#0}::{closure#12}", "orders::run"),
            ("orders::run::h0123456789abcdef", "orders::run"),
            ("orders::{{closure}}::inner", "orders::{{closure}}::inner"),
            ("orders::hash::hello", "orders::hash::hello"),
        ] {
            assert_eq!(display_name(name), shown);
        }
    }
}
