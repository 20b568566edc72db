//! Machine code that no file contains, as a compiler at run time makes it.
#![allow(unsafe_code, reason = "code cannot be generated without")]

/// Code that calls the function it is given:
/// `push rbp; mov rbp, rsp; call rdi; pop rbp; ret`
pub(crate) const CALLBACK: [&[u8]; 1] = [&[0x55, 0x48, 0x89, 0xe5, 0xff, 0xd7, 0x5d, 0xc3]];

/// [`CALLBACK`] without a frame pointer to follow:
/// `push rbp; xor ebp, ebp; sub rsp, 0x100; call rdi; add rsp, 0x100; pop rbp; ret`
pub(crate) const CALLBACK_WITHOUT_FRAME: [&[u8]; 1] = [&[
    0x55, 0x31, 0xed, 0x48, 0x81, 0xec, 0, 1, 0, 0, 0xff, 0xd7, 0x48, 0x81, 0xc4, 0, 1, 0, 0, 0x5d,
    0xc3,
]];

/// Maps a page with `code`: of a memory file, or of no file.
pub(crate) fn map_code(code: &[&[u8]], in_file: bool) -> *const () {
    let code = code.concat();
    // SAFETY: the kernel chooses the address of the mapping, which is large enough for the code
    // copied into it.
    unsafe {
        let file = if in_file { libc::memfd_create(c"jit".as_ptr(), 0) } else { -1 };
        let kind = if in_file { libc::MAP_SHARED } else { libc::MAP_PRIVATE | libc::MAP_ANONYMOUS };
        libc::ftruncate(file, 4096);
        let page = libc::mmap(std::ptr::null_mut(), 4096, 7, kind, file, 0);
        assert_ne!(page, libc::MAP_FAILED);
        std::ptr::copy_nonoverlapping(code.as_ptr(), page.cast(), code.len());
        page.cast()
    }
}
