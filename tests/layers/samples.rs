//! Tests of the scanner on samples: a scan that finds nothing in the source does not prove that the
//! scanner works.

use super::{MAX_LINES, Source, format_findings};

/// Returns the violations in `text`, read as `src/heap/table.rs`: line and import.
fn upward_imports(text: &str) -> Vec<(usize, String)> {
    let found = Source::new("src/heap/table.rs", text).upward_imports();
    found.into_iter().map(|finding| (finding.line, finding.text)).collect()
}

fn store_import(line: usize) -> (usize, String) {
    (line, "`heap` may not use `store`".to_owned())
}

#[test]
fn forbidden_import_is_reported_with_line() {
    let source = Source::new("src/heap/table.rs", "use crate::model;\n\nuse crate::store::Draft;");
    assert_eq!(
        format_findings(&source.upward_imports()),
        "\nsrc/heap/table.rs:3: `heap` may not use `store`"
    );
}

#[test]
fn imports_are_found_in_any_notation() {
    for text in [
        "pub use crate::store::Draft as D;",
        "use crate::{base::Moment, store::{self, Draft}};",
        "use crate::{model, {os, store}};",
        "pub(crate) use super::super::store;",
        "use super::{super::store::Draft};",
        "use ::marple::store::Draft;",
        "fn f() -> Result<u8, crate::store::Error> { Ok(1) }",
        "fn f() { let d = self::super::super::store::Draft::<u8>::new(); }",
        "fn f() { vec![format!(\"{}\", crate::store::NAME)]; }",
        "macro_rules! m { () => { $crate::store::open() } }",
        "fn f() { g::<crate::store::Draft>() }",
        "impl crate::store::Sink for Table {}",
        "mod tests { use super::super::super::store; }",
        "mod tests { fn f() { mod deep { use super::super::super::super::store; } } }",
        "#[cfg(any())] use crate::store;",
        "#[derive(Serialize)] struct S { #[serde(with = \"crate::store::hex\")] a: u8 }",
    ] {
        assert_eq!(upward_imports(text), [store_import(1)], "{text}");
    }
}

#[test]
fn non_imports_are_ignored() {
    for text in [
        "// use crate::store;",
        "/* crate::store */ //! crate::store",
        "/// See [`crate::store::Draft`].\nstruct S;",
        "const S: &str = \"use crate::store;\"; const R: &str = r#\"crate::store\"#;",
        "fn f<'store>(store: &'store u8) { let path = \"../store/mod.rs\"; store::open(); }",
        "use crate::model::{self, store}; use super::store; use self::store::Draft;",
        "mod tests { use super::super::store; }",
        "pub(crate) fn f() {} pub(in crate::heap) fn g() {} pub(super) fn h() {}",
        "use other::crate_::store; fn f() { other::marple::store(); }",
    ] {
        assert_eq!(upward_imports(text), [], "{text}");
    }
}

#[test]
fn globs_aliases_and_path_attributes_are_rejected() {
    let root = (1, "`heap` imports the whole of the crate's root".to_owned());
    for text in [
        "use crate as root;",
        "use crate::{self as root};",
        "use crate::*;",
        "use super::super::{base, *};",
        "use super::super as root;",
    ] {
        assert_eq!(upward_imports(text), std::slice::from_ref(&root), "{text}");
    }
    for text in [
        "#[path = \"../store/draft.rs\"] mod draft;",
        "#[cfg_attr(unix, path = \"../store/draft.rs\")] mod draft;",
        "include!(\"../store/draft.rs\");",
    ] {
        let expected = "`heap` takes in ../store/draft.rs, which is not below it".to_owned();
        assert_eq!(upward_imports(text), [(1, expected)], "{text}");
    }
    assert_eq!(upward_imports("#[path = \"table/slots.rs\"] mod slots;"), []);
}

#[test]
fn file_belongs_to_its_top_module() {
    let climbs = |file, text| Source::new(file, text).upward_imports().len();
    assert_eq!(climbs("src/lib.rs", "use crate::store; use store::Draft;"), 0);
    assert_eq!(climbs("src/heap.rs", "use super::store;"), 1);
    assert_eq!(climbs("src/heap/mod.rs", "use super::store;"), 1);
    assert_eq!(climbs("src/heap/a/b.rs", "use super::super::store;"), 0);
    assert_eq!(climbs("src/heap/a/b.rs", "use super::super::super::store;"), 1);
    assert_eq!(climbs("src/bin/marple.rs", "use crate::os; use marple::cli;"), 0);
    assert_eq!(climbs("src/bin/marple.rs", "use marple::os;"), 1);
    assert_eq!(climbs("src/novel/mod.rs", ""), 1);
}

#[test]
fn unsafe_code_is_found_in_any_notation() {
    let unsafe_count = |file, text| Source::new(file, text).unlisted_unsafe().len();
    let block = "fn f() { unsafe { g() } }";
    let opened = format!("//! Letter.\n#![allow(unsafe_code)]\n{block}");
    let explained = opened.replace("unsafe_code", "unsafe_code, reason = \"a trait\"");
    assert_eq!(unsafe_count("src/store/mod.rs", block), 1);
    assert_eq!(unsafe_count("src/store/mod.rs", &opened), 1);
    assert_eq!(unsafe_count("src/store/mod.rs", "m!({ unsafe { g() } });"), 1);
    assert_eq!(unsafe_count("src/lib.rs", "#[allow(unsafe_code)]\nmod store;"), 1);
    assert_eq!(unsafe_count("src/lib.rs", "#![deny(unsafe_code)]"), 0);
    assert_eq!(unsafe_count("src/store/mod.rs", "// unsafe\nconst U: &str = \"unsafe\";"), 0);
    assert_eq!(unsafe_count("src/os/linux/ring.rs", &opened), 0);
    assert_eq!(unsafe_count("src/os/linux/ring.rs", &explained), 0);
    assert_eq!(unsafe_count("src/store/mod.rs", &explained), 1);
    assert_eq!(unsafe_count("src/os/linux/ring.rs", block), 1);
    assert_eq!(unsafe_count("src/os/mod.rs", "#![allow(unsafe_code)]\nmod linux;"), 1);
    assert_eq!(unsafe_count("src/heap/alloc.rs", &opened), 0);
    assert_eq!(unsafe_count("src/heap/alloc/more.rs", &opened), 1);
}

#[test]
fn poorly_named_or_overlong_file_is_rejected() {
    let finding_count = |file, text: &str| Source::new(file, text).bad_names_and_lengths().len();
    assert_eq!(finding_count("src/store/helpers.rs", ""), 1);
    assert_eq!(finding_count("src/store/util/mod.rs", ""), 1);
    assert_eq!(finding_count("src/store/mod.rs", "mod common { fn f() {} }"), 1);
    assert_eq!(finding_count("src/store/mod.rs", "mod draft;\nfn util() {}"), 0);
    for (lines, refused) in [(MAX_LINES - 1, 0), (MAX_LINES, 0), (MAX_LINES + 1, 1)] {
        assert_eq!(
            finding_count("src/store/mod.rs", &"\n".repeat(lines)),
            refused,
            "{lines} lines"
        );
    }
}

#[test]
fn log_events_are_found_in_any_notation() {
    let found = |text: &str| Source::new("src/agent/core.rs", text).direct_log_events().len();
    for text in [
        "fn f() { tracing::warn!(target: \"marple\", \"x\"); }",
        "fn f() { g(|| { tracing::event!(tracing::Level::INFO, \"x\") }); }",
        "use tracing::{Level, info};",
        "use tracing::error_span;",
        "use tracing::*;",
        "use ::tracing::{*};",
    ] {
        assert_eq!(found(text), 1, "{text}");
    }
    for text in [
        "use tracing::span::{Attributes, Id};",
        "use tracing::{Event, Subscriber, span::Record, field::Visit};",
        "fn f() { log::warn(\"x\"); other::warn!(); }",
    ] {
        assert_eq!(found(text), 0, "{text}");
    }
    let log = Source::new("src/base/log/event.rs", "fn f() { tracing::warn!(\"x\"); }");
    assert!(log.direct_log_events().is_empty());
}
