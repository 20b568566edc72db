//! Decoder for the call, return and prologue instructions that identify a caller.

/// Length of a direct call instruction.
#[cfg(target_arch = "x86_64")]
pub(crate) const DIRECT_CALL_BYTES: u64 = 5;
#[cfg(target_arch = "aarch64")]
pub(crate) const DIRECT_CALL_BYTES: u64 = 4;

/// Returns the function that `code` calls, if it starts with a direct call that returns to `next`.
#[cfg(target_arch = "x86_64")]
pub(crate) fn direct_call_target(code: &[u8], next: u64) -> Option<u64> {
    let [0xe8, distance @ ..] = code.first_chunk::<5>()? else { return None };
    Some(next.wrapping_add_signed(i32::from_le_bytes(*distance).into()))
}

/// Returns the function that `code` calls, if it starts with a direct call that returns to `next`.
#[cfg(target_arch = "aarch64")]
pub(crate) fn direct_call_target(code: &[u8], next: u64) -> Option<u64> {
    let instruction = u32::from_le_bytes(*code.first_chunk()?);
    // `bl`: the low 26 bits are the distance from the instruction, in words.
    let distance = i64::from((instruction << 6).cast_signed() >> 6) * 4;
    (instruction >> 26 == 0b10_0101).then(|| next.wrapping_add_signed(distance - 4))
}

/// Maximum length of the call in front of a return address.
#[cfg(target_arch = "x86_64")]
pub(crate) const MAX_CALL_BYTES: u64 = 7;
#[cfg(target_arch = "aarch64")]
pub(crate) const MAX_CALL_BYTES: u64 = 4;

/// Returns `true` if `code` ends with a call through a register or through memory.
#[cfg(target_arch = "x86_64")]
pub(crate) fn ends_with_indirect_call(code: &[u8]) -> bool {
    // ff /2: opcode, ModRM, SIB if rm is 4, and a displacement. A prefix does not change the
    // length.
    let length = |modrm: u8| {
        let mode = modrm >> 6;
        let rm = modrm & 7;
        let sib = usize::from(rm == 4 && mode != 3);
        let displacement = match (mode, rm) {
            (0, 5) | (2, _) => 4,
            (1, _) => 1,
            _ => 0,
        };
        2 + sib + displacement
    };
    [2, 3, 4, 6, 7].into_iter().any(|wanted| {
        let call = code.len().checked_sub(wanted).and_then(|at| code.get(at..));
        matches!(call, Some([0xff, modrm, ..]) if modrm >> 3 & 7 == 2 && length(*modrm) == wanted)
    })
}

/// Returns `true` if `code` ends with a call through a register.
#[cfg(target_arch = "aarch64")]
pub(crate) fn ends_with_indirect_call(code: &[u8]) -> bool {
    // `blr`, and its forms that authenticate the pointer.
    code.last_chunk().is_some_and(|word| {
        let word = u32::from_le_bytes(*word);
        word & 0xffff_fc1f == 0xd63f_0000 || word & 0xfeff_f800 == 0xd63f_0800
    })
}

/// Returns the offset of the return address from the stack pointer within the prologue, `done`
/// bytes into the instructions that set the frame pointer. `None` if the address is in a register.
#[cfg(target_arch = "x86_64")]
pub(crate) fn return_address_offset(offset: u64) -> Option<u64> {
    Some(if offset == 0 { 0 } else { 8 })
}

/// Returns the offset of the return address from the stack pointer within the prologue, `done`
/// bytes into the instructions that set the frame pointer. `None` if the address is in a register.
#[cfg(target_arch = "aarch64")]
pub(crate) fn return_address_offset(_done: u64) -> Option<u64> {
    None
}

/// Returns `true` if `code` starts with a return instruction, at which `ra = *sp`.
pub(crate) fn starts_with_return(code: &[u8]) -> bool {
    cfg!(target_arch = "x86_64") && matches!(code.first(), Some(0xc3 | 0xc2))
}

/// Returns `true` if `code` contains an epilogue that restores the frame pointer and returns.
#[cfg(target_arch = "x86_64")]
pub(crate) fn contains_epilogue(code: &[u8]) -> bool {
    code.windows(2).any(|pair| matches!(pair, [0x5d | 0xc9, 0xc3 | 0xc2]))
}

/// Returns `true` if `code` contains an epilogue that restores the frame pointer and returns.
#[cfg(target_arch = "aarch64")]
pub(crate) fn contains_epilogue(code: &[u8]) -> bool {
    code.as_chunks::<4>().0.iter().any(|word| u32::from_le_bytes(*word) == 0xd65f_03c0)
}

/// Returns the length of the prologue at the start of `code` that saves and sets the frame pointer.
#[cfg(target_arch = "x86_64")]
pub(crate) fn frame_pointer_prologue_len(code: &[u8]) -> Option<u64> {
    const ENDBR64: &[u8] = &[0xf3, 0x0f, 0x1e, 0xfa];
    let rest = code.strip_prefix(ENDBR64).unwrap_or(code);
    // `push rbp; mov rbp, rsp`, which has two encodings.
    let sets = [[0x55, 0x48, 0x89, 0xe5], [0x55, 0x48, 0x8b, 0xec]];
    sets.iter().any(|sets| rest.starts_with(sets)).then_some((code.len() - rest.len()) as u64 + 4)
}

/// Returns the length of the prologue at the start of `code` that saves and sets the frame pointer.
#[cfg(target_arch = "aarch64")]
pub(crate) fn frame_pointer_prologue_len(code: &[u8]) -> Option<u64> {
    let word = |index: usize| Some(u32::from_le_bytes(*code.get(index * 4..)?.first_chunk()?));
    // `paciasp` or `bti c` may precede.
    let first = usize::from(matches!(word(0)?, 0xd503_233f | 0xd503_245f));
    // `stp x29, x30, [sp, #-n]!; mov x29, sp`
    let saves = word(first)? & 0xffc0_7fff == 0xa980_7bfd;
    (saves && word(first + 1)? == 0x9100_03fd).then_some((first as u64 + 2) * 4)
}

/// Returns `true` if `code`, at a return address, only ends the thread. musl's threads start like
/// this.
#[cfg(target_arch = "x86_64")]
pub(crate) fn is_thread_exit(code: &[u8]) -> bool {
    // `mov edi, eax; xor eax, eax; mov al, 60; syscall`
    code.starts_with(&[0x89, 0xc7, 0x31, 0xc0, 0xb0, 0x3c, 0x0f, 0x05])
}

/// Returns `true` if `code`, at a return address, only ends the thread. musl's threads start like
/// this.
#[cfg(target_arch = "aarch64")]
pub(crate) fn is_thread_exit(code: &[u8]) -> bool {
    // `mov x8, #93; svc #0`
    code.starts_with(&[0xa8, 0x0b, 0x80, 0xd2, 0x01, 0x00, 0x00, 0xd4])
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    #[test]
    fn call_and_prologue_instructions_are_decoded() {
        assert_eq!(direct_call_target(&[0xe8, 0x10, 0, 0, 0], 0x1005), Some(0x1015));
        assert_eq!(direct_call_target(&[0xe8, 0xf6, 0xff, 0xff, 0xff, 0x90], 0x1005), Some(0xffb));
        for none in [&[0xe8, 0, 0, 0][..], &[0xff, 0x15, 0, 0, 0], &[]] {
            assert_eq!(direct_call_target(none, 0x1005), None);
        }
        assert_eq!(frame_pointer_prologue_len(&[0x55, 0x48, 0x89, 0xe5, 0x90]), Some(4));
        assert_eq!(
            frame_pointer_prologue_len(&[0xf3, 0x0f, 0x1e, 0xfa, 0x55, 0x48, 0x89, 0xe5]),
            Some(8)
        );
        assert_eq!(frame_pointer_prologue_len(&[0x55, 0x53, 0x48, 0x89, 0xe5]), None);
        for call in [
            &[0xff, 0xd0][..],
            &[0x41, 0xff, 0xd3],
            &[0xff, 0x10],
            &[0xff, 0x14, 0x24],
            &[0xff, 0x50, 0x08],
            &[0xff, 0x54, 0x24, 0x08],
            &[0xff, 0x15, 1, 2, 3, 4],
            &[0xff, 0x94, 0x24, 1, 2, 3, 4],
        ] {
            let code = [&[0x90; 8][..], call].concat();
            assert!(ends_with_indirect_call(&code), "{call:x?}");
            assert!(ends_with_indirect_call(call), "{call:x?}");
        }
        for none in [&[0xff][..], &[], &[0xff, 0xe0], &[0xff, 0x15, 1, 2], &[0xe8, 0, 0, 0, 0]] {
            assert!(!ends_with_indirect_call(none), "{none:x?}");
        }
        assert!(
            contains_epilogue(&[0x90, 0x5d, 0xc3])
                && contains_epilogue(&[0xc9, 0xc3])
                && !contains_epilogue(&[0x5d, 0x90])
        );
        assert!(is_thread_exit(&[0x89, 0xc7, 0x31, 0xc0, 0xb0, 0x3c, 0x0f, 0x05, 0xf4]));
        assert!(!is_thread_exit(&[0x89, 0xc7]));
    }
}
