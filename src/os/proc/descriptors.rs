//! The open file descriptors of this process, grouped by target.
//!
//! `/proc/self/fd` is streamed, so even 100,000 descriptors need memory only for counts. Sockets
//! are looked up in `/proc/self/net`. Cost: about 2 us per descriptor, and 1 us per socket of the
//! whole network namespace.

mod counts;
mod sockets;

use std::collections::HashSet;
use std::io;
use std::mem::MaybeUninit;

use jiff::Timestamp;
use rustix::fs::{Mode, OFlags, RawDir, open, readlinkat};

use crate::base::{log, spare};
use crate::model::{DescriptorDump, Losses};
use counts::DescriptorCounts;

/// Maximum number of descriptors read; further ones are counted as lost.
const MAX_DESCRIPTORS: u64 = 100_000;

/// Maximum rows of each list except the list of kinds.
const MAX_ROWS: usize = 50;

/// Takes a dump of all open descriptors.
///
/// # Errors
///
/// Returns an error if `/proc/self/fd` cannot be read.
pub fn dump(taken: Timestamp) -> io::Result<DescriptorDump> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = spare::open_with_retry(|| open("/proc/self/fd", flags, Mode::empty()))?;
    let reserved = spare::reserved_fds();
    let mut found = OpenDescriptor::default();
    let mut losses = Losses::default();
    let mut entries = [MaybeUninit::uninit(); 4 << 10];
    let mut link = Vec::with_capacity(4 << 10);
    let mut list = RawDir::new(&directory, &mut entries);
    while let Some(entry) = list.next() {
        let entry = entry?;
        let number = entry.file_name().to_str().ok().and_then(|name| name.parse::<i32>().ok());
        let Some(number) = number else { continue };
        found.open_count += 1;
        if found.open_count > MAX_DESCRIPTORS {
            losses.add("descriptors not read: too many", 1);
            continue;
        }
        link.clear();
        match readlinkat(&directory, entry.file_name(), link) {
            Ok(target) => {
                let is_reserved = reserved.contains(&number);
                found.add(&target.to_string_lossy(), is_reserved);
                link = target.into_bytes();
            }
            Err(_) => {
                losses.add("descriptors closed during the dump", 1);
                link = Vec::with_capacity(4 << 10);
            }
        }
    }
    drop(directory);
    found.resolve_sockets(&mut losses);
    Ok(found.into_dump(taken, losses))
}

/// Descriptors counted so far.
#[derive(Default)]
struct OpenDescriptor {
    open_count: u64,
    kinds: DescriptorCounts,
    targets: DescriptorCounts,
    patterns: DescriptorCounts,
    directories: DescriptorCounts,
    /// Inodes of sockets that are not resolved yet.
    sockets: HashSet<u64>,
}

impl OpenDescriptor {
    fn add(&mut self, link: &str, is_reserved: bool) {
        if is_reserved {
            self.kinds.add("marple", "");
            return self
                .targets
                .add("marple", "reserved by marple for use at the descriptor limit");
        }
        if let Some(inode) = bracketed_text(link, "socket:[").and_then(|inode| inode.parse().ok()) {
            self.kinds.add("socket", "");
            self.sockets.insert(inode);
        } else if bracketed_text(link, "pipe:[").is_some() {
            self.kinds.add("pipe", "");
        } else if let Some(name) = link.strip_prefix("anon_inode:") {
            let name = name.trim_matches(['[', ']']);
            let kind = match name {
                "eventfd" => "eventfd",
                "eventpoll" => "epoll",
                "timerfd" => "timerfd",
                "signalfd" => "signalfd",
                "inotify" => "inotify",
                "perf_event" => "perf_event",
                "io_uring" => "io_uring",
                "pidfd" => "pidfd",
                _ => "anonymous",
            };
            self.kinds.add(kind, "");
            if kind == "anonymous" {
                self.targets.add(kind, &log::escape(name));
            }
        } else if link.starts_with('/') {
            self.add_file(&log::escape(link));
        } else {
            // Namespaces, such as `net:[4026531840]`.
            self.kinds.add("other", "");
            self.targets.add("other", &log::escape(link));
        }
    }

    fn add_file(&mut self, path: &str) {
        let kind = match path {
            _ if path.starts_with("/memfd:") => "memfd",
            _ if path.starts_with("/dev/") => "device",
            _ => "file",
        };
        self.kinds.add(kind, "");
        self.targets.add(kind, path);
        if kind == "file" {
            self.patterns.add(kind, &mask_digits(path));
            self.directories
                .add(kind, path.rsplit_once('/').map_or("/", |(directory, _)| directory));
        }
    }

    /// Replaces the inodes of sockets by their addresses.
    fn resolve_sockets(&mut self, losses: &mut Losses) {
        let unresolved = sockets::resolve(std::mem::take(&mut self.sockets), &mut self.targets);
        if unresolved > 0 {
            losses.add("sockets of other protocols, or not found in /proc/self/net", unresolved);
        }
    }

    fn into_dump(self, taken: Timestamp, mut losses: Losses) -> DescriptorDump {
        if !(self.targets.is_exact() && self.patterns.is_exact() && self.directories.is_exact()) {
            losses.add("targets omitted: too many distinct targets, counts are lower bounds", 1);
        }
        let limit = super::process::descriptor_limit();
        let patterns = self.patterns.into_rows(MAX_ROWS);
        DescriptorDump {
            taken_at: taken,
            open: self.open_count,
            limit,
            kinds: self.kinds.into_rows(usize::MAX),
            targets: self.targets.into_rows(MAX_ROWS),
            patterns: patterns.into_iter().filter(|row| row.count > 1).collect(),
            directories: self.directories.into_rows(MAX_ROWS),
            losses,
        }
    }
}

/// Returns the text between `prefix` and `]`.
fn bracketed_text<'l>(link: &'l str, prefix: &str) -> Option<&'l str> {
    link.strip_prefix(prefix)?.strip_suffix(']')
}

/// Returns `path` with each run of digits replaced by `#`.
fn mask_digits(path: &str) -> String {
    let mut pattern = String::with_capacity(path.len());
    for character in path.chars() {
        if !character.is_ascii_digit() {
            pattern.push(character);
        } else if !pattern.ends_with('#') {
            pattern.push('#');
        }
    }
    pattern
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn descriptors_are_counted_by_target() {
        let dir = tempfile::tempdir().unwrap();
        let leak = dir.path().join("leak\n.log");
        File::create(&leak).unwrap();
        let _leaked: Vec<File> = (0..40).map(|_| File::open(&leak).unwrap()).collect();
        let parts =
            |number: usize| File::create(dir.path().join(format!("part-{number}"))).unwrap();
        let _parts: Vec<File> = (0..30).map(parts).collect();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let _streams: Vec<_> = (0..5)
            .map(|_| (TcpStream::connect(address).unwrap(), listener.accept().unwrap()))
            .collect();
        let path = dir.path().join("s");
        let _unix = UnixListener::bind(&path).unwrap();

        let dump = dump(Timestamp::UNIX_EPOCH).unwrap();
        let count = |rows: &[crate::model::DescriptorCount], target: &str| {
            rows.iter().find(|row| row.target == target).map(|row| row.count)
        };
        let dir = dir.path().display();
        assert_eq!(count(&dump.targets, &format!(r"{dir}/leak\n.log")), Some(40), "{dump:#?}");
        // The directory's name may contain digits.
        let pattern = mask_digits(&format!("{dir}/part-1"));
        assert_eq!(count(&dump.patterns, &pattern), Some(30), "{dump:#?}");
        assert_eq!(count(&dump.directories, &dir.to_string()), Some(70), "{dump:#?}");
        let accepted = format!("accepted at {address} from 127.0.0.1, established");
        assert_eq!(count(&dump.targets, &accepted), Some(5), "{dump:#?}");
        assert_eq!(
            count(&dump.targets, &format!("to {address}, established")),
            Some(5),
            "{dump:#?}"
        );
        assert_eq!(count(&dump.targets, &format!("at {address}, listening")), Some(1), "{dump:#?}");
        assert_eq!(count(&dump.targets, &path.display().to_string()), Some(1), "{dump:#?}");
        assert!(dump.open >= 80 && dump.limit.is_some());
    }
}
