//! Response bodies read from files, one chunk at a time.
//!
//! Handlers of the listener share the thread `marple` with the agent's ticks, and a file read can
//! block for as long as the disk takes. Each chunk is therefore read by a separate task on the
//! runtime's two blocking threads (`marple-files`). A thread is occupied per chunk, not per client:
//! a slow reader holds 64 KiB and no thread. A thread per body that fills a channel would let two
//! slow clients block all others.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use axum::body::{Body, Bytes};
use http_body::Frame;
use tokio::task::JoinHandle;

/// Maximum bytes per read.
pub(super) const CHUNK_BYTES: usize = 64 << 10;

/// A blocking source of chunks.
pub(super) trait ChunkSource: Send + Unpin + 'static {
    /// Returns the next chunk, or `None` at the end.
    fn next(&mut self) -> io::Result<Option<Vec<u8>>>;
}

/// Returns a body that reads `source` on blocking threads.
pub(super) fn body(source: impl ChunkSource) -> Body {
    Body::new(FileChunks { source: Some(source), pending_read: None })
}

type FileRead<S> = JoinHandle<(S, io::Result<Option<Vec<u8>>>)>;

struct FileChunks<S> {
    source: Option<S>,
    pending_read: Option<FileRead<S>>,
}

impl<S: ChunkSource> http_body::Body for FileChunks<S> {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let this = &mut *self;
        if this.pending_read.is_none() {
            let Some(mut source) = this.source.take() else { return Poll::Ready(None) };
            this.pending_read = Some(tokio::task::spawn_blocking(move || {
                let read = source.next();
                (source, read)
            }));
        }
        let Some(pending_read) = this.pending_read.as_mut() else { return Poll::Ready(None) };
        let result = ready!(Pin::new(pending_read).poll(context));
        this.pending_read = None;
        Poll::Ready(match result {
            Ok((source, Ok(Some(chunk)))) => {
                this.source = Some(source);
                Some(Ok(Frame::data(chunk.into())))
            }
            Ok((_, Ok(None))) => None,
            Ok((_, Err(error))) => Some(Err(error)),
            Err(error) => Some(Err(io::Error::other(error))),
        })
    }
}
