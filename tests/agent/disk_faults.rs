//! Failures of the incident directory at run time: too many open files, a file size limit, a disk
//! that fails and turns read-only, too little space. The host continues, the error is reported, and
//! captures work again once the fault is over. Each test re-executes itself in a separate process,
//! because the limits apply to a whole process.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use marple::internals::agent::Status;
use marple::internals::base::Bytes;
use marple::internals::model::{CaptureKind, Manifest, Outcome};
use marple::{Agent, AgentHandle, Builder, CaptureSet, Settings};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::support::host::{WAIT_TIMEOUT, incidents, settings, wait_for};
use crate::support::rerun::{self, test_path};
use crate::support::store;

const SHORT: Duration = Duration::from_millis(50);

fn start(captures: &Path) -> Agent {
    // A long interval leaves few rows of vitals, so that the manifest is small.
    let interval = Duration::from_secs(1);
    let settings = Settings { dir: captures.to_owned(), rules: Vec::new(), interval, ..settings() };
    Builder::from_settings(settings).start().unwrap()
}

/// Captures once and waits until the incident is closed.
fn capture(handle: &AgentHandle, captures: &Path, kinds: impl Into<CaptureSet>) -> Manifest {
    let id = handle.capture(kinds, SHORT).wait(WAIT_TIMEOUT).unwrap().incident;
    wait_for("it to close", || {
        let found = incidents(captures).into_iter().map(|(_, manifest)| manifest);
        found.filter(|it| it.closed.is_some()).find(|it| it.id == id)
    })
}

/// Waits for the next tick, which must come whatever the state of the disk.
fn wait_for_tick(handle: &AgentHandle) {
    let ticks = || handle.status().wait(WAIT_TIMEOUT).unwrap().counters.ticks;
    let before = ticks();
    wait_for("the next tick", || (ticks() > before).then_some(()));
}

#[test]
fn descriptor_exhaustion_is_reported_and_captures_resume_afterwards() {
    let test = test_path!(descriptor_exhaustion_is_reported_and_captures_resume_afterwards);
    rerun::under(test, &["prlimit", "--nofile=200"], || {
        let home = tempfile::tempdir().unwrap();
        let captures = home.path().join("captures");
        let agent = start(&captures);
        let handle = agent.handle();
        assert_eq!(heap_profile_count(&capture(&handle, &captures, [CaptureKind::Heap])), 2);

        let mut open_files = Vec::new();
        while let Ok(file) = File::open("/dev/null") {
            open_files.push(file);
        }
        let limit = getrlimit(Resource::Nofile);
        // Below the number of open descriptors, so that no number is free, not even a reserved one.
        setrlimit(Resource::Nofile, Rlimit { current: Some(3), ..limit }).unwrap();
        let error = handle.capture([CaptureKind::Heap], SHORT).wait(WAIT_TIMEOUT).unwrap_err();
        let context =
            format!("{error}: {:?}", handle.status().wait(WAIT_TIMEOUT).unwrap().last_failure);
        assert!(context.contains("raise `ulimit -n`"), "{context}");
        wait_for_tick(&handle);

        setrlimit(Resource::Nofile, limit).unwrap();
        drop(open_files);
        assert_eq!(heap_profile_count(&capture(&handle, &captures, [CaptureKind::Heap])), 2);
    });
}

/// Returns the number of heap profiles. With few descriptors the manifest also lists other
/// artifacts.
fn heap_profile_count(manifest: &Manifest) -> usize {
    manifest.artifacts.iter().filter(|artifact| artifact.kind == CaptureKind::Heap).count()
}

/// An HTTP client in a separate process with descriptors left. It is started while this process has
/// some.
struct Client {
    child: std::process::Child,
    responses: std::io::BufReader<std::process::ChildStdout>,
}

impl Client {
    fn start(port: u16) -> Self {
        let ask = format!(
            "while read -r method path; do exec 3<>/dev/tcp/127.0.0.1/{port}; \
             printf '%s %s HTTP/1.1\\r\\nHost: localhost\\r\\nConnection: close\\r\\n\\r\\n' \
             \"$method\" \"$path\" >&3; read -r -t 30 answer <&3; echo \"$answer\"; cat <&3 >/dev/null; exec 3>&-; done"
        );
        let mut child = std::process::Command::new("bash")
            .args(["-c", &ask])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let responses = std::io::BufReader::new(child.stdout.take().unwrap());
        Self { child, responses }
    }

    /// Sends a request and returns the status line of the response.
    fn send_request(&mut self, request: &str) -> String {
        use std::io::BufRead;
        writeln!(self.child.stdin.as_mut().unwrap(), "{request}").unwrap();
        let mut response = String::new();
        self.responses.read_line(&mut response).unwrap();
        response
    }
}

#[test]
fn endpoint_and_captures_work_without_free_descriptors() {
    let test = test_path!(endpoint_and_captures_work_without_free_descriptors);
    rerun::under(test, &["prlimit", "--nofile=512"], || {
        let home = tempfile::tempdir().unwrap();
        let captures = home.path().join("captures");
        let port = {
            let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            free.local_addr().unwrap().port()
        };
        let listen = marple::config::Listen::Tcp(([127, 0, 0, 1], port).into());
        let http = marple::config::HttpSettings { listen, ..Default::default() };
        let settings =
            Settings { dir: captures.clone(), rules: Vec::new(), http: Some(http), ..settings() };
        let agent = Builder::from_settings(settings).start().unwrap();
        let handle = agent.handle();
        let mut client = Client::start(port);
        assert!(client.send_request("GET /status").contains("200"));

        let leak = home.path().join("leak.log");
        File::create(&leak).unwrap();
        let mut open_files = Vec::new();
        while let Ok(file) = File::open(&leak) {
            open_files.push(file);
        }
        for _ in 0..10 {
            let response = client.send_request("GET /status");
            assert!(response.contains("200"), "{response}");
        }
        let response = client.send_request("POST /monitor/notify");
        assert!(response.contains("200"), "{response}");
        // Captures run one after the other; each must have run before the incident ends.
        wait_for("all to run", || {
            let status = handle.status().wait(WAIT_TIMEOUT).unwrap();
            let done = status.counters.captures + status.counters.captures_failed;
            let running = status.incidents.first()?.running.iter().count() as u64;
            (running + done >= CaptureKind::ALL.len() as u64).then_some(())
        });
        assert!(client.send_request("POST /monitor/notify").contains("200"));
        wait_for("its end", || {
            let status = handle.status().wait(WAIT_TIMEOUT).unwrap();
            (status.counters.incidents_closed == 1).then_some(())
        });
        // Frees the descriptors with which this test reads the incident.
        open_files.truncate(open_files.len() - 20);
        let (dir, manifest) = wait_for("it to close", || {
            incidents(&captures).into_iter().find(|(_, manifest)| manifest.closed.is_some())
        });
        for kind in CaptureKind::ALL {
            let record = manifest.captures.iter().find(|capture| capture.kind == kind).unwrap();
            assert_eq!(record.outcome, Outcome::Done, "{record:?}");
            assert!(manifest.artifacts.iter().any(|artifact| artifact.kind == kind), "{kind}");
        }
        let list =
            manifest.artifacts.iter().find(|artifact| artifact.kind == CaptureKind::Descriptors);
        let list = fs::read_to_string(dir.join(&list.unwrap().file)).unwrap();
        let line = list.lines().find(|line| line.contains("leak.log")).unwrap();
        let count: u64 = line.split_whitespace().next().unwrap().parse().unwrap();
        assert!(count > 300, "{list}");
        client.child.kill().unwrap();
        client.child.wait().unwrap();
    });
}

#[test]
fn file_size_limit_does_not_kill_host() {
    let test = test_path!(file_size_limit_does_not_kill_host);
    rerun::under(test, &["prlimit", "--fsize=32768"], || {
        let home = tempfile::tempdir().unwrap();
        let captures = home.path().join("captures");
        let agent = start(&captures);
        let handle = agent.handle();
        let large =
            |out: &mut marple::internals::agent::CollectorOutput| Ok(out.write_all(&[7; 100_000])?);
        handle.add_collector("large.txt", Default::default(), large).unwrap();
        let manifest = capture(&handle, &captures, [CaptureKind::Heap]);
        let record = manifest.captures.iter().find(|entry| entry.engine == "large.txt").unwrap();
        assert_eq!(record.outcome, Outcome::Failed, "{record:?}");
        assert!(record.error.as_ref().unwrap().contains("LimitFSIZE"), "{record:?}");
        assert_eq!(
            manifest.artifacts.iter().filter(|artifact| artifact.kind == CaptureKind::Heap).count(),
            2
        );
        wait_for_tick(&handle);
    });
}

#[test]
fn failing_then_read_only_file_system_is_reported_and_survived() {
    let test = test_path!(failing_then_read_only_file_system_is_reported_and_survived);
    rerun::under(test, store::private_mounts_command(), || {
        let home = tempfile::tempdir().unwrap();
        let (image, disk) = (home.path().join("image"), home.path().join("disk"));
        File::create(&image).unwrap().set_len(16 << 20).unwrap();
        fs::create_dir(&disk).unwrap();
        let (image, at) = (image.to_str().unwrap(), disk.to_str().unwrap());
        let made = run("mkfs.ext4", &["-q", "-O", "^has_journal", image]).is_some()
            && run("mount", &["-o", "loop,errors=remount-ro", image, at]).is_some();
        if !made {
            return println!("not run: an ext4 in a file needs root and a loop device");
        }
        let captures = disk.join("captures");
        let agent = start(&captures);
        let handle = agent.handle();
        assert_eq!(capture(&handle, &captures, [CaptureKind::Heap]).artifacts.len(), 2);

        // Makes the file system fail in the middle of an incident, as a failing disk does.
        let open = handle.start_capture([CaptureKind::Heap]).wait(WAIT_TIMEOUT).unwrap();
        wait_for("the capture to run", || {
            let found = incidents(&captures);
            found
                .iter()
                .any(|(_, manifest)| manifest.closed.is_none() && manifest.artifacts.len() == 1)
                .then_some(())
        });
        let device = run("findmnt", &["-no", "SOURCE", at]).unwrap();
        let name = Path::new(device.trim()).file_name().unwrap();
        let fail = Path::new("/sys/fs/ext4").join(name).join("trigger_fs_error");
        fs::write(fail, "a test").unwrap();
        handle.stop_capture().wait(WAIT_TIMEOUT).unwrap();
        let status = || handle.status().wait(WAIT_TIMEOUT).unwrap();
        let lost = |status: &Status| {
            status.failures.iter().any(|failure| failure.cause == "artifact not written")
        };
        wait_for("what was lost to be counted", || lost(&status()).then_some(()));
        // The incident stays open because its end cannot be written; each attempt reports the
        // reason.
        let failure = wait_for("why to be told", || {
            status().last_failure.clone().filter(|told| told.contains("mount it writable"))
        });
        assert!(failure.contains(at), "the path is named: {failure}");
        wait_for_tick(&handle);
        let kept = incidents(&captures)
            .into_iter()
            .find(|(_, manifest)| Some(manifest.id) == open.incident);
        assert_eq!(kept.unwrap().1.artifacts.len(), 1, "what was written is there");
        drop(agent);
        run("umount", &["-l", at]);
    });
}

/// Returns the output of a command, or `None` if the command fails.
fn run(program: &str, arguments: &[&str]) -> Option<String> {
    let output = std::process::Command::new(program).args(arguments).output().ok()?;
    output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
}

#[test]
fn little_disk_space_keeps_small_captures_and_explains_missing_ones() {
    let test = test_path!(little_disk_space_keeps_small_captures_and_explains_missing_ones);
    rerun::under(test, store::private_mounts_command(), || {
        let disk = tempfile::tempdir().unwrap();
        store::mount_small_tmpfs(disk.path());
        let captures = disk.path().join("captures");
        let agent = start(&captures);
        let handle = agent.handle();
        let stat = rustix::fs::statvfs(disk.path()).unwrap();
        let remaining_bytes = Bytes::kib(120).get();
        let others = usize::try_from(stat.f_bavail * stat.f_frsize - remaining_bytes).unwrap();
        fs::write(disk.path().join("others"), vec![1; others]).unwrap();

        // The file system is too small for everything a capture may write.
        let manifest = capture(&handle, &captures, CaptureSet::all());
        let outcome = |kind| manifest.captures.iter().find(|entry| entry.kind == kind).unwrap();
        for capture in manifest.captures.iter().filter(|entry| entry.outcome != Outcome::Done) {
            let why = capture.error.as_ref().unwrap();
            assert!(why.contains("min_free_space"), "{capture:?}");
        }
        for kind in [CaptureKind::Threads, CaptureKind::Tasks, CaptureKind::Heap] {
            assert_eq!(outcome(kind).outcome, Outcome::Done, "{:?}", manifest.captures);
        }
        let first = manifest.captures.iter().map(|entry| entry.kind).next();
        assert_eq!(first, Some(CaptureKind::Threads), "smallest first");

        fs::remove_file(disk.path().join("others")).unwrap();
        let complete = capture(&handle, &captures, CaptureSet::all());
        let first = complete.captures.iter().map(|entry| entry.kind).next();
        assert_eq!(first, Some(CaptureKind::Trace), "what vanishes first");
        assert!(
            complete.captures.iter().all(|entry| entry.outcome == Outcome::Done),
            "{complete:#?}"
        );
    });
}
