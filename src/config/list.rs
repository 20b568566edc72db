//! Parsers for lists. An error names the invalid element and the valid form.

use std::fmt;

use serde::de::{self, Deserialize, Deserializer, Unexpected, Visitor};

use super::value::Text;
use crate::model::{CaptureKind, CaptureSet, Collect, FileName};

/// Parses file names of custom collectors, or `"all"`.
pub(super) fn collect<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Collect, D::Error> {
    struct Names;

    impl<'de> Visitor<'de> for Names {
        type Value = Collect;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("\"all\" or a list such as [\"running_queries.txt\"]")
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<Collect, E> {
            match text {
                "all" => Ok(Collect::All),
                _ => Err(E::invalid_value(Unexpected::Str(text), &self)),
            }
        }

        fn visit_seq<A: de::SeqAccess<'de>>(self, mut list: A) -> Result<Collect, A::Error> {
            let mut names = Vec::new();
            let expected = "the name of a file in quotes, such as \"running_queries.txt\"";
            while let Some(name) = list.next_element_seed(Text(expected))? {
                names.push(name.parse::<FileName>().map_err(de::Error::custom)?);
            }
            Ok(names.into_iter().collect())
        }
    }

    deserializer.deserialize_any(Names)
}

/// Parses a list such as `["cpu", "heap", "trace"]`. The error lists every unknown name.
pub(super) fn captures<'de, D: Deserializer<'de>>(deserializer: D) -> Result<CaptureSet, D::Error> {
    struct Names;

    impl<'de> Visitor<'de> for Names {
        type Value = CaptureSet;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list such as [\"cpu\", \"heap\", \"trace\"]")
        }

        fn visit_seq<A: de::SeqAccess<'de>>(self, mut list: A) -> Result<CaptureSet, A::Error> {
            let (mut set, mut wrong) = (CaptureSet::EMPTY, Vec::new());
            let expected = "the name of a capture in quotes, such as \"cpu\"";
            while let Some(name) = list.next_element_seed(Text(expected))? {
                match name.parse::<CaptureKind>() {
                    Ok(kind) => set.insert(kind),
                    Err(error) => wrong.push(error.to_string()),
                }
            }
            if wrong.is_empty() { Ok(set) } else { Err(de::Error::custom(wrong.join("; "))) }
        }
    }

    deserializer.deserialize_seq(Names)
}

/// Parses a list of texts.
pub(super) fn texts<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    let expected = |_| de::Error::custom("expected a list such as [\"orders.internal\"]");
    Vec::<String>::deserialize(deserializer).map_err(expected)
}
