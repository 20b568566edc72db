//! No thread waits for a dump. While its writer is blocked, other threads allocate, grow and free
//! sampled blocks under known and new stacks.

use std::hint::black_box;
use std::io::{self, Write};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use jiff::Timestamp;
use marple::internals::agent::{HeapWriter, ProcessMemory};
use marple::internals::base::Bytes;
use marple::internals::heap;

/// Only a thread that waits for the dump takes this long.
const PROGRESS_TIMEOUT: Duration = Duration::from_secs(60);

const BLOCKS: usize = 500;

/// A writer that lets the other threads work at each write, and returns when both have finished.
struct BlockingWriter {
    go: Vec<Sender<()>>,
    done: Receiver<usize>,
    writes: usize,
    blocks: usize,
}

impl Write for BlockingWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.go.iter().for_each(|go| go.send(()).unwrap());
        for _ in &self.go {
            let blocks = self.done.recv_timeout(PROGRESS_TIMEOUT).map_err(io::Error::other)?;
            self.blocks += blocks;
        }
        self.writes += 1;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[inline(never)]
fn allocate_at_depth(levels: usize, size: usize) -> Vec<u8> {
    black_box(match levels {
        0 => Vec::with_capacity(size),
        _ => allocate_at_depth(levels - 1, size),
    })
}

fn allocate(round: usize) -> usize {
    let mut kept: Vec<Vec<u8>> =
        (0..BLOCKS).map(|n| allocate_at_depth(n % 50, 100 + round % 50)).collect();
    kept.iter_mut().for_each(|block| block.reserve_exact(300));
    kept.len()
}

#[test]
fn threads_make_progress_while_dump_writer_is_blocked() {
    heap::set_rate(Bytes(1));
    let kept: Vec<Vec<u8>> =
        (0..20_000).map(|n| allocate_at_depth(n % 90, 16 + n % 3000)).collect();
    let mut writer = HeapWriter::reserve();
    let (report, done) = channel();
    let (go, turns): (Vec<_>, Vec<_>) = (0..2).map(|_| channel::<()>()).unzip();
    let mut out = BlockingWriter { go, done, writes: 0, blocks: 0 };
    std::thread::scope(|scope| {
        for turn in turns {
            let report = report.clone();
            scope.spawn(move || {
                for (turn, ()) in turn.into_iter().enumerate() {
                    report.send(allocate(turn)).unwrap();
                }
            });
        }
        let written = writer.write(Timestamp::now(), ProcessMemory::default(), &mut out);
        out.go.clear();
        written.unwrap();
    });
    println!(
        "{} blocks allocated, grown and freed by others within {} writes of one dump",
        out.blocks, out.writes
    );
    assert!(out.writes > 3, "written in one piece: {}", out.writes);
    assert_eq!(out.blocks, 2 * BLOCKS * out.writes);
    drop(kept);
}
