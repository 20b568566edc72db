//! Starting an agent where something is missing: a port or directory that another process has,
//! descriptors, a writable file system. The service starts, the agent reports what it lacks, and
//! acquires it once it is free. Tests with forked children are at the end. Some tests limit or fork
//! the whole process, so each needs its own process (nextest).

#![cfg(feature = "http")]
// `fork` needs it.
#![allow(unsafe_code)]

mod host;
mod store;

use std::alloc::System;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use host::{PATIENCE, settings, wait_for};
use marple::base::SystemClock;
use marple::config::{HttpSettings, Listen};
use marple::store::Store;
use marple::{Agent, AgentHandle, CaptureKind, Settings};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketType};

#[global_allocator]
static ALLOCATOR: marple::Allocator<System> = marple::Allocator::new(System);

const SHORT: Duration = Duration::from_millis(50);

fn at(dir: &Path, listen: Listen) -> Settings {
    let http = Some(HttpSettings { listen, ..HttpSettings::default() });
    Settings { dir: dir.to_owned(), http, rules: Vec::new(), ..settings() }
}

fn start(settings: &Settings) -> Agent {
    Agent::from_settings(settings.clone()).start().expect("the service starts")
}

fn warning(handle: &AgentHandle, topic: &str) -> Option<String> {
    let warnings = handle.status().wait(PATIENCE).unwrap().warnings;
    warnings.into_iter().find(|warning| warning.topic == topic).map(|warning| warning.text)
}

fn warned(handle: &AgentHandle, topic: &str) -> String {
    wait_for(&format!("a warning about {topic}"), || warning(handle, topic))
}

fn no_longer_warned(handle: &AgentHandle, topic: &str) {
    wait_for(&format!("{topic} to work"), || warning(handle, topic).is_none().then_some(()));
}

/// Returns the first line of the response to `GET /status`, or `None` if nothing listens.
fn answer(address: SocketAddr) -> Option<String> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(b"GET /status HTTP/1.0\r\nHost: localhost\r\n\r\n").ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("an answer, or none at once");
    text.lines().next().map(str::to_owned)
}

fn answers(address: SocketAddr) {
    let ok = || answer(address).filter(|line| line.contains(" 200 "));
    wait_for("the endpoint", ok);
}

fn captures(handle: &AgentHandle) {
    handle.capture([CaptureKind::Threads], SHORT).wait(PATIENCE).expect("a capture");
}

#[test]
fn a_port_that_is_taken_is_used_once_it_is_free() {
    let home = tempfile::tempdir().unwrap();
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = other.local_addr().unwrap();
    let settings = at(&home.path().join("captures"), Listen::Tcp(address));
    let refused = Agent::from_settings(settings.clone()).strict(true).start().err();
    assert!(refused.unwrap().to_string().contains("http.listen"), "strict");
    let agent = start(&settings);
    let handle = agent.handle();
    assert!(warned(&handle, "http.listen").contains(&address.to_string()));
    captures(&handle);
    drop(other);
    answers(address);
    no_longer_warned(&handle, "http.listen");
}

#[test]
fn a_directory_that_is_held_is_opened_once_it_is_free_and_its_budgets_count() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("captures");
    let (other, _) = Store::open(&dir, store::roomy(), Arc::new(SystemClock)).unwrap();
    let settings = Settings { dir: dir.clone(), ..settings() };
    let refused = Agent::from_settings(settings.clone()).strict(true).start().err();
    assert!(refused.unwrap().to_string().contains("in use"), "strict");
    let agent = start(&settings);
    let handle = agent.handle();
    assert!(warned(&handle, "dir").contains("in use"));
    let error = handle.capture([CaptureKind::Heap], SHORT).wait(PATIENCE).unwrap_err().to_string();
    assert!(error.contains("no incident directory") && error.contains("in use"), "{error}");
    let now = jiff::Timestamp::now();
    let saved = serde_json::json!({ "schema": 1, "incidents": [now], "rules": {}, "streams": [] });
    other.save_state(&saved).unwrap();
    drop(other);
    no_longer_warned(&handle, "dir");
    let status = handle.status().wait(PATIENCE).unwrap();
    assert_eq!(status.budget.incidents_in_a_day, 1, "the predecessor's");
    assert_eq!(status.dir, dir);
    captures(&handle);
}

#[test]
fn a_socket_whose_owner_is_stuck_does_not_hang_the_start() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("marple.sock");
    let address = SocketAddrUnix::new(&path).unwrap();
    let socket = || rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
    let owner = socket();
    rustix::net::bind(&owner, &address).unwrap();
    rustix::net::listen(&owner, 0).unwrap();
    let waiting: Vec<_> = std::iter::repeat_with(|| {
        let client = socket();
        rustix::io::ioctl_fionbio(&client, true).unwrap();
        rustix::net::connect(&client, &address).map(|()| client)
    })
    .map_while(Result::ok)
    .collect();
    let agent = start(&at(&home.path().join("captures"), Listen::Unix(path.clone())));
    let handle = agent.handle();
    assert!(warned(&handle, "http.listen").contains("does not accept"));
    drop((owner, waiting));
    wait_for("the socket", || UnixStream::connect(&path).ok());
    drop(agent);
    assert!(!path.exists(), "the file goes with the agent");
}

#[test]
fn a_socket_that_another_process_has_put_in_place_of_ours_stays() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("marple.sock");
    let agent = start(&at(&home.path().join("captures"), Listen::Unix(path.clone())));
    fs::remove_file(&path).unwrap();
    let _other = UnixListener::bind(&path).unwrap();
    drop(agent);
    assert!(UnixStream::connect(&path).is_ok());
}

#[test]
fn without_descriptors_vitals_go_on_and_the_rest_follows() {
    let test = "without_descriptors_vitals_go_on_and_the_rest_follows";
    store::again(test, &["prlimit", "--nofile=48"], || {
        let home = tempfile::tempdir().unwrap();
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = free.local_addr().unwrap();
        drop(free);
        let mut held: Vec<_> = std::iter::from_fn(|| File::open("/dev/null").ok()).collect();
        // Six free descriptors suffice for the directory and the listener, but not for a poller.
        held.truncate(held.len() - 6);
        let agent = start(&at(&home.path().join("captures"), Listen::Tcp(address)));
        let handle = agent.handle();
        let told = warned(&handle, "descriptors");
        assert!(told.contains("ulimit -n") && told.contains("48"), "{told}");
        let ticks = || handle.status().wait(PATIENCE).unwrap().counters.ticks;
        let before = ticks();
        wait_for("a tick", || (ticks() > before).then_some(()));
        drop(held);
        answers(address);
        no_longer_warned(&handle, "descriptors");
        captures(&handle);
    });
}

#[test]
fn a_hostile_container_is_no_reason_not_to_start() {
    let test = "a_hostile_container_is_no_reason_not_to_start";
    // A world-writable volume, an empty /proc/sys, nothing else writable, and a user without a
    // name.
    let contain = "mount -t tmpfs -o mode=2777 none /mnt && mount -t tmpfs none /proc/sys && \
                   mount -o remount,ro,bind / && exec prlimit --nofile=256 setpriv --reuid 54321 --regid 54321 \
                   --clear-groups --no-new-privs --bounding-set=-all --inh-caps=-all \"$@\"";
    if !rustix::process::geteuid().is_root() {
        return eprintln!("{test}: not run, mounting and changing the user need root");
    }
    store::again(test, &["unshare", "-m", "sh", "-c", contain, "sh"], || {
        let listen = || Listen::Tcp(SocketAddr::from(([127, 0, 0, 1], 0)));
        let agent = start(&at(Path::new("/mnt/volume/captures"), listen()));
        captures(&agent.handle());
        drop(agent);
        let agent = start(&at(Path::new("/captures"), listen()));
        let told = warned(&agent.handle(), "dir");
        assert!(told.contains("/captures"), "{told}");
        let ticks = agent.handle().status().wait(PATIENCE).unwrap().counters.ticks;
        wait_for("a tick", || {
            (agent.handle().status().wait(PATIENCE).unwrap().counters.ticks > ticks).then_some(())
        });
    });
}

#[test]
fn a_directory_that_goes_with_the_container_is_said_and_a_volume_is_not() {
    let test = "a_directory_that_goes_with_the_container_is_said_and_a_volume_is_not";
    // A container: an overlay as root, and a volume mounted in it.
    let contain = "mount -t tmpfs none /mnt && cd /mnt && mkdir up work root && \
                   mount -t overlay overlay -o lowerdir=/,upperdir=up,workdir=work root && \
                   mkdir -p root/volume && mount --bind \"$VOLUME\" root/volume && \
                   mount -t proc proc root/proc && exec chroot root \"$@\"";
    if !rustix::process::geteuid().is_root() {
        return eprintln!("{test}: not run, mounting needs root");
    }
    // Mounted as the volume. The re-executed test creates a directory, too, and does not use it.
    let volume = tempfile::tempdir().unwrap();
    let set = format!("VOLUME={}", volume.path().display());
    store::again(test, &["env", &set, "unshare", "-m", "sh", "-c", contain, "sh"], || {
        let listen = || Listen::Tcp(SocketAddr::from(([127, 0, 0, 1], 0)));
        for (dir, said) in [("/captures", true), ("/volume/captures", false)] {
            let agent = start(&at(Path::new(dir), listen()));
            captures(&agent.handle());
            let told = warning(&agent.handle(), "store.lifetime");
            assert_eq!(told.is_some(), said, "{dir}: {told:?}");
            if let Some(told) = told {
                assert!(told.contains("lost with the container") && told.contains(dir), "{told}");
            }
            drop(agent);
        }
    });
}

const STRIPPED: &str = "AGENT_START_STRIPPED";

/// The child process of [`a_program_without_symbols_is_said`].
#[test]
#[cfg(target_os = "linux")]
fn stripped_process() {
    let home = tempfile::tempdir().unwrap();
    let agent = start(&Settings { dir: home.path().join("captures"), ..settings() });
    captures(&agent.handle());
    let told = warning(&agent.handle(), "symbols");
    match std::env::var_os(STRIPPED) {
        Some(_) => assert!(told.is_some_and(|told| told.contains("debuginfo"))),
        None => assert_eq!(told, None),
    }
}

#[test]
#[cfg(target_os = "linux")]
fn a_program_without_symbols_is_said() {
    let home = tempfile::tempdir().unwrap();
    let program = home.path().join("stripped");
    fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    match Command::new("strip").arg(&program).status() {
        Ok(status) => assert!(status.success()),
        Err(error) => return eprintln!("not run, `strip` is missing: {error}"),
    }
    let ended = Command::new(&program)
        .args(["--exact", "stripped_process"])
        .env(STRIPPED, "1")
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert!(ended.success());
}

const OLD: &str = "AGENT_START_OLD_PROCESS";

/// The predecessor process of [`a_new_process_takes_over_when_the_old_one_ends`].
#[test]
fn old_process() {
    let Some(place) = std::env::var_os(OLD) else { return };
    let place = place.into_string().unwrap();
    let (address, dir) = place.split_once(' ').unwrap();
    let agent = start(&at(Path::new(dir), Listen::Tcp(address.parse().unwrap())));
    captures(&agent.handle());
    let _ = std::io::stdin().read(&mut [0]);
    drop(agent);
}

#[test]
fn a_new_process_takes_over_when_the_old_one_ends() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("captures");
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap();
    drop(free);
    let mut old = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "old_process", "--nocapture"])
        .env(OLD, format!("{address} {}", dir.display()))
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    answers(address);
    let one = || (host::incidents(&dir).len() == 1).then_some(());
    wait_for("its incident", one);

    let agent = start(&at(&dir, Listen::Tcp(address)));
    let handle = agent.handle();
    assert!(warned(&handle, "dir").contains(&format!("process {}", old.id())));
    warned(&handle, "http.listen");
    drop(old.stdin.take());
    assert!(old.wait().unwrap().success());
    no_longer_warned(&handle, "dir");
    no_longer_warned(&handle, "http.listen");
    answers(address);
    captures(&handle);
    assert_eq!(host::incidents(&dir).len(), 2);
}

/// A forked child, killed when this value is dropped.
struct Child(libc::pid_t);

impl Child {
    /// Runs `body` in a forked child, which exits without returning into the test harness.
    fn fork(body: impl FnOnce() -> bool) -> Self {
        // SAFETY: the child runs `body` and leaves by `_exit`. The C library keeps its allocator
        // usable in a forked child of a process with several threads.
        let pid = unsafe { libc::fork() };
        assert!(pid >= 0, "fork: {}", std::io::Error::last_os_error());
        if pid == 0 {
            let well = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body));
            // SAFETY: ends this process, which is the child.
            unsafe { libc::_exit(i32::from(!well.unwrap_or(false))) };
        }
        Self(pid)
    }

    fn ended_well(self) -> bool {
        let ended = || {
            let mut status = 0;
            // SAFETY: waits for a child of this process; `status` is a valid local.
            let pid = unsafe { libc::waitpid(self.0, &raw mut status, libc::WNOHANG) };
            (pid == self.0).then_some(status)
        };
        let status = wait_for("the child", ended);
        std::mem::forget(self);
        libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // SAFETY: a child of this process that has not been waited for.
        unsafe {
            libc::kill(self.0, libc::SIGKILL);
            libc::waitpid(self.0, std::ptr::null_mut(), 0);
        }
    }
}

#[test]
fn a_forked_child_holds_neither_address_nor_directory_and_its_parent_names_it() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("captures");
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap();
    drop(free);
    let agent = start(&at(&dir, Listen::Tcp(address)));
    let handle = agent.handle();
    answers(address);
    let child = Child::fork(|| {
        std::thread::sleep(PATIENCE);
        true
    });
    let told = warned(&handle, "fork");
    assert!(told.contains(&child.0.to_string()), "{told}");
    answers(address);
    drop(agent);
    assert_eq!(answer(address), None, "refused at once");
    Store::open(&dir, store::roomy(), Arc::new(SystemClock)).expect("nobody has the lock");
    drop(child);
}

#[test]
fn a_forked_child_says_that_it_is_not_watched_and_can_have_an_agent() {
    let home = tempfile::tempdir().unwrap();
    let log = home.path().join("log");
    let file = File::create(&log).unwrap();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(file).finish();
    tracing::subscriber::set_global_default(subscriber).unwrap();
    let agent = start(&at(&home.path().join("captures"), Listen::Unix(home.path().join("s"))));
    let inherited = std::cell::Cell::new(Some(agent));
    let child = Child::fork(|| {
        drop(marple::task::traced(async {}));
        let text = fs::read_to_string(&log).unwrap();
        let said = format!("process {} is not watched", std::process::id());
        assert_eq!(text.matches(&said).count(), 1, "{text}");
        drop(inherited.take());
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = free.local_addr().unwrap();
        drop(free);
        let own = start(&at(&home.path().join("own"), Listen::Tcp(address)));
        captures(&own.handle());
        answers(address);
        drop(own);
        true
    });
    let pid = child.0;
    assert!(child.ended_well(), "{}", fs::read_to_string(&log).unwrap());
    let agent = inherited.take().unwrap();
    captures(&agent.handle());
    drop(agent);
    let text = fs::read_to_string(&log).unwrap();
    let started = format!("watches process {pid}");
    assert!(text.contains(&started), "one line says what runs: {text}");
}

/// Prefork workers and daemons may fork at any time: during a dump, a log write or an agent start.
#[test]
fn children_forked_at_any_time_can_have_an_agent() {
    let home = tempfile::tempdir().unwrap();
    let file = File::create(home.path().join("log")).unwrap();
    // A lock around the file, like the one of standard error.
    let writer = std::sync::Mutex::new(file);
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(writer).finish();
    tracing::subscriber::set_global_default(subscriber).unwrap();
    for round in 0..12_u64 {
        let agent = start(&at(
            &home.path().join("captures"),
            Listen::Unix(home.path().join(round.to_string())),
        ));
        let dumps = agent.handle().capture([CaptureKind::Heap, CaptureKind::Threads], SHORT);
        // The rounds fork at points from the start of the agent to the end of the capture.
        std::thread::sleep(Duration::from_millis(round * 3));
        let inherited = std::cell::Cell::new(Some(agent));
        let child = Child::fork(|| {
            tracing::info!("the host logs");
            drop(marple::task::traced(async {}));
            drop(inherited.take());
            let own = start(&at(
                &home.path().join("own"),
                Listen::Unix(home.path().join(format!("own {round}"))),
            ));
            own.handle()
                .capture([CaptureKind::Heap, CaptureKind::Threads], SHORT)
                .wait(PATIENCE)
                .expect("a capture");
            true
        });
        assert!(child.ended_well(), "round {round}");
        dumps.wait(PATIENCE).unwrap();
        drop(inherited.take());
    }
}

#[test]
#[cfg(target_os = "linux")]
fn no_signal_that_a_service_may_use_is_taken_by_default() {
    let home = tempfile::tempdir().unwrap();
    let toggle = marple::config::ToggleSettings::default();
    let agent = start(&Settings { dir: home.path().join("captures"), toggle, ..settings() });
    captures(&agent.handle());
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap();
    let caught = u64::from_str_radix(caught.trim(), 16).unwrap();
    for signal in [libc::SIGUSR1, libc::SIGUSR2] {
        assert_eq!(caught >> (signal - 1) & 1, 0, "signal {signal} has a handler");
    }
}

/// Returns CPUs, policy and name of each of marple's threads, as the kernel reports them.
#[cfg(target_os = "linux")]
fn own_threads() -> Vec<(String, String, String)> {
    let read = |path: std::path::PathBuf| fs::read_to_string(path).unwrap_or_default();
    let tasks = fs::read_dir("/proc/self/task").unwrap().map(|entry| entry.unwrap().path());
    let threads = tasks.map(|task| {
        let status = read(task.join("status"));
        let cpus = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
        let stat = read(task.join("stat"));
        let policy = stat.rsplit(')').next().unwrap().split_whitespace().nth(41 - 3);
        let name = read(task.join("comm")).trim().to_owned();
        (cpus.unwrap_or_default().trim().to_owned(), policy.unwrap_or_default().to_owned(), name)
    });
    threads.filter(|(.., name)| name.starts_with("marple")).collect()
}

#[test]
#[cfg(target_os = "linux")]
fn agent_of_a_pinned_real_time_thread_is_neither_and_counts_the_cpus_of_the_process() {
    use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

    let whole = sched_getaffinity(None).unwrap();
    let cpus = fs::read_to_string("/proc/thread-self/status").unwrap();
    let cpus = cpus.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap();
    let mut first = CpuSet::new();
    first.set((0..CpuSet::MAX_CPU).find(|&cpu| whole.is_set(cpu)).unwrap());
    // The main thread of the test is the one that may run on all CPUs.
    sched_setaffinity(None, &first).unwrap();
    let parameters = libc::sched_param { sched_priority: 1 };
    // SAFETY: the parameters outlive the call.
    if unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &parameters) } != 0 {
        println!("not as a real-time thread, which needs CAP_SYS_NICE");
    }
    let home = tempfile::tempdir().unwrap();
    let agent = start(&at(&home.path().join("captures"), Listen::Tcp(([127, 0, 0, 1], 0).into())));
    let threads = wait_for("threads of the agent with the CPUs of the process", || {
        let threads = own_threads();
        let is_wide =
            |(own, policy, _): &(String, String, String)| own == cpus.trim() && policy == "0";
        (threads.len() >= 2 && threads.iter().all(is_wide)).then_some(threads)
    });
    assert!(threads.iter().any(|(.., name)| name == "marple"), "{threads:?}");
    let limit =
        wait_for("a limit", || agent.handle().status().wait(PATIENCE).unwrap().limits.cpu_cores);
    let quota = limit < f64::from(whole.count());
    let source = agent.handle().status().wait(PATIENCE).unwrap().limits.cpu_source.unwrap();
    assert!(!quota || source != "cpu affinity", "{limit} of {} by {source}", whole.count());
}

#[test]
#[cfg(target_os = "linux")]
fn rules_without_a_value_are_a_warning_with_the_reason() {
    use marple::model::{Metric, Rule};

    let home = tempfile::tempdir().unwrap();
    let rule = Rule { name: "waits".into(), abs: Some(1.0), ..Rule::on(Metric::Lag) };
    let settings = Settings { dir: home.path().join("captures"), rules: vec![rule], ..settings() };
    let agent = Agent::from_settings(settings).start().unwrap();
    let text = wait_for("a warning about the rule", || {
        let status = agent.handle().status().wait(PATIENCE).unwrap();
        let warning = status.warnings.into_iter().find(|warning| warning.topic == "rules")?;
        Some((warning.text, status.rules[0].explanation.clone()))
    });
    assert!(text.0.contains("`waits`") && text.0.contains("no tokio runtime"), "{}", text.0);
    assert!(text.1.contains("no tokio runtime"), "{}", text.1);
}
