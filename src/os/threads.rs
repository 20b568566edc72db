//! The threads of the process, by what `/proc` tells of them: names and states, no stacks.

use std::fs;
use std::io;

/// The threads could not be listed.
#[derive(Debug, thiserror::Error)]
#[error("/proc/self/task: the threads cannot be listed: {0}; mount /proc to see them")]
pub struct Error(#[from] io::Error);

/// A thread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Thread {
    /// The kernel's number for it.
    pub id: u32,
    /// Its name, cut by the kernel after 15 bytes.
    pub name: String,
    /// What it does: `running`, `sleeping`, `waiting for disk`, or the kernel's letter in words.
    pub state: &'static str,
}

/// Every thread of the process. One that ends meanwhile may be missing. Some 15 us a thread: the kernel
/// prints a line for each.
///
/// # Errors
///
/// Where there is no `/proc`.
pub fn list() -> Result<Vec<Thread>, Error> {
    let mut threads: Vec<Thread> = fs::read_dir("/proc/self/task")?
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let id = entry.file_name().to_str()?.parse().ok()?;
            let stat = fs::read(entry.path().join("stat")).ok()?;
            parse(id, &String::from_utf8_lossy(&stat))
        })
        .collect();
    threads.sort_by_key(|thread| thread.id);
    Ok(threads)
}

/// `1234 (name) S …`; the name may hold anything, parentheses too.
fn parse(id: u32, stat: &str) -> Option<Thread> {
    let (_, rest) = stat.split_once('(')?;
    let (name, rest) = rest.rsplit_once(')')?;
    let state = match rest.trim_start().chars().next()? {
        'R' => "running",
        'S' => "sleeping",
        'D' => "waiting for disk",
        'T' | 't' => "stopped",
        'Z' | 'X' => "ended",
        'I' => "idle",
        _ => "unknown",
    };
    Some(Thread { id, name: name.to_owned(), state })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_hold_what_ends_it() {
        let thread = parse(7, "7 (a) R (b) S 1 2 3").unwrap();
        assert_eq!((thread.name.as_str(), thread.state), ("a) R (b", "sleeping"));
        assert_eq!(parse(7, "7 nonsense"), None);
        assert_eq!(parse(7, ""), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_thread_is_listed_by_its_name_while_it_lives() {
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let (begin, begun) = std::sync::mpsc::channel::<()>();
        let spawned = std::thread::Builder::new().name("listed-thread".into()).spawn(move || {
            begin.send(()).unwrap();
            let _ = stopped.recv();
        });
        begun.recv().unwrap();
        let names = || list().unwrap().into_iter().map(|thread| thread.name).collect::<Vec<_>>();
        assert!(names().iter().any(|name| name == "listed-thread"));
        drop(stop);
        spawned.unwrap().join().unwrap();
        assert!(names().iter().all(|name| name != "listed-thread"));
    }
}
