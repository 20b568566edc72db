//! Detection of directories that do not outlive the process, where incidents are lost before they
//! are read.

use std::ffi::OsStr;
use std::path::Path;

use crate::base::warnings;
use crate::os::proc::mounts::Mount;

const TOPIC: &str = "store.lifetime";

/// File systems from which container runtimes build the root of a container.
const LAYERED_FILE_SYSTEMS: [&[u8]; 3] = [b"overlay", b"aufs", b"fuse.fuse-overlayfs"];
const MEMORY_FILE_SYSTEMS: [&[u8]; 2] = [b"tmpfs", b"ramfs"];

/// Files created by container runtimes, for containers whose root is another file system.
const CONTAINER_FILES: [&str; 2] = ["/.dockerenv", "/run/.containerenv"];

/// Facts beside the mount that decide the lifetime of a directory.
#[derive(Clone, Debug, Default)]
struct Surroundings {
    is_container: bool,
    /// Value of `RUNTIME_DIRECTORY`, which systemd sets for `RuntimeDirectory=`: paths separated by
    /// colons.
    runtime_directories: String,
}

impl Surroundings {
    fn read() -> Self {
        Self {
            is_container: CONTAINER_FILES.iter().any(|file| Path::new(file).exists())
                || std::env::var_os("KUBERNETES_SERVICE_HOST").is_some(),
            runtime_directories: std::env::var("RUNTIME_DIRECTORY").unwrap_or_default(),
        }
    }
}

/// Reports a warning if `dir` is deleted with the container, the service or the boot. Without
/// `/proc` only directories in memory are detected.
pub(super) fn check(dir: &Path, is_in_memory: bool) {
    let dir = std::fs::canonicalize(dir).unwrap_or_else(|_| dir.to_owned());
    let mountinfo = std::fs::read("/proc/self/mountinfo").unwrap_or_default();
    let warning = match Mount::containing(&mountinfo, &dir) {
        Some(mount) => lifetime_warning(&dir, &mount, &Surroundings::read()),
        None => is_in_memory.then(|| in_memory_warning(&dir)),
    };
    match warning {
        Some(warning) => warnings::set(TOPIC, warning),
        None => warnings::clear(TOPIC),
    }
}

fn lifetime_warning(dir: &Path, mount: &Mount<'_>, surroundings: &Surroundings) -> Option<String> {
    let shown = dir.display();
    let runtime_directories = surroundings.runtime_directories.split(':');
    let is_below = |runtime: &str| !runtime.is_empty() && dir.starts_with(runtime);
    let is_private = |part: &OsStr| part.to_string_lossy().starts_with("systemd-private-");
    if runtime_directories.into_iter().any(is_below) {
        Some(format!(
            "incidents in {shown} are lost when the service stops: the directory is in \
             RuntimeDirectory=; set `dir` to a directory in StateDirectory="
        ))
    } else if mount.root.iter().any(is_private) {
        Some(format!(
            "incidents in {shown} are lost when the service stops: the directory is in a private \
             /tmp (PrivateTmp=); set `dir` to a directory in StateDirectory="
        ))
    } else if MEMORY_FILE_SYSTEMS.contains(&mount.kind) {
        Some(in_memory_warning(dir))
    } else if mount.point == Path::new("/")
        && (LAYERED_FILE_SYSTEMS.contains(&mount.kind) || surroundings.is_container)
    {
        Some(format!(
            "incidents in {shown} are lost when the container is removed: the directory is in the \
             container's own layer ({}); mount a volume and set `dir` to a directory in it",
            String::from_utf8_lossy(mount.kind)
        ))
    } else {
        None
    }
}

fn in_memory_warning(dir: &Path) -> String {
    format!(
        "incidents in {} are lost at the next boot, or when the container or pod is removed: the \
         directory is in memory, where incidents count against the memory limit and use at most \
         half of the memory left below it; set `dir` to a directory on a disk",
        dir.display()
    )
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn mount<'a>(kind: &'a str, root: &str, point: &str) -> Mount<'a> {
        let root = PathBuf::from(root);
        let point = PathBuf::from(point);
        Mount { root, point, kind: kind.as_bytes(), options: b"rw" }
    }

    #[test]
    fn warns_if_directory_is_lost_with_container_or_boot() {
        let plain = Surroundings::default();
        let container = Surroundings { is_container: true, ..plain.clone() };
        let service =
            Surroundings { runtime_directories: "/run/a:/run/orders".into(), ..plain.clone() };
        let pod = "/var/lib/kubelet/pods/7/volumes/kubernetes.io~empty-dir/data";
        for (mount, surroundings, dir, expected) in [
            (mount("ext4", "/", "/"), &plain, "/var/lib/orders", None),
            (mount("overlay", "/", "/"), &plain, "/srv/captures", Some("own layer (overlay)")),
            (mount("ext4", "/", "/"), &container, "/srv/captures", Some("own layer (ext4)")),
            (mount("overlay", "/", "/srv"), &plain, "/srv/captures", None),
            (mount("ext4", pod, "/data"), &container, "/data/captures", None),
            (mount("tmpfs", "/", "/dev/shm"), &plain, "/dev/shm/captures", Some("in memory")),
            (
                mount("tmpfs", "/", "/run"),
                &service,
                "/run/orders/captures",
                Some("RuntimeDirectory"),
            ),
            (mount("tmpfs", "/", "/run"), &service, "/run/orderly", Some("next boot")),
            (
                mount("ext4", "/tmp/systemd-private-7-orders.service-x/tmp", "/tmp"),
                &plain,
                "/tmp/captures",
                Some("PrivateTmp"),
            ),
        ] {
            let found = lifetime_warning(Path::new(dir), &mount, surroundings);
            match (&found, expected) {
                (Some(found), Some(expected)) => {
                    assert!(found.contains(expected) && found.contains("are lost"), "{found}");
                }
                (found, expected) => assert_eq!(found.as_deref(), expected, "{dir}: {mount:?}"),
            }
        }
    }
}
