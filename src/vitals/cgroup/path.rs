//! Location of the process's cgroup: a pure parser of `/proc/self/cgroup` and
//! `/proc/self/mountinfo`.
//!
//! The first file names the cgroup in each hierarchy. The second shows which part of a hierarchy is
//! mounted where:
//!
//! ```text
//! 4:memory:/docker/3f2a/worker
//!          \___________/
//!           mounted root      cgroup - memory        the rest is below it
//! 35 31 0:32 /docker/3f2a /sys/fs/cgroup/memory …    => /sys/fs/cgroup/memory/worker
//! ```
//!
//! Both are relative to the root of the process's cgroup namespace, so they read `/` in a container
//! with its own namespace. A mounted part that starts *above* that root reads `/..`. The names
//! between it and the process are hidden, but it is an ancestor and its limits apply.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use crate::os::proc::mounts::Mount;

/// A cgroup version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    /// One hierarchy per controller or group of controllers.
    V1,
    /// One hierarchy for all controllers.
    V2,
}

/// The process's cgroup in the hierarchy of one controller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct CgroupPath {
    /// Version of the hierarchy, which determines the file names.
    pub(super) version: Version,
    /// Mount point of the hierarchy; no ancestor above it is visible.
    pub(super) mount: PathBuf,
    /// Directory of the cgroup, at or below `mount`.
    pub(super) dir: PathBuf,
    /// Set if the mount shows only a part of the hierarchy, so there are ancestors above it.
    pub(super) is_partial_mount: bool,
}

/// Returns the process's cgroup in the hierarchy of `controller`. `exists` reports if a directory
/// exists.
///
/// A controller belongs to one hierarchy: the v1 one that lists it, else v2. If that hierarchy is
/// mounted more than once, the mount that shows the most ancestors is used.
pub(super) fn find_cgroup(
    memberships: &[u8],
    mountinfo: &[u8],
    controller: &str,
    exists: impl Fn(&Path) -> bool,
) -> Option<CgroupPath> {
    let controller = controller.as_bytes();
    let lines = || memberships.split(|&byte| byte == b'\n').filter_map(parse_membership);
    let has = |list: &[u8]| list.split(|&byte| byte == b',').any(|name| name == controller);
    let (version, own) = lines()
        .find(|(controllers, _)| has(controllers))
        .map(|(_, own)| (Version::V1, own))
        .or_else(|| {
            let (_, own) = lines().find(|(controllers, _)| controllers.is_empty())?;
            Some((Version::V2, own))
        })?;
    mountinfo
        .split(|&byte| byte == b'\n')
        .filter_map(Mount::parse)
        .filter(|mount| match version {
            Version::V1 => mount.kind == b"cgroup" && has(mount.options),
            Version::V2 => mount.kind == b"cgroup2",
        })
        .filter_map(|mount| {
            Some((mount.root.components().count(), mount.visible_path(own)?, mount.point))
        })
        .filter(|(_, dir, _)| exists(dir))
        .min_by_key(|&(depth, ..)| depth)
        .map(|(depth, dir, mount)| CgroupPath { version, mount, dir, is_partial_mount: depth > 1 })
}

/// Parses a line `ID:CONTROLLERS:PATH` of `/proc/self/cgroup` into controllers (empty in v2) and
/// path.
fn parse_membership(line: &[u8]) -> Option<(&[u8], &Path)> {
    let mut fields = line.splitn(3, |&byte| byte == b':');
    fields.next()?;
    let controllers = fields.next()?;
    let path = fields.next()?;
    Some((controllers, Path::new(OsStr::from_bytes(path))))
}

impl Mount<'_> {
    /// Returns the path of the cgroup `own` through this mount, or of its nearest visible ancestor.
    pub(super) fn visible_path(&self, own: &Path) -> Option<PathBuf> {
        if let Ok(below) = own.strip_prefix(&self.root) {
            let hidden = below.components().any(|part| part == Component::ParentDir);
            return (!hidden).then(|| self.point.join(below));
        }
        let above = self
            .root
            .components()
            .all(|part| matches!(part, Component::RootDir | Component::ParentDir));
        above.then(|| self.point.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const V2: &str =
        "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup rw,nsdelegate";
    const V1: &str = "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory";

    fn dir(memberships: &str, mountinfo: &str) -> Option<(Version, String)> {
        let found = find_cgroup(memberships.as_bytes(), mountinfo.as_bytes(), "memory", |_| true)?;
        Some((found.version, found.dir.to_str().unwrap().trim_end_matches('/').to_owned()))
    }

    #[test]
    fn cgroup_directory_is_resolved_through_mounts() {
        let container = V1.replace("0:32 / ", "0:32 /docker/3f2a ");
        let above = V2.replace("0:26 / ", "0:26 /../.. ");
        let beside = V2.replace("0:26 / ", "0:26 /../other ");
        let spaces = V2.replace("/sys/fs/cgroup ", "/mnt/two\\040words ");
        let both = format!("{}\n{V1}", container.replace("/sys/fs/cgroup/memory", "/part"));
        let v1 = Version::V1;
        let v2 = Version::V2;
        for (memberships, mounts, expected) in [
            ("0::/a/b\n", V2, Some((v2, "/sys/fs/cgroup/a/b"))),
            ("0::/\n", V2, Some((v2, "/sys/fs/cgroup"))),
            ("0::/a:b\n", V2, Some((v2, "/sys/fs/cgroup/a:b"))),
            ("0::/a\n", &spaces, Some((v2, "/mnt/two words/a"))),
            ("4:memory:/a\n0::/b\n", V1, Some((v1, "/sys/fs/cgroup/memory/a"))),
            ("4:cpu,memory:/a\n", V1, Some((v1, "/sys/fs/cgroup/memory/a"))),
            ("4:memory:/docker/3f2a\n", &container, Some((v1, "/sys/fs/cgroup/memory"))),
            ("4:memory:/docker/3f2a/w\n", &container, Some((v1, "/sys/fs/cgroup/memory/w"))),
            ("4:memory:/docker/3f2abc\n", &container, None),
            ("4:memory:/docker/3f2a\n", &both, Some((v1, "/sys/fs/cgroup/memory/docker/3f2a"))),
            ("0::/\n", &above, Some((v2, "/sys/fs/cgroup"))),
            ("0::/\n", &beside, None),
            ("0::/../other\n", V2, None),
            ("0::/a\n", V1, None),
            ("4:memory:/a\n", V2, None),
            ("", V2, None),
            ("0::/a\n", "", None),
            ("nonsense\n:\n", "30 23\n- - -\n", None),
        ] {
            let found = dir(memberships, mounts);
            let found = found.as_ref().map(|(version, dir)| (*version, dir.as_str()));
            assert_eq!(found, expected, "{memberships:?} through {mounts:?}");
        }
    }

    #[test]
    fn missing_cgroup_directory_is_not_found() {
        assert_eq!(find_cgroup(b"0::/a\n", V2.as_bytes(), "memory", |_| false), None);
    }
}
