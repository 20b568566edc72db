//! 1000 scrapes of `/metrics` a second, for a few seconds.

use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use marple::AgentHandle;

use super::{cpu_time, median, scrape};

const SCRAPERS: u32 = 4;
const SCRAPES_PER_SECOND: u32 = 1000;
const ROUND: Duration = Duration::from_secs(3);
/// Interval at which the status is requested, to get the times of ticks.
const STATUS_INTERVAL: Duration = Duration::from_millis(10);
const TICK_INTERVAL: Duration = Duration::from_millis(250);
const GOAL_SHARE: f64 = 0.2;
/// A tenth of the tick interval, in milliseconds.
const GOAL_DELAY_MILLIS: f64 = 25.0;

/// Prints the rows.
pub(super) fn measure(agent: &AgentHandle, address: SocketAddr, token: &str, pairs: usize) {
    let (mut shares, mut delays, mut idle_delays, mut rates) = (vec![], vec![], vec![], vec![]);
    for _ in 0..pairs {
        let idle = round(agent, || thread::sleep(ROUND));
        let mut scrapes = 0;
        let busy = round(agent, || scrapes = scrape_for_round(address, token));
        shares.push(busy.share - idle.share);
        delays.push(busy.max_tick_delay);
        idle_delays.push(idle.max_tick_delay);
        rates.push(f64::from(scrapes) / ROUND.as_secs_f64());
    }
    let rate = median(&mut rates);
    let verdict = if rate >= 0.95 * f64::from(SCRAPES_PER_SECOND) { "pass" } else { "short" };
    println!("1000 scrapes/s: responses per second  {rate:.0}  >= 950  {verdict}");
    let share = median(&mut shares);
    let verdict = if share <= GOAL_SHARE { "pass" } else { "short" };
    println!("1000 scrapes/s: share of a core  {share:.4}  <= {GOAL_SHARE}  {verdict}");
    let (delay, control) = (median(&mut delays), median(&mut idle_delays));
    let goal = GOAL_DELAY_MILLIS.max(control);
    let verdict = if delay <= goal { "pass" } else { "short" };
    println!("1000 scrapes/s: longest tick delay, ms  {delay:.1}  <= {goal:.1}  {verdict}");
    println!("control: longest tick delay without scrapes, ms  {control:.1}  -  -");
}

struct RoundMeasurements {
    /// CPU time of the thread `marple`, as a share of a core.
    share: f64,
    /// Largest delay of a tick, in milliseconds.
    max_tick_delay: f64,
}

/// Measures the agent while `work` runs.
fn round(agent: &AgentHandle, work: impl FnOnce()) -> RoundMeasurements {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let ticks = scope.spawn(|| {
            let mut ticks = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                let status = agent.status().wait(Duration::from_secs(10)).unwrap();
                let at = status.vitals.at;
                if ticks.last() != Some(&at) {
                    ticks.push(at);
                }
                thread::sleep(STATUS_INTERVAL);
            }
            ticks
        });
        let (before, since) = (cpu_time("marple"), Instant::now());
        work();
        let share = (cpu_time("marple") - before).as_secs_f64() / since.elapsed().as_secs_f64();
        stop.store(true, Ordering::Relaxed);
        let ticks = ticks.join().unwrap();
        let gaps = ticks.windows(2).map(|pair| pair[1].duration_since(pair[0]).as_secs_f64());
        let longest = gaps.fold(0.0, f64::max);
        RoundMeasurements {
            share,
            max_tick_delay: (longest - TICK_INTERVAL.as_secs_f64()).max(0.0) * 1e3,
        }
    })
}

/// Scrapes for one round at a fixed pace. Returns the number of responses.
fn scrape_for_round(address: SocketAddr, token: &str) -> u32 {
    let between = Duration::from_secs(1) * SCRAPERS / SCRAPES_PER_SECOND;
    let deadline = Instant::now() + ROUND;
    let one = || {
        let mut client = TcpStream::connect(address).unwrap();
        client.set_nodelay(true).unwrap();
        let (mut next, mut scrapes) = (Instant::now(), 0);
        while next < deadline && Instant::now() < deadline {
            scrape(&mut client, token, 1);
            scrapes += 1;
            next += between;
            thread::sleep(next.saturating_duration_since(Instant::now()));
        }
        scrapes
    };
    thread::scope(|scope| {
        let scrapers: Vec<_> = (0..SCRAPERS).map(|_| scope.spawn(one)).collect();
        scrapers.into_iter().map(|scraper| scraper.join().unwrap()).sum()
    })
}
