//! Starting an agent where something is missing: a port or directory that another process has,
//! descriptors, a writable file system. The service starts, the agent reports what it lacks, and
//! acquires it once it is free. Tests with forked children are at the end. Some tests limit or fork
//! the whole process, so each needs its own process (nextest).
#![allow(unsafe_code, reason = "forking cannot be done without")]

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use marple::config::{HttpSettings, Listen};
use marple::internals::base::SystemClock;
use marple::internals::store::Store;
use marple::{Agent, AgentHandle, Builder, CaptureKind, Settings};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketType};

use crate::support::host::{self, WAIT_TIMEOUT, settings, wait_for};
use crate::support::rerun::{self, test_path};
use crate::support::store;

const SHORT: Duration = Duration::from_millis(50);

fn settings_in(dir: &Path, listen: Listen) -> Settings {
    let http = Some(HttpSettings { listen, ..HttpSettings::default() });
    Settings { dir: dir.to_owned(), http, rules: Vec::new(), ..settings() }
}

fn start(settings: &Settings) -> Agent {
    Builder::from_settings(settings.clone()).start().expect("the service starts")
}

fn warning(handle: &AgentHandle, topic: &str) -> Option<String> {
    let warnings = handle.status().wait(WAIT_TIMEOUT).unwrap().warnings;
    warnings.into_iter().find(|warning| warning.topic == topic).map(|warning| warning.text)
}

fn wait_for_warning(handle: &AgentHandle, topic: &str) -> String {
    wait_for(&format!("a warning about {topic}"), || warning(handle, topic))
}

fn wait_until_not_warned(handle: &AgentHandle, topic: &str) {
    wait_for(&format!("{topic} to work"), || warning(handle, topic).is_none().then_some(()));
}

/// Returns the first line of the response to `GET /status`, or `None` if nothing listens.
fn response_line(address: SocketAddr) -> Option<String> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(WAIT_TIMEOUT)).unwrap();
    stream.write_all(b"GET /status HTTP/1.0\r\nHost: localhost\r\n\r\n").ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("an answer, or none at once");
    text.lines().next().map(str::to_owned)
}

fn wait_for_response(address: SocketAddr) {
    let ok = || response_line(address).filter(|line| line.contains(" 200 "));
    wait_for("the endpoint", ok);
}

fn assert_captures(handle: &AgentHandle) {
    handle.capture([CaptureKind::Threads], SHORT).wait(WAIT_TIMEOUT).expect("a capture");
}

#[test]
fn busy_port_is_bound_once_free() {
    let home = tempfile::tempdir().unwrap();
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = other.local_addr().unwrap();
    let settings = settings_in(&home.path().join("captures"), Listen::Tcp(address));
    let refused = Builder::from_settings(settings.clone()).strict(true).start().err();
    assert!(refused.unwrap().to_string().contains("http.listen"), "strict");
    let agent = start(&settings);
    let handle = agent.handle();
    assert!(wait_for_warning(&handle, "http.listen").contains(&address.to_string()));
    assert_captures(&handle);
    drop(other);
    wait_for_response(address);
    wait_until_not_warned(&handle, "http.listen");
}

#[test]
fn locked_directory_is_opened_once_free_with_its_budgets() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("captures");
    let (other, _) = Store::open(&dir, store::generous_limits(), Arc::new(SystemClock)).unwrap();
    let settings = Settings { dir: dir.clone(), ..settings() };
    let refused = Builder::from_settings(settings.clone()).strict(true).start().err();
    assert!(refused.unwrap().to_string().contains("in use"), "strict");
    let agent = start(&settings);
    let handle = agent.handle();
    assert!(wait_for_warning(&handle, "dir").contains("in use"));
    let error =
        handle.capture([CaptureKind::Heap], SHORT).wait(WAIT_TIMEOUT).unwrap_err().to_string();
    assert!(error.contains("no incident directory") && error.contains("in use"), "{error}");
    let now = jiff::Timestamp::now();
    let saved = serde_json::json!({ "schema": 1, "incidents": [now], "rules": {}, "on_demand_captures": [] });
    other.save_state(&saved).unwrap();
    drop(other);
    wait_until_not_warned(&handle, "dir");
    let status = handle.status().wait(WAIT_TIMEOUT).unwrap();
    assert_eq!(status.budget.incidents_in_a_day, 1, "the predecessor's");
    assert_eq!(status.dir, dir);
    assert_captures(&handle);
}

#[test]
fn start_does_not_hang_on_socket_with_unresponsive_owner() {
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
    let agent = start(&settings_in(&home.path().join("captures"), Listen::Unix(path.clone())));
    let handle = agent.handle();
    assert!(wait_for_warning(&handle, "http.listen").contains("does not accept"));
    drop((owner, waiting));
    wait_for("the socket", || UnixStream::connect(&path).ok());
    drop(agent);
    assert!(!path.exists(), "the file goes with the agent");
}

#[test]
fn socket_replaced_by_another_process_is_not_removed() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("marple.sock");
    let agent = start(&settings_in(&home.path().join("captures"), Listen::Unix(path.clone())));
    fs::remove_file(&path).unwrap();
    let _other = UnixListener::bind(&path).unwrap();
    drop(agent);
    assert!(UnixStream::connect(&path).is_ok());
}

#[test]
fn vitals_run_without_descriptors_and_other_parts_start_later() {
    let test = test_path!(vitals_run_without_descriptors_and_other_parts_start_later);
    rerun::under(test, &["prlimit", "--nofile=48"], || {
        let home = tempfile::tempdir().unwrap();
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = free.local_addr().unwrap();
        drop(free);
        let mut open_files: Vec<_> = std::iter::from_fn(|| File::open("/dev/null").ok()).collect();
        // Six free descriptors suffice for the directory and the listener, but not for a poller.
        open_files.truncate(open_files.len() - 6);
        let agent = start(&settings_in(&home.path().join("captures"), Listen::Tcp(address)));
        let handle = agent.handle();
        let warning_text = wait_for_warning(&handle, "descriptors");
        assert!(
            warning_text.contains("ulimit -n") && warning_text.contains("48"),
            "{warning_text}"
        );
        let ticks = || handle.status().wait(WAIT_TIMEOUT).unwrap().counters.ticks;
        let before = ticks();
        wait_for("a tick", || (ticks() > before).then_some(()));
        drop(open_files);
        wait_for_response(address);
        wait_until_not_warned(&handle, "descriptors");
        assert_captures(&handle);
    });
}

#[test]
fn agent_starts_in_restricted_container() {
    let test = test_path!(agent_starts_in_restricted_container);
    // A world-writable volume, an empty /proc/sys, nothing else writable, and a user without a
    // name.
    let contain = "mount -t tmpfs -o mode=2777 none /mnt && mount -t tmpfs none /proc/sys && \
                   mount -o remount,ro,bind / && exec prlimit --nofile=256 setpriv --reuid 54321 --regid 54321 \
                   --clear-groups --no-new-privs --bounding-set=-all --inh-caps=-all \"$@\"";
    if !rustix::process::geteuid().is_root() {
        return eprintln!("{test}: not run, mounting and changing the user need root");
    }
    rerun::under(test, &["unshare", "-m", "sh", "-c", contain, "sh"], || {
        let listen = || Listen::Tcp(SocketAddr::from(([127, 0, 0, 1], 0)));
        let agent = start(&settings_in(Path::new("/mnt/volume/captures"), listen()));
        assert_captures(&agent.handle());
        drop(agent);
        let agent = start(&settings_in(Path::new("/captures"), listen()));
        let warning_text = wait_for_warning(&agent.handle(), "dir");
        assert!(warning_text.contains("/captures"), "{warning_text}");
        let ticks = agent.handle().status().wait(WAIT_TIMEOUT).unwrap().counters.ticks;
        wait_for("a tick", || {
            (agent.handle().status().wait(WAIT_TIMEOUT).unwrap().counters.ticks > ticks)
                .then_some(())
        });
    });
}

#[test]
fn ephemeral_directory_is_warned_about_and_volume_is_not() {
    let test = test_path!(ephemeral_directory_is_warned_about_and_volume_is_not);
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
    rerun::under(test, &["env", &set, "unshare", "-m", "sh", "-c", contain, "sh"], || {
        let listen = || Listen::Tcp(SocketAddr::from(([127, 0, 0, 1], 0)));
        for (dir, is_warned) in [("/captures", true), ("/volume/captures", false)] {
            let agent = start(&settings_in(Path::new(dir), listen()));
            assert_captures(&agent.handle());
            let warning_text = warning(&agent.handle(), "store.lifetime");
            assert_eq!(warning_text.is_some(), is_warned, "{dir}: {warning_text:?}");
            if let Some(told) = warning_text {
                assert!(told.contains("lost when the container is removed"), "{told}");
                assert!(told.contains(dir), "{told}");
            }
            drop(agent);
        }
    });
}

const STRIPPED_ENV: &str = "AGENT_START_STRIPPED";

/// The child process of [`stripped_program_is_warned_about`].
#[test]
#[cfg(target_os = "linux")]
fn stripped_process() {
    let home = tempfile::tempdir().unwrap();
    let agent = start(&Settings { dir: home.path().join("captures"), ..settings() });
    assert_captures(&agent.handle());
    let warning_text = warning(&agent.handle(), "symbols");
    match std::env::var_os(STRIPPED_ENV) {
        Some(_) => assert!(warning_text.is_some_and(|told| told.contains("debuginfo"))),
        None => assert_eq!(warning_text, None),
    }
}

#[test]
#[cfg(target_os = "linux")]
fn stripped_program_is_warned_about() {
    let home = tempfile::tempdir().unwrap();
    let program = home.path().join("stripped");
    fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    match Command::new("strip").arg(&program).status() {
        Ok(status) => assert!(status.success()),
        Err(error) => return eprintln!("not run, `strip` is missing: {error}"),
    }
    let ended = Command::new(&program)
        .args(rerun::args(test_path!(stripped_process)))
        .env(STRIPPED_ENV, "1")
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert!(ended.success());
}

const PREDECESSOR_ENV: &str = "AGENT_START_OLD_PROCESS";

/// The predecessor process of [`new_process_takes_over_when_predecessor_exits`].
#[test]
fn predecessor_process() {
    let Some(place) = std::env::var_os(PREDECESSOR_ENV) else { return };
    let place = place.into_string().unwrap();
    let (address, dir) = place.split_once(' ').unwrap();
    let agent = start(&settings_in(Path::new(dir), Listen::Tcp(address.parse().unwrap())));
    assert_captures(&agent.handle());
    let _ = std::io::stdin().read(&mut [0]);
    drop(agent);
}

#[test]
fn new_process_takes_over_when_predecessor_exits() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("captures");
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap();
    drop(free);
    let mut old = rerun::command(test_path!(predecessor_process))
        .env(PREDECESSOR_ENV, format!("{address} {}", dir.display()))
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    wait_for_response(address);
    let has_one_incident = || (host::incidents(&dir).len() == 1).then_some(());
    wait_for("its incident", has_one_incident);

    let agent = start(&settings_in(&dir, Listen::Tcp(address)));
    let handle = agent.handle();
    assert!(wait_for_warning(&handle, "dir").contains(&format!("process {}", old.id())));
    wait_for_warning(&handle, "http.listen");
    drop(old.stdin.take());
    assert!(old.wait().unwrap().success());
    wait_until_not_warned(&handle, "dir");
    wait_until_not_warned(&handle, "http.listen");
    wait_for_response(address);
    assert_captures(&handle);
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

    fn exited_successfully(self) -> bool {
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
fn forked_child_holds_neither_address_nor_directory() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("captures");
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap();
    drop(free);
    let agent = start(&settings_in(&dir, Listen::Tcp(address)));
    let handle = agent.handle();
    wait_for_response(address);
    let child = Child::fork(|| {
        std::thread::sleep(WAIT_TIMEOUT);
        true
    });
    let warning_text = wait_for_warning(&handle, "fork");
    assert!(warning_text.contains(&child.0.to_string()), "{warning_text}");
    wait_for_response(address);
    drop(agent);
    assert_eq!(response_line(address), None, "refused at once");
    Store::open(&dir, store::generous_limits(), Arc::new(SystemClock))
        .expect("nobody has the lock");
    drop(child);
}

#[test]
fn forked_child_reports_no_agent_and_can_start_one() {
    let home = tempfile::tempdir().unwrap();
    let log = home.path().join("log");
    let file = File::create(&log).unwrap();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(file).finish();
    tracing::subscriber::set_global_default(subscriber).unwrap();
    let agent =
        start(&settings_in(&home.path().join("captures"), Listen::Unix(home.path().join("s"))));
    let inherited = std::cell::Cell::new(Some(agent));
    let child = Child::fork(|| {
        drop(marple::task::traced(async {}));
        let text = fs::read_to_string(&log).unwrap();
        let expected = format!("process {} is not watched", std::process::id());
        assert_eq!(text.matches(&expected).count(), 1, "{text}");
        drop(inherited.take());
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = free.local_addr().unwrap();
        drop(free);
        let own = start(&settings_in(&home.path().join("own"), Listen::Tcp(address)));
        assert_captures(&own.handle());
        wait_for_response(address);
        drop(own);
        true
    });
    let pid = child.0;
    assert!(child.exited_successfully(), "{}", fs::read_to_string(&log).unwrap());
    let agent = inherited.take().unwrap();
    assert_captures(&agent.handle());
    drop(agent);
    let text = fs::read_to_string(&log).unwrap();
    let started = format!("watches process {pid}");
    assert!(text.contains(&started), "one line says what runs: {text}");
}

/// Prefork workers and daemons may fork at any time: during a dump, a log write or an agent start.
#[test]
fn children_forked_at_any_time_can_start_agent() {
    let home = tempfile::tempdir().unwrap();
    let file = File::create(home.path().join("log")).unwrap();
    // A lock around the file, like the one of standard error.
    let writer = std::sync::Mutex::new(file);
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(writer).finish();
    tracing::subscriber::set_global_default(subscriber).unwrap();
    for round in 0..12_u64 {
        let agent = start(&settings_in(
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
            let own = start(&settings_in(
                &home.path().join("own"),
                Listen::Unix(home.path().join(format!("own {round}"))),
            ));
            own.handle()
                .capture([CaptureKind::Heap, CaptureKind::Threads], SHORT)
                .wait(WAIT_TIMEOUT)
                .expect("a capture");
            true
        });
        assert!(child.exited_successfully(), "round {round}");
        dumps.wait(WAIT_TIMEOUT).unwrap();
        drop(inherited.take());
    }
}

#[test]
#[cfg(target_os = "linux")]
fn default_settings_install_no_handler_for_service_signals() {
    let home = tempfile::tempdir().unwrap();
    let toggle = marple::config::ToggleSettings::default();
    let agent = start(&Settings { dir: home.path().join("captures"), toggle, ..settings() });
    assert_captures(&agent.handle());
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap();
    let caught = u64::from_str_radix(caught.trim(), 16).unwrap();
    for signal in [libc::SIGUSR1, libc::SIGUSR2] {
        assert_eq!(caught >> (signal - 1) & 1, 0, "signal {signal} has a handler");
    }
}

/// Returns CPUs, policy and name of each of marple's threads, as the kernel reports them.
#[cfg(target_os = "linux")]
fn agent_threads() -> Vec<(String, String, String)> {
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
fn agent_threads_do_not_inherit_cpu_affinity_or_real_time_priority() {
    use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

    let process_cpus = sched_getaffinity(None).unwrap();
    let cpus = fs::read_to_string("/proc/thread-self/status").unwrap();
    let cpus = cpus.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap();
    let mut first = CpuSet::new();
    first.set((0..CpuSet::MAX_CPU).find(|&cpu| process_cpus.is_set(cpu)).unwrap());
    // The main thread of the test is the one that may run on all CPUs.
    sched_setaffinity(None, &first).unwrap();
    let parameters = libc::sched_param { sched_priority: 1 };
    // SAFETY: the parameters outlive the call.
    if unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &parameters) } != 0 {
        println!("not as a real-time thread, which needs CAP_SYS_NICE");
    }
    let home = tempfile::tempdir().unwrap();
    let agent =
        start(&settings_in(&home.path().join("captures"), Listen::Tcp(([127, 0, 0, 1], 0).into())));
    let threads = wait_for("threads of the agent with the CPUs of the process", || {
        let threads = agent_threads();
        let is_wide =
            |(own, policy, _): &(String, String, String)| own == cpus.trim() && policy == "0";
        (threads.len() >= 2 && threads.iter().all(is_wide)).then_some(threads)
    });
    assert!(threads.iter().any(|(.., name)| name == "marple"), "{threads:?}");
    let limit = wait_for("a limit", || {
        agent.handle().status().wait(WAIT_TIMEOUT).unwrap().limits.cpu_cores
    });
    let quota = limit < f64::from(process_cpus.count());
    let source = agent.handle().status().wait(WAIT_TIMEOUT).unwrap().limits.cpu_source.unwrap();
    assert!(!quota || source != "cpu affinity", "{limit} of {} by {source}", process_cpus.count());
}

#[test]
#[cfg(target_os = "linux")]
fn rules_with_unavailable_metric_are_warned_about_with_reason() {
    use marple::internals::model::{Metric, Rule};

    let home = tempfile::tempdir().unwrap();
    let rule = Rule { name: "waits".into(), abs: Some(1.0), ..Rule::new(Metric::Lag) };
    let settings = Settings { dir: home.path().join("captures"), rules: vec![rule], ..settings() };
    let agent = Builder::from_settings(settings).start().unwrap();
    let text = wait_for("a warning about the rule", || {
        let status = agent.handle().status().wait(WAIT_TIMEOUT).unwrap();
        let warning = status.warnings.into_iter().find(|warning| warning.topic == "rules")?;
        Some((warning.text, status.rules[0].explanation.clone()))
    });
    assert!(text.0.contains("`waits`") && text.0.contains("no tokio runtime"), "{}", text.0);
    assert!(text.1.contains("no tokio runtime"), "{}", text.1);
}
