//! marple's own listener, on the agent's thread.

use std::fs;
use std::future::Future;
use std::io::{self, ErrorKind};
use std::net::TcpListener;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Semaphore;
use tokio::time;

use super::{Peer, connection, guarded};
use crate::agent::{AgentHandle, Service};
use crate::base::Error;
use crate::config::{HttpSettings, Listen, Settings};

/// How many connections there may be. Each takes some 30 KiB while it is served and a descriptor of the
/// service's; scrapers and people need ten.
const CONNECTIONS: usize = 128;

/// How long nothing is accepted after that failed.
const PAUSE: Duration = Duration::from_millis(50);

/// Listens where `[http]` says, and does nothing without one.
#[derive(Default)]
pub(crate) struct Listener {
    bound: Option<(Socket, HttpSettings)>,
}

enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener, SocketFile),
}

/// A socket's file, removed when it is no longer listened on.
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

impl Service for Listener {
    fn bind(&mut self, settings: &Settings) -> Result<(), Error> {
        let Some(http) = &settings.http else { return Ok(()) };
        let socket = match &http.listen {
            Listen::Tcp(address) => TcpListener::bind(address)
                .and_then(|socket| socket.set_nonblocking(true).map(|()| Socket::Tcp(socket))),
            Listen::Unix(path) => bind_unix(path),
        };
        let socket = socket.map_err(|error| {
            Error::new(format!("http.listen = \"{}\": cannot listen there: {error}", http.listen))
        })?;
        self.bound = Some((socket, http.clone()));
        Ok(())
    }

    fn serve(self: Box<Self>, agent: AgentHandle) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(async move {
            let Some((socket, settings)) = self.bound else { return };
            let routes = guarded(&agent, &settings);
            if let Err(error) = accept(socket, routes, settings.max_duration).await {
                tracing::error!(target: "marple", "the endpoint has ended: {error}");
            }
        })
    }
}

/// Takes connections for good. What cannot be listened on any more is an error; what one connection does
/// is not.
async fn accept(socket: Socket, routes: Router, longest: Duration) -> io::Result<()> {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    match socket {
        Socket::Tcp(socket) => {
            let socket = tokio::net::TcpListener::from_std(socket)?;
            loop {
                let accepted = socket.accept().await;
                let Some((stream, peer)) = pause_if_failed(accepted).await else { continue };
                let _ = stream.set_nodelay(true);
                admit(&places, stream, Peer(peer.to_string()), &routes, longest);
            }
        }
        Socket::Unix(socket, _file) => {
            let socket = tokio::net::UnixListener::from_std(socket)?;
            loop {
                let accepted = socket.accept().await;
                let Some((stream, _)) = pause_if_failed(accepted).await else { continue };
                let pid = stream.peer_cred().ok().and_then(|it| it.pid());
                let peer = pid.map_or("the socket".to_owned(), |pid| format!("process {pid}"));
                admit(&places, stream, Peer(peer), &routes, longest);
            }
        }
    }
}

/// A connection that was reset before it was taken is gone. Without descriptors none can be taken for a
/// while, and asking in a loop would be all this thread does.
async fn pause_if_failed<T>(accepted: io::Result<T>) -> Option<T> {
    match accepted {
        Ok(accepted) => Some(accepted),
        Err(error) => {
            if error.kind() != ErrorKind::ConnectionAborted {
                time::sleep(PAUSE).await;
            }
            None
        }
    }
}

/// Serves a connection if there is a place. One too many is closed at once: in the backlog it would take
/// its turn from those that come when there is room again.
fn admit(
    places: &Arc<Semaphore>,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    peer: Peer,
    routes: &Router,
    longest: Duration,
) {
    let Ok(place) = Arc::clone(places).try_acquire_owned() else { return };
    let routes = routes.clone();
    tokio::spawn(async move {
        connection::serve(stream, peer, routes, longest).await;
        drop(place);
    });
}

/// A socket at `path` that only our user may connect to. One that a dead process left is replaced, one
/// that somebody listens on is not, and neither is anything that is not a socket.
fn bind_unix(path: &Path) -> io::Result<Socket> {
    match fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            return Err(io::Error::new(
                ErrorKind::AlreadyExists,
                "a file is there that is not a socket",
            ));
        }
        Ok(_) if UnixStream::connect(path).is_ok() => {
            return Err(io::Error::new(ErrorKind::AddrInUse, "somebody listens on that socket"));
        }
        Ok(_) => fs::remove_file(path)?,
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    // The mode cannot be given to bind(2), and the umask is the whole process'. So the socket is bound
    // in a directory of ours that nobody else may enter, given its mode, and only then moved to its place.
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let private =
        parent.unwrap_or(Path::new(".")).join(format!(".marple-{}", ulid::Ulid::generate()));
    rustix::fs::mkdir(&private, rustix::fs::Mode::RWXU)?;
    let staged = private.join("s");
    let bound = UnixListener::bind(&staged).and_then(|socket| {
        fs::set_permissions(&staged, fs::Permissions::from_mode(0o600))?;
        fs::rename(&staged, path)?;
        socket.set_nonblocking(true)?;
        Ok(Socket::Unix(socket, SocketFile(path.to_owned())))
    });
    if bound.is_err() {
        let _ = fs::remove_file(&staged);
    }
    let _ = fs::remove_dir(&private);
    bound
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_client_that_does_not_take_its_answer_gives_its_place_up() {
        let places = Arc::new(Semaphore::new(1));
        let large = || async { vec![b'x'; 1 << 20] };
        let routes = Router::new().route("/", axum::routing::get(large));
        let connect = || {
            let (client, server) = tokio::io::duplex(1 << 10);
            admit(&places, server, Peer("test".into()), &routes, Duration::ZERO);
            client
        };
        let mut slow = connect();
        slow.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        let mut buffer = [0; 12];
        slow.read_exact(&mut buffer).await.unwrap();
        assert_eq!(&buffer, b"HTTP/1.1 200");
        assert_eq!(connect().read(&mut buffer).await.unwrap(), 0, "there is no second place");
        while places.available_permits() == 0 {
            slow.read_exact(&mut buffer[..1]).await.unwrap();
            time::sleep(Duration::from_secs(1)).await;
        }
    }
}
