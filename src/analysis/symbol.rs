//! Function names: the one that represents a stack, and how names are shown. `symbols` decides
//! which functions belong to the application, here as for the stalls in the log.

use std::sync::Arc;

use crate::model::{FrameHandle, Profile, StackHandle};
use crate::symbols::FunctionOwner;

/// The name of a function, shared between the rows of all tables that contain it.
pub(crate) type Symbol = Arc<str>;

/// Maximum number of frames of a stack in a table. The innermost ones are kept.
const MAX_FRAMES: usize = 96;

/// Returns the innermost function of the application in a stack whose innermost frame is first.
/// Without one, returns the innermost function of a library, then the innermost function. Returns
/// `None` for an empty stack.
pub(crate) fn application_frame(stack: &[Symbol]) -> Option<&Symbol> {
    let innermost_of = |owner| stack.iter().find(|name| FunctionOwner::of(name) == owner);
    innermost_of(FunctionOwner::Application)
        .or_else(|| innermost_of(FunctionOwner::Library))
        .or_else(|| stack.first())
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
