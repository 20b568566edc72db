//! Cost of the HTTP endpoint to the service.
//!
//! ```text
//! cargo bench --bench http [-- --quick]
//! ```
//!
//! Each row has a name, a value, a goal, and `pass` or `short`. It takes seven minutes, or one with
//! `--quick`, whose p99 is too noisy to compare.
//!
//! - One scrape of `/metrics`: CPU time of the thread `marple`, which writes all responses, with
//!   and without scrapes. The control is the same service idling for the same number of ticks.
//! - 1000 scrapes a second from four paced clients: their share of a core, and the delay of ticks,
//!   from the timestamps of the vitals in the status. The control requests the status equally often
//!   without scrapes.
//! - Hostile clients: the p99 of the service's own requests while unauthorized clients call the
//!   endpoint (`hostile_load.rs`). It is divided by the p99 while the same bytes go to a plain
//!   listener that closes every connection. So the clients' own CPU use is on both sides. The
//!   control compares two plain listeners; the tolerance of the ratio is the control's deviation,
//!   or 10 % if that is larger. The lower quartile of all rounds counts. It runs three times. First
//!   with unauthorized clients only. Then with a hundred authorized clients that request a profile
//!   at once: one gets it, so this includes the cost of a capture. Then the same with busy cores,
//!   which shows work that does not run at low priority.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};
use std::{fs, thread};

use marple::config::{HttpSettings, Listen, Secret, ToggleSettings};
use marple::{Builder, Settings};

#[path = "http/hostile_load.rs"]
mod hostile_load;
#[path = "http/scrapes.rs"]
mod scrapes;

use hostile_load::HostileLoad;

const PAIRS: usize = 7;
/// Rounds of the hostile load; each measures three listeners.
const ROUNDS: usize = 25;
const SCRAPES: usize = 1000;
const TOKEN: &str = "bench-t0ken";
/// 1000 scrapes a second may take a fifth of a core: 200 us each.
const GOAL_MICROS: f64 = 200.0;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, arg, address, token, profile_requests, ..] = &arguments[..]
        && arg == hostile_load::HOSTILE_CLIENTS_ARG
    {
        return hostile_load::run_hostile_clients(
            address.parse().unwrap(),
            token,
            profile_requests.parse().unwrap(),
        );
    }
    if arguments.get(1).is_some_and(|arg| arg == hostile_load::SPIN_ARG) {
        return hostile_load::spin();
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
    let agent = Builder::from_settings(settings).start().unwrap();
    let mut client = TcpStream::connect(address).unwrap();
    client.set_nodelay(true).unwrap();
    scrape(&mut client, TOKEN, 100);

    let mut per_scrape = Vec::new();
    let mut idle = Vec::new();
    for _ in 0..pairs {
        let (before, since) = (cpu_time("marple"), Instant::now());
        scrape(&mut client, TOKEN, SCRAPES);
        let (busy, wall_time) = (cpu_time("marple") - before, since.elapsed());
        let before = cpu_time("marple");
        thread::sleep(wall_time);
        let control = cpu_time("marple") - before;
        idle.push(control.as_secs_f64() / wall_time.as_secs_f64());
        let scrapes = busy.saturating_sub(control);
        per_scrape.push(scrapes.as_secs_f64() * 1e6 / SCRAPES as f64);
    }
    let cost = median(&mut per_scrape);
    let verdict = if cost <= GOAL_MICROS { "pass" } else { "short" };
    println!("scrape: CPU time of the agent's thread, us  {cost:.1}  <= {GOAL_MICROS}  {verdict}");
    println!(
        "control: agent's thread without scrapes, share of a core  {:.5}  -  -",
        median(&mut idle)
    );
    scrapes::measure(&agent.handle(), address, TOKEN, pairs);
    for (profile_requests, busy_cores) in [(0, false), (100, false), (100, true)] {
        let load = HostileLoad { profile_requests, busy_cores };
        hostile_load::measure(address, TOKEN, load, rounds);
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

/// Returns the CPU time of the live threads named `name`.
fn cpu_time(name: &str) -> Duration {
    let tasks = fs::read_dir("/proc/self/task").unwrap().map(|task| task.unwrap().path());
    let times = tasks.filter_map(|task| {
        let comm = fs::read_to_string(task.join("comm")).ok()?;
        (comm.trim() == name).then_some(())?;
        // The first of three numbers: nanoseconds on a CPU.
        let text = fs::read_to_string(task.join("schedstat")).ok()?;
        text.split(' ').next()?.parse().ok().map(Duration::from_nanos)
    });
    times.sum()
}
