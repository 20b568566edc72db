//! The mounts visible to this process: a pure parser of `/proc/self/mountinfo`.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// A mount, reduced to the fields used here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount<'a> {
    /// Part of the file system that is mounted.
    pub root: PathBuf,
    /// Directory at which it is mounted.
    pub point: PathBuf,
    /// Type of the file system.
    pub kind: &'a [u8],
    /// Options of the file system.
    pub options: &'a [u8],
}

impl<'a> Mount<'a> {
    /// Parses a line `ID PARENT DEVICE ROOT POINT OPTIONS [TAG…] - KIND SOURCE OPTIONS`.
    pub fn parse(line: &'a [u8]) -> Option<Self> {
        let mut fields = line.split(|&byte| byte == b' ');
        let root = fields.nth(3)?;
        let point = fields.next()?;
        fields.find(|&field| field == b"-")?;
        let kind = fields.next()?;
        fields.next()?;
        let options = fields.next()?;
        Some(Self { root: unescape(root), point: unescape(point), kind, options })
    }

    /// Returns the mount that contains `path`, which must be free of symbolic links.
    pub fn containing(mountinfo: &'a [u8], path: &Path) -> Option<Self> {
        let mounts = mountinfo.split(|&byte| byte == b'\n').filter_map(Self::parse);
        // Of two mounts at one directory the later one hides the earlier.
        mounts
            .filter(|mount| path.starts_with(&mount.point))
            .max_by_key(|mount| mount.point.components().count())
    }
}

/// Decodes the kernel's octal escapes, such as `\040` for a space.
fn unescape(text: &[u8]) -> PathBuf {
    let mut unescaped = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        let code = (byte == b'\\')
            .then(|| std::str::from_utf8(after.get(..3)?).ok())
            .flatten()
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        if code.is_some() {
            rest = after.get(3..).unwrap_or_default();
        }
        unescaped.push(code.unwrap_or(byte));
    }
    PathBuf::from(OsStr::from_bytes(&unescaped))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &[u8] = b"\
22 1 0:20 / / rw,relatime - overlay overlay rw,lowerdir=/lower
23 22 0:21 / /proc rw - proc proc rw
24 22 8:1 /pods/7/volumes/data /srv rw shared:3 - ext4 /dev/sda1 rw
25 24 0:22 / /srv/with\\040space rw - tmpfs tmpfs rw
26 24 0:23 / /srv/twice rw - ext4 /dev/sdb rw
27 26 0:24 / /srv/twice rw - tmpfs tmpfs rw
broken
";

    #[test]
    fn path_belongs_to_nearest_and_latest_mount() {
        for (path, point, kind) in [
            ("/", "/", "overlay"),
            ("/captures", "/", "overlay"),
            ("/srvother", "/", "overlay"),
            ("/srv", "/srv", "ext4"),
            ("/srv/captures/x", "/srv", "ext4"),
            ("/srv/with space/x", "/srv/with space", "tmpfs"),
            ("/srv/twice", "/srv/twice", "tmpfs"),
        ] {
            let mount = Mount::containing(MOUNTS, Path::new(path)).unwrap();
            assert_eq!((mount.point.as_path(), mount.kind), (Path::new(point), kind.as_bytes()));
        }
        assert_eq!(Mount::containing(b"", Path::new("/")), None);
    }

    #[test]
    fn octal_escapes_are_decoded() {
        for (text, plain) in [
            ("a\\040b", "a b"),
            ("a\\134", "a\\"),
            ("a\\04", "a\\04"),
            ("\\999", "\\999"),
            ("", ""),
        ] {
            assert_eq!(unescape(text.as_bytes()), Path::new(plain), "{text}");
        }
    }
}
