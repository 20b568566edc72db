//! Go's sums over a heap profile plus the losses that the profile states are the bytes allocated,
//! for each cause of loss.
//!
//! A new cause gets a row in `CASES`, or a test by itself if it needs a separate process.
#![allow(unsafe_code, reason = "signal stacks, generated code and limits")]

use std::fs::{self, File};
use std::hint::black_box;
use std::process::Command;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Barrier, Mutex, PoisonError};
use std::thread;

use jiff::Timestamp;
use marple::internals::agent::{HeapWriter, ProcessMemory};
use marple::internals::base::Bytes;
use marple::internals::heap;

use crate::support::counting::{ALLOCATED_BYTES, LIVE_BYTES};
#[cfg(target_arch = "x86_64")]
use crate::support::generated_code;
use crate::support::peers;
use crate::support::rerun::{self, test_path};

/// The process has one set of tables, so the tests run one at a time.
static SERIAL: Mutex<()> = Mutex::new(());

/// A profile as read by Go, and the counts of the allocator when it was taken.
struct Dump {
    _dir: tempfile::TempDir,
    path: String,
    raw: String,
    actual: AllocatorBytes,
}

/// Bytes allocated since the program started, and bytes in use.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct AllocatorBytes {
    allocated: f64,
    in_use: f64,
}

impl AllocatorBytes {
    fn now() -> Self {
        let [allocated, in_use] =
            [&ALLOCATED_BYTES, &LIVE_BYTES].map(|sum| sum.load(SeqCst) as f64);
        Self { allocated, in_use }
    }

    fn growth_since(self, before: Self) -> Self {
        let Self { allocated, in_use } = before;
        Self { allocated: self.allocated - allocated, in_use: self.in_use - in_use }
    }
}

impl Dump {
    fn write(writer: &mut HeapWriter) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("heap.pprof");
        let out = File::create(&path).unwrap();
        let excluded = heap::exclude_current_thread();
        let truly = AllocatorBytes::now();
        writer.write(Timestamp::now(), ProcessMemory::default(), out).unwrap();
        // Allocations of an excluded thread are in no profile.
        ALLOCATED_BYTES.store(truly.allocated as isize, SeqCst);
        LIVE_BYTES.store(truly.in_use as isize, SeqCst);
        drop(excluded);
        let path = path.to_str().unwrap().to_owned();
        let raw = peers::go_pprof(&["-raw", &path]);
        Self { _dir: dir, path, raw, actual: truly }
    }

    /// Returns the sums over Go's samples.
    fn go_sums(&self) -> AllocatorBytes {
        let samples = self.raw.split("\nSamples:\n").nth(1).unwrap();
        let samples = samples.split("\nLocations\n").next().unwrap();
        assert!(samples.starts_with("alloc_objects/count alloc_space/bytes inuse_objects/count"));
        let mut sums = AllocatorBytes::default();
        // Lines of labels have no number before the first colon.
        for line in samples.lines() {
            let values = line.split(':').next().unwrap().split_whitespace();
            let values: Result<Vec<f64>, _> = values.map(str::parse).collect();
            if let Ok([_, allocated, _, in_use]) = values.as_deref() {
                sums.allocated += allocated;
                sums.in_use += in_use;
            }
        }
        sums
    }

    /// Returns the bytes that Go's rows account for, or those of the row `name`.
    fn row_bytes(&self, index: &str, name: Option<&str>) -> f64 {
        let index = format!("-sample_index={index}");
        let args = ["-top", "-unit=B", "-nodefraction=0", "-nodecount=1000000", &index, &self.path];
        let text = peers::go_pprof(&args);
        let bytes = match name {
            None => text.split("accounting for ").nth(1),
            Some(name) => text.lines().find(|line| line.ends_with(name)),
        };
        let bytes = bytes.and_then(|text| text.split_whitespace().next()).unwrap_or("0");
        bytes.trim_end_matches(['B', ',']).parse().unwrap_or_else(|_| panic!("{bytes}: {text}"))
    }

    /// Returns the first number after `before` in the comments.
    fn stated_number(&self, before: &str) -> f64 {
        let after = self.raw.split(before).nth(1);
        let number = after.and_then(|after| after.split_whitespace().next());
        number
            .and_then(|digits| digits.parse().ok())
            .unwrap_or_else(|| panic!("{before}: {self:?}"))
    }

    fn loss_count(&self, cause: &str) -> u64 {
        let mut lines = self.raw.lines().filter_map(|line| line.split("lost: ").nth(1));
        let line = lines.find(|line| line.contains(cause));
        line.map_or(0, |line| line.split(' ').next().unwrap().parse().unwrap())
    }
}

impl std::fmt::Debug for Dump {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.raw.split("\nSamples:\n").next().unwrap_or_default())
    }
}

/// Tolerance of a sum in standard errors. One run in a million exceeds it.
const MAX_STANDARD_ERRORS: f64 = 5.0;

/// Checks that the growth of Go's sums from `before` to `after`, plus the stated losses, is the
/// number of bytes allocated.
#[track_caller]
fn check_growth(context: &str, before: &Dump, after: &Dump) {
    let growth = after.go_sums().growth_since(before.go_sums());
    let truly = after.actual.growth_since(before.actual);
    // The variances of independent samples add up.
    let error = |stated: &str| {
        let [before, after] = [before, after].map(|dump| dump.stated_number(stated).powi(2));
        (after - before).abs().sqrt()
    };
    let dropped = |dump: &Dump| match dump.raw.contains("heap: no sample was dropped") {
        true => 0.0,
        false => dump.stated_number("samples were dropped and represent "),
    };
    let dropped = dropped(after) - dropped(before);
    for (kind, shown, lost, truly, error) in [
        ("allocated", growth.allocated, 0.0, truly.allocated, error("allocated, standard error ")),
        ("in use", growth.in_use, dropped, truly.in_use, error("in use, standard error ")),
    ] {
        println!("{context}: {kind}: Go {shown} + {lost} lost of {truly}, error {error:.0}");
        let off = (shown + lost - truly).abs();
        assert!(
            off <= MAX_STANDARD_ERRORS * error + 1.0,
            "{context}: {kind} is off by {off}: {after:?}"
        );
    }
    // `least` and `most` follow from the bytes counted without sampling and the bound on those not
    // counted yet.
    let counted = |dump: &Dump| dump.stated_number("counted, not sampled: ");
    let uncounted_bound = |dump: &Dump| dump.stated_number("since program start, plus up to ");
    let min_counted = counted(after) - counted(before) - uncounted_bound(before);
    let max_counted = counted(after) - counted(before) + uncounted_bound(after);
    let truly = truly.allocated;
    assert!(
        (min_counted..=max_counted).contains(&truly),
        "{context}: {truly} of {min_counted} to {max_counted}: {after:?}"
    );
}

type Blocks = Vec<Vec<u8>>;

/// Allocates 8 MiB in blocks of 100 bytes to 30 KiB, and frees every other block.
#[inline(never)]
fn allocate_blocks(kept: &mut Blocks) {
    for n in 0..1024 {
        let block = Vec::with_capacity(black_box(100 + n * 7919 % 30_000));
        kept.push(block);
        if n % 2 == 0 {
            kept.swap_remove(n % kept.len());
        }
    }
}

fn run_on_stack<T: Send>(kib: usize, run: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let builder = thread::Builder::new().stack_size(kib << 10);
        builder.spawn_scoped(scope, run).unwrap().join().unwrap()
    })
}

fn allocate_shallow() -> Blocks {
    let mut kept = Blocks::new();
    allocate_blocks(&mut kept);
    kept
}

#[inline(never)]
fn recurse(levels: u32, kept: &mut Blocks) {
    match levels {
        0 => allocate_blocks(kept),
        _ => recurse(levels - 1, kept),
    }
    black_box(kept);
}

fn allocate_deep(levels: u32) -> Blocks {
    run_on_stack(64 << 10, || {
        let mut kept = Blocks::new();
        recurse(levels, &mut kept);
        kept
    })
}

/// Allocates with less stack left than unwinding needs. In a debug build unwinding needs more than
/// all 32 KiB.
fn allocate_on_small_stack() -> Blocks {
    const USED_STACK_BYTES: usize = if cfg!(debug_assertions) { 8 } else { 22 << 10 };
    run_on_stack(32, || {
        let used = black_box([0u8; USED_STACK_BYTES]);
        let kept = allocate_shallow();
        black_box(used);
        kept
    })
}

fn allocate_on_short_threads() -> Blocks {
    let run = |n: usize| thread::spawn(move || Vec::with_capacity(black_box(100 + n * 37 % 9000)));
    (0..1000).map(|n| run(n).join().unwrap()).collect()
}

/// Allocates on more threads than may unwind at once: many are preempted in the middle of a walk.
fn allocate_on_many_threads() -> Blocks {
    #[inline(never)]
    fn descend(levels: u32, kept: &mut Blocks) {
        match levels {
            0 => {
                // Long enough for the thread to be preempted, which is mostly within a walk.
                (0..400).for_each(|n| drop(black_box(Vec::<u8>::with_capacity(black_box(n + 1)))));
                kept.extend((0..200).map(|n| Vec::with_capacity(black_box(100 + n * 37 % 900))));
            }
            _ => descend(levels - 1, kept),
        }
        black_box(kept);
    }
    let begin = Barrier::new(MANY_THREADS);
    thread::scope(|scope| {
        let spawn = |_| {
            scope.spawn(|| {
                let mut kept = Blocks::new();
                begin.wait();
                descend(100, &mut kept);
                kept
            })
        };
        let threads: Vec<_> = (0..MANY_THREADS).map(spawn).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    })
}

const MANY_THREADS: usize = 96;
const TOO_MANY_WALKERS: &str = "too many threads unwinding at once";

fn allocate_and_grow() -> Blocks {
    let grow = |mut block: Vec<u8>| {
        block.reserve_exact(black_box(block.capacity() * 2));
        assert!(block.try_reserve_exact(isize::MAX as usize - 1).is_err());
        block
    };
    allocate_shallow().into_iter().map(grow).collect()
}

static HANDLER_BLOCKS: Mutex<Blocks> = Mutex::new(Blocks::new());

extern "C" fn handler(_: libc::c_int) {
    allocate_blocks(&mut HANDLER_BLOCKS.lock().unwrap());
}

/// Allocates in a signal handler on an alternate stack. The signal is raised, so it interrupts no
/// allocation.
fn allocate_on_alternate_stack() -> Blocks {
    thread::spawn(|| {
        let memory = vec![0u8; 256 << 10].leak();
        // SAFETY: the stack is leaked, and the handler runs only when this thread raises the
        // signal.
        unsafe {
            let (mut stack, mut before): (libc::stack_t, _) = std::mem::zeroed();
            stack.ss_sp = memory.as_mut_ptr().cast();
            stack.ss_size = memory.len();
            assert_eq!(libc::sigaltstack(&raw const stack, &raw mut before), 0);
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = handler as *const () as usize;
            action.sa_flags = libc::SA_ONSTACK;
            assert_eq!(libc::sigaction(libc::SIGUSR1, &raw const action, std::ptr::null_mut()), 0);
            libc::raise(libc::SIGUSR1);
            libc::sigaltstack(&raw const before, std::ptr::null_mut());
        }
    })
    .join()
    .unwrap();
    std::mem::take(&mut HANDLER_BLOCKS.lock().unwrap())
}

#[cfg(target_arch = "x86_64")]
extern "C" fn allocate_in_callback() {
    allocate_blocks(&mut HANDLER_BLOCKS.lock().unwrap());
}

#[cfg(target_arch = "x86_64")]
fn allocate_in_generated_code(code: &[&[u8]]) -> Blocks {
    let page = generated_code::map_code(code, false);
    // SAFETY: the code follows the C calling convention and calls the function it is given.
    let run = unsafe { std::mem::transmute::<*const (), extern "C" fn(extern "C" fn())>(page) };
    run(allocate_in_callback);
    std::mem::take(&mut HANDLER_BLOCKS.lock().unwrap())
}

/// A way to allocate, and the cause of loss that a profile must state for it at rate 1.
struct Case {
    name: &'static str,
    run: fn() -> Blocks,
    lost: &'static str,
}

const CASES: &[Case] = &[
    Case { name: "shallow stacks", run: allocate_shallow, lost: "" },
    Case { name: "blocks that grew", run: allocate_and_grow, lost: "" },
    Case { name: "threads that end early", run: allocate_on_short_threads, lost: "" },
    Case { name: "400 levels", run: || allocate_deep(400), lost: "deeper than 128 frames" },
    Case { name: "6000 levels", run: || allocate_deep(6000), lost: "deeper than 4096 frames" },
    Case { name: "a small stack", run: allocate_on_small_stack, lost: "of stack left" },
    Case {
        name: "a signal's stack",
        run: allocate_on_alternate_stack,
        lost: "not the thread's own",
    },
    #[cfg(target_arch = "x86_64")]
    Case {
        name: "generated code",
        run: || allocate_in_generated_code(&generated_code::CALLBACK),
        lost: "through code without unwind tables",
    },
    #[cfg(target_arch = "x86_64")]
    Case {
        name: "generated code without a frame",
        run: || allocate_in_generated_code(&generated_code::CALLBACK_WITHOUT_FRAME),
        lost: "no unwind information",
    },
];

/// Runs the cases at rate 1 and at a sampling rate.
fn check_cases(cases: &[Case]) {
    let mut writer = HeapWriter::reserve();
    // A case allocates about 16 MiB, so it has about 1000 samples.
    for rate in [1, 16 << 10] {
        heap::set_rate(Bytes(rate));
        // The first dump also builds the unwind tables, which are not counted.
        drop(Dump::write(&mut writer));
        let mut before = Dump::write(&mut writer);
        let mut kept = Vec::new();
        for case in cases {
            kept.push((case.run)());
            let after = Dump::write(&mut writer);
            let context = format!("{}, rate {rate}", case.name);
            check_growth(&context, &before, &after);
            if rate == 1 && !case.lost.is_empty() {
                assert!(
                    after.loss_count(case.lost) > before.loss_count(case.lost),
                    "{context}: {after:?}"
                );
            }
            before = after;
        }
        let shown = before.go_sums();
        for (index, total) in [("alloc_space", shown.allocated), ("inuse_space", shown.in_use)] {
            let rows = before.row_bytes(index, None);
            assert!((rows - total).abs() < 1.0, "rate {rate}: {index}: {rows} of {total} in rows");
        }
    }
}

#[test]
fn profile_sum_plus_losses_equals_allocated_bytes() {
    let _serial = SERIAL.lock().unwrap_or_else(PoisonError::into_inner);
    check_cases(CASES);
}

#[test]
fn sums_are_complete_if_too_many_threads_unwind_at_once() {
    let _serial = SERIAL.lock().unwrap_or_else(PoisonError::into_inner);
    heap::set_rate(Bytes(1));
    let mut writer = HeapWriter::reserve();
    // Allocates the caches of the unwinder's slots. The allocator counts them, and the profile
    // excludes them as marple's memory. All exist once a thread has found no free slot.
    let mut before = Dump::write(&mut writer);
    while before.loss_count(TOO_MANY_WALKERS) == 0 {
        drop(allocate_on_many_threads());
        before = Dump::write(&mut writer);
    }
    let known = before.loss_count(TOO_MANY_WALKERS);
    // Not every round has such a loss: it depends on when threads are preempted.
    while before.loss_count(TOO_MANY_WALKERS) == known {
        let _kept = allocate_on_many_threads();
        let after = Dump::write(&mut writer);
        check_growth("many threads at once", &before, &after);
        before = after;
    }
}

/// Set in a process that runs a single test.
const RERUN_ENV: &str = "MARPLE_TEST_AGAIN";

/// Turns sampling off before `main` in such a process, so that no allocation of the harness is
/// sampled at the default rate.
#[used]
#[unsafe(link_section = ".init_array")]
static DISABLE_SAMPLING_BEFORE_MAIN: extern "C" fn() = disable_sampling;

extern "C" fn disable_sampling() {
    if std::env::var_os(RERUN_ENV).is_some() {
        heap::set_rate(Bytes(0));
    }
}

/// Runs `test` in a process with a copy of this program, which calls `body`.
fn rerun_alone(test: &str, body: impl FnOnce()) -> String {
    if std::env::var_os(RERUN_ENV).is_some() {
        body();
        return String::new();
    }
    let dir = tempfile::tempdir().unwrap();
    let copy = dir.path().join("program");
    fs::copy(std::env::current_exe().unwrap(), &copy).unwrap();
    let mut command = Command::new(&copy);
    let run = command.args(rerun::args(test)).arg("--test-threads=1").env(RERUN_ENV, "1");
    let output = run.output().unwrap();
    let output_text = String::from_utf8_lossy(&output.stdout);
    println!("{output_text}");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(output_text.contains("1 passed"), "{output_text}");
    output_text.into_owned()
}

#[test]
fn sums_are_complete_after_program_file_was_deleted() {
    rerun_alone(test_path!(sums_are_complete_after_program_file_was_deleted), || {
        fs::remove_file(std::env::current_exe().unwrap()).unwrap();
        check_cases(&CASES[..2]);
    });
}

/// The first samples of the process come from a thread with too little stack to read the loaded
/// files.
#[test]
fn blocks_sampled_before_mappings_are_read_are_in_sums() {
    const HARNESS_SAMPLED_FIRST: &str = "the harness had a sample first";
    let test = test_path!(blocks_sampled_before_mappings_are_read_are_in_sums);
    let body = || {
        // The harness's thread would have samples too, with enough stack to read the files.
        let stat = format!("/proc/self/task/{}/stat", std::process::id());
        while !fs::read_to_string(&stat).unwrap().contains(") S ") {
            thread::yield_now();
        }
        let (kept, truly) = run_on_stack(64, || {
            heap::set_rate(Bytes(1));
            let before = AllocatorBytes::now();
            let kept = allocate_shallow();
            let truly = AllocatorBytes::now().growth_since(before);
            heap::set_rate(Bytes(0));
            (kept, truly)
        });
        let dump = Dump::write(&mut HeapWriter::reserve());
        if dump.loss_count("loaded files not read yet") <= 900 {
            return println!("{HARNESS_SAMPLED_FIRST}");
        }
        let unknown = |index| dump.row_bytes(index, Some("[stack unknown]"));
        let shown =
            AllocatorBytes { allocated: unknown("alloc_space"), in_use: unknown("inuse_space") };
        assert_eq!(shown, truly);
        drop(kept);
    };
    let is_first = (0..5).any(|_| !rerun_alone(test, body).contains(HARNESS_SAMPLED_FIRST));
    assert!(is_first, "{HARNESS_SAMPLED_FIRST} in five processes");
}

/// Lets the process map enough memory in advance, because the limit below makes every mapping fail.
fn reserve_heap_memory() {
    // SAFETY: both calls only set parameters of the C allocator: it returns no memory to the
    // kernel, and maps no block separately.
    unsafe {
        libc::mallopt(libc::M_TRIM_THRESHOLD, i32::MAX);
        libc::mallopt(libc::M_MMAP_THRESHOLD, i32::MAX);
    }
    let blocks: Vec<Vec<u8>> = (0..1024).map(|_| vec![1; 64 << 10]).collect();
    drop(black_box(blocks));
}

#[test]
fn samples_dropped_by_full_tables_are_reported_with_weight() {
    let test = test_path!(samples_dropped_by_full_tables_are_reported_with_weight);
    rerun_alone(test, || {
        let mut writer = HeapWriter::reserve();
        heap::set_rate(Bytes(1));
        drop(Dump::write(&mut writer));
        let before = Dump::write(&mut writer);
        let mut kept = Blocks::with_capacity(100_000);
        reserve_heap_memory();
        let limit = |soft: u64| libc::rlimit { rlim_cur: soft, rlim_max: libc::RLIM_INFINITY };
        let unlimited = limit(libc::RLIM_INFINITY);
        // SAFETY: both calls read a limit that outlives them.
        unsafe { assert_eq!(libc::setrlimit(libc::RLIMIT_AS, &limit(1 << 20)), 0) };
        (0..100_000).for_each(|_| kept.push(Vec::with_capacity(black_box(64))));
        // SAFETY: as above.
        unsafe { assert_eq!(libc::setrlimit(libc::RLIMIT_AS, &unlimited), 0) };
        let after = Dump::write(&mut writer);
        assert!(after.loss_count("the table of live blocks is full") > 10_000, "{after:?}");
        check_growth("tables that cannot grow", &before, &after);
    });
}
