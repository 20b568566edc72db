//! A changed configuration is applied once, however the file is changed. An unchanged one is never
//! applied.
//!
//! The tests confirm that nothing was reported without waiting for a timeout: they touch the
//! trigger file. The watcher reads it in the same pass as the configuration, and its debounce ends
//! later than that of earlier changes.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, SystemTime};

use marple::internals::config::{FileChange, FileWatcher, WatchedFile};
use tempfile::TempDir;

/// A time that only a hang exceeds.
const DEADLINE: Duration = Duration::from_secs(60);

struct Bench {
    home: TempDir,
    /// Directory of the trigger. Its events must not replace missing events of the configuration.
    away: TempDir,
    changes: Receiver<FileChange>,
    watcher: FileWatcher,
}

impl Bench {
    /// Watches `config/marple.toml`, which `make` writes, and a trigger in another directory.
    fn new(make: impl FnOnce(&Path)) -> Self {
        let home = tempfile::tempdir().unwrap();
        let config = home.path().join("config");
        fs::create_dir(&config).unwrap();
        make(&config);
        let away = tempfile::tempdir().unwrap();
        let trigger = away.path().join("trigger");
        fs::write(&trigger, "").unwrap();
        let (sender, changes) = channel();
        let files =
            [WatchedFile::Config(config.join("marple.toml")), WatchedFile::Trigger(trigger)];
        let watcher = FileWatcher::new(files, move |change| {
            let _ = sender.send(change);
        })
        .unwrap();
        Self { home, away, changes, watcher }
    }

    /// Returns a bench with a plain file that sets the interval to 1 s.
    fn with_plain_file() -> Self {
        Self::new(|dir| fs::write(dir.join("marple.toml"), settings(1)).unwrap())
    }

    fn dir(&self) -> PathBuf {
        self.home.path().join("config")
    }

    fn file(&self) -> PathBuf {
        self.dir().join("marple.toml")
    }

    fn touch(&self) {
        let trigger = File::options().write(true).open(self.away.path().join("trigger")).unwrap();
        trigger.set_modified(SystemTime::now()).unwrap();
    }

    fn next(&self) -> FileChange {
        self.changes.recv_timeout(DEADLINE).expect("a change is reported")
    }

    /// Returns the intervals in seconds that were applied so far, with `None` for rejected
    /// settings.
    fn applied_intervals(&self) -> Vec<Option<u64>> {
        self.touch();
        let mut applied = Vec::new();
        loop {
            match self.next() {
                FileChange::Trigger { .. } => return applied,
                FileChange::Config { path, settings } => {
                    assert_eq!(path, self.file());
                    applied.push(settings.ok().map(|settings| settings.interval.as_secs()));
                }
            }
        }
    }

    /// Waits until this interval is applied, and checks that no other change is reported.
    fn wait_for_interval(&self, seconds: u64) {
        let mut refused = 0;
        loop {
            match self.next() {
                FileChange::Config { settings: Ok(settings), .. } => {
                    assert_eq!(settings.interval, Duration::from_secs(seconds));
                    break;
                }
                FileChange::Config { settings: Err(_), .. } => refused += 1,
                FileChange::Trigger { .. } => panic!("nobody touched it"),
            }
        }
        assert_eq!((self.applied_intervals(), refused), (vec![], 0), "it is applied once");
    }
}

fn settings(seconds: u64) -> String {
    format!("interval = \"{seconds}s\"\n")
}

#[test]
fn in_place_write_is_applied_once() {
    let bench = Bench::with_plain_file();
    assert_eq!(bench.watcher.polling_reason(), None);
    for seconds in [2, 3, 1] {
        fs::write(bench.file(), settings(seconds)).unwrap();
        bench.wait_for_interval(seconds);
    }
}

#[test]
fn rename_over_file_is_applied_once() {
    let bench = Bench::with_plain_file();
    for seconds in [2, 3] {
        let draft = bench.dir().join(".marple.toml.swp");
        fs::write(&draft, settings(seconds)).unwrap();
        fs::rename(&draft, bench.file()).unwrap();
        bench.wait_for_interval(seconds);
    }
}

#[test]
fn deleted_file_keeps_settings_until_restored() {
    let bench = Bench::with_plain_file();
    for (seconds, expected) in [(2, vec![Some(2)]), (2, vec![])] {
        fs::remove_file(bench.file()).unwrap();
        assert_eq!(bench.applied_intervals(), []);
        fs::write(bench.file(), settings(seconds)).unwrap();
        assert_eq!(bench.applied_intervals(), expected);
    }
    fs::remove_file(bench.file()).unwrap();
    fs::write(bench.file(), settings(4)).unwrap();
    bench.wait_for_interval(4);
}

#[test]
fn config_map_swap_is_applied_each_time() {
    let version = |dir: &Path, seconds| {
        let name = format!("..2026_11_{seconds:02}");
        fs::create_dir(dir.join(&name)).unwrap();
        fs::write(dir.join(&name).join("marple.toml"), settings(seconds)).unwrap();
        name
    };
    let bench = Bench::new(|dir| {
        symlink(version(dir, 1), dir.join("..data")).unwrap();
        symlink("..data/marple.toml", dir.join("marple.toml")).unwrap();
    });
    for seconds in [2, 3] {
        let dir = bench.dir();
        symlink(version(&dir, seconds), dir.join("..data_tmp")).unwrap();
        fs::rename(dir.join("..data_tmp"), dir.join("..data")).unwrap();
        fs::remove_dir_all(dir.join(format!("..2026_11_{:02}", seconds - 1))).unwrap();
        bench.wait_for_interval(seconds);
    }
}

#[test]
fn partially_written_file_is_not_applied() {
    let bench = Bench::with_plain_file();
    let mut file = File::create(bench.file()).unwrap();
    file.write_all(b"interval = \"2").unwrap();
    file.write_all(b"s\"\n").unwrap();
    drop(file);
    bench.wait_for_interval(2);
}

#[test]
fn invalid_file_is_reported_once_and_next_valid_one_applied() {
    let bench = Bench::with_plain_file();
    fs::write(bench.file(), "interval = \"soon\"\nintervall = 1\n").unwrap();
    let FileChange::Config { settings: Err(error), .. } = bench.next() else {
        panic!("it is invalid")
    };
    assert!(error.to_string().starts_with("2 problems"), "{error}");
    assert!(error.to_string().contains("marple.toml:1:12: interval: "), "{error}");
    assert_eq!(bench.applied_intervals(), []);
    fs::write(bench.file(), settings(1)).unwrap();
    bench.wait_for_interval(1);
}

#[test]
fn unchanged_content_and_neighbor_files_are_no_change() {
    let bench = Bench::with_plain_file();
    fs::write(bench.file(), settings(1)).unwrap();
    assert_eq!(bench.applied_intervals(), []);
    fs::write(bench.dir().join("draft"), settings(1)).unwrap();
    fs::rename(bench.dir().join("draft"), bench.file()).unwrap();
    assert_eq!(bench.applied_intervals(), []);
    fs::write(bench.dir().join("neighbour.toml"), settings(2)).unwrap();
    fs::remove_file(bench.dir().join("neighbour.toml")).unwrap();
    assert_eq!(bench.applied_intervals(), []);
}

#[test]
fn recreated_directory_is_watched_again() {
    let bench = Bench::with_plain_file();
    for seconds in [2, 3] {
        fs::remove_dir_all(bench.dir()).unwrap();
        assert_eq!(bench.applied_intervals(), []);
        fs::create_dir(bench.dir()).unwrap();
        fs::write(bench.file(), settings(seconds)).unwrap();
        bench.wait_for_interval(seconds);
    }
    fs::write(bench.file(), settings(4)).unwrap();
    bench.wait_for_interval(4);
}

#[test]
fn symlink_into_another_directory_is_followed() {
    let elsewhere = tempfile::tempdir().unwrap();
    let target = elsewhere.path().join("shared.toml");
    fs::write(&target, settings(1)).unwrap();
    let bench = Bench::new(|dir| symlink(&target, dir.join("marple.toml")).unwrap());
    assert_eq!(bench.applied_intervals(), []);
    fs::write(&target, settings(2)).unwrap();
    bench.wait_for_interval(2);
}

#[test]
fn trigger_is_reported_when_touched_or_created() {
    let bench = Bench::with_plain_file();
    let trigger = bench.away.path().join("trigger");
    let is_triggered = || matches!(bench.next(), FileChange::Trigger { path } if path == trigger);
    bench.touch();
    assert!(is_triggered());
    fs::remove_file(&trigger).unwrap();
    fs::write(&trigger, "").unwrap();
    assert!(is_triggered());
    fs::remove_file(&trigger).unwrap();
    fs::write(bench.file(), settings(2)).unwrap();
    assert!(matches!(bench.next(), FileChange::Config { .. }), "deleting it is no touch");
    fs::write(&trigger, "").unwrap();
    assert!(is_triggered());
}

#[test]
fn changing_watched_files_loses_no_change() {
    let bench = Bench::with_plain_file();
    let other = bench.away.path().join("other");
    fs::write(bench.file(), settings(2)).unwrap();
    bench
        .watcher
        .set_files([WatchedFile::Config(bench.file()), WatchedFile::Trigger(other.clone())]);
    let FileChange::Config { settings: Ok(settings), .. } = bench.next() else {
        panic!("it is valid")
    };
    assert_eq!(settings.interval, Duration::from_secs(2));
    bench.touch();
    fs::write(&other, "").unwrap();
    let FileChange::Trigger { path } = bench.next() else { panic!("it was made") };
    assert_eq!(path, other, "the old trigger is not watched any more");
}

#[test]
fn nothing_is_reported_after_watcher_is_dropped() {
    let Bench { home, away: _away, changes, watcher } = Bench::with_plain_file();
    drop(watcher);
    fs::write(home.path().join("config/marple.toml"), settings(2)).unwrap();
    assert!(changes.recv().is_err(), "the callback is gone with its thread");
}

/// Returns the voluntary context switches of the watcher threads of this process.
#[cfg(target_os = "linux")]
fn watcher_wakeups() -> u64 {
    let threads = fs::read_dir("/proc/self/task").unwrap().filter_map(|thread| {
        let path = thread.ok()?.path();
        let name = fs::read_to_string(path.join("comm")).ok()?;
        let status = fs::read_to_string(path.join("status")).ok()?;
        (name.starts_with("notify") || name.starts_with("marple-watch")).then_some(status)
    });
    let waits = threads.map(|status| {
        let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        line.unwrap().trim().parse::<u64>().unwrap()
    });
    waits.sum()
}

/// nextest runs each test in its own process, so only this test's watcher is counted.
#[cfg(target_os = "linux")]
#[test]
fn busy_neighbor_file_causes_few_wakeups_and_hides_no_change() {
    const WRITES: usize = 20_000;
    let bench = Bench::with_plain_file();
    let trigger = bench.away.path().join("trigger");
    let mut logs = [bench.dir(), bench.away.path().to_owned()]
        .map(|dir| File::create(dir.join("access.log")).unwrap());
    let mut write = |times: usize| {
        for _ in 0..times {
            // Gives a watcher that wakes up for each write enough time to do so.
            std::thread::sleep(Duration::from_micros(50));
            logs.iter_mut().for_each(|log| log.write_all(b"GET /\n").unwrap());
        }
    };
    let before = watcher_wakeups();
    write(WRITES);
    let woken = watcher_wakeups() - before;
    assert!(woken < WRITES as u64 / 20, "{woken} wake-ups by {WRITES} writes");
    let why = bench.watcher.polling_reason().expect("events are off");
    assert!(why.contains("too many file system events"), "{why}");

    fs::write(bench.file(), settings(2)).unwrap();
    write(10);
    bench.wait_for_interval(2);
    fs::rename(&trigger, bench.away.path().join("was")).unwrap();
    fs::write(&trigger, "").unwrap();
    write(10);
    assert!(matches!(bench.next(), FileChange::Trigger { .. }));
}

#[cfg(target_os = "linux")]
#[test]
fn watcher_threads_call_hook_before_work() {
    use std::sync::Mutex;
    static HOOK_THREADS: Mutex<Vec<String>> = Mutex::new(Vec::new());
    fn record_hook_thread() {
        let name = fs::read_to_string("/proc/thread-self/comm").unwrap();
        HOOK_THREADS.lock().unwrap().push(name.trim().to_owned());
    }
    let dir = tempfile::tempdir().unwrap();
    let (sender, changes) = channel();
    let file = dir.path().join("trigger");
    let _watcher = FileWatcher::with_thread_hook(
        [WatchedFile::Trigger(file.clone())],
        record_hook_thread,
        move |change| {
            let _ = sender.send(change);
        },
    )
    .unwrap();
    fs::write(&file, "").unwrap();
    changes.recv_timeout(DEADLINE).expect("a change is reported");
    let mut names = HOOK_THREADS.lock().unwrap().clone();
    names.sort();
    assert_eq!(names, ["marple-watch", "notify-rs inoti"]);
}
