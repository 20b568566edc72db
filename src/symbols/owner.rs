//! Distinction between functions of the service and of libraries, by their names.
//!
//! Symbol tables do not contain inlined functions, so the decision uses the first crate of a path.
//! For `<Type as Trait>::method` it is the crate of the type. If the type belongs to a library, or
//! is a primitive or a type parameter, it is the crate of the trait.

/// Crates of the language: never the cause, only the place where it shows.
const LANGUAGE_CRATES: &[&str] = &[
    "__rustc",
    "alloc",
    "compiler_builtins",
    "core",
    "panic_abort",
    "panic_unwind",
    "proc_macro",
    "std",
    "std_detect",
    "test",
];

/// Crates between a service and the system: the runtime and common crates of servers.
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
    "async_trait",
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
    "futures_io",
    "futures_lite",
    "futures_task",
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
    "libc",
    "linux_raw_sys",
    "lock_api",
    "log",
    "marple",
    "memchr",
    "mimalloc",
    "mio",
    "once_cell",
    "parking_lot",
    "parking_lot_core",
    "pin_project",
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

/// Parts of names of functions that only call another function.
const GLUE_PREFIXES: &[&str] = &[
    "core::future::",
    "core::ops::function::",
    "core::panic::",
    "core::pin::",
    "core::ptr::",
    "std::panic::",
    "std::panicking::",
    "std::sys::backtrace::__rust_",
    "std::thread::local::LocalKey",
    "__rust_",
];

/// The function that represents a stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ApplicationFunction<'a> {
    /// The innermost function of the service, or the innermost function of the stack if there is
    /// none.
    pub name: &'a str,
    /// The library function that it called, or `None` if it called none.
    pub via: Option<&'a str>,
}

/// Returns the function that represents a stack. `names` are its functions, innermost first.
pub fn application_function<'a>(names: &[&'a str]) -> Option<ApplicationFunction<'a>> {
    let Some(index) = names.iter().position(|name| is_application(name)) else {
        return names.first().map(|name| ApplicationFunction { name, via: None });
    };
    let (called, from_own) = names.split_at(index);
    let name = from_own.first()?;
    let via = called.iter().rev().find(|name| !is_glue(name)).copied();
    Some(ApplicationFunction { name, via })
}

/// The part of a program that a function belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FunctionOwner {
    /// C code, the standard library, or a name that is no path.
    Language,
    /// A known library.
    Library,
    Application,
}

impl FunctionOwner {
    /// Returns the owner of the function with this demangled name.
    pub(crate) fn of(name: &str) -> Self {
        match owning_crate(first_name(name)) {
            None => Self::Language,
            Some(owner) if LANGUAGE_CRATES.contains(&owner) => Self::Language,
            Some(owner) if LIBRARY_CRATES.contains(&owner) => Self::Library,
            Some(_) => Self::Application,
        }
    }
}

/// Returns `true` if this demangled name belongs to the service: a Rust path whose crate is not a
/// known library.
pub(crate) fn is_application(name: &str) -> bool {
    FunctionOwner::of(name) == FunctionOwner::Application
}

/// Returns `true` if a function only calls another one.
pub(crate) fn is_glue(name: &str) -> bool {
    let inner = name.strip_prefix('<').unwrap_or(name);
    let of_trait = inner.split_once(" as ").map_or("", |(_, of_trait)| of_trait);
    GLUE_PREFIXES.iter().any(|glue| inner.starts_with(glue) || of_trait.starts_with(glue))
}

/// Returns the crate of a path or type. `None` if it does not begin with a crate: a C function, a
/// primitive or a type parameter.
fn owning_crate(path: &str) -> Option<&str> {
    let path = strip_pointers(path);
    if let Some(rest) = path.strip_prefix('<') {
        let (inner, _) = rest.split_at_checked(closing_bracket(rest)?)?;
        let Some((of_type, of_trait)) = split_as(inner) else { return owning_crate(inner) };
        let is_own =
            |owner: &&str| !LANGUAGE_CRATES.contains(owner) && !LIBRARY_CRATES.contains(owner);
        return owning_crate(of_type).filter(is_own).or_else(|| owning_crate(of_trait));
    }
    let (first, _) = path.split_once("::")?;
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    (!first.is_empty() && first.bytes().all(is_name)).then_some(first)
}

/// Returns a type without references, pointers, and the brackets of slices and tuples.
fn strip_pointers(mut path: &str) -> &str {
    loop {
        let next = path.trim_start_matches(['&', '*', '(', '[', ' ']);
        let next = ["mut ", "const ", "dyn ", "impl "]
            .iter()
            .find_map(|word| next.strip_prefix(word))
            .unwrap_or(next);
        if next.len() == path.len() {
            return path;
        }
        path = next;
    }
}

/// Returns the index of the `>` that matches a `<` before `text`.
fn closing_bracket(text: &str) -> Option<usize> {
    let mut depth = 0usize;
    let mut previous = 0;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'<' => depth += 1,
            // `->` of a function type.
            b'>' if previous == b'-' => {}
            b'>' if depth == 0 => return Some(at),
            b'>' => depth -= 1,
            _ => {}
        }
        previous = byte;
    }
    None
}

/// Splits `Type as Trait` outside of nested brackets.
fn split_as(inner: &str) -> Option<(&str, &str)> {
    const AS: &str = " as ";
    let mut depth = 0usize;
    for (at, byte) in inner.bytes().enumerate() {
        match byte {
            b'<' => depth += 1,
            b'>' => depth = depth.saturating_sub(1),
            b' ' if depth == 0 => {
                if let Some((of_type, rest)) = inner.split_at_checked(at)
                    && let Some(of_trait) = rest.strip_prefix(AS)
                {
                    return Some((of_type, of_trait));
                }
            }
            _ => {}
        }
    }
    None
}

/// Returns the first name of a frame's name.
pub(crate) fn first_name(name: &str) -> &str {
    name.split_once(NAME_SEPARATOR).map_or(name, |(first, _)| first)
}

/// The separator between the names of a frame.
pub(crate) const NAME_SEPARATOR: &str = " (or ";

#[cfg(test)]
mod tests {
    use super::super::name::DemangledName;
    use super::*;

    #[test]
    fn is_application_distinguishes_service_from_libraries() {
        for (name, is_own) in [
            ("orders::disk::wait", true),
            ("orders::main::{{closure}}", true),
            ("<orders::Disk as tokio::io::async_read::AsyncRead>::poll_read", true),
            ("<orders::Disk>::wait", true),
            ("<&mut orders::Disk as std::io::Read>::read", true),
            ("<orders::main::{closure#0} as core::future::future::Future>::poll", true),
            ("<T as orders::Handler>::handle", true),
            ("<alloc::vec::Vec<T> as orders::Store>::save", true),
            ("<str as orders::Store>::save", true),
            ("<dyn orders::Store as orders::Other>::save", true),
            ("orders::store::<impl orders::Store for alloc::vec::Vec<T>>::save", true),
            ("orders::keep (or std::thread::sleep)", true),
            ("std::thread::sleep", false),
            ("std::thread::sleep (or orders::sleep)", false),
            ("<F as core::future::future::Future>::poll", false),
            ("<core::pin::Pin<P> as core::future::future::Future>::poll", false),
            ("<core::pin::Pin<&mut orders::Fut> as core::future::future::Future>::poll", false),
            ("<(&str, u16) as std::net::socket_addr::ToSocketAddrs>::to_socket_addrs", false),
            ("<str as std::net::socket_addr::ToSocketAddrs>::to_socket_addrs", false),
            ("<fn(orders::A) -> orders::B as core::ops::function::FnOnce<()>>::call_once", false),
            ("core::future::future::<impl core::future::future::Future for F>::poll", false),
            ("core::ops::function::FnOnce::call_once{{vtable.shim}}", false),
            ("core::ptr::drop_in_place<orders::Guard>", false),
            ("std::io::Read::read_exact", false),
            ("<std::net::tcp::TcpStream as std::io::Read>::read", false),
            ("tokio::runtime::task::core::Core<T,S>::poll::{{closure}}", false),
            ("marple::task::Task<F>::poll", false),
            ("nanosleep", false),
            ("_ZNSt6vectorIiSaIiEE9push_backEOi", false),
            ("main", false),
            ("<", false),
            ("", false),
        ] {
            assert_eq!(is_application(name), is_own, "{name}");
        }
    }

    /// As in symbol tables, in both manglings.
    #[test]
    fn picks_innermost_service_function_of_stack() {
        let legacy = [
            "clock_nanosleep",
            "_ZN3std6thread5sleep17h0123456789abcdefE",
            "_ZN6shorty6faults19blocking_dns_lookup17h0123456789abcdefE",
            "_ZN50_$LT$F$u20$as$u20$core..future..future..Future$GT$4poll17h0123456789abcdefE",
            "_ZN5tokio7runtime4task3raw4poll17h0123456789abcdefE",
        ];
        let v0 = [
            "clock_nanosleep",
            "_RNvNtCs1234_3std6thread5sleep",
            "_RNvNtCs5678_6shorty6faults19blocking_dns_lookup",
            "_RNvNtNtNtCs9_5tokio7runtime4task3raw4poll",
        ];
        for symbols in [&legacy[..], &v0] {
            let names: Vec<String> =
                symbols.iter().map(|symbol| DemangledName(symbol).to_string()).collect();
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            let own = application_function(&names).unwrap();
            assert_eq!(own.name, "shorty::faults::blocking_dns_lookup", "{names:?}");
            assert_eq!(own.via, Some("std::thread::sleep"), "{names:?}");
        }
    }

    #[test]
    fn glue_is_skipped_and_library_only_stack_uses_innermost() {
        let stack = [
            "read",
            "<std::net::tcp::TcpStream as std::io::Read>::read",
            "core::ops::function::FnOnce::call_once",
            "<F as core::future::future::Future>::poll",
            "orders::load",
        ];
        let via = Some("<std::net::tcp::TcpStream as std::io::Read>::read");
        assert_eq!(
            application_function(&stack),
            Some(ApplicationFunction { name: "orders::load", via })
        );
        let stack = ["orders::burn", "orders::main"];
        let own = ApplicationFunction { name: "orders::burn", via: None };
        assert_eq!(application_function(&stack), Some(own));
        let own = ApplicationFunction { name: "nanosleep", via: None };
        assert_eq!(application_function(&["nanosleep", "std::thread::sleep"]), Some(own));
        assert_eq!(application_function(&[]), None);
    }
}
