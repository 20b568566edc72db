//! A reusable gzip compressor that allocates only when it is created.
//!
//! A stream ends with a full flush, which leaves the compressor in its initial state, and a
//! hand-written empty last block. Resetting the compressor instead would allocate 64 KiB, which may
//! not be available at that time.

use std::io::{self, Write};

use flate2::{Compress, Compression, Crc, FlushCompress};

/// Half the time of the level of other files, and some 10 % more bytes.
const LEVEL: Compression = Compression::new(1);

/// Bytes gathered per call of the compressor, and size of its output buffer.
const BLOCK_BYTES: usize = 32 << 10;

/// RFC 1952: deflate, no flags, no time, fastest, Unix.
const GZIP_HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 4, 3];

/// Empty stored block, marked as the last.
const FINAL_BLOCK: [u8; 5] = [1, 0, 0, 0xff, 0xff];

/// A compressor with its buffers, some 400 KiB.
pub(super) struct ReusableGzip {
    compress: Compress,
    out: Vec<u8>,
    block: Vec<u8>,
    crc: Crc,
    /// `true` if a stream has been started and not finished.
    is_stream_open: bool,
}

impl ReusableGzip {
    pub(super) fn preallocate() -> Self {
        let mut gzip = Self {
            compress: Compress::new(LEVEL, false),
            out: vec![0xff; BLOCK_BYTES],
            block: Vec::with_capacity(2 * BLOCK_BYTES),
            crc: Crc::new(),
            is_stream_open: false,
        };
        gzip.block.resize(2 * BLOCK_BYTES, 0xff);
        gzip.block.clear();
        gzip
    }

    /// Starts a stream.
    pub(super) fn begin(&mut self, out: &mut impl Write) -> io::Result<()> {
        if std::mem::replace(&mut self.is_stream_open, true) {
            // The previous stream was aborted by a write error, such as a full disk.
            self.block.clear();
            // The first call may only return pending output.
            self.deflate(&[], FlushCompress::Full, &mut io::sink())?;
            self.deflate(&[], FlushCompress::Full, &mut io::sink())?;
        }
        self.crc.reset();
        out.write_all(&GZIP_HEADER)
    }

    /// Returns the buffer for content; `flush_if_full` must be called afterwards.
    pub(super) fn block(&mut self) -> &mut Vec<u8> {
        &mut self.block
    }

    /// Compresses the block if it is full.
    pub(super) fn flush_if_full(&mut self, out: &mut impl Write) -> io::Result<()> {
        if self.block.len() < BLOCK_BYTES {
            Ok(())
        } else {
            self.deflate_block(FlushCompress::None, out)
        }
    }

    /// Finishes the stream.
    pub(super) fn finish(&mut self, out: &mut impl Write) -> io::Result<()> {
        self.deflate_block(FlushCompress::Full, out)?;
        out.write_all(&FINAL_BLOCK)?;
        out.write_all(&self.crc.sum().to_le_bytes())?;
        out.write_all(&self.crc.amount().to_le_bytes())?;
        self.is_stream_open = false;
        out.flush()
    }

    fn deflate_block(&mut self, flush: FlushCompress, out: &mut impl Write) -> io::Result<()> {
        self.crc.update(&self.block);
        let block = std::mem::take(&mut self.block);
        let result = self.deflate(&block, flush, out);
        self.block = block;
        self.block.clear();
        result
    }

    fn deflate(
        &mut self,
        mut bytes: &[u8],
        flush: FlushCompress,
        out: &mut impl Write,
    ) -> io::Result<()> {
        loop {
            let read = self.compress.total_in();
            let written = self.compress.total_out();
            self.compress.compress(bytes, &mut self.out, flush).map_err(io::Error::other)?;
            let read = self.compress.total_in() - read;
            let written = (self.compress.total_out() - written) as usize;
            bytes = bytes.get(read as usize..).unwrap_or_default();
            let compressed = self.out.get(..written).unwrap_or_default();
            out.write_all(compressed)?;
            // If output space is left, no output is pending.
            if bytes.is_empty() && written < self.out.len() {
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use flate2::read::GzDecoder;

    use super::*;

    fn compress(press: &mut ReusableGzip, content: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        press.begin(&mut out).unwrap();
        for part in content.chunks(777) {
            press.block().extend_from_slice(part);
            press.flush_if_full(&mut out).unwrap();
        }
        press.finish(&mut out).unwrap();
        out
    }

    fn decompress(bytes: &[u8]) -> Vec<u8> {
        let mut content = Vec::new();
        GzDecoder::new(bytes).read_to_end(&mut content).unwrap();
        content
    }

    fn contents() -> Vec<Vec<u8>> {
        let noise = |n: u64| (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8;
        let mut contents: Vec<Vec<u8>> =
            [0, 1, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, 1 << 20]
                .into_iter()
                .map(|size| (0..size as u64).map(noise).collect())
                .collect();
        contents.push(b"again and ".repeat(100_000));
        contents
    }

    #[test]
    fn reused_compressor_writes_independent_streams() {
        let mut gzip = ReusableGzip::preallocate();
        for content in contents() {
            let first = compress(&mut gzip, &content);
            assert_eq!(decompress(&first), content);
            assert_eq!(
                decompress(&compress(&mut gzip, &content)),
                content,
                "{} bytes",
                content.len()
            );
        }
    }

    #[test]
    fn next_stream_is_complete_after_write_error() {
        struct BufferFull(usize);
        impl Write for BufferFull {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0 = self.0.checked_sub(bytes.len()).ok_or(io::ErrorKind::StorageFull)?;
                Ok(bytes.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        for capacity in [0, 10, 1000, 40_000] {
            let mut gzip = ReusableGzip::preallocate();
            let mut out = BufferFull(capacity);
            let stream = contents().swap_remove(5);
            let written = gzip.begin(&mut out).and_then(|()| {
                stream.chunks(777).try_for_each(|part| {
                    gzip.block().extend_from_slice(part);
                    gzip.flush_if_full(&mut out)
                })
            });
            assert!(written.is_err());
            assert_eq!(decompress(&compress(&mut gzip, b"what comes next")), b"what comes next");
        }
    }
}
