//! The parameters of a request, read as Go's `net/url` reads them.
//!
//! What people and scrapers send to a Go service has to mean the same here, the odd cases included: the
//! first of several values counts, `+` is a space, and a pair that is not well formed is left out while the
//! others stand.

/// The pairs of a query.
#[derive(Debug, Default)]
pub(super) struct Query(Vec<(String, String)>);

/// Beyond this many the rest is left out; nothing here takes more than four.
const MOST: usize = 64;

impl Query {
    pub(super) fn parse(text: &str) -> Self {
        let pair = |pair: &str| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (!pair.contains(';')).then_some(())?;
            Some((decode(key)?, decode(value)?))
        };
        let pairs = text.split('&').filter(|pair| !pair.is_empty()).take(MOST);
        Self(pairs.filter_map(pair).collect())
    }

    /// The first value of `key`; empty when there is none, which for Go is the same.
    pub(super) fn first(&self, key: &str) -> &str {
        self.0.iter().find(|(known, _)| known == key).map_or("", |(_, value)| value)
    }

    /// Go's `strconv.Atoi`, with 0 for whatever is not a number, as its handlers take it.
    pub(super) fn flag(&self, key: &str) -> i64 {
        self.first(key).parse().unwrap_or(0)
    }

    /// The keys that are there.
    pub(super) fn keys(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(key, _)| key.as_str())
    }
}

/// None when an escape is not one; what is not UTF-8 cannot be a parameter of ours.
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
    fn queries_are_read_as_go_reads_them() {
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
            assert_eq!(Query::parse(text).first(key), value, "{text}");
        }
        assert_eq!(Query::parse("gc=x&debug=2").flag("gc"), 0);
        assert_eq!(Query::parse("gc=x&debug=2").flag("debug"), 2);
    }
}
