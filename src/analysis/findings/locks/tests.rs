use super::super::fixture::{IncidentFixture, summaries, symbols, task_table, thread_table};
use super::*;

const WORKER: &str = "tokio::runtime::scheduler::multi_thread::worker::run";
const POOL: &str = "tokio::runtime::blocking::pool::Inner::run";
const LOCK: &str = "<std::sys::sync::mutex::futex::Mutex>::lock_contended";

const WAITING: &[&str] = &["syscall", LOCK, "limits::check", "limits::serve", WORKER, POOL];
const WAITING_IN_POOL: &[&str] = &["syscall", LOCK, "limits::check", POOL];
const WAITING_ALONE: &[&str] = &["syscall", LOCK, "limits::check", "std::thread::x"];
const HOLDING: &[&str] = &["clock_gettime", "limits::check", "limits::serve", WORKER, POOL];
const OTHER_WAITING: &[&str] = &["syscall", LOCK, "limits::renew", WORKER, POOL];
const PARKED: &[&str] =
    &["syscall", "std::sys::sync::condvar::futex::Condvar::wait", "tokio::runtime::park::x"];

const ACQUIRE: &str =
    "<tokio::sync::batch_semaphore::Acquire as core::future::future::Future>::poll";
const TASK_WAITING: &[&str] =
    &[ACQUIRE, "tokio::sync::mutex::Mutex<T>::lock::{{closure}}", "bank::transfer::{{closure}}"];
const TASK_SLEEPING: &[&str] = &["tokio::time::sleep::Sleep::poll", "bank::transfer::{{closure}}"];
const TASK_SENDING: &[&str] =
    &[ACQUIRE, "tokio::sync::mpsc::bounded::Sender<T>::reserve", "bank::send"];
const TASK_RECEIVING: &[&str] = &["tokio::sync::mpsc::bounded::Receiver<T>::recv", "bank::recv"];

fn rule(metric: &str) -> IncidentFixture {
    IncidentFixture::new().reason(metric, 40.0, 30.0, "")
}

fn found(fixture: &IncidentFixture) -> String {
    let summaries = summaries(&find(&fixture.evidence()));
    summaries.join(", ").replace("lock-wait ", "")
}

#[test]
fn waiting_threads_are_reported_by_function() {
    let threads =
        |fixture: IncidentFixture, groups: &[_]| fixture.threads(0, None, thread_table(groups));
    let blocked = || rule("runtime.blocked");
    for (fixture, expected) in [
        (threads(blocked(), &[(25, WAITING), (1, HOLDING)]), "certain limits::check"),
        (threads(blocked(), &[(24, WAITING)]), "likely limits::check"),
        (threads(blocked(), &[(4, WAITING), (9, PARKED)]), "likely limits::check"),
        (threads(blocked(), &[(3, WAITING), (9, PARKED)]), "possible limits::check"),
        // A deadlock of two threads in different functions.
        (
            threads(blocked(), &[(1, WAITING), (1, OTHER_WAITING)]),
            "possible limits::check, possible limits::renew",
        ),
        // Several dumps are added up.
        (
            threads(threads(blocked(), &[(2, WAITING)]), &[(2, WAITING), (1, HOLDING)]),
            "likely limits::check",
        ),
        (threads(rule("memory"), &[(25, WAITING)]), "likely limits::check"),
        (threads(blocked(), &[(1, WAITING), (9, PARKED)]), ""),
        (threads(blocked(), &[(20, PARKED), (5, HOLDING)]), ""),
        (threads(blocked(), &[(20, &[])]), ""),
        (blocked().threads(0, Some("stall"), thread_table(&[(4, WAITING)])), ""),
        (blocked(), ""),
    ] {
        assert_eq!(found(&fixture), expected);
    }
}

#[test]
fn running_threads_do_not_wait() {
    let mut table = thread_table(&[(4, WAITING)]);
    table.groups[0].running = 3;
    assert_eq!(found(&rule("runtime.blocked").threads(0, None, table)), "");
}

#[test]
fn thread_wait_explains_metrics_of_the_threads_that_wait() {
    for (metric, stack, explains) in [
        ("runtime.blocked", WAITING, true),
        ("runtime.lag", WAITING, true),
        ("runtime.blocking_lag", WAITING, false),
        ("runtime.blocking_lag", WAITING_IN_POOL, true),
        ("runtime.lag", WAITING_IN_POOL, false),
        ("runtime.lag", WAITING_ALONE, false),
        ("threads.rise", WAITING_ALONE, true),
        ("memory", WAITING, false),
    ] {
        let fixture = rule(metric).threads(0, None, thread_table(&[(5, stack), (9, PARKED)]));
        let found = find(&fixture.evidence()).remove(0);
        assert_eq!(found.explains_reason, explains, "{metric} {stack:?}");
    }
}

#[test]
fn text_names_lock_and_possible_holder() {
    let table = thread_table(&[(5, WAITING), (1, HOLDING), (14, PARKED)]);
    let found = find(&rule("runtime.lag").threads(0, None, table).evidence()).remove(0);
    assert_eq!(
        found.text,
        "5 of 20 threads (25 %) wait in limits::check for a std::sync::Mutex; thread \
         tokio-runtime-w is in the same function without waiting for a lock, and possibly holds \
         it"
    );
    assert_eq!(found.labels["possible_holder"], "tokio-runtime-w");
    assert_eq!(found.stack, symbols(WAITING));
}

#[test]
fn locks_are_known_by_the_function_that_waits() {
    for (function, lock) in [
        ("std::sys::sync::mutex::futex::Mutex::lock_contended", Some("std::sync::Mutex")),
        ("std::sys::sync::rwlock::futex::RwLock::read_contended", Some("std::sync::RwLock")),
        ("parking_lot::raw_mutex::RawMutex::lock_slow", Some("parking_lot::Mutex")),
        (
            "parking_lot::raw_rwlock::RawRwLock::lock_exclusive_slow::h0123456789abcdef",
            Some("parking_lot::RwLock"),
        ),
        ("pthread_mutex_lock@@GLIBC_2.2.5", Some("pthread_mutex_t")),
        ("std::sys::sync::condvar::futex::Condvar::wait", None),
        ("parking_lot::condvar::Condvar::wait_until_internal", None),
        ("other::lock_slow", None),
    ] {
        for stack in [["syscall", function, "app::f"], ["syscall", function, "tokio::f"]] {
            assert_eq!(lock_of_thread(&symbols(&stack)), lock, "{stack:?}");
        }
    }
    // The function that waits is called by the lock function, not the reverse.
    assert_eq!(lock_of_thread(&symbols(&["read", "app::f", LOCK])), None);
    // Without a function of the application or a library there is nothing to name.
    assert_eq!(lock_of_thread(&symbols(&["syscall", LOCK])), None);
    assert_eq!(lock_of_thread(&[]), None);
}

#[test]
fn waiting_tasks_are_reported_by_function() {
    let tasks = |metric, groups: &[_]| rule(metric).tasks(0, task_table(groups));
    let site = "src/bank.rs:9";
    let long = |seconds| {
        let mut table = task_table(&[(site, 30, TASK_WAITING), (site, 900, TASK_RECEIVING)]);
        table.groups[0].longest_since_poll = Some(Duration::from_secs(seconds));
        rule("memory").tasks(0, table)
    };
    for (fixture, expected) in [
        (tasks("tasks", &[(site, 900, TASK_WAITING)]), "certain bank::transfer"),
        (
            tasks("tasks.rise", &[(site, 52, TASK_WAITING), (site, 48, TASK_RECEIVING)]),
            "possible bank::transfer",
        ),
        (tasks("memory", &[(site, 900, TASK_WAITING)]), "possible bank::transfer"),
        (long(10), "likely bank::transfer"),
        (long(9), "possible bank::transfer"),
        (tasks("tasks", &[(site, 900, TASK_SENDING)]), "certain bank::send"),
        (tasks("tasks", &[(site, 900, TASK_RECEIVING)]), ""),
        (tasks("tasks", &[(site, 1, TASK_WAITING)]), ""),
        (rule("tasks"), ""),
    ] {
        assert_eq!(found(&fixture), expected);
    }
}

#[test]
fn text_counts_tasks_of_the_same_function_that_may_hold_the_lock() {
    let site = "src/bank.rs:9";
    let mut table = task_table(&[(site, 950, TASK_WAITING), (site, 50, TASK_SLEEPING)]);
    table.groups[0].longest_since_poll = Some(Duration::from_secs(300));
    let found = find(&rule("tasks").tasks(0, table).evidence()).remove(0);
    assert_eq!(
        found.text,
        "950 of 1000 tasks (95 %) wait in bank::transfer for a tokio::sync::Mutex; the longest was \
         last polled 5 min ago; 50 more in the same function wait for something else, and possibly \
         hold it"
    );
    assert!(found.explains_reason);
}

#[test]
fn lock_of_task_is_that_of_tokio() {
    for (stack, lock) in [
        (TASK_WAITING, Some("tokio::sync::Mutex")),
        (TASK_SENDING, Some("full tokio::sync::mpsc channel")),
        (&[ACQUIRE, "bank::transfer"], Some("tokio::sync lock or semaphore")),
        (&["<tokio::sync::rwlock::RwLock<T>>::read", "x::f"], Some("tokio::sync::RwLock")),
        (TASK_RECEIVING, None),
        (&["<bank::A<tokio::sync::mutex::Mutex> as F>::poll"], None),
    ] {
        assert_eq!(lock_of_task(&symbols(stack)).map(|lock| lock.lock), lock, "{stack:?}");
    }
}
