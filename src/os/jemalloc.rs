//! Control interface of jemalloc, if the program uses it.
//!
//! Nothing here links jemalloc: its function `mallctl` is a weak symbol, which the linker resolves
//! if the program has one and leaves null if not. The obvious alternatives are worse. `dlsym` does
//! not find symbols that an executable links statically, which is the case for `tikv-jemallocator`.
//! A dependency on `tikv-jemalloc-sys` would build a second jemalloc with a C compiler, and cargo
//! would allow only the version that the program has. A preloaded jemalloc has to be looked up at
//! run time, so `dlsym` is tried last.
//!
//! Several may be present, or one that only a C++ library of the program uses. The right one is the
//! one behind Rust's heap. It is identified by its count of bytes allocated by this thread, which
//! grows by a block that we allocate. It is never queried about an address: up to 5.3.0,
//! `arenas.lookup` faults for a block of another allocator.

#![allow(unsafe_code, reason = "calls of `mallctl`, a function found at run time")]

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

/// Evaluates to the address of a symbol the program may have; 0 if it has none.
macro_rules! weak {
    ($symbol:literal) => {{
        let address: usize;
        // SAFETY: reads the symbol's entry of the global offset table, which also exists for a weak
        // symbol and then holds null.
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

/// Size of the test allocation. Nothing else that the thread allocates meanwhile comes near it.
const PROBE_BYTES: usize = 64 << 10;

/// The jemalloc behind Rust's heap.
#[derive(Clone, Copy)]
pub struct Jemalloc(Control);

impl Jemalloc {
    /// Finds the jemalloc of the program. Returns `None` if the program uses another allocator, or
    /// a jemalloc without statistics.
    pub fn detect() -> Option<Self> {
        // SAFETY: a NUL-terminated name, looked up in all loaded objects.
        let preloaded = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"mallctl".as_ptr()) };
        let found = [weak!("_rjem_mallctl"), weak!("mallctl"), weak!("je_mallctl")];
        let found = found.into_iter().chain([preloaded as usize]).filter(|&at| at != 0);
        // SAFETY: not null, and jemalloc's functions with these names have this type.
        let found = found.map(|at| Self(unsafe { transmute::<usize, Control>(at) }));
        found.into_iter().find(|this| this.counts_allocation(PROBE_BYTES))
    }

    /// Returns `true` if it counts a block of `size` bytes that Rust's allocator returns to this
    /// thread.
    fn counts_allocation(self, size: usize) -> bool {
        let allocated = || self.mallctl::<u64, ()>(c"thread.allocated", None).ok();
        let Some(before) = allocated() else { return false };
        let block = black_box(Vec::<u8>::with_capacity(black_box(size)));
        let after = allocated();
        drop(black_box(block));
        after.is_some_and(|after| after.wrapping_sub(before) >= size as u64)
    }

    /// Reads a boolean setting.
    ///
    /// # Errors
    ///
    /// Returns jemalloc's error as a system error, as do the functions below.
    pub fn read_bool(&self, name: &CStr) -> io::Result<bool> {
        // Read as a byte: a `bool` of any other value would be undefined behavior.
        Ok(self.mallctl::<u8, u8>(name, None)? != 0)
    }

    /// Writes a boolean setting.
    pub fn write_bool(&self, name: &CStr, on: bool) -> io::Result<()> {
        self.mallctl::<(), u8>(name, Some(on.into()))
    }

    /// Writes jemalloc's heap profile to the file `path`.
    pub fn dump(&self, path: &CStr) -> io::Result<()> {
        self.mallctl::<(), *const c_char>(c"prof.dump", Some(path.as_ptr()))
    }

    /// Reads an `R` of plain bits unless its size is 0, and writes `new`.
    fn mallctl<R: Copy, W>(&self, name: &CStr, new: Option<W>) -> io::Result<R> {
        let mut old = MaybeUninit::<R>::zeroed();
        let mut size = size_of::<R>();
        let has_result = size > 0;
        let mut new = new;
        let written = new.as_mut().map_or(ptr::null_mut(), ptr::from_mut);
        // SAFETY: the name is NUL-terminated. The buffers are local and passed with their sizes,
        // which jemalloc checks before it accesses them. The value written is a flag or a path: no
        // setting used here takes the address of a block.
        let failed = unsafe {
            (self.0)(
                name.as_ptr(),
                if has_result { old.as_mut_ptr().cast() } else { ptr::null_mut() },
                if has_result { &raw mut size } else { ptr::null_mut() },
                written.cast(),
                if written.is_null() { 0 } else { size_of::<W>() },
            )
        };
        if failed != 0 {
            return Err(io::Error::from_raw_os_error(failed));
        }
        // SAFETY: zeroed, and all callers use integers, for which any bits are valid.
        Ok(unsafe { old.assume_init() })
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// Debian 12's version 5.3.0, which faults if queried about a block that is not its own.
    const LIBRARY: &CStr = c"libjemalloc.so.2";
    const PRELOADED: &str = "MARPLE_TEST_PRELOADED";

    #[test]
    fn program_without_jemalloc_detects_none() {
        assert!(Jemalloc::detect().is_none());
    }

    #[test]
    fn jemalloc_of_another_library_is_ignored() {
        // SAFETY: the constructors of jemalloc's library do not affect a running program.
        let loaded = unsafe { libc::dlopen(LIBRARY.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
        if loaded.is_null() {
            println!("skipped: {LIBRARY:?} is not installed (apt-get install libjemalloc2)");
            return;
        }
        // SAFETY: a NUL-terminated name, looked up in all loaded objects.
        assert!(!unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"mallctl".as_ptr()) }.is_null());
        assert!(Jemalloc::detect().is_none());
    }

    #[test]
    fn a_preloaded_jemalloc_is_the_programs() {
        let test = "os::jemalloc::tests::a_preloaded_jemalloc_is_the_programs";
        if std::env::var_os(PRELOADED).is_some() {
            assert!(Jemalloc::detect().is_some());
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
