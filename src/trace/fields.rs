//! The fields of a span or an event, as texts of bounded size.
//!
//! A value's `Debug` is user code that runs on the user's thread at marple's request.
//!
//! * Panics are caught. A panic loses only the text of that value. It does not stop the service,
//!   which may never have formatted that field before the capture. The panic hook still runs and
//!   prints. Under `panic = "abort"` panics cannot be caught.
//! * Output is limited. Beyond [`MAX_TEXT`] bytes the writer returns an error, so that formatting
//!   does not visit a million elements.
//! * It may emit events. No lock or borrow of marple is held while it runs.

use std::fmt::{self, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tracing::field::{Field, Visit};

/// Maximum length of one value's text in bytes. A longer one is cut and ends in `…`.
pub(super) const MAX_TEXT: usize = 256;

/// Maximum number of fields of one span or event.
pub(super) const MAX_FIELDS: usize = 16;

/// Name of the field with an event's text in `tracing`.
pub(super) const MESSAGE: &str = "message";

/// Names and texts of fields. All texts share one allocation.
#[derive(Debug, Default)]
pub(super) struct FieldList {
    /// The session in which the texts were charged to the budget.
    paid_in: AtomicU64,
    text: String,
    /// Names, and the end offsets of their texts.
    parts: Vec<(&'static str, usize)>,
}

impl FieldList {
    /// Collects the fields that `record` passes to the visitor, followed by those of `earlier` with
    /// other names. Returns `None` if there are no fields. Adds the number of fields above the
    /// limit to `left_out`.
    pub(super) fn gather(
        earlier: Option<&Self>,
        left_out: &mut u64,
        record: impl FnOnce(&mut dyn Visit),
    ) -> Option<Arc<Self>> {
        let mut gather = FieldVisitor { fields: Self::default(), left_out: 0 };
        record(&mut gather);
        for (name, text) in earlier.into_iter().flat_map(Self::iter) {
            if !gather.fields.parts.iter().any(|&(known, _)| known == name) {
                gather.take(name, |out| out.write_str(text));
            }
        }
        *left_out += gather.left_out;
        (!gather.fields.parts.is_empty()).then(|| Arc::new(gather.fields))
    }

    /// Returns names and texts.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let mut from = 0;
        self.parts.iter().map(move |&(name, end)| {
            let text = self.text.get(from..end).unwrap_or_default();
            from = end;
            (name, text)
        })
    }

    pub(super) fn len(&self) -> usize {
        self.parts.len()
    }

    /// Returns the length of all texts in bytes.
    pub(super) fn text_len(&self) -> usize {
        self.text.len()
    }

    /// Returns `true` if the texts are not charged to `session` yet, and marks them as charged.
    pub(super) fn unpaid_in(&self, session: u64) -> bool {
        self.paid_in.load(Ordering::Relaxed) != session
            && self.paid_in.swap(session, Ordering::Relaxed) != session
    }
}

/// The visitor that collects fields.
struct FieldVisitor {
    fields: FieldList,
    left_out: u64,
}

impl FieldVisitor {
    fn take(
        &mut self,
        name: &'static str,
        write: impl FnOnce(&mut BoundedText<'_>) -> fmt::Result,
    ) {
        let FieldList { text, parts, .. } = &mut self.fields;
        if parts.len() == MAX_FIELDS {
            self.left_out += 1;
            return;
        }
        let start = text.len();
        let mut out = BoundedText { text, room: MAX_TEXT, cut: false };
        match catch_unwind(AssertUnwindSafe(|| write(&mut out))) {
            Ok(Ok(())) => {}
            Ok(Err(fmt::Error)) if out.cut => {}
            Ok(Err(fmt::Error)) => text.push_str("(its formatting failed)"),
            Err(_) => {
                text.truncate(start);
                text.push_str("(its formatting panicked)");
            }
        }
        parts.push((name, text.len()));
    }
}

impl Visit for FieldVisitor {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.take(field.name(), |out| write!(out, "{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.take(field.name(), |out| out.write_str(value));
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.take(field.name(), |out| write!(out, "{value}"));
    }
}

/// A writer that returns an error once its limit is reached.
struct BoundedText<'a> {
    text: &'a mut String,
    room: usize,
    cut: bool,
}

impl Write for BoundedText<'_> {
    fn write_str(&mut self, part: &str) -> fmt::Result {
        if self.cut {
            return Err(fmt::Error);
        }
        if part.len() <= self.room {
            self.text.push_str(part);
            self.room -= part.len();
            return Ok(());
        }
        let end = (0..=self.room).rev().find(|&end| part.is_char_boundary(end)).unwrap_or(0);
        self.text.push_str(part.get(..end).unwrap_or_default());
        self.text.push('…');
        self.cut = true;
        Err(fmt::Error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(write: impl FnOnce(&mut BoundedText<'_>) -> fmt::Result) -> String {
        let mut gather = FieldVisitor { fields: FieldList::default(), left_out: 0 };
        gather.take("field", write);
        gather.fields.iter().map(|(_, text)| text.to_owned()).collect()
    }

    #[test]
    fn a_text_is_cut_past_its_room_and_at_a_whole_character() {
        for len in [MAX_TEXT - 1, MAX_TEXT] {
            assert_eq!(one(|out| out.write_str(&"x".repeat(len))), "x".repeat(len));
        }
        let cut = "x".repeat(MAX_TEXT) + "…";
        assert_eq!(one(|out| out.write_str(&"x".repeat(MAX_TEXT + 1))), cut);
        let euros = "€".repeat(MAX_TEXT);
        assert_eq!(one(|out| out.write_str(&euros)), "€".repeat(MAX_TEXT / 3) + "…");
    }

    #[test]
    fn a_long_debug_is_stopped_and_not_merely_cut() {
        let mut walked = 0;
        let text = one(|out| {
            (0..1_000_000).try_for_each(|n| {
                walked += 1;
                write!(out, "{n},")
            })
        });
        assert!(text.ends_with('…') && walked < MAX_TEXT, "{walked} elements for {text}");
    }

    #[test]
    fn a_panicking_debug_costs_its_own_text_only() {
        let mut gather = FieldVisitor { fields: FieldList::default(), left_out: 0 };
        gather.take("before", |out| out.write_str("1"));
        gather.take("bad", |out| {
            out.write_str("half a te")?;
            std::panic::resume_unwind(Box::new("in a Debug"))
        });
        gather.take("after", |out| out.write_str("2"));
        let fields: Vec<_> = gather.fields.iter().collect();
        assert_eq!(fields, [("before", "1"), ("bad", "(its formatting panicked)"), ("after", "2")]);
    }

    #[test]
    fn fields_past_the_limit_are_counted_and_later_values_win() {
        const NAMES: [&str; MAX_FIELDS + 1] =
            ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m", "n", "o", "p", "q"];
        let mut gather = FieldVisitor { fields: FieldList::default(), left_out: 0 };
        for name in NAMES {
            gather.take(name, |out| out.write_str("x"));
        }
        assert_eq!((gather.fields.len(), gather.left_out), (MAX_FIELDS, 1));

        let mut earlier = FieldVisitor { fields: FieldList::default(), left_out: 0 };
        earlier.take("status", |out| out.write_str("unknown"));
        earlier.take("path", |out| out.write_str("/"));
        let mut left_out = 0;
        let merged = FieldList::gather(Some(&earlier.fields), &mut left_out, |_| {}).unwrap();
        assert_eq!(merged.iter().collect::<Vec<_>>(), [("status", "unknown"), ("path", "/")]);
    }
}
