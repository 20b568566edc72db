//! jemalloc's control, where the program carries jemalloc; nothing where it does not.
//!
//! Nothing here links jemalloc: its entry `mallctl` is a weak symbol, which the linker resolves if the
//! program has one and leaves null if not. The obvious ways are worse. `dlsym` does not see what an
//! executable links statically, which is how `tikv-jemallocator` comes. A dependency on
//! `tikv-jemalloc-sys` would build a second jemalloc by a C compiler, and cargo would allow only the
//! version that the program has, too. What is preloaded has to be looked up at run time, so `dlsym`
//! is asked last.
//!
//! Several may be there, or one that only a C++ library of the program uses; the one that counts is the one
//! that Rust's heap is from. It is found by its count of what this thread has allocated, which grows by a block
//! that we allocate. It is never asked about an address: up to 5.3.0, `arenas.lookup` of a block that is
//! another allocator's is a fault.

#![allow(unsafe_code)]

use std::arch::asm;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::hint::black_box;
use std::io;
use std::mem::{MaybeUninit, transmute};
use std::ptr;

type Control = unsafe extern "C" fn(
    *const c_char,
    *mut c_void,
    *mut libc::size_t,
    *mut c_void,
    libc::size_t,
) -> c_int;

/// The address of a symbol the program may have; 0 if it has none.
macro_rules! weak {
    ($symbol:literal) => {{
        let address: usize;
        // SAFETY: reads the symbol's entry of the linker's table, which is there for a weak symbol,
        // too, and then holds null.
        unsafe {
            #[cfg(target_arch = "x86_64")]
            asm!(
                concat!(".weak ", $symbol),
                concat!("mov {}, qword ptr [rip + ", $symbol, "@GOTPCREL]"),
                out(reg) address, options(nostack, preserves_flags, readonly)
            );
            #[cfg(target_arch = "aarch64")]
            asm!(
                concat!(".weak ", $symbol),
                concat!("adrp {0}, :got:", $symbol),
                concat!("ldr {0}, [{0}, :got_lo12:", $symbol, "]"),
                out(reg) address, options(nostack, preserves_flags, readonly)
            );
        }
        address
    }};
}

/// Bytes allocated to see who counts them. Nothing else that happens meanwhile on the thread comes near it.
const PROBE: usize = 64 << 10;

/// The jemalloc that Rust's heap is from.
#[derive(Clone, Copy)]
pub struct Jemalloc(Control);

impl Jemalloc {
    /// Looks for it; `None` if the program's allocator is another, or a jemalloc without statistics.
    pub fn of_program() -> Option<Self> {
        // SAFETY: a name that ends with a zero, asked of all that is loaded.
        let preloaded = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"mallctl".as_ptr()) };
        let found = [weak!("_rjem_mallctl"), weak!("mallctl"), weak!("je_mallctl")];
        let found = found.into_iter().chain([preloaded as usize]).filter(|&at| at != 0);
        // SAFETY: not null, and what jemalloc calls by these names has this type.
        let found = found.map(|at| Self(unsafe { transmute::<usize, Control>(at) }));
        found.into_iter().find(|this| this.counts(PROBE))
    }

    /// Whether it counts a block of `size` bytes that Rust's allocator hands out to this thread.
    fn counts(self, size: usize) -> bool {
        let allocated = || self.call::<u64, ()>(c"thread.allocated", None).ok();
        let Some(before) = allocated() else { return false };
        let block = black_box(Vec::<u8>::with_capacity(black_box(size)));
        let after = allocated();
        drop(black_box(block));
        after.is_some_and(|after| after.wrapping_sub(before) >= size as u64)
    }

    /// A setting that is on or off.
    ///
    /// # Errors
    ///
    /// Here and below: jemalloc's, as the system's.
    pub fn is_on(&self, name: &CStr) -> io::Result<bool> {
        // Read as a byte: a `bool` of any other value would be undefined.
        Ok(self.call::<u8, u8>(name, None)? != 0)
    }

    /// Turns a setting on or off.
    pub fn turn(&self, name: &CStr, on: bool) -> io::Result<()> {
        self.call::<(), u8>(name, Some(on.into()))
    }

    /// Has it write its profile into the file of this name.
    pub fn dump(&self, path: &CStr) -> io::Result<()> {
        self.call::<(), *const c_char>(c"prof.dump", Some(path.as_ptr()))
    }

    /// Reads an `R` of plain bits, if it is of any size, and writes a `W`.
    fn call<R: Copy, W>(&self, name: &CStr, new: Option<W>) -> io::Result<R> {
        let mut old = MaybeUninit::<R>::zeroed();
        let mut size = size_of::<R>();
        let wanted = size > 0;
        let mut new = new;
        let written = new.as_mut().map_or(ptr::null_mut(), ptr::from_mut);
        // SAFETY: the name ends with a zero; the places are ours, with their sizes, and jemalloc checks
        // the sizes before it touches them. What is written is a flag or a path: no setting that is used
        // here takes the address of a block.
        let failed = unsafe {
            (self.0)(
                name.as_ptr(),
                if wanted { old.as_mut_ptr().cast() } else { ptr::null_mut() },
                if wanted { &raw mut size } else { ptr::null_mut() },
                written.cast(),
                if written.is_null() { 0 } else { size_of::<W>() },
            )
        };
        if failed != 0 {
            return Err(io::Error::from_raw_os_error(failed));
        }
        // SAFETY: zeroed, and callers ask for numbers, for which any bits are a value.
        Ok(unsafe { old.assume_init() })
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// Of Debian 12: 5.3.0, which faults when it is asked about a block that is not its own.
    const LIBRARY: &CStr = c"libjemalloc.so.2";
    const PRELOADED: &str = "MARPLE_TEST_PRELOADED";

    #[test]
    fn a_program_without_jemalloc_has_none() {
        assert!(Jemalloc::of_program().is_none());
    }

    #[test]
    fn a_jemalloc_of_another_library_is_not_the_programs() {
        // SAFETY: jemalloc's library has no constructor that a program that runs would notice.
        let loaded = unsafe { libc::dlopen(LIBRARY.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
        if loaded.is_null() {
            println!("skipped: {LIBRARY:?} is not installed (apt-get install libjemalloc2)");
            return;
        }
        // SAFETY: a name that ends with a zero, asked of all that is loaded.
        assert!(!unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"mallctl".as_ptr()) }.is_null());
        assert!(Jemalloc::of_program().is_none());
    }

    #[test]
    fn a_preloaded_jemalloc_is_the_programs() {
        let test = "os::jemalloc::tests::a_preloaded_jemalloc_is_the_programs";
        if std::env::var_os(PRELOADED).is_some() {
            assert!(Jemalloc::of_program().is_some());
            return;
        }
        // SAFETY: as above.
        if unsafe { libc::dlopen(LIBRARY.as_ptr(), libc::RTLD_NOW) }.is_null() {
            println!("skipped: {LIBRARY:?} is not installed (apt-get install libjemalloc2)");
            return;
        }
        let inner = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", test])
            .envs([(PRELOADED, "1"), ("LD_PRELOAD", LIBRARY.to_str().unwrap())])
            .output()
            .unwrap();
        assert!(inner.status.success(), "{}", String::from_utf8_lossy(&inner.stdout));
        assert!(String::from_utf8_lossy(&inner.stdout).contains("1 passed"));
    }
}
