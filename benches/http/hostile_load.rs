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
pub(super) const HOSTILE_CLIENTS_ARG: &str = "battery";

/// First argument of a process that keeps a core busy. It ends with its stdin, that is, with the
/// bench.
pub(super) const SPIN_ARG: &str = "spin";

const ROUND: Duration = Duration::from_secs(1);
const REQUEST_INTERVAL: Duration = Duration::from_micros(2500);

/// Runs the hostile clients for one round against `address`.
pub(super) fn run_hostile_clients(address: SocketAddr, token: &str, captures: usize) {
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
    let wanting: Vec<_> = (0..captures).map(|_| send(&profile)).collect();
    let mut next = Instant::now();
    for request in requests.iter().cycle() {
        if Instant::now() >= deadline {
            break;
        }
        drop(send(request));
        next += REQUEST_INTERVAL;
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    drop((slow, wanting));
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

/// Prints the rows of the hostile load, with `captures` authorized clients that request a profile
/// at once, on idle cores or with all cores `taken`.
pub(super) fn measure(
    endpoint: SocketAddr,
    token: &str,
    (captures, taken): (usize, bool),
    pairs: usize,
) {
    let spinning = taken.then(BusyCores::on_every_core);
    let cores = if taken { ", cores taken" } else { "" };
    let service = service();
    let plain = [plain(), plain()];
    let p99 = |address: SocketAddr| {
        let own = std::env::current_exe().unwrap();
        let mut strangers = Command::new(own)
            .args([HOSTILE_CLIENTS_ARG, &address.to_string(), token, &captures.to_string()])
            .spawn()
            .unwrap();
        let mut latencies = Vec::new();
        let mut client = TcpStream::connect(service).unwrap();
        client.set_nodelay(true).unwrap();
        while strangers.try_wait().unwrap().is_none() {
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
    drop(spinning);
    // Other load on the machine can only slow a round, so the lower quartile counts.
    let [first, battery, second] = rounds.map(|mut p99s| {
        p99s.sort_by(f64::total_cmp);
        p99s[p99s.len() / 4] * 1e6
    });
    let (ratio, control) = (2.0 * battery / (first + second), second / first);
    let goal = control.max(1.0 / control).max(1.1);
    let verdict = if ratio <= goal { "pass" } else { "short" };
    println!(
        "p99 of the service under the battery, {captures} captures{cores}, over the control's  {ratio:.3}  <= {goal:.3}  {verdict}"
    );
    println!("control: p99 over itself  {control:.3}  -  -");
    println!(
        "p99 under the battery and under the controls, us  {battery:.0} {first:.0} {second:.0}  -  -"
    );
    let cpu_shares =
        threads.iter().zip(shares).map(|(thread, share)| format!("{thread} {share:.3}"));
    println!("share of a core meanwhile  {}  -  -", cpu_shares.collect::<Vec<_>>().join(" "));
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
