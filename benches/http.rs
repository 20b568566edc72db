//! What the endpoint costs the service.
//!
//! ```text
//! cargo bench --bench http [-- --quick]
//! ```
//!
//! Rows are: name, value, goal, `pass` or `short`. Seven minutes; with `--quick` one, and its p99
//! tells little.
//!
//! - A scrape of `/metrics`: CPU time of the thread `marple`, which does all of the answering, with
//!   and without scrapes. The control is the same service idling for as many ticks.
//! - A thousand scrapes a second, by four scrapers at a pace: the share of a core they take, and
//!   how late ticks are meanwhile, by the times of the vitals in the status. The control asks for
//!   the status as often and scrapes nothing.
//! - The battery: the p99 of the service's own requests while strangers ask the endpoint for what
//!   they may not have (`battery.rs`), over the p99 while the same bytes go to a plain listener
//!   that ends every connection. So what the strangers themselves take of the machine is on both
//!   sides. The no-op control is one plain listener over another: what it is off by, or a tenth,
//!   the ratio may be off by. Of all rounds the lower quartile counts. Once strangers only, once
//!   with a hundred who have the token and ask for a profile at once: one gets it, and that is a
//!   capture with what a capture costs; and once more while every core is taken by somebody else,
//!   where what is not done at low priority would show.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};
use std::{fs, thread};

use marple::config::{HttpSettings, Listen, Secret, ToggleSettings};
use marple::{Agent, Settings};

#[path = "http/battery.rs"]
mod battery;
#[path = "http/scrapes.rs"]
mod scrapes;

const PAIRS: usize = 7;
/// Rounds of the battery, of three each.
const ROUNDS: usize = 25;
const SCRAPES: usize = 1000;
const TOKEN: &str = "bench-t0ken";
/// 1000 scrapes a second shall take a fifth of a core at the most.
const GOAL_MICROS: f64 = 200.0;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, word, address, token, captures, ..] = &arguments[..]
        && word == battery::WORD
    {
        return battery::ask(address.parse().unwrap(), token, captures.parse().unwrap());
    }
    if arguments.get(1).is_some_and(|word| word == battery::SPIN) {
        return battery::spin();
    }
    let quick = arguments.iter().any(|argument| argument == "--quick");
    let (pairs, rounds) = if quick { (2, 4) } else { (PAIRS, ROUNDS) };
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
    scrape(&mut client, TOKEN, 100);

    let mut per_scrape = Vec::new();
    let mut idle = Vec::new();
    for _ in 0..pairs {
        let (before, since) = (cpu_time("marple"), Instant::now());
        scrape(&mut client, TOKEN, SCRAPES);
        let (busy, took) = (cpu_time("marple") - before, since.elapsed());
        let before = cpu_time("marple");
        thread::sleep(took);
        let control = cpu_time("marple") - before;
        idle.push(control.as_secs_f64() / took.as_secs_f64());
        let scrapes = busy.saturating_sub(control);
        per_scrape.push(scrapes.as_secs_f64() * 1e6 / SCRAPES as f64);
    }
    let cost = median(&mut per_scrape);
    let verdict = if cost <= GOAL_MICROS { "pass" } else { "short" };
    println!("scrape, CPU us on the agent's thread  {cost:.1}  <= {GOAL_MICROS}  {verdict}");
    println!("control: idle, share of a core  {:.5}  -  -", median(&mut idle));
    scrapes::measure(&agent.handle(), address, TOKEN, pairs);
    for (captures, taken) in [(0, false), (100, false), (100, true)] {
        battery::measure(address, TOKEN, (captures, taken), rounds);
    }
    drop(agent);
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn scrape(client: &mut TcpStream, token: &str, times: usize) {
    for _ in 0..times {
        let head = format!("Host: localhost\r\nAuthorization: Bearer {token}");
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

/// CPU time of the threads called `name`, dead ones not.
fn cpu_time(name: &str) -> Duration {
    let tasks = fs::read_dir("/proc/self/task").unwrap().map(|task| task.unwrap().path());
    let of = tasks.filter_map(|task| {
        let known = fs::read_to_string(task.join("comm")).ok()?;
        (known.trim() == name).then_some(())?;
        // Nanoseconds on a CPU, the first of three numbers.
        let text = fs::read_to_string(task.join("schedstat")).ok()?;
        text.split(' ').next()?.parse().ok().map(Duration::from_nanos)
    });
    of.sum()
}
