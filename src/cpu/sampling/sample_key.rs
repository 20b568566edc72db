//! Keys of samples with equal thread name and stack, and their packed form in a log.

const NAME_BITS: u32 = 12;
const STACK_BITS: u32 = 19;

/// Key of samples with equal thread name and stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct SampleKey {
    /// Number of the thread name in the thread table.
    pub(super) name: u32,
    pub(super) stack: u32,
    /// `true` if the outer end of the stack is missing.
    pub(super) is_truncated: bool,
}

impl SampleKey {
    /// Returns the key as `stack << 13 | name << 1 | is_truncated`, or `None` if a number is too
    /// large.
    pub(super) fn pack(self) -> Option<u32> {
        let fits = self.stack >> STACK_BITS == 0 && self.name >> NAME_BITS == 0;
        let packed = (self.stack << NAME_BITS | self.name) << 1 | u32::from(self.is_truncated);
        fits.then_some(packed)
    }

    pub(super) fn unpack(packed: u32) -> Self {
        Self {
            name: packed >> 1 & ((1 << NAME_BITS) - 1),
            stack: packed >> (1 + NAME_BITS),
            is_truncated: packed & 1 == 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sample_key_survives_packing() {
        for (name, stack, is_truncated) in
            [(0, 0, false), (4095, (1 << 19) - 1, true), (1, 65_535, false)]
        {
            let key = SampleKey { name, stack, is_truncated };
            assert_eq!(key.pack().map(SampleKey::unpack), Some(key));
        }
        assert_eq!(SampleKey { name: 4096, stack: 0, is_truncated: false }.pack(), None);
        assert_eq!(SampleKey { name: 0, stack: 1 << 19, is_truncated: false }.pack(), None);
    }
}
