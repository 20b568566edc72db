//! Reads the address list of `/debug/pprof/symbol`, sent by Go's client in a query or a body.
//!
//! Three limits bound the memory. At most [`MAX_BODIES`] bodies are read at once. Each is parsed as
//! it arrives and keeps only its addresses. It may have at most [`MAX_ADDRESSES`]. A body is
//! admitted before its first byte is read.

use std::pin::Pin;

use axum::body::Body;
use http_body::Body as _;
use tokio::sync::Semaphore;

/// Maximum number of bodies read at once. Each keeps up to 400 KiB. A slow client occupies one of
/// them until the time limit for bodies.
pub(super) const MAX_BODIES: usize = 16;
/// Maximum addresses in a request. `go tool pprof` sends those of one profile, a few thousand.
pub(super) const MAX_ADDRESSES: usize = 50_000;
/// Maximum bytes of a body: `50_000 * (18 + 1)` = 950,000, rounded up.
const MAX_BODY_BYTES: usize = 1 << 20;
/// Maximum characters of a number. Longer ones are not addresses.
const MAX_DIGITS: usize = 80;

static BODY_PERMITS: Semaphore = Semaphore::const_new(MAX_BODIES);

/// Reason for which a list was rejected.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum AddressListError {
    #[error("{MAX_BODIES} request bodies are already being read; retry later")]
    Busy,
    #[error("reading request: body is incomplete or exceeds {MAX_BODY_BYTES} bytes")]
    Body,
    #[error("more than {MAX_ADDRESSES} addresses; send fewer per request")]
    TooMany,
}

/// Reads the addresses from a request's body.
pub(super) async fn read_body(mut body: Body) -> Result<Vec<u64>, AddressListError> {
    let _permit = BODY_PERMITS.try_acquire().map_err(|_| AddressListError::Busy)?;
    let mut list = AddressList::default();
    let mut remaining = MAX_BODY_BYTES;
    loop {
        let frame = std::future::poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await;
        match frame {
            None => return list.finish(),
            Some(Err(_)) => return Err(AddressListError::Body),
            Some(Ok(frame)) => {
                let bytes = frame.into_data().unwrap_or_default();
                remaining = remaining.checked_sub(bytes.len()).ok_or(AddressListError::Body)?;
                list.push(&bytes)?;
            }
        }
    }
}

/// Reads the addresses from a request's query.
pub(super) fn read_query(query: &str) -> Result<Vec<u64>, AddressListError> {
    let mut list = AddressList::default();
    list.push(query.as_bytes())?;
    list.finish()
}

/// A parser for numbers separated by `+` that arrive in pieces.
#[derive(Default)]
struct AddressList {
    addresses: Vec<u64>,
    /// The number that may continue in the next piece.
    partial: Vec<u8>,
}

impl AddressList {
    fn push(&mut self, bytes: &[u8]) -> Result<(), AddressListError> {
        for &byte in bytes {
            if byte == b'+' {
                self.end_number()?;
            } else if self.partial.len() <= MAX_DIGITS {
                self.partial.push(byte);
            }
        }
        Ok(())
    }

    fn end_number(&mut self) -> Result<(), AddressListError> {
        let is_short = self.partial.len() <= MAX_DIGITS;
        let text = std::str::from_utf8(&self.partial).ok().filter(|_| is_short);
        if let Some(address) = text.and_then(parse_address) {
            if self.addresses.len() == MAX_ADDRESSES {
                return Err(AddressListError::TooMany);
            }
            self.addresses.push(address);
        }
        self.partial.clear();
        Ok(())
    }

    fn finish(mut self) -> Result<Vec<u64>, AddressListError> {
        self.end_number()?;
        Ok(self.addresses)
    }
}

/// Parses a number as Go's `strconv.ParseUint(text, 0, 64)`. Returns `None` for 0, which is not an
/// address.
fn parse_address(text: &str) -> Option<u64> {
    let text = text.trim_end_matches(['\r', '\n']);
    let prefixed = |prefix: [&str; 2], radix| {
        let digits = prefix.iter().find_map(|prefix| text.strip_prefix(prefix))?;
        Some(u64::from_str_radix(digits, radix).ok().filter(|_| !digits.starts_with('+')))
    };
    let parsed = prefixed(["0x", "0X"], 16)
        .or_else(|| prefixed(["0b", "0B"], 2))
        .or_else(|| prefixed(["0o", "0O"], 8))
        .unwrap_or_else(|| match text.strip_prefix('0') {
            Some(octal) => u64::from_str_radix(octal, 8).ok(),
            None => text.parse().ok(),
        });
    parsed.filter(|address| *address != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_parsed_like_go() {
        for (text, expected) in [
            ("0x55d0", Some(0x55d0)),
            ("0X55D0", Some(0x55d0)),
            ("1234", Some(1234)),
            ("017", Some(15)),
            ("0b11", Some(3)),
            ("0o17", Some(15)),
            ("0x1\n", Some(1)),
            ("0", None),
            ("0x", None),
            ("0x+1", None),
            ("", None),
            ("main", None),
            ("0x1ffffffffffffffff", None),
        ] {
            assert_eq!(parse_address(text), expected, "{text}");
        }
    }

    fn parse_list(pieces: &[&[u8]]) -> Result<Vec<u64>, AddressListError> {
        let mut list = AddressList::default();
        pieces.iter().try_for_each(|piece| list.push(piece))?;
        list.finish()
    }

    #[test]
    fn list_parses_the_same_across_chunk_boundaries() {
        let text = b"0x10+main+\xff+17++0x20\n";
        for split_index in 0..text.len() {
            let (first, second) = text.split_at(split_index);
            assert_eq!(parse_list(&[first, second]).unwrap(), [0x10, 17, 0x20], "{split_index}");
        }
        assert_eq!(parse_list(&[]).unwrap(), [] as [u64; 0]);
        let long = [b"0x".as_slice(), &[b'0'; MAX_DIGITS], b"1+7"].concat();
        assert_eq!(parse_list(&[&long]).unwrap(), [7]);
    }

    #[test]
    fn list_is_limited_to_max_addresses() {
        let many = |n: usize| parse_list(&["1+".repeat(n).as_bytes()]);
        assert_eq!(many(MAX_ADDRESSES).unwrap().len(), MAX_ADDRESSES);
        assert_eq!(many(MAX_ADDRESSES + 1), Err(AddressListError::TooMany));
    }

    #[tokio::test]
    async fn returns_busy_when_too_many_bodies_are_being_read() {
        let permits = BODY_PERMITS.acquire_many(MAX_BODIES as u32).await.unwrap();
        assert_eq!(read_body(Body::from("1")).await, Err(AddressListError::Busy));
        drop(permits);
        assert_eq!(read_body(Body::from("1+2")).await.unwrap(), [1, 2]);
        assert_eq!(
            read_body(Body::from(vec![b'x'; MAX_BODY_BYTES + 1])).await,
            Err(AddressListError::Body)
        );
    }
}
