//! Marker frames that replace missing frames of a stack.
//!
//! Readers sum the samples below `main`. A truncated stack would be missing there and would have an
//! arbitrary outermost frame. It therefore gets a marker frame that names the reason. The totals
//! below `main` and below the marker frames add up to the total of the profile.

/// A frame that replaces missing frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Marker {
    /// Frames in the middle of a deep stack.
    Omitted,
    /// The outer frames: the stack is deeper than its copy.
    CopyTooShort,
    /// The outer frames: the stack has more frames than the unwinder walks.
    TooManyFrames,
    /// The outer frames: the code has no unwind information, so the caller is uncertain.
    NoUnwindInfo,
    /// The outer frames: a signal handler runs on an alternate stack.
    AlternateStack,
    /// The whole stack of blocks for which the heap profiler's tables had no space.
    TablesFull,
    /// The whole stacks of freed blocks that were evicted in favor of others.
    Evicted,
}

impl Marker {
    const ALL: [Self; 7] = [
        Self::Omitted,
        Self::CopyTooShort,
        Self::TooManyFrames,
        Self::NoUnwindInfo,
        Self::AlternateStack,
        Self::TablesFull,
        Self::Evicted,
    ];

    /// Lowest address of a marker. It lies in the kernel's half of the address space, where no code
    /// of a process can be.
    const FIRST_ADDRESS: u64 = u64::MAX - 0xff;

    /// Returns the address that represents this marker in a list of frames.
    pub const fn address(self) -> u64 {
        Self::FIRST_ADDRESS + self as u64
    }

    /// Returns the marker with this address, or `None` if it is not a marker's.
    pub fn from_address(address: u64) -> Option<Self> {
        let number = usize::try_from(address.checked_sub(Self::FIRST_ADDRESS)?).ok()?;
        Self::ALL.get(number).copied()
    }

    /// Returns the function name shown in a profile.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Omitted => "[frames omitted]",
            Self::CopyTooShort => "[truncated: stack deeper than its copy]",
            Self::TooManyFrames => "[truncated: too many frames]",
            Self::NoUnwindInfo => "[truncated: no unwind information]",
            Self::AlternateStack => "[truncated: signal handler on an alternate stack]",
            Self::TablesFull => "[no stack: heap tables full]",
            Self::Evicted => "[freed: stack evicted]",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn from_address_inverts_address() {
        for marker in Marker::ALL {
            assert_eq!(Marker::from_address(marker.address()), Some(marker));
        }
        for address in
            [0, 1, 0x7fff_ffff_ffff, Marker::FIRST_ADDRESS - 1, Marker::FIRST_ADDRESS + 7, u64::MAX]
        {
            assert_eq!(Marker::from_address(address), None, "{address:x}");
        }
    }
}
