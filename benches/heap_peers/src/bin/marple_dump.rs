//! marple at a sampling rate of 1 byte, for its dump.

use std::alloc::System;
use std::cell::RefCell;
use std::io::{self, Write};

use heap_peers::Counting;
use jiff::Timestamp;
use marple::internals::agent::{HeapWriter, ProcessMemory};
use marple::internals::base::Bytes;
use marple::internals::heap;

#[global_allocator]
static ALLOCATOR: marple::Allocator<Counting<System>> = marple::Allocator::new(Counting(System));

/// A writer that only counts bytes.
struct Counted(usize);

impl Write for Counted {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn main() {
    let writer = RefCell::new(HeapWriter::reserve());
    let dump = || {
        let mut out = Counted(0);
        let (now, process) = (Timestamp::now(), ProcessMemory::default());
        writer.borrow_mut().write(now, process, &mut out).expect("a dump");
        out.0
    };
    dump();
    heap_peers::serve(|| heap::set_rate(Bytes(1)), dump);
}
