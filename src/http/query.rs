//! Parses the parameters of a request as Go's `net/url` does.
//!
//! A query for a Go service must have the same meaning here, including the edge cases. The first of
//! several values counts, `+` is a space, and a malformed pair is skipped without affecting the
//! others.

/// The key-value pairs of a query.
#[derive(Debug, Default)]
pub(super) struct QueryParams(Vec<(String, String)>);

/// Maximum number of pairs; further ones are ignored. No route has more than four parameters.
const MAX_PAIRS: usize = 64;

impl QueryParams {
    pub(super) fn parse(text: &str) -> Self {
        let pair = |pair: &str| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (!pair.contains(';')).then_some(())?;
            Some((decode(key)?, decode(value)?))
        };
        let pairs = text.split('&').filter(|pair| !pair.is_empty()).take(MAX_PAIRS);
        Self(pairs.filter_map(pair).collect())
    }

    /// Returns the first value of `key`, or an empty string if there is none, as Go does.
    pub(super) fn first(&self, key: &str) -> &str {
        self.0.iter().find(|(name, _)| name == key).map_or("", |(_, value)| value)
    }

    /// Parses the value of `key` as Go's `strconv.Atoi`. Returns 0 if it is not a number, as Go's
    /// handlers do.
    pub(super) fn integer(&self, key: &str) -> i64 {
        self.first(key).parse().unwrap_or(0)
    }

    /// Returns the keys of all pairs.
    pub(super) fn keys(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(key, _)| key.as_str())
    }
}

/// Decodes an escaped text. Returns `None` if an escape is invalid or the result is not UTF-8.
fn decode(text: &str) -> Option<String> {
    let mut bytes = text.bytes();
    let mut decoded = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'+' => b' ',
            b'%' => {
                let mut digit = || char::from(bytes.next()?).to_digit(16);
                (digit()? * 16 + digit()?) as u8
            }
            byte => byte,
        });
    }
    String::from_utf8(decoded).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_parsed_like_go() {
        for (text, key, value) in [
            ("seconds=5", "seconds", "5"),
            ("seconds=5&seconds=6", "seconds", "5"),
            ("a=1&seconds=%35", "seconds", "5"),
            ("seconds=+5", "seconds", " 5"),
            ("seconds=%zz&seconds=7", "seconds", "7"),
            ("seconds=1;debug=2&debug=3", "debug", "3"),
            ("%73econds=5", "seconds", "5"),
            ("seconds", "seconds", ""),
            ("seconds=%e9", "seconds", ""),
            ("seconds=%4", "seconds", ""),
            ("", "seconds", ""),
        ] {
            assert_eq!(QueryParams::parse(text).first(key), value, "{text}");
        }
        assert_eq!(QueryParams::parse("gc=x&debug=2").integer("gc"), 0);
        assert_eq!(QueryParams::parse("gc=x&debug=2").integer("debug"), 2);
    }
}
