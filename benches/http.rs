//! What the endpoint costs the service.
//!
//! ```text
//! cargo bench --bench http
//! ```
//!
//! Rows are: name, value, goal, `pass` or `short`.
//!
//! - A scrape of `/metrics`: CPU time of the thread `marple`, which does all of the answering, with and
//!   without scrapes. The control is the same service idling for as many ticks.
//! - The battery: the p99 of the service's own requests while strangers ask the endpoint for what they may
//!   not have (`battery.rs`), over the p99 while the same bytes go to a plain listener that ends every
//!   connection. So what the strangers themselves take of the machine is on both sides. The no-op control
//!   is one plain listener over another: what it is off by, or a tenth, the ratio may be off by. Of 21 rounds
//!   each the lower quartile counts. Once strangers only, once with a hundred who have the token and ask for
//!   a profile at once: one gets it, and that is a capture with what a capture costs.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};
use std::{fs, thread};

use marple::config::{HttpSettings, Listen, Secret, ToggleSettings};
use marple::{Agent, Settings};

#[path = "http/battery.rs"]
mod battery;

const PAIRS: usize = 7;
const SCRAPES: usize = 1000;
/// 1000 scrapes a second shall take a fifth of a core at the most.
const TOKEN: &str = "bench-t0ken";
const GOAL_MICROS: f64 = 200.0;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, word, address, token, captures, ..] = &arguments[..]
        && word == battery::WORD
    {
        return battery::ask(address.parse().unwrap(), token, captures.parse().unwrap());
    }
    let dir = tempfile::tempdir().unwrap();
    let address: SocketAddr = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let settings = Settings {
        dir: dir.path().join("captures"),
        toggle: ToggleSettings { signal: None, ..ToggleSettings::default() },
        http: Some(HttpSettings {
            listen: Listen::Tcp(address),
            token: Some(Secret::new(TOKEN)),
            ..HttpSettings::default()
        }),
        ..Settings::default()
    };
    let agent = Agent::from_settings(settings).start().unwrap();
    let mut client = TcpStream::connect(address).unwrap();
    client.set_nodelay(true).unwrap();
    scrape(&mut client, 100);

    let mut per_scrape = Vec::new();
    let mut idle = Vec::new();
    for _ in 0..PAIRS {
        let (before, since) = (cpu_time(), Instant::now());
        scrape(&mut client, SCRAPES);
        let (busy, took) = (cpu_time() - before, since.elapsed());
        let before = cpu_time();
        thread::sleep(took);
        let control = cpu_time() - before;
        idle.push(control.as_secs_f64() / took.as_secs_f64());
        let scrapes = busy.saturating_sub(control);
        per_scrape.push(scrapes.as_secs_f64() * 1e6 / SCRAPES as f64);
    }
    let cost = median(&mut per_scrape);
    let verdict = if cost <= GOAL_MICROS { "pass" } else { "short" };
    println!("scrape, CPU us on the agent's thread  {cost:.1}  <= {GOAL_MICROS}  {verdict}");
    println!("control: idle, share of a core  {:.5}  -  -", median(&mut idle));
    battery::measure(address, TOKEN, 0, PAIRS);
    battery::measure(address, TOKEN, 100, PAIRS);
    drop(agent);
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn scrape(client: &mut TcpStream, times: usize) {
    for _ in 0..times {
        let head = format!("Host: localhost\r\nAuthorization: Bearer {TOKEN}");
        write!(client, "GET /metrics HTTP/1.1\r\n{head}\r\n\r\n").unwrap();
        let mut head = Vec::new();
        let mut byte = [0; 1];
        while !head.ends_with(b"\r\n\r\n") {
            client.read_exact(&mut byte).unwrap();
            head.push(byte[0]);
        }
        let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
        let mut body = vec![0; length.parse().unwrap()];
        client.read_exact(&mut body).unwrap();
    }
}

/// CPU time of the thread `marple`.
fn cpu_time() -> Duration {
    for task in fs::read_dir("/proc/self/task").unwrap() {
        let task = task.unwrap().path();
        let Ok(name) = fs::read_to_string(task.join("comm")) else { continue };
        if name.trim() == "marple" {
            // Nanoseconds on a CPU, the first of three numbers.
            let text = fs::read_to_string(task.join("schedstat")).unwrap();
            let nanos = text.split(' ').next().unwrap().parse().unwrap();
            return Duration::from_nanos(nanos);
        }
    }
    panic!("no thread `marple`");
}
