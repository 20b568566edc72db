//! Serves one connection, with a time limit for each step of the client.
//!
//! | step of the client | time limit |
//! |---|---|
//! | send the head of a request, or reuse an idle connection | [`HEAD`] |
//! | send the body of a request | [`BODY`] |
//! | read the response | [`STALL`] for each [`PACE`] bytes |
//! | send enough bytes to detect the protocol ([`greeting`](super::greeting)) | [`HEAD`] |
//!
//! While unread responses take much memory, [`CROWDED_PACE`] replaces [`PACE`].
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
use super::greeting;
use super::route::Route;
use crate::http::connection_slots::SlotState;
use crate::http::response_budget;
use crate::http::responses::refusal;

/// Prometheus and browsers keep connections open; reopening one after this time is cheap.
const HEAD: Duration = Duration::from_secs(10);
/// Enough for 1 MiB of addresses.
const BODY: Duration = Duration::from_secs(15);
/// Time in which a client must read [`PACE`] bytes. A client that reads none in that time is gone.
/// A client that reads 1 byte/s would hold its slot for a week.
const STALL: Duration = Duration::from_secs(30);
/// `PACE / STALL` = 2 KiB/s, which a telephone line can do.
pub(super) const PACE: usize = 64 << 10;
/// `CROWDED_PACE / STALL` = 34 KiB/s. At [`PACE`] one client could hold the memory for responses
/// for nine hours, and thereby block all captures over HTTP.
const CROWDED_PACE: usize = 1 << 20;
/// Time for a response in addition to the capture: stopping and encoding on an overloaded machine.
const SPARE: Duration = Duration::from_secs(60);
const HEAD_BYTES: usize = 16 << 10;

/// Serves `stream` until the client closes it, a time limit expires or its slot is reclaimed.
pub(super) async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    peer: Peer,
    routes: Router,
    longest_capture: Duration,
    seat: &Arc<SlotState>,
) {
    let served = async {
        let Ok(Ok((stream, protocol))) = time::timeout(HEAD, greeting::read(stream)).await else {
            return;
        };
        match protocol {
            Some(protocol) => {
                let audit = AuditRecord::new(Route::Unknown, protocol.name(), &peer.0);
                audit.answered(protocol.status());
                greeting::refuse(stream, protocol).await;
            }
            None => serve_http(stream, peer, routes, longest_capture, seat).await,
        }
    };
    tokio::select! {
        () = served => {}
        () = seat.given_up() => {}
    }
}

async fn serve_http(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    peer: Peer,
    routes: Router,
    longest_capture: Duration,
    seat: &Arc<SlotState>,
) {
    let who = peer.0.clone();
    let own = Arc::clone(seat);
    let answer = service_fn(move |mut request: Request<Incoming>| {
        let seat = Arc::clone(&own);
        request.extensions_mut().insert(peer.clone());
        request.extensions_mut().insert(Arc::clone(&seat));
        let mut routes = routes.clone();
        async move {
            let is_sent = Arc::new(AtomicBool::new(false));
            if matches!(*request.method(), Method::GET | Method::HEAD) {
                is_sent.store(true, Ordering::Relaxed);
                seat.works();
            }
            let body =
                |body| TrackedBody { body, is_sent: Arc::clone(&is_sent), seat: Arc::clone(&seat) };
            let mut answer = pin!(routes.call(request.map(|it| Body::new(body(it)))));
            // Until the body has arrived the client's limit applies, afterwards the one for
            // captures.
            let mut answered = time::timeout(BODY, &mut answer).await;
            if answered.is_err() && is_sent.load(Ordering::Relaxed) {
                answered = time::timeout(longest_capture + SPARE, &mut answer).await;
            }
            let late = || refusal(StatusCode::REQUEST_TIMEOUT, "it took too long");
            let answered: Result<Response, Infallible> = answered.unwrap_or_else(|_| Ok(late()));
            seat.waits();
            answered
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(HEAD_BYTES)
        .serve_connection(TokioIo::new(ProgressTimeout::new(stream, seat)), answer);
    // hyper responds to requests that it cannot parse. Other connection errors are not counted.
    if connection.await.is_err_and(|error| error.is_parse()) {
        AuditRecord::new(Route::Unknown, "invalid", &who).answered(400);
    }
}

/// A request body that records when it has been received in full. From then on the slot counts as
/// busy.
struct TrackedBody {
    body: Incoming,
    is_sent: Arc<AtomicBool>,
    seat: Arc<SlotState>,
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
            self.is_sent.store(true, Ordering::Relaxed);
            self.seat.works();
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
    seat: Arc<SlotState>,
    /// Returns the number of bytes to be read in each [`STALL`].
    pace: fn() -> usize,
    /// Deadline of the current stall and the bytes written since it began. `None` if no write
    /// waits.
    stalled: Option<(Pin<Box<Sleep>>, usize)>,
}

impl<S> ProgressTimeout<S> {
    fn new(stream: S, seat: &Arc<SlotState>) -> Self {
        let pace = || if response_budget::is_crowded() { CROWDED_PACE } else { PACE };
        Self { stream, seat: Arc::clone(seat), pace, stalled: None }
    }

    /// Returns `progress`, whose size `bytes` computes, or `TimedOut` after too little progress.
    fn within<T>(
        &mut self,
        context: &mut Context<'_>,
        progress: Poll<io::Result<T>>,
        bytes: impl FnOnce(&T) -> usize,
    ) -> Poll<io::Result<T>> {
        if let Poll::Ready(progress) = progress {
            let pace = (self.pace)();
            let more = progress.as_ref().map_or(pace, bytes);
            self.stalled = self.stalled.take().and_then(|(until, taken)| {
                let taken = taken.saturating_add(more);
                (taken < pace).then_some((until, taken))
            });
            if self.stalled.is_none() && more > 0 {
                self.seat.took();
            }
            return Poll::Ready(progress);
        }
        let until = || (Box::pin(time::sleep_until(Instant::now() + STALL)), 0);
        let (stalled, _) = self.stalled.get_or_insert_with(until);
        match Future::poll(stalled.as_mut(), context) {
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
        self.within(context, progress, |taken| *taken)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let progress = Pin::new(&mut self.stream).poll_write_vectored(context, bytes);
        self.within(context, progress, |taken| *taken)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    // A completed flush counts as full progress, so the next write gets a new deadline.
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let progress = Pin::new(&mut self.stream).poll_flush(context);
        self.within(context, progress, |()| usize::MAX)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let progress = Pin::new(&mut self.stream).poll_shutdown(context);
        self.within(context, progress, |()| usize::MAX)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    const BODY_BYTES: usize = 1 << 20;

    /// Returns the bytes received by a client that reads `piece` bytes/s of a large response, and
    /// the time until its connection ended.
    async fn taken(piece: usize) -> (usize, Duration) {
        let body = || async { vec![b'x'; BODY_BYTES] };
        let routes = Router::new().route("/", axum::routing::get(body));
        let (mut client, server) = tokio::io::duplex(4 << 10);
        let began = Instant::now();
        let serving = tokio::spawn(async move {
            serve(server, Peer("test".into()), routes, Duration::ZERO, &Arc::default()).await;
            began.elapsed()
        });
        let ask = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        client.write_all(ask).await.unwrap();
        let (mut got, mut buffer) = (0, vec![0; piece]);
        while let Ok(n @ 1..) = client.read(&mut buffer).await {
            got += n;
            time::sleep(Duration::from_secs(1)).await;
        }
        (got, serving.await.unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_a_byte_a_second_is_ended() {
        let (got, served) = taken(1).await;
        assert!(got < 8 << 10, "{got}");
        assert_eq!(served.as_secs(), STALL.as_secs());
    }

    #[tokio::test(start_paused = true)]
    async fn one_on_a_telephone_line_gets_all_of_it() {
        let (got, served) = taken(4 << 10).await;
        assert!(got > BODY_BYTES, "{got}");
        assert!(served > STALL * 2, "{served:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn requires_a_higher_read_rate_while_unread_responses_take_much_memory() {
        let cases: [(fn() -> usize, _); 2] =
            [(|| PACE, Ok(())), (|| CROWDED_PACE, Err(io::ErrorKind::TimedOut))];
        for (pace, expected) in cases {
            let (mut client, server) = tokio::io::duplex(4 << 10);
            let mut server =
                ProgressTimeout { pace, ..ProgressTimeout::new(server, &Arc::default()) };
            let write = tokio::spawn(async move { server.write_all(&[0; BODY_BYTES / 4]).await });
            let mut buffer = [0; 4 << 10];
            while let Ok(1..) = client.read(&mut buffer).await {
                time::sleep(Duration::from_secs(1)).await;
            }
            assert_eq!(write.await.unwrap().map_err(|error| error.kind()), expected);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_never_sends_its_body_is_told_so_and_ended() {
        let post = axum::routing::post(|_: axum::body::Bytes| async {});
        let routes = Router::new().route("/", post);
        let (mut client, server) = tokio::io::duplex(4 << 10);
        let began = Instant::now();
        tokio::spawn(async move {
            serve(server, Peer("test".into()), routes, Duration::ZERO, &Arc::default()).await;
        });
        let head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nhalf";
        client.write_all(head).await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
        assert!(began.elapsed() >= BODY);
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_never_asks_is_ended() {
        let (_client, server) = tokio::io::duplex(64);
        let began = Instant::now();
        let seat = Arc::default();
        serve(server, Peer("test".into()), Router::new(), Duration::ZERO, &seat).await;
        assert_eq!(began.elapsed().as_secs(), HEAD.as_secs());
    }
}
