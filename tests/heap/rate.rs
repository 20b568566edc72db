//! The configured rate is in effect as soon as the agent's `start` returns.

use std::hint::black_box;
use std::sync::mpsc;

use jiff::Timestamp;
use marple::internals::base::Bytes;
use marple::internals::heap;
use marple::internals::model::LabelValue;
use marple::{Builder, Settings};

const SIZE: usize = 24_007;

fn ten_blocks() -> Vec<Vec<u8>> {
    (0..10).map(|_| black_box(Vec::with_capacity(SIZE))).collect()
}

#[test]
fn configured_rate_applies_to_existing_threads_after_start() {
    let dir = tempfile::tempdir().unwrap();
    let mut settings = Settings { dir: dir.path().to_owned(), ..Settings::default() };
    settings.heap.rate = Bytes(1);
    let (go, wait) = mpsc::channel();
    let earlier = std::thread::spawn(move || {
        (0..300).for_each(|_| drop(black_box(Vec::<u8>::with_capacity(2000))));
        wait.recv().unwrap();
        ten_blocks()
    });
    let agent = Builder::from_settings(settings).start().unwrap();
    let own = ten_blocks();
    go.send(()).unwrap();
    let theirs = earlier.join().unwrap();
    let profile = heap::snapshot(Timestamp::now()).unwrap();
    let is_size = |value| matches!(value, LabelValue::Number(n, _) if n == SIZE as i64);
    let ours = profile
        .samples
        .iter()
        .filter(|sample| sample.labels.iter().any(|label| is_size(label.value)));
    let sums = ours.fold([0; 4], |sums, sample| {
        std::array::from_fn(|column| sums[column] + sample.values[column])
    });
    let bytes = 20 * SIZE as i64;
    assert_eq!(sums, [20, bytes, 20, bytes]);
    drop((own, theirs, agent));
}
