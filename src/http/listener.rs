//! marple's own listener, on the agent's thread.

use std::fs;
use std::future::Future;
use std::io::{self, ErrorKind};
use std::net::TcpListener;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::pin::Pin;

use axum::Router;

use super::{require_token, router};
use crate::agent::{AgentHandle, Service};
use crate::base::Error;
use crate::config::{HttpSettings, Listen, Settings};

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
            let routes = match settings.token {
                Some(token) => require_token(router(&agent), token),
                None => router(&agent),
            };
            if let Err(error) = accept(socket, routes).await {
                tracing::error!(target: "marple", "the endpoint has ended: {error}");
            }
        })
    }
}

async fn accept(socket: Socket, routes: Router) -> io::Result<()> {
    match socket {
        Socket::Tcp(socket) => {
            axum::serve(tokio::net::TcpListener::from_std(socket)?, routes).await
        }
        Socket::Unix(socket, _file) => {
            axum::serve(tokio::net::UnixListener::from_std(socket)?, routes).await
        }
    }
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
