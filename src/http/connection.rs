//! Serves one connection, with a time limit for each step of the client.
//!
//! | step of the client | time limit |
//! |---|---|
//! | send the head of a request, or reuse an idle connection | [`HEAD_TIMEOUT`] |
//! | send the body of a request | [`BODY_TIMEOUT`] |
//! | read the response | [`PROGRESS_TIMEOUT`] for each [`MIN_PROGRESS_BYTES`] bytes |
//! | send enough bytes to detect the protocol ([`protocol`]) | [`HEAD_TIMEOUT`] |
//!
//! While unread responses take much memory, [`RAISED_MIN_PROGRESS_BYTES`] replaces
//! [`MIN_PROGRESS_BYTES`].
//!
//! The head is limited to 16 KiB and hyper's 100 headers. A connection beyond a limit is closed. It
//! is also closed if a new connection needs its [slot](crate::http::connection_slots). A slow
//! client holds only that slot, a buffer and its response: its capture is finished, and the engine
//! is free for the next one.

use std::convert::Infallible;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::http::{Method, StatusCode};
use axum::response::Response;
use http_body::Frame;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{self, Instant, Sleep};
use tower_service::Service;

use super::Peer;
use super::audit::AuditRecord;
use super::protocol;
use super::route::Route;
use crate::http::connection_slots::SlotState;
use crate::http::response_budget;
use crate::http::responses::error_response;

/// Prometheus and browsers keep connections open; reopening one after this time is cheap.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Enough for 1 MiB of addresses.
const BODY_TIMEOUT: Duration = Duration::from_secs(15);
/// Time in which a client must read [`MIN_PROGRESS_BYTES`] bytes. A client that reads none in that
/// time is gone. A client that reads 1 byte/s would hold its slot for a week.
const PROGRESS_TIMEOUT: Duration = Duration::from_secs(30);
/// `MIN_PROGRESS_BYTES / PROGRESS_TIMEOUT` = 2 KiB/s, which a telephone line can do.
pub(super) const MIN_PROGRESS_BYTES: usize = 64 << 10;
/// `RAISED_MIN_PROGRESS_BYTES / PROGRESS_TIMEOUT` = 34 KiB/s. At [`MIN_PROGRESS_BYTES`] one client
/// could hold the memory for responses for nine hours, and thereby block all captures over HTTP.
const RAISED_MIN_PROGRESS_BYTES: usize = 1 << 20;
/// Time for a response in addition to the capture: stopping and encoding on an overloaded machine.
const EXTRA_RESPONSE_TIME: Duration = Duration::from_secs(60);
const MAX_HEAD_BYTES: usize = 16 << 10;

/// Serves `stream` until the client closes it, a time limit expires or its slot is reclaimed.
pub(super) async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    peer: Peer,
    routes: Router,
    max_capture_duration: Duration,
    slot: &Arc<SlotState>,
) {
    let connection = async {
        let Ok(Ok((stream, other_protocol))) =
            time::timeout(HEAD_TIMEOUT, protocol::detect_protocol(stream)).await
        else {
            return;
        };
        match other_protocol {
            Some(other_protocol) => {
                let audit = AuditRecord::new(Route::Unknown, other_protocol.name(), &peer.0);
                audit.finish(other_protocol.status());
                protocol::refuse(stream, other_protocol).await;
            }
            None => serve_http(stream, peer, routes, max_capture_duration, slot).await,
        }
    };
    tokio::select! {
        () = connection => {}
        () = slot.evicted() => {}
    }
}

async fn serve_http(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    peer: Peer,
    routes: Router,
    max_capture_duration: Duration,
    slot: &Arc<SlotState>,
) {
    let client = peer.0.clone();
    let shared_slot = Arc::clone(slot);
    let service = service_fn(move |mut request: Request<Incoming>| {
        let slot = Arc::clone(&shared_slot);
        request.extensions_mut().insert(peer.clone());
        request.extensions_mut().insert(Arc::clone(&slot));
        let mut routes = routes.clone();
        async move {
            let is_body_received = Arc::new(AtomicBool::new(false));
            if matches!(*request.method(), Method::GET | Method::HEAD) {
                is_body_received.store(true, Ordering::Relaxed);
                slot.mark_busy();
            }
            let body = |body| TrackedBody {
                body,
                is_received: Arc::clone(&is_body_received),
                slot: Arc::clone(&slot),
            };
            let mut response = pin!(routes.call(request.map(|incoming| Body::new(body(incoming)))));
            // Until the body has arrived the client's limit applies, afterwards the one for
            // captures.
            let mut result = time::timeout(BODY_TIMEOUT, &mut response).await;
            if result.is_err() && is_body_received.load(Ordering::Relaxed) {
                result =
                    time::timeout(max_capture_duration + EXTRA_RESPONSE_TIME, &mut response).await;
            }
            let timed_out = || error_response(StatusCode::REQUEST_TIMEOUT, "request timed out");
            let result: Result<Response, Infallible> = result.unwrap_or_else(|_| Ok(timed_out()));
            slot.mark_waiting();
            result
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD_BYTES)
        .serve_connection(TokioIo::new(ProgressTimeout::new(stream, slot)), service);
    // hyper responds to requests that it cannot parse. Other connection errors are not counted.
    if connection.await.is_err_and(|error| error.is_parse()) {
        AuditRecord::new(Route::Unknown, "invalid", &client).finish(400);
    }
}

/// A request body that records when it has been received in full. From then on the slot counts as
/// busy.
struct TrackedBody {
    body: Incoming,
    is_received: Arc<AtomicBool>,
    slot: Arc<SlotState>,
}

impl http_body::Body for TrackedBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(context);
        if self.body.is_end_stream() || matches!(frame, Poll::Ready(None)) {
            self.is_received.store(true, Ordering::Relaxed);
            self.slot.mark_busy();
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}

/// A stream that fails with `TimedOut` if the peer stops reading.
struct ProgressTimeout<S> {
    stream: S,
    slot: Arc<SlotState>,
    /// Returns the number of bytes to be read in each [`PROGRESS_TIMEOUT`].
    min_bytes: fn() -> usize,
    /// Deadline of the current stall and the bytes written since it began. `None` if no write
    /// waits.
    stall: Option<(Pin<Box<Sleep>>, usize)>,
}

impl<S> ProgressTimeout<S> {
    fn new(stream: S, slot: &Arc<SlotState>) -> Self {
        let min_bytes = || {
            if response_budget::is_half_full() {
                RAISED_MIN_PROGRESS_BYTES
            } else {
                MIN_PROGRESS_BYTES
            }
        };
        Self { stream, slot: Arc::clone(slot), min_bytes, stall: None }
    }

    /// Returns `progress`, whose size `bytes` computes, or `TimedOut` after too little progress.
    fn check_progress<T>(
        &mut self,
        context: &mut Context<'_>,
        progress: Poll<io::Result<T>>,
        bytes: impl FnOnce(&T) -> usize,
    ) -> Poll<io::Result<T>> {
        if let Poll::Ready(progress) = progress {
            let min_bytes = (self.min_bytes)();
            let new_bytes = progress.as_ref().map_or(min_bytes, bytes);
            self.stall = self.stall.take().and_then(|(deadline, written)| {
                let written = written.saturating_add(new_bytes);
                (written < min_bytes).then_some((deadline, written))
            });
            if self.stall.is_none() && new_bytes > 0 {
                self.slot.mark_progress();
            }
            return Poll::Ready(progress);
        }
        let new_stall = || (Box::pin(time::sleep_until(Instant::now() + PROGRESS_TIMEOUT)), 0);
        let (deadline, _) = self.stall.get_or_insert_with(new_stall);
        match Future::poll(deadline.as_mut(), context) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for ProgressTimeout<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for ProgressTimeout<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let progress = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.check_progress(context, progress, |written| *written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let progress = Pin::new(&mut self.stream).poll_write_vectored(context, bytes);
        self.check_progress(context, progress, |written| *written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    // A completed flush counts as full progress, so the next write gets a new deadline.
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let progress = Pin::new(&mut self.stream).poll_flush(context);
        self.check_progress(context, progress, |()| usize::MAX)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let progress = Pin::new(&mut self.stream).poll_shutdown(context);
        self.check_progress(context, progress, |()| usize::MAX)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    const BODY_BYTES: usize = 1 << 20;

    /// Returns the bytes received by a client that reads `bytes_per_second` of a large response,
    /// and the time until its connection ended.
    async fn read_at_rate(bytes_per_second: usize) -> (usize, Duration) {
        let body = || async { vec![b'x'; BODY_BYTES] };
        let routes = Router::new().route("/", axum::routing::get(body));
        let (mut client, server) = tokio::io::duplex(4 << 10);
        let started = Instant::now();
        let serving = tokio::spawn(async move {
            serve(server, Peer("test".into()), routes, Duration::ZERO, &Arc::default()).await;
            started.elapsed()
        });
        let request = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        client.write_all(request).await.unwrap();
        let mut got = 0;
        let mut buffer = vec![0; bytes_per_second];
        while let Ok(n @ 1..) = client.read(&mut buffer).await {
            got += n;
            time::sleep(Duration::from_secs(1)).await;
        }
        (got, serving.await.unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn client_reading_one_byte_per_second_is_disconnected() {
        let (got, served) = read_at_rate(1).await;
        assert!(got < 8 << 10, "{got}");
        assert_eq!(served.as_secs(), PROGRESS_TIMEOUT.as_secs());
    }

    #[tokio::test(start_paused = true)]
    async fn client_reading_4_kib_per_second_gets_full_response() {
        let (got, served) = read_at_rate(4 << 10).await;
        assert!(got > BODY_BYTES, "{got}");
        assert!(served > PROGRESS_TIMEOUT * 2, "{served:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn requires_higher_read_rate_while_unread_bytes_are_half_full() {
        let cases: [(fn() -> usize, _); 2] = [
            (|| MIN_PROGRESS_BYTES, Ok(())),
            (|| RAISED_MIN_PROGRESS_BYTES, Err(io::ErrorKind::TimedOut)),
        ];
        for (min_bytes, expected) in cases {
            let (mut client, server) = tokio::io::duplex(4 << 10);
            let mut server =
                ProgressTimeout { min_bytes, ..ProgressTimeout::new(server, &Arc::default()) };
            let write = tokio::spawn(async move { server.write_all(&[0; BODY_BYTES / 4]).await });
            let mut buffer = [0; 4 << 10];
            while let Ok(1..) = client.read(&mut buffer).await {
                time::sleep(Duration::from_secs(1)).await;
            }
            assert_eq!(write.await.unwrap().map_err(|error| error.kind()), expected);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn returns_408_when_request_body_never_arrives() {
        let post = axum::routing::post(|_: axum::body::Bytes| async {});
        let routes = Router::new().route("/", post);
        let (mut client, server) = tokio::io::duplex(4 << 10);
        let started = Instant::now();
        tokio::spawn(async move {
            serve(server, Peer("test".into()), routes, Duration::ZERO, &Arc::default()).await;
        });
        let head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nhalf";
        client.write_all(head).await.unwrap();
        let mut response = String::new();
        client.read_to_string(&mut response).await.unwrap();
        assert!(response.starts_with("HTTP/1.1 408"), "{response}");
        assert!(started.elapsed() >= BODY_TIMEOUT);
    }

    #[tokio::test(start_paused = true)]
    async fn connection_without_request_is_closed_after_head_timeout() {
        let (_client, server) = tokio::io::duplex(64);
        let started = Instant::now();
        let slot = Arc::default();
        serve(server, Peer("test".into()), Router::new(), Duration::ZERO, &slot).await;
        assert_eq!(started.elapsed().as_secs(), HEAD_TIMEOUT.as_secs());
    }
}
