//! One connection, and how patient we are with it.
//!
//! | what a client may do slowly | how long |
//! |---|---|
//! | send the head of a request, or keep a connection it does not use | [`HEAD`] |
//! | send the body of one | [`BODY`] |
//! | take what it asked for | [`STALL`] without a byte |
//!
//! and the head has 16 KiB and hyper's 100 headers. Beyond them the connection ends.

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::http::{Method, StatusCode};
use axum::response::Response;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{self, Instant, Sleep};
use tower_service::Service;

use super::Peer;
use super::answer::refusal;

/// Prometheus and browsers keep connections; one that idles longer is opened again for next to nothing.
const HEAD: Duration = Duration::from_secs(10);
/// For 1 MiB of addresses.
const BODY: Duration = Duration::from_secs(15);
/// A client that takes no byte for so long has gone without a word.
const STALL: Duration = Duration::from_secs(30);
/// What an answer may take besides the capture it asks for: stopping and encoding on a machine in trouble.
const SPARE: Duration = Duration::from_secs(60);
const HEAD_BYTES: usize = 16 << 10;

/// Serves `stream` until its client or its time ends it.
pub(super) async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    peer: Peer,
    routes: Router,
    longest_capture: Duration,
) {
    let answer = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(peer.clone());
        let within = match *request.method() {
            Method::GET | Method::HEAD => longest_capture + SPARE,
            _ => BODY,
        };
        let mut routes = routes.clone();
        async move {
            let late = |_| refusal(StatusCode::REQUEST_TIMEOUT, "it took too long");
            let answered: Result<Response, Infallible> =
                match time::timeout(within, routes.call(request)).await {
                    Ok(answered) => answered,
                    Err(elapsed) => Ok(late(elapsed)),
                };
            answered
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(HEAD_BYTES)
        .serve_connection(TokioIo::new(Patient::new(stream)), answer);
    // How a client ends a connection is its own matter.
    let _ = connection.await;
}

/// A stream whose other end may not stop taking.
struct Patient<S> {
    stream: S,
    /// Since when a write waits, plus [`STALL`].
    stalled: Option<Pin<Box<Sleep>>>,
}

impl<S> Patient<S> {
    fn new(stream: S) -> Self {
        Self { stream, stalled: None }
    }

    /// `progress`, or an error once there has been none for too long.
    fn within<T>(
        &mut self,
        context: &mut Context<'_>,
        progress: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if progress.is_ready() {
            self.stalled = None;
            return progress;
        }
        let until = || Box::pin(time::sleep_until(Instant::now() + STALL));
        let stalled = self.stalled.get_or_insert_with(until);
        match Future::poll(stalled.as_mut(), context) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Patient<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Patient<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let progress = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.within(context, progress)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let progress = Pin::new(&mut self.stream).poll_write_vectored(context, bytes);
        self.within(context, progress)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let progress = Pin::new(&mut self.stream).poll_flush(context);
        self.within(context, progress)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let progress = Pin::new(&mut self.stream).poll_shutdown(context);
        self.within(context, progress)
    }
}
