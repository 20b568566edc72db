//! What machine code says about who called whom: three questions to a few bytes.

/// How long the instruction of a direct call is.
#[cfg(target_arch = "x86_64")]
pub(super) const CALL: u64 = 5;
#[cfg(target_arch = "aarch64")]
pub(super) const CALL: u64 = 4;

/// The function that `code` calls, if it begins with a direct call, which returns to `next`.
#[cfg(target_arch = "x86_64")]
pub(super) fn target(code: &[u8], next: u64) -> Option<u64> {
    let [0xe8, distance @ ..] = code.first_chunk::<5>()? else { return None };
    Some(next.wrapping_add_signed(i32::from_le_bytes(*distance).into()))
}

/// The function that `code` calls, if it begins with a direct call, which returns to `next`.
#[cfg(target_arch = "aarch64")]
pub(super) fn target(code: &[u8], next: u64) -> Option<u64> {
    let instruction = u32::from_le_bytes(*code.first_chunk()?);
    // `bl`, whose 26 bits are a distance in words from itself.
    let distance = i64::from((instruction << 6).cast_signed() >> 6) * 4;
    (instruction >> 26 == 0b10_0101).then(|| next.wrapping_add_signed(distance - 4))
}

/// The length of the instructions `code` begins with that save the frame pointer and set it.
#[cfg(target_arch = "x86_64")]
pub(super) fn sets_frame_pointer(code: &[u8]) -> Option<u64> {
    const ENDBR64: &[u8] = &[0xf3, 0x0f, 0x1e, 0xfa];
    let rest = code.strip_prefix(ENDBR64).unwrap_or(code);
    // push rbp; mov rbp, rsp, which can be written in two ways.
    let sets = [[0x55, 0x48, 0x89, 0xe5], [0x55, 0x48, 0x8b, 0xec]];
    sets.iter().any(|sets| rest.starts_with(sets)).then_some((code.len() - rest.len()) as u64 + 4)
}

/// The length of the instructions `code` begins with that save the frame pointer and set it.
#[cfg(target_arch = "aarch64")]
pub(super) fn sets_frame_pointer(code: &[u8]) -> Option<u64> {
    let word = |index: usize| Some(u32::from_le_bytes(*code.get(index * 4..)?.first_chunk()?));
    // paciasp, or bti c, may stand before.
    let first = usize::from(matches!(word(0)?, 0xd503_233f | 0xd503_245f));
    // stp x29, x30, [sp, #-n]!; mov x29, sp.
    let saves = word(first)? & 0xffc0_7fff == 0xa980_7bfd;
    (saves && word(first + 1)? == 0x9100_03fd).then_some((first as u64 + 2) * 4)
}

/// Whether `code`, to which a function returns, does nothing but end the thread, as musl's threads begin.
#[cfg(target_arch = "x86_64")]
pub(super) fn ends_the_thread(code: &[u8]) -> bool {
    // mov edi, eax; xor eax, eax; mov al, 60; syscall.
    code.starts_with(&[0x89, 0xc7, 0x31, 0xc0, 0xb0, 0x3c, 0x0f, 0x05])
}

/// Whether `code`, to which a function returns, does nothing but end the thread, as musl's threads begin.
#[cfg(target_arch = "aarch64")]
pub(super) fn ends_the_thread(code: &[u8]) -> bool {
    // mov x8, #93; svc #0.
    code.starts_with(&[0xa8, 0x0b, 0x80, 0xd2, 0x01, 0x00, 0x00, 0xd4])
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    #[test]
    fn calls_and_beginnings_are_read_from_their_bytes() {
        assert_eq!(target(&[0xe8, 0x10, 0, 0, 0], 0x1005), Some(0x1015));
        assert_eq!(target(&[0xe8, 0xf6, 0xff, 0xff, 0xff, 0x90], 0x1005), Some(0xffb));
        for none in [&[0xe8, 0, 0, 0][..], &[0xff, 0x15, 0, 0, 0], &[]] {
            assert_eq!(target(none, 0x1005), None);
        }
        assert_eq!(sets_frame_pointer(&[0x55, 0x48, 0x89, 0xe5, 0x90]), Some(4));
        assert_eq!(sets_frame_pointer(&[0xf3, 0x0f, 0x1e, 0xfa, 0x55, 0x48, 0x89, 0xe5]), Some(8));
        assert_eq!(sets_frame_pointer(&[0x55, 0x53, 0x48, 0x89, 0xe5]), None);
        assert!(ends_the_thread(&[0x89, 0xc7, 0x31, 0xc0, 0xb0, 0x3c, 0x0f, 0x05, 0xf4]));
        assert!(!ends_the_thread(&[0x89, 0xc7]));
    }
}
