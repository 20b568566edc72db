//! Services with each of the nine faults.

use std::fs::{self, File};
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::sync::oneshot;
use tokio::time::sleep;

use crate::service::FAULT_STARTED_FILE;

/// Healthy time of a service before its fault starts.
const HEALTHY_TIME: Duration = Duration::from_secs(4);

/// Sets the resource limit that the fault called `name` reaches.
pub(crate) fn set_resource_limit(name: &str) {
    let (resource, max) = match name {
        "leak" => (Resource::Data, 700 << 20),
        "descriptors" => (Resource::Nofile, 512),
        _ => return,
    };
    setrlimit(resource, Rlimit { current: Some(max), ..getrlimit(resource) }).unwrap();
}

/// Serves a healthy request twenty times a second.
pub(crate) async fn serve() {
    loop {
        drop(tokio::spawn(async {
            sleep(Duration::from_millis(2)).await;
            std::hint::black_box((0..10_000_u64).sum::<u64>());
        }));
        sleep(Duration::from_millis(50)).await;
    }
}

pub(crate) async fn run(name: &str) {
    drop(tokio::spawn(serve()));
    sleep(HEALTHY_TIME).await;
    fs::write(FAULT_STARTED_FILE, jiff::Timestamp::now().to_string()).unwrap();
    match name {
        "leak" => leak_reports().await,
        "cpu" => (0..4).for_each(|_| drop(tokio::spawn(validate_urls()))),
        "blocked" => drop(tokio::spawn(async { look_up_name() })),
        "pile" => deliver_webhooks(150_000, |task| drop(tokio::spawn(task))).await,
        "pile_wrapped" => {
            deliver_webhooks(150_000, |task| drop(marple::task::spawn(task))).await;
        }
        "task_deadlock" => accept_transfers(|task| drop(tokio::spawn(task))).await,
        "task_deadlock_wrapped" => {
            accept_transfers(|task| drop(marple::task::spawn(task))).await;
        }
        "thread_deadlock" => deadlock_threads(),
        "contention" => (0..8).for_each(|_| drop(tokio::spawn(check_rate_limits()))),
        "descriptors" => leak_files().await,
        "panics" => panic_in_a_loop().await,
        other => panic!("there is no fault `{other}`"),
    }
    sleep(Duration::from_secs(120)).await;
}

/// Leaks 40 MiB a second.
#[inline(never)]
async fn leak_reports() {
    let mut kept = Vec::new();
    loop {
        kept.push(vec![b'.'; 4 << 20]);
        sleep(Duration::from_millis(100)).await;
    }
}

async fn validate_urls() {
    loop {
        validate_quadratic(3000);
        tokio::task::yield_now().await;
    }
}

#[inline(never)]
fn validate_quadratic(length: u64) {
    let mut sum = 0_u64;
    for a in 0..length {
        for b in 0..length / 100 {
            sum = std::hint::black_box(sum.wrapping_add(a * b));
        }
    }
    std::hint::black_box(sum);
}

#[inline(never)]
fn look_up_name() {
    thread::sleep(Duration::from_secs(8));
    std::hint::black_box(());
}

type Task = std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;

#[inline(never)]
async fn deliver_webhooks(count: usize, spawn: impl Fn(Task)) {
    let mut senders = Vec::new();
    for at in 0..count {
        let (sender, receiver) = oneshot::channel::<()>();
        senders.push(sender);
        spawn(Box::pin(async move {
            let _ = receiver.await;
        }));
        if at % 5000 == 0 {
            tokio::task::yield_now().await;
        }
    }
    // The senders are never used, as if the task that answers had ended.
    std::mem::forget(senders);
}

/// Spawns fifty transfers a second. Two of them deadlock, and all later ones wait for them.
#[inline(never)]
async fn accept_transfers(spawn: impl Fn(Task)) {
    let accounts = Arc::new([tokio::sync::Mutex::new(0_u64), tokio::sync::Mutex::new(0)]);
    for number in 0..u64::MAX {
        spawn(Box::pin(transfer(Arc::clone(&accounts), number)));
        sleep(Duration::from_millis(20)).await;
    }
}

async fn transfer(accounts: Arc<[tokio::sync::Mutex<u64>; 2]>, number: u64) {
    let request = [number; 128];
    let (from, to) = (number as usize % 2, (number as usize + 1) % 2);
    let mut from_account = accounts[from].lock().await;
    sleep(Duration::from_millis(50)).await;
    let mut given = accounts[to].lock().await;
    *from_account = from_account.wrapping_sub(request[0]);
    *given = given.wrapping_add(request[127]);
}

fn deadlock_threads() {
    let stock = Arc::new(Mutex::new(0));
    let money = Arc::new(Mutex::new(0));
    let (a, b) = (Arc::clone(&stock), Arc::clone(&money));
    drop(tokio::spawn(async move { move_stock(&a, &b) }));
    drop(tokio::spawn(async move { move_money(&money, &stock) }));
}

#[inline(never)]
fn move_stock(first: &Mutex<u64>, second: &Mutex<u64>) {
    let guard = first.lock().unwrap();
    thread::sleep(Duration::from_millis(100));
    *second.lock().unwrap() += *guard;
}

#[inline(never)]
fn move_money(first: &Mutex<u64>, second: &Mutex<u64>) {
    let guard = first.lock().unwrap();
    thread::sleep(Duration::from_millis(100));
    *second.lock().unwrap() += *guard;
    std::hint::black_box(&guard);
}

async fn check_rate_limits() {
    loop {
        check_rate_limit();
        tokio::task::yield_now().await;
    }
}

#[inline(never)]
fn check_rate_limit() {
    static BUCKETS: Mutex<u64> = Mutex::new(0);
    let mut guard = BUCKETS.lock().unwrap();
    let started_at = Instant::now();
    while started_at.elapsed() < Duration::from_millis(20) {
        *guard = guard.wrapping_add(1);
    }
}

/// Opens and keeps fifty files a second.
async fn leak_files() {
    fs::write("left-open.log", "").unwrap();
    let mut files = Vec::new();
    loop {
        if let Ok(file) = File::open("left-open.log") {
            files.push(file);
        }
        sleep(Duration::from_millis(20)).await;
    }
}

/// Panics a hundred times a second.
async fn panic_in_a_loop() {
    static ORDERS: AtomicU64 = AtomicU64::new(0);
    loop {
        drop(tokio::spawn(async {
            let order = ORDERS.fetch_add(1, Ordering::Relaxed);
            panic!("order {order} has no items");
        }));
        sleep(Duration::from_millis(10)).await;
    }
}
