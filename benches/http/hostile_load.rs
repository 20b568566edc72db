//! Hostile clients at the endpoint, and the latency of the service's own requests.
//!
//! The clients are a separate process, paced at 400 requests a second: at full speed on two cores
//! the bench would measure the clients. The service has one thread per connection, and 200 us of
//! work per request.

use std::hint::black_box;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::cpu_time;

/// First argument of a process that runs the hostile clients.
pub(super) const HOSTILE_CLIENTS_ARG: &str = "hostile-clients";

/// First argument of a process that keeps a core busy. It ends with its stdin, that is, with the
/// bench.
pub(super) const SPIN_ARG: &str = "spin";

const ROUND: Duration = Duration::from_secs(1);
const REQUEST_INTERVAL: Duration = Duration::from_micros(2500);

/// Runs the hostile clients for one round against `address`.
pub(super) fn run_hostile_clients(address: SocketAddr, token: &str, profile_requests: usize) {
    let deadline = Instant::now() + ROUND;
    let long = "x".repeat(64 << 10);
    let requests = [
        "GET /status HTTP/1.1\r\nHost: localhost\r\n\r\n".to_owned(),
        "GET /status HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer wrong\r\n\r\n".to_owned(),
        "GET /status HTTP/1.1\r\nHost: localhost\r\nAuthorization: Basic YTpi\r\n\r\n".to_owned(),
        format!("GET /status?token={token} HTTP/1.1\r\nHost: localhost\r\n\r\n"),
        format!(
            "GET /status HTTP/1.1\r\nHost: localhost\r\nOrigin: http://evil.example\r\nAuthorization: Bearer {token}\r\n\r\n"
        ),
        "GET /status HTTP/1.1\r\nHost: evil.example\r\n\r\n".to_owned(),
        format!(
            "GET /incidents/..%252f..%252fetc%252fpasswd HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n\r\n"
        ),
        format!(
            "GET /%00%ff/{{id}}/~ HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n\r\n"
        ),
        format!("GET /status?{long} HTTP/1.1\r\nHost: localhost\r\n\r\n"),
        format!(
            "POST /debug/pprof/symbol HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{long}",
            long.len()
        ),
        "\x16\x03\x01\0\0\0".to_owned(),
    ];
    let send = |request: &str| {
        let mut stream = TcpStream::connect(address).ok()?;
        let _ = stream.write_all(request.as_bytes());
        Some(stream)
    };
    // Clients that never finish a request, and authorized clients that compete for the one
    // profiler.
    let slow: Vec<_> = (0..20).map(|_| send("GET /status HTTP/1.1\r\nHost: loc")).collect();
    let profile = format!(
        "GET /debug/pprof/profile?seconds=1 HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n\r\n"
    );
    let profiling: Vec<_> = (0..profile_requests).map(|_| send(&profile)).collect();
    let mut next = Instant::now();
    for request in requests.iter().cycle() {
        if Instant::now() >= deadline {
            break;
        }
        drop(send(request));
        next += REQUEST_INTERVAL;
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    drop((slow, profiling));
}

/// Keeps a core busy.
pub(super) fn spin() {
    thread::spawn(|| {
        let _ = std::io::stdin().read(&mut [0]);
        std::process::exit(0);
    });
    loop {
        std::hint::spin_loop();
    }
}

/// Processes that keep every core busy until this value is dropped.
struct BusyCores(Vec<Child>);

impl BusyCores {
    fn on_every_core() -> Self {
        let cores = thread::available_parallelism().map_or(1, |cores| cores.get());
        let own = std::env::current_exe().unwrap();
        let spawn_spinner =
            |_| Command::new(&own).arg(SPIN_ARG).stdin(Stdio::piped()).spawn().unwrap();
        Self((0..cores).map(spawn_spinner).collect())
    }
}

impl Drop for BusyCores {
    fn drop(&mut self) {
        for spinner in &mut self.0 {
            let _ = spinner.kill();
            let _ = spinner.wait();
        }
    }
}

#[derive(Clone, Copy)]
pub(super) struct HostileLoad {
    /// Number of authorized clients that request a profile at once.
    pub(super) profile_requests: usize,
    /// `true` if other processes keep all cores busy.
    pub(super) busy_cores: bool,
}

/// Prints the rows of a load.
pub(super) fn measure(endpoint: SocketAddr, token: &str, load: HostileLoad, pairs: usize) {
    let HostileLoad { profile_requests, busy_cores } = load;
    let spinners = busy_cores.then(BusyCores::on_every_core);
    let cores = if busy_cores { ", busy cores" } else { "" };
    let name = format!("hostile clients, {profile_requests} profile requests{cores}");
    let service = service();
    let plain = [plain(), plain()];
    let p99 = |address: SocketAddr| {
        let own = std::env::current_exe().unwrap();
        let mut hostile_clients = Command::new(own)
            .args([HOSTILE_CLIENTS_ARG, &address.to_string(), token, &profile_requests.to_string()])
            .spawn()
            .unwrap();
        let mut latencies = Vec::new();
        let mut client = TcpStream::connect(service).unwrap();
        client.set_nodelay(true).unwrap();
        while hostile_clients.try_wait().unwrap().is_none() {
            let started_at = Instant::now();
            client.write_all(&[1]).unwrap();
            client.read_exact(&mut [0]).unwrap();
            latencies.push(started_at.elapsed());
            thread::sleep(Duration::from_micros(500));
        }
        latencies.sort();
        latencies[latencies.len() * 99 / 100].as_secs_f64()
    };
    let mut rounds: [Vec<f64>; 3] = Default::default();
    let threads = ["marple", "marple-cpu", "marple-capture", "marple-encode"];
    let mut shares = [0.0; 4];
    for _ in 0..pairs {
        for (p99s, address) in rounds.iter_mut().zip([plain[0], endpoint, plain[1]]) {
            let (before, since) = (threads.map(cpu_time), Instant::now());
            p99s.push(p99(address));
            if address == endpoint {
                let pair_seconds = since.elapsed().as_secs_f64() * pairs as f64;
                for ((share, thread), before) in shares.iter_mut().zip(threads).zip(before) {
                    *share += cpu_time(thread).saturating_sub(before).as_secs_f64() / pair_seconds;
                }
            }
        }
    }
    drop(spinners);
    // Other load on the machine can only slow a round, so the lower quartile counts.
    let [first, endpoint_p99, second] = rounds.map(|mut p99s| {
        p99s.sort_by(f64::total_cmp);
        p99s[p99s.len() / 4] * 1e6
    });
    let (ratio, control) = (2.0 * endpoint_p99 / (first + second), second / first);
    let goal = control.max(1.0 / control).max(1.1);
    let verdict = if ratio <= goal { "pass" } else { "short" };
    println!("{name}: p99 over control  {ratio:.3}  <= {goal:.3}  {verdict}");
    println!("{name}: control over control  {control:.3}  -  -");
    println!("{name}: p99, controls, us  {endpoint_p99:.0} {first:.0} {second:.0}  -  -");
    let cpu_shares =
        threads.iter().zip(shares).map(|(thread, share)| format!("{thread} {share:.3}"));
    let cpu_shares = cpu_shares.collect::<Vec<_>>().join(" ");
    println!("{name}: shares of a core by thread  {cpu_shares}  -  -");
}

/// Starts the service: it responds to each byte with a byte, after some work.
fn service() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            stream.set_nodelay(true).unwrap();
            thread::spawn(move || {
                let mut byte = [0];
                while stream.read_exact(&mut byte).is_ok() {
                    let deadline = Instant::now() + Duration::from_micros(200);
                    while Instant::now() < deadline {
                        black_box(&byte);
                    }
                    let _ = stream.write_all(&byte);
                }
            });
        }
    });
    address
}

/// Starts a listener that reads once and closes the connection.
fn plain() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let _ = stream.set_read_timeout(Some(Duration::from_millis(1)));
            let _ = (&stream).read(&mut [0; 4096]);
        }
    });
    address
}
