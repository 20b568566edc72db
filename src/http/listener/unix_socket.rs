//! Unix sockets: private to this user from the start, and removed at the end.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::{BoundListener, set_nonblocking};
use crate::base::random::ulid_at;

/// A socket file, removed on drop.
pub(super) struct SocketFile {
    path: PathBuf,
    /// Device and inode. The file is removed only if they still match: another process may have
    /// bound the path.
    identity: (u64, u64),
}

impl SocketFile {
    fn identity(path: &Path) -> io::Result<(u64, u64)> {
        fs::symlink_metadata(path).map(|found| (found.dev(), found.ino()))
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if Self::identity(&self.path).is_ok_and(|found| found == self.identity) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Binds a socket at `path` that only the current user may connect to. A socket left by a dead
/// process is replaced. A socket in use, or a file that is not a socket, is an error.
pub(super) fn bind(path: &Path) -> io::Result<BoundListener> {
    match fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            return Err(io::Error::new(
                ErrorKind::AlreadyExists,
                "path exists and is not a socket; remove it, or set another path",
            ));
        }
        Ok(_) => check_abandoned(path)?,
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    // bind(2) takes no mode, and the umask applies to the whole process. The socket is therefore
    // bound in a private directory, given its mode, and then moved to its path.
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let private_dir = parent.unwrap_or(Path::new(".")).join(format!(".marple-{}", ulid_at(0)));
    rustix::fs::mkdir(&private_dir, rustix::fs::Mode::RWXU)?;
    let staged = private_dir.join("s");
    let bound = UnixListener::bind(&staged).and_then(|socket| {
        fs::set_permissions(&staged, fs::Permissions::from_mode(0o600))?;
        set_nonblocking(&socket)?;
        let identity = SocketFile::identity(&staged)?;
        fs::rename(&staged, path)?;
        Ok(BoundListener::Unix(socket, SocketFile { path: path.to_owned(), identity }))
    });
    if bound.is_err() {
        let _ = fs::remove_file(&staged);
    }
    let _ = fs::remove_dir(&private_dir);
    bound
}

#[cfg(target_os = "linux")]
const PROBE_FLAGS: SocketFlags = SocketFlags::CLOEXEC;
/// Some systems have no `SOCK_CLOEXEC`.
#[cfg(not(target_os = "linux"))]
const PROBE_FLAGS: SocketFlags = SocketFlags::empty();

/// Returns an error unless the socket at `path` was left by a process that does not listen on it
/// any more.
///
/// Never blocks: a stopped or hung process accepts nothing, and once its backlog is full a blocking
/// `connect` would not return.
fn check_abandoned(path: &Path) -> io::Result<()> {
    let probe = net::socket_with(AddressFamily::UNIX, SocketType::STREAM, PROBE_FLAGS, None)?;
    rustix::io::ioctl_fionbio(&probe, true)?;
    let in_use = |why| Err(io::Error::new(ErrorKind::AddrInUse, why));
    match net::connect(&probe, &SocketAddrUnix::new(path)?) {
        Ok(()) => in_use("another process is listening on this socket"),
        Err(Errno::AGAIN) => {
            in_use("another process is listening on this socket and does not accept connections")
        }
        Err(Errno::PROTOTYPE) => {
            in_use("another process has a socket of another type at this path")
        }
        // `NOENT`: the file was removed in the meantime.
        Err(Errno::CONNREFUSED | Errno::NOENT) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}
