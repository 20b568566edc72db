//! Parsers for lists. An error names the invalid element and the valid form.

use std::fmt;

use serde::de::{self, Deserialize, Deserializer, Unexpected, Visitor};

use super::value::Text;
use crate::model::{CaptureKind, CaptureSet, CollectorSelection, FileName};

/// Parses file names of custom collectors, or `"all"`.
pub(super) fn collectors<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<CollectorSelection, D::Error> {
    struct CollectorsVisitor;

    impl<'de> Visitor<'de> for CollectorsVisitor {
        type Value = CollectorSelection;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("\"all\" or a list such as [\"running_queries.txt\"]")
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<CollectorSelection, E> {
            match text {
                "all" => Ok(CollectorSelection::All),
                _ => Err(E::invalid_value(Unexpected::Str(text), &self)),
            }
        }

        fn visit_seq<A: de::SeqAccess<'de>>(
            self,
            mut list: A,
        ) -> Result<CollectorSelection, A::Error> {
            let mut names = Vec::new();
            let expected = "a file name in quotes, such as \"running_queries.txt\"";
            while let Some(name) = list.next_element_seed(Text(expected))? {
                names.push(name.parse::<FileName>().map_err(de::Error::custom)?);
            }
            Ok(names.into_iter().collect())
        }
    }

    deserializer.deserialize_any(CollectorsVisitor)
}

/// Parses a list such as `["cpu", "heap", "trace"]`. The error lists every unknown name.
pub(super) fn captures<'de, D: Deserializer<'de>>(deserializer: D) -> Result<CaptureSet, D::Error> {
    struct CaptureSetVisitor;

    impl<'de> Visitor<'de> for CaptureSetVisitor {
        type Value = CaptureSet;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list such as [\"cpu\", \"heap\", \"trace\"]")
        }

        fn visit_seq<A: de::SeqAccess<'de>>(self, mut list: A) -> Result<CaptureSet, A::Error> {
            let mut set = CaptureSet::EMPTY;
            let mut errors = Vec::new();
            let expected = "a capture kind in quotes, such as \"cpu\"";
            while let Some(name) = list.next_element_seed(Text(expected))? {
                match name.parse::<CaptureKind>() {
                    Ok(kind) => set.insert(kind),
                    Err(error) => errors.push(error.to_string()),
                }
            }
            if errors.is_empty() { Ok(set) } else { Err(de::Error::custom(errors.join("; "))) }
        }
    }

    deserializer.deserialize_seq(CaptureSetVisitor)
}

/// Parses a list of texts.
pub(super) fn strings<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    let expected = |_| de::Error::custom("expected a list such as [\"orders.internal\"]");
    Vec::<String>::deserialize(deserializer).map_err(expected)
}
