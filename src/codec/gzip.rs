//! Writing of messages to a gzip stream, and bounded decompression of gzip streams.

use std::io::{self, Read, Write};

use flate2::Compression;
use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;
use prost::Message;

use super::error::Error;
use crate::base::Bytes;

/// Bytes gathered per call of the compressor. A call costs as much as some hundred bytes of input;
/// messages are tens of bytes.
const BLOCK_BYTES: usize = 32 << 10;

/// Compression level of most files. Compared with the default level, 6, a profile of 50,000 stacks
/// and a trace of 500,000 slices take a fifth of the time and 9 and 17 % more bytes. Level 3 takes
/// twice the time for 5 and 7 % fewer bytes. Speed matters, because captures are written on an
/// overloaded machine.
const LEVEL: Compression = Compression::new(2);

/// Compression level of a trace's polls, which are hundreds of thousands of nearly equal packets.
/// Three fifths of the time of level 2, and four bytes instead of three.
const FAST_LEVEL: Compression = Compression::new(1);

/// A writer of one message in parts. Consecutive encoded messages form one message with the
/// repeated fields concatenated. A part is therefore the whole message with only a few of its
/// entries.
pub(super) struct GzipMessageWriter<W: Write> {
    out: GzEncoder<W>,
    block: Vec<u8>,
}

impl<W: Write> GzipMessageWriter<W> {
    pub(super) fn new(out: W) -> Self {
        Self::with_level(out, LEVEL)
    }

    /// Creates a writer for content that compresses well even at the fastest level.
    pub(super) fn fast(out: W) -> Self {
        Self::with_level(out, FAST_LEVEL)
    }

    fn with_level(out: W, level: Compression) -> Self {
        let block = Vec::with_capacity(BLOCK_BYTES + BLOCK_BYTES / 8);
        Self { out: GzEncoder::new(out, level), block }
    }

    /// Appends a part.
    pub(super) fn write(&mut self, part: &impl Message) -> io::Result<()> {
        // Encoding into a `Vec` fails only if its length would exceed `isize::MAX`.
        part.encode(&mut self.block).map_err(io::Error::other)?;
        self.flush_block()
    }

    /// Appends an encoded part.
    #[inline]
    pub(super) fn write_bytes(&mut self, part: &[u8]) -> io::Result<()> {
        self.block.extend_from_slice(part);
        self.flush_block()
    }

    #[inline]
    fn flush_block(&mut self) -> io::Result<()> {
        if self.block.len() >= BLOCK_BYTES {
            self.out.write_all(&self.block)?;
            self.block.clear();
        }
        Ok(())
    }

    /// Writes the remaining bytes and the trailer. Without this call the file is truncated.
    pub(super) fn finish(mut self) -> io::Result<()> {
        self.out.write_all(&self.block)?;
        self.out.finish()?.flush()
    }
}

/// Returns the content of `bytes`, compressed or plain, if it is at most `limit`.
pub(super) fn inflate(bytes: &[u8], limit: Bytes) -> Result<Vec<u8>, Error> {
    // A gzip stream ends with its length. If that is wrong, the vector grows or stays too large.
    let length = match bytes {
        [0x1f, 0x8b, .., a, b, c, d] => u64::from(u32::from_le_bytes([*a, *b, *c, *d])),
        _ => bytes.len() as u64,
    };
    let mut content = Vec::with_capacity(length.min(limit.get()) as usize + 1);
    let mut bounded: Box<dyn Read> = if bytes.starts_with(&[0x1f, 0x8b]) {
        Box::new(MultiGzDecoder::new(bytes).take(limit.get().saturating_add(1)))
    } else {
        Box::new(bytes.take(limit.get().saturating_add(1)))
    };
    bounded.read_to_end(&mut content).map_err(Error::Gzip)?;
    if content.len() as u64 > limit.get() {
        return Err(Error::TooLarge { limit });
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gzip(content: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(content).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn content_over_the_limit_is_rejected() {
        let limit = Bytes(1000);
        for (size, fits) in [(999, true), (1000, true), (1001, false), (100_000, false)] {
            for bytes in [gzip(&vec![7; size]), vec![7; size]] {
                match inflate(&bytes, limit) {
                    Ok(content) => assert!(fits && content.len() == size, "{size}"),
                    Err(error) => assert!(!fits && matches!(error, Error::TooLarge { .. })),
                }
            }
        }
    }

    #[test]
    fn truncated_stream_is_an_error() {
        let complete = gzip(b"some content");
        for length in 2..complete.len() {
            assert!(
                matches!(inflate(&complete[..length], Bytes(100)), Err(Error::Gzip(_))),
                "{length}"
            );
        }
    }
}
