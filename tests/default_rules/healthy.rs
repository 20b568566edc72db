//! A service that is well: a start, a peak of requests, a batch job and a copy of files.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::sleep;

const SECOND: Duration = Duration::from_secs(1);

pub(crate) async fn run() {
    // A start: caches are filled on every core, and two thousand clients come back within two seconds.
    let fill: Vec<_> = (0..2).map(|_| tokio::spawn(compute(3 * SECOND))).collect();
    for client in 0..2000_u64 {
        drop(tokio::spawn(keep_connection(client)));
        if client % 10 == 0 {
            sleep(Duration::from_millis(10)).await;
        }
    }
    for task in fill {
        task.await.unwrap();
    }
    // One request that fails is no loop.
    let _ = tokio::spawn(async { panic!("a bad request") }).await;
    let batch = tokio::task::spawn_blocking(batch_job);
    // What says that it blocks holds up no other task, be its polls recorded or not.
    drop(tokio::spawn(async { tokio::task::block_in_place(|| std::thread::sleep(5 * SECOND)) }));
    drop(marple::task::spawn(async {
        tokio::task::block_in_place(|| std::thread::sleep(6 * SECOND));
    }));
    peak(20 * SECOND).await;
    copy_files().await.unwrap();
    batch.await.unwrap();
    // A rise and a `for` have time to show.
    sleep(5 * SECOND).await;
}

/// A client that says something now and then, and goes and comes back.
async fn keep_connection(client: u64) {
    for n in 0..u64::MAX {
        sleep(Duration::from_millis(700 + (client * 37 + n * 101) % 600)).await;
    }
}

/// Computes and gives its worker back each millisecond or so.
async fn compute(time: Duration) {
    let begun = Instant::now();
    while begun.elapsed() < time {
        std::hint::black_box((0..200_000_u64).fold(0, |sum, n| std::hint::black_box(sum ^ n)));
        tokio::task::yield_now().await;
    }
}

/// Requests that come ever faster, and ever slower again.
async fn peak(time: Duration) {
    let begun = Instant::now();
    while let Some(left) = time.checked_sub(begun.elapsed()) {
        let share = 1.0 - left.as_secs_f64() / time.as_secs_f64();
        let load = (share * std::f64::consts::TAU).cos().mul_add(-0.5, 0.5);
        let requests = 1 + (load * 20.0) as u64;
        for n in 0..requests {
            drop(tokio::spawn(async move {
                sleep(Duration::from_millis(20 + n * 10)).await;
                std::hint::black_box((0..20_000_u64).sum::<u64>());
            }));
        }
        sleep(Duration::from_millis(10)).await;
    }
}

fn batch_job() {
    let begun = Instant::now();
    while begun.elapsed() < 15 * SECOND {
        std::hint::black_box((0..1_000_000_u64).fold(0, |sum, n| std::hint::black_box(sum ^ n)));
    }
}

/// 256 MiB, written and read.
async fn copy_files() -> std::io::Result<()> {
    let block = vec![b'.'; 1 << 20];
    let mut file = tokio::fs::File::create("original").await?;
    for _ in 0..256 {
        file.write_all(&block).await?;
    }
    file.flush().await?;
    tokio::fs::copy("original", "copy").await?;
    let mut copy = tokio::fs::File::open("copy").await?;
    let mut block = vec![0; 1 << 20];
    while copy.read(&mut block).await? > 0 {}
    tokio::fs::remove_file("original").await?;
    tokio::fs::remove_file("copy").await
}
