//! Frames that stand for frames that a stack does not have.
//!
//! A reader adds up what lies below `main`. A stack that ends early would be missing there, and each would have
//! an outermost frame of its own. So it gets one that says why it ends: totals below `main` and below these rows
//! together are the whole.

/// A frame that stands for missing ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Marker {
    /// Frames in the middle of a deep stack.
    Omitted,
    /// The outer frames: the stack is deeper than its copy.
    DeeperThanCopy,
    /// The outer frames: there are more than a walk takes.
    TooManyFrames,
    /// The outer frames: code without unwind information, whose caller is not certain.
    NoUnwindInformation,
    /// The outer frames: a signal handler on a stack of its own.
    OtherStack,
    /// The whole stack of blocks for which the tables of the heap profiler had no room.
    NoRoom,
    /// The whole stacks of blocks that are freed, whose stacks made room for others.
    NoLongerKept,
}

impl Marker {
    const ALL: [Self; 7] = [
        Self::Omitted,
        Self::DeeperThanCopy,
        Self::TooManyFrames,
        Self::NoUnwindInformation,
        Self::OtherStack,
        Self::NoRoom,
        Self::NoLongerKept,
    ];

    /// The lowest address of a marker. The kernel's half of the address space, so no code of a process is there.
    const FIRST: u64 = u64::MAX - 0xff;

    /// The address that stands for it in a list of frames.
    pub const fn address(self) -> u64 {
        Self::FIRST + self as u64
    }

    /// The marker whose address this is, if it is one's.
    pub fn of(address: u64) -> Option<Self> {
        let number = usize::try_from(address.checked_sub(Self::FIRST)?).ok()?;
        Self::ALL.get(number).copied()
    }

    /// The name that a profile shows.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Omitted => "[frames omitted]",
            Self::DeeperThanCopy => "[truncated: stack deeper than its copy]",
            Self::TooManyFrames => "[truncated: too many frames]",
            Self::NoUnwindInformation => "[truncated: no unwind information]",
            Self::OtherStack => "[truncated: signal handler on another stack]",
            Self::NoRoom => "[no room for its stack]",
            Self::NoLongerKept => "[freed: stack no longer kept]",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markers_read_back_from_their_addresses() {
        for marker in Marker::ALL {
            assert_eq!(Marker::of(marker.address()), Some(marker));
        }
        for none in [0, 1, 0x7fff_ffff_ffff, Marker::FIRST - 1, Marker::FIRST + 7, u64::MAX] {
            assert_eq!(Marker::of(none), None, "{none:x}");
        }
    }
}
