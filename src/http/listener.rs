//! The HTTP listener of marple, run on the agent's thread.

mod unix_socket;

use std::convert::Infallible;
use std::future::Future;
use std::io::{self, ErrorKind};
use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpSocket;
use tokio::time;

use super::rate_limit::RateLimiter;
use super::{Peer, connection, listener_router};
use crate::agent::{AgentHandle, NotInherited, Service};
use crate::base::retry::RetryBackoff;
use crate::base::spare::{self, DescriptorNeed, OpenError};
use crate::base::{Error, log, panics, warnings};
use crate::config::{HttpSettings, Listen, Settings};
use crate::http::connection_slots::ConnectionSlots;
use unix_socket::SocketFile;

/// Maximum number of connections. Each takes about 30 KiB while it is served and one descriptor of
/// the process; scrapers and users need ten.
const MAX_CONNECTIONS: usize = 128;

/// Send buffer of a connection in bytes, half of it for the kernel's bookkeeping. The kernel's
/// default grows to 4 MiB a connection, which is charged to the container. At 256 KiB an archive
/// still arrives at 2.5 MB/s over a round trip of 0.1 s.
const SEND_BUFFER_BYTES: u32 = 256 << 10;

/// Pause after a failed `accept`.
const ACCEPT_RETRY_INTERVAL: Duration = Duration::from_millis(50);

/// Topic of the warning while the endpoint is unavailable.
const WARNING_TOPIC: &str = "http.listen";

/// A listener on the address in `[http]`; it does nothing without one.
///
/// Binding is retried until it succeeds. The address may be in use, the owner of the socket may not
/// respond, or its directory may not exist yet.
#[derive(Default)]
pub(crate) struct Listener {
    settings: Option<HttpSettings>,
    bound: Option<Socket>,
}

/// A listening socket. Forked children do not share it: they would accept connections and never
/// respond.
struct Socket {
    // Dropped before the descriptor that it refers to.
    not_inherited: Option<NotInherited>,
    listening: BoundListener,
}

enum BoundListener {
    Tcp(TcpListener),
    Unix(UnixListener, SocketFile),
}

impl Service for Listener {
    fn bind(&mut self, settings: &Settings) -> Result<(), Error> {
        self.settings.clone_from(&settings.http);
        let Some(http) = &settings.http else { return Ok(()) };
        self.bound = Some(bind(&http.listen).map_err(|error| {
            Error::with_kind(
                crate::base::ErrorKind::Unavailable,
                format!("cannot listen on http.listen = \"{}\": {error}", http.listen),
            )
        })?);
        Ok(())
    }

    fn endpoint(&self) -> Option<String> {
        let listen = &self.settings.as_ref()?.listen;
        Some(match self.bound.as_ref().map(|socket| &socket.listening) {
            None => format!("{listen} (not listening yet)"),
            Some(BoundListener::Tcp(socket)) => socket
                .local_addr()
                .map_or_else(|_| listen.to_string(), |address| address.to_string()),
            Some(BoundListener::Unix(..)) => listen.to_string(),
        })
    }

    fn serve(self: Box<Self>, agent: AgentHandle) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(async move {
            let Self { settings, mut bound } = *self;
            let Some(settings) = settings else { return };
            let routes = listener_router(&agent, &settings);
            loop {
                let socket = match bound.take() {
                    Some(socket) => socket,
                    None => bind_with_retry(&settings.listen).await,
                };
                warnings::clear(WARNING_TOPIC);
                let Err(error) = accept_connections(socket, routes.clone(), &settings).await;
                warnings::set(
                    WARNING_TOPIC,
                    format!("HTTP endpoint failed: {error}; restarting it"),
                );
                time::sleep(RetryBackoff::INITIAL_DELAY).await;
            }
        })
    }
}

/// Retries `bind` until it succeeds.
async fn bind_with_retry(listen: &Listen) -> Socket {
    let mut backoff = RetryBackoff::new();
    loop {
        match bind(listen) {
            Ok(socket) => {
                log::info(format!("HTTP endpoint listens on {listen}"));
                return socket;
            }
            Err(error) => warnings::set(
                WARNING_TOPIC,
                format!(
                    "no HTTP endpoint: cannot listen on {listen}: {error}; retrying every few \
                     seconds"
                ),
            ),
        }
        time::sleep(backoff.next_delay()).await;
    }
}

/// Binds a nonblocking listening socket.
fn bind(listen: &Listen) -> io::Result<Socket> {
    let listening = match listen {
        Listen::Tcp(address) => {
            let socket = TcpListener::bind(address)?;
            limit_send_buffers(&socket)?;
            set_nonblocking(&socket)?;
            BoundListener::Tcp(socket)
        }
        Listen::Unix(path) => unix_socket::bind(path)?,
    };
    let descriptor = match &listening {
        BoundListener::Tcp(socket) => socket.as_fd(),
        BoundListener::Unix(socket, _) => socket.as_fd(),
    };
    Ok(Socket { not_inherited: NotInherited::new(descriptor), listening })
}

/// Limits the send buffers of all connections that `socket` accepts to [`SEND_BUFFER_BYTES`]: they
/// inherit its options.
fn limit_send_buffers(socket: &TcpListener) -> io::Result<()> {
    // Only tokio's `TcpSocket` has the option, and it can be made from any descriptor.
    let duplicate = OwnedFd::from(socket.try_clone()?);
    TcpSocket::from_std_stream(duplicate.into()).set_send_buffer_size(SEND_BUFFER_BYTES)
}

/// Accepts connections until the listening socket fails. Errors of a single connection are ignored.
async fn accept_connections(
    socket: Socket,
    routes: Router,
    settings: &HttpSettings,
) -> io::Result<Infallible> {
    let slots = ConnectionSlots::new(MAX_CONNECTIONS);
    let max_capture_duration = settings.max_duration;
    let rate_limiter = RateLimiter::new(settings.max_requests_per_second);
    let Socket { not_inherited, listening } = socket;
    match listening {
        BoundListener::Tcp(socket) => {
            let socket = tokio::net::TcpListener::from_std(socket)?;
            // Locals are dropped in reverse order, so this is dropped before the socket.
            let _not_inherited = not_inherited;
            loop {
                rate_limiter.acquire().await;
                let accepted = socket.accept().await;
                let Some((stream, peer)) = accepted_or_pause(accepted).await else { continue };
                let _ = stream.set_nodelay(true);
                spawn_connection(
                    &slots,
                    stream,
                    Peer(peer.to_string()),
                    &routes,
                    max_capture_duration,
                );
            }
        }
        BoundListener::Unix(socket, _file) => {
            let socket = tokio::net::UnixListener::from_std(socket)?;
            let _not_inherited = not_inherited;
            loop {
                rate_limiter.acquire().await;
                let accepted = socket.accept().await;
                let Some((stream, _)) = accepted_or_pause(accepted).await else { continue };
                let pid = stream.peer_cred().ok().and_then(|credentials| credentials.pid());
                let peer = pid.map_or("unknown process".to_owned(), |pid| format!("process {pid}"));
                spawn_connection(&slots, stream, Peer(peer), &routes, max_capture_duration);
            }
        }
    }
}

/// Returns the accepted connection, or `None` after an error. A connection reset before `accept` is
/// skipped. If no descriptor is free, a reserved one is released for the next attempt. If none is
/// reserved either, the pause avoids a busy loop.
async fn accepted_or_pause<T>(accepted: io::Result<T>) -> Option<T> {
    match accepted {
        Ok(accepted) => Some(accepted),
        Err(error) => {
            let has_spare =
                error.is_out_of_descriptors() && spare::release(DescriptorNeed::Connection);
            if !has_spare && error.kind() != ErrorKind::ConnectionAborted {
                time::sleep(ACCEPT_RETRY_INTERVAL).await;
            }
            None
        }
    }
}

/// Counts a panic of the task that holds it. The runtime catches the panic, and the connection is
/// closed.
struct CountPanic;

impl Drop for CountPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            panics::record("marple", "HTTP connection closed by a panic");
        }
    }
}

/// Serves a connection if a slot is free or an idle one can be evicted. Otherwise it is closed at
/// once: in the backlog it would take the slot of a later client.
fn spawn_connection(
    slots: &Arc<ConnectionSlots>,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    peer: Peer,
    routes: &Router,
    max_capture_duration: Duration,
) {
    let Some(slot) = slots.acquire() else { return };
    let routes = routes.clone();
    tokio::spawn(log::quiet(async move {
        let _count_panic = CountPanic;
        connection::serve(stream, peer, routes, max_capture_duration, slot.state()).await;
        spare::refill();
        drop(slot);
    }));
}

/// Sets `O_NONBLOCK` by `fcntl`: `std` uses `ioctl`, one more system call that a seccomp filter has
/// to allow.
fn set_nonblocking(socket: impl std::os::fd::AsFd) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(&socket)?;
    Ok(rustix::fs::fcntl_setfl(&socket, flags | rustix::fs::OFlags::NONBLOCK)?)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn accepted_connections_inherit_send_buffer_limit() {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        limit_send_buffers(&socket).unwrap();
        let _client = std::net::TcpStream::connect(socket.local_addr().unwrap()).unwrap();
        let (accepted, _) = socket.accept().unwrap();
        let buffer_bytes = TcpSocket::from_std_stream(accepted).send_buffer_size().unwrap();
        assert!(buffer_bytes <= 2 * SEND_BUFFER_BYTES, "{buffer_bytes}");
    }

    /// Returns a connection with a large response, of which the first bytes were read.
    async fn start_slow_response(
        slots: &Arc<ConnectionSlots>,
        routes: &Router,
    ) -> tokio::io::DuplexStream {
        let (mut client, server) = tokio::io::duplex(1 << 10);
        spawn_connection(slots, server, Peer("test".into()), routes, Duration::ZERO);
        client.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        let mut buffer = [0; 12];
        client.read_exact(&mut buffer).await.unwrap();
        assert_eq!(&buffer, b"HTTP/1.1 200");
        client
    }

    fn large_response_routes() -> Router {
        Router::new().route("/", axum::routing::get(|| async { vec![b'x'; 1 << 20] }))
    }

    #[tokio::test(start_paused = true)]
    async fn slow_reader_is_disconnected_and_frees_its_slot() {
        let slots = ConnectionSlots::new(1);
        let routes = large_response_routes();
        let mut slow = start_slow_response(&slots, &routes).await;
        while slots.count() == 1 {
            slow.read_exact(&mut [0]).await.unwrap();
            time::sleep(Duration::from_secs(1)).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn active_client_gets_slot_of_slow_reader() {
        let slots = ConnectionSlots::new(2);
        let routes = large_response_routes();
        let mut slow = [
            start_slow_response(&slots, &routes).await,
            start_slow_response(&slots, &routes).await,
        ];
        for second in 0..20 {
            time::sleep(Duration::from_secs(1)).await;
            // The fastest rate that does not end the connection.
            for slow in &mut slow {
                let _ = slow.read_exact(&mut [0; 4 << 10]).await;
            }
            let (mut client, server) = tokio::io::duplex(1 << 10);
            spawn_connection(&slots, server, Peer("test".into()), &routes, Duration::ZERO);
            client.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
            let mut response = vec![0; 1 << 20];
            client.read_exact(&mut response).await.unwrap();
            assert!(response.starts_with(b"HTTP/1.1 200"), "second {second}");
            drop(client);
            while slots.count() > 1 {
                time::sleep(Duration::from_millis(1)).await;
            }
            slow[0] = start_slow_response(&slots, &routes).await;
        }
    }
}
