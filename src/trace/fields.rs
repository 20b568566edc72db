//! The fields of a span or an event, as texts of bounded size.
//!
//! A value's `Debug` is user code that runs on the user's thread at marple's request.
//!
//! * Panics are caught. A panic loses only the text of that value. It does not stop the service,
//!   which may never have formatted that field before the capture. The panic hook still runs and
//!   prints. Under `panic = "abort"` panics cannot be caught.
//! * Output is limited. Beyond [`MAX_TEXT_BYTES`] bytes the writer returns an error, so that
//!   formatting does not visit a million elements.
//! * It may emit events. No lock or borrow of marple is held while it runs.

use std::fmt::{self, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tracing::field::{Field, Visit};

/// Maximum length of one value's text in bytes. A longer one is cut and ends in `…`.
pub(super) const MAX_TEXT_BYTES: usize = 256;

/// Maximum number of fields of one span or event.
pub(super) const MAX_FIELDS: usize = 16;

/// Name of the field with an event's text in `tracing`.
pub(super) const MESSAGE: &str = "message";

/// Names and texts of fields. All texts share one allocation.
#[derive(Debug, Default)]
pub(super) struct FieldList {
    /// The session in which the texts were charged to the budget.
    charged_session: AtomicU64,
    text: String,
    /// Names, and the end offsets of their texts.
    parts: Vec<(&'static str, usize)>,
}

impl FieldList {
    /// Collects the fields that `record` passes to the visitor, followed by those of `earlier` with
    /// other names. Returns `None` if there are no fields. Adds the number of fields above the
    /// limit to `omitted`.
    pub(super) fn collect(
        earlier: Option<&Self>,
        omitted: &mut u64,
        record: impl FnOnce(&mut dyn Visit),
    ) -> Option<Arc<Self>> {
        let mut visitor = FieldVisitor { fields: Self::default(), omitted: 0 };
        record(&mut visitor);
        for (name, text) in earlier.into_iter().flat_map(Self::iter) {
            if !visitor.fields.parts.iter().any(|&(known, _)| known == name) {
                visitor.push(name, |out| out.write_str(text));
            }
        }
        *omitted += visitor.omitted;
        (!visitor.fields.parts.is_empty()).then(|| Arc::new(visitor.fields))
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
    pub(super) fn mark_charged(&self, session: u64) -> bool {
        self.charged_session.load(Ordering::Relaxed) != session
            && self.charged_session.swap(session, Ordering::Relaxed) != session
    }
}

/// The visitor that collects fields.
struct FieldVisitor {
    fields: FieldList,
    omitted: u64,
}

impl FieldVisitor {
    fn push(
        &mut self,
        name: &'static str,
        write: impl FnOnce(&mut BoundedText<'_>) -> fmt::Result,
    ) {
        let FieldList { text, parts, .. } = &mut self.fields;
        if parts.len() == MAX_FIELDS {
            self.omitted += 1;
            return;
        }
        let start = text.len();
        let mut out = BoundedText { text, remaining: MAX_TEXT_BYTES, is_truncated: false };
        match catch_unwind(AssertUnwindSafe(|| write(&mut out))) {
            Ok(Ok(())) => {}
            Ok(Err(fmt::Error)) if out.is_truncated => {}
            Ok(Err(fmt::Error)) => text.push_str("(formatting failed)"),
            Err(_) => {
                text.truncate(start);
                text.push_str("(formatting panicked)");
            }
        }
        parts.push((name, text.len()));
    }
}

impl Visit for FieldVisitor {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.push(field.name(), |out| write!(out, "{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.push(field.name(), |out| out.write_str(value));
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.push(field.name(), |out| write!(out, "{value}"));
    }
}

/// A writer that returns an error once its limit is reached.
struct BoundedText<'a> {
    text: &'a mut String,
    remaining: usize,
    is_truncated: bool,
}

impl Write for BoundedText<'_> {
    fn write_str(&mut self, part: &str) -> fmt::Result {
        if self.is_truncated {
            return Err(fmt::Error);
        }
        if part.len() <= self.remaining {
            self.text.push_str(part);
            self.remaining -= part.len();
            return Ok(());
        }
        let end = (0..=self.remaining).rev().find(|&end| part.is_char_boundary(end)).unwrap_or(0);
        self.text.push_str(part.get(..end).unwrap_or_default());
        self.text.push('…');
        self.is_truncated = true;
        Err(fmt::Error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn format_field(write: impl FnOnce(&mut BoundedText<'_>) -> fmt::Result) -> String {
        let mut visitor = FieldVisitor { fields: FieldList::default(), omitted: 0 };
        visitor.push("field", write);
        visitor.fields.iter().map(|(_, text)| text.to_owned()).collect()
    }

    #[test]
    fn text_beyond_limit_is_truncated_at_char_boundary() {
        for len in [MAX_TEXT_BYTES - 1, MAX_TEXT_BYTES] {
            assert_eq!(format_field(|out| out.write_str(&"x".repeat(len))), "x".repeat(len));
        }
        let cut = "x".repeat(MAX_TEXT_BYTES) + "…";
        assert_eq!(format_field(|out| out.write_str(&"x".repeat(MAX_TEXT_BYTES + 1))), cut);
        let euros = "€".repeat(MAX_TEXT_BYTES);
        assert_eq!(format_field(|out| out.write_str(&euros)), "€".repeat(MAX_TEXT_BYTES / 3) + "…");
    }

    #[test]
    fn formatting_stops_once_text_limit_is_reached() {
        let mut formatted = 0;
        let text = format_field(|out| {
            (0..1_000_000).try_for_each(|n| {
                formatted += 1;
                write!(out, "{n},")
            })
        });
        assert!(
            text.ends_with('…') && formatted < MAX_TEXT_BYTES,
            "{formatted} elements for {text}"
        );
    }

    #[test]
    fn panic_in_debug_replaces_only_that_fields_text() {
        let mut visitor = FieldVisitor { fields: FieldList::default(), omitted: 0 };
        visitor.push("before", |out| out.write_str("1"));
        visitor.push("bad", |out| {
            out.write_str("half a te")?;
            std::panic::resume_unwind(Box::new("in a Debug"))
        });
        visitor.push("after", |out| out.write_str("2"));
        let fields: Vec<_> = visitor.fields.iter().collect();
        assert_eq!(fields, [("before", "1"), ("bad", "(formatting panicked)"), ("after", "2")]);
    }

    #[test]
    fn fields_beyond_limit_are_counted_and_later_values_win() {
        const NAMES: [&str; MAX_FIELDS + 1] =
            ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m", "n", "o", "p", "q"];
        let mut visitor = FieldVisitor { fields: FieldList::default(), omitted: 0 };
        for name in NAMES {
            visitor.push(name, |out| out.write_str("x"));
        }
        assert_eq!((visitor.fields.len(), visitor.omitted), (MAX_FIELDS, 1));

        let mut earlier = FieldVisitor { fields: FieldList::default(), omitted: 0 };
        earlier.push("status", |out| out.write_str("unknown"));
        earlier.push("path", |out| out.write_str("/"));
        let mut omitted = 0;
        let merged = FieldList::collect(Some(&earlier.fields), &mut omitted, |_| {}).unwrap();
        assert_eq!(merged.iter().collect::<Vec<_>>(), [("status", "unknown"), ("path", "/")]);
    }
}
