use super::super::fixture::{IncidentFixture, summaries, thread_table};
use super::*;

const POLL: &str = "tokio::runtime::task::raw::poll";
const LOOP: &str = "tokio::runtime::scheduler::multi_thread::worker::Context::run";
const POOL: &str = "tokio::runtime::blocking::pool::Inner::run";

const SLEEPS: &[&str] =
    &["clock_nanosleep", "std::thread::sleep", "orders::lookup::{{closure}}", POLL, LOOP, POOL];
const READS: &[&str] = &[
    "read",
    "<std::net::tcp::TcpStream as std::io::Read>::read",
    "core::ops::function::FnOnce::call_once",
    "orders::load",
    POLL,
    LOOP,
];
const COMPUTES: &[&str] = &["orders::price", POLL, LOOP];
const PARKED: &[&str] = &["epoll_wait", "tokio::runtime::io::driver::Driver::turn", LOOP];
const RESIZES: &[&str] = &["orders::resize", POLL, POOL];
const FREE: &[&str] = &["syscall", "std::sys::sync::condvar::Condvar::wait_timeout", POOL];

fn incident(metric: &str, value: f64) -> IncidentFixture {
    IncidentFixture::new().reason(metric, value, value / 2.0, "too high")
}

#[test]
fn stall_has_function_and_its_callee() {
    let file = "orders_eu-1.001.threads.txt";
    for (stack, subject, text) in [
        (
            SLEEPS,
            "orders::lookup",
            "a poll on the thread tokio-runtime-w blocks its worker in orders::lookup via \
             std::thread::sleep, for at least 2.1 s",
        ),
        (
            READS,
            "orders::load",
            "a poll on the thread tokio-runtime-w blocks its worker in orders::load via \
             <std::net::tcp::TcpStream as std::io::Read>::read, for at least 2.1 s",
        ),
        (
            COMPUTES,
            "orders::price",
            "a poll on the thread tokio-runtime-w blocks its worker in orders::price, for at \
             least 2.1 s",
        ),
    ] {
        let dump = thread_table(&[(1, stack)]);
        let fixture = incident("runtime.stall", 2.1).threads(-1, Some("stall"), dump);
        let candidates = find(&fixture.evidence());
        assert_eq!(summaries(&candidates), [format!("stall certain {subject}")]);
        assert_eq!(candidates[0].text, text);
        assert!(candidates[0].explains_reason);
        assert_eq!(candidates[0].share, 1.0);
        assert_eq!(candidates[0].evidence[0].command, format!("less {file}"));
    }
}

#[test]
fn stall_is_no_finding_without_a_poll_or_a_dump() {
    for stack in [PARKED, FREE, &[]] {
        let dump = thread_table(&[(1, stack)]);
        let fixture = incident("runtime.stall", 2.1).threads(-1, Some("stall"), dump);
        assert_eq!(summaries(&find(&fixture.evidence())), [""; 0], "{stack:?}");
    }
    assert_eq!(summaries(&find(&incident("runtime.stall", 2.1).evidence())), [""; 0]);
    // Other threads of a dump of all threads are not stalled.
    let dump = thread_table(&[(1, &["orders::main"]), (1, &["orders::signals"])]);
    let fixture = incident("runtime.stall", 2.1).threads(-1, Some("stall"), dump);
    assert_eq!(summaries(&find(&fixture.evidence())), [""; 0]);
}

#[test]
fn stalls_in_one_function_are_one_finding() {
    let stall = |fixture: IncidentFixture, stack| {
        fixture.threads(1, Some("stall"), thread_table(&[(1, stack)]))
    };
    let fixture = incident("runtime.stalled", 80.0);
    let fixture = stall(stall(stall(fixture, SLEEPS), READS), SLEEPS);
    let candidates = find_stalls(&fixture.evidence());
    let mut shares: Vec<_> =
        candidates.iter().map(|stall| (&*stall.subject, (stall.share * 3.0).round())).collect();
    shares.sort_by(|a, b| a.0.cmp(b.0));
    assert_eq!(shares, [("orders::load", 1.0), ("orders::lookup", 2.0)]);
    assert!(candidates.iter().all(|stall| !stall.numbers.contains_key("seconds")));
}

#[test]
fn starved_workers_are_counted_by_function() {
    let explained = |confidence: &str, subject: &str| {
        vec![format!("runtime-starved {confidence} {subject} true")]
    };
    let open = |confidence: &str, subject: &str| {
        vec![format!("runtime-starved {confidence} {subject} false")]
    };
    for (metric, value, groups, expected) in [
        ("runtime.lag", 1.3, &[(8, SLEEPS)][..], explained("certain", "orders::lookup")),
        ("runtime.blocked", 90.0, &[(2, SLEEPS)], explained("likely", "orders::lookup")),
        ("runtime.lag", 1.3, &[(1, SLEEPS), (1, PARKED)], explained("likely", "orders::lookup")),
        ("runtime.lag", 1.3, &[(1, SLEEPS), (7, PARKED)], open("possible", "orders::lookup")),
        ("runtime.lag", 1.3, &[(2, SLEEPS), (2, READS)], explained("certain", "workers")),
        // Idle workers, threads of the pool, and no dump at all.
        ("runtime.lag", 1.3, &[(8, PARKED), (9, RESIZES)], open("possible", "workers")),
        ("runtime.lag", 1.3, &[], open("possible", "workers")),
        ("memory", 90.0, &[(8, SLEEPS)], vec![]),
        ("runtime.blocking_lag", 3.0, &[(50, RESIZES)], explained("certain", "orders::resize")),
        (
            "runtime.blocking_lag",
            3.0,
            &[(2, RESIZES), (30, FREE)],
            open("possible", "orders::resize"),
        ),
        ("runtime.blocking_lag", 3.0, &[(8, SLEEPS)], open("possible", "blocking pool")),
    ] {
        let fixture = incident(metric, value).threads(0, None, thread_table(groups));
        let found: Vec<String> = find(&fixture.evidence())
            .iter()
            .map(|candidate| {
                let summary = summaries(std::slice::from_ref(candidate)).remove(0);
                format!("{summary} {}", candidate.explains_reason)
            })
            .collect();
        assert_eq!(found, expected, "{metric} {groups:?}");
    }
}

#[test]
fn text_of_starved_runtime_has_threads_and_delay() {
    let mut computing = thread_table(&[(2, COMPUTES)]);
    computing.groups[0].running = 2;
    for (metric, value, dump, text) in [
        (
            "runtime.lag",
            1.3,
            computing.clone(),
            "orders::price runs on 2 of 2 workers; a ready task waited up to 1.3 s for a worker",
        ),
        (
            "runtime.stalled",
            80.0,
            thread_table(&[(3, READS), (1, PARKED)]),
            "orders::load blocks 3 of 4 workers; ready tasks ran late for 80 % of ten \
             seconds",
        ),
        (
            "runtime.blocking_lag",
            3.0,
            thread_table(&[(9, RESIZES)]),
            "orders::resize blocks 9 of 9 threads of the blocking pool; work waited up to \
             3.0 s for a thread of the blocking pool",
        ),
        (
            "runtime.blocked",
            80.0,
            computing,
            "polls that waited took 80 % of the time of the workers; no thread dump shows what the \
             workers did",
        ),
    ] {
        let fixture = incident(metric, value).threads(0, None, dump);
        assert_eq!(find(&fixture.evidence())[0].text, text);
    }
}

#[test]
fn high_vitals_are_a_symptom_without_a_rule() {
    for (lag, found) in [(0.1, 0), (0.49, 0), (0.5, 1), (3.0, 1)] {
        let fixture = incident("memory", 90.0).vitals("runtime.lag", 0, &[lag; 6]).threads(
            0,
            None,
            thread_table(&[(2, SLEEPS)]),
        );
        let candidates = find(&fixture.evidence());
        assert_eq!(candidates.len(), found, "{lag}");
        assert!(candidates.iter().all(|candidate| !candidate.explains_reason));
    }
    // Before the incident, or for a moment.
    let fixture = incident("memory", 90.0)
        .vitals("runtime.lag", -60, &[3.0; 20])
        .vitals("runtime.lag", -9, &[0.0, 2.0, 0.0, 0.0, 0.0, 0.0])
        .threads(0, None, thread_table(&[(2, SLEEPS)]));
    assert_eq!(summaries(&find(&fixture.evidence())), [""; 0]);
}
