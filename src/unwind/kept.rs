//! Frames kept of a walk: all of a shallow stack, both ends of a deep one.
//!
//! ```text
//! frames   [0 .. len/2)      the innermost
//!          [len/2 .. len)    a ring of the latest ones; at the end the outermost, behind a marker
//! ```
//!
//! The innermost frames of a deep stack (an interpreter, a parser) show its current work, the
//! outermost show the caller, and the frames in between repeat. A stack that cannot be walked to
//! its end still has its earlier outermost frames. [`OutermostFrames`] stores those of a thread and
//! the addresses of their return addresses. The frames are valid while these words are unchanged
//! and lie above the stack in use further in.

use crate::model::Marker;
use crate::unwind::WalkEnd;

/// Maximum frames per walk: some 60 us in the allocating thread.
pub(crate) const MAX_WALKED_FRAMES: usize = 4096;

/// Outermost frames stored for a thread that walks its own stack: 130 bytes per thread.
pub(crate) const MAX_OUTERMOST_OWN: usize = 8;

/// Outermost frames stored for copied stacks. A runtime has some 20 below its tasks.
pub(crate) const MAX_OUTERMOST_COPIED: usize = 48;

/// Bytes of a return address. On x86_64 it is stored at `caller's sp - 8`.
const WORD_BYTES: u64 = 8;

/// Outermost frames of a thread at its last complete walk, as (frame, stack pointer), outermost
/// last.
#[derive(Clone, Copy, Debug)]
pub struct OutermostFrames<const N: usize = MAX_OUTERMOST_COPIED> {
    frames: [(u64, u64); N],
    length: usize,
}

impl<const N: usize> OutermostFrames<N> {
    /// The empty list.
    pub const EMPTY: Self = Self { frames: [(0, 0); N], length: 0 };

    /// Returns the frames that are unchanged above `from`. Also returns the return address that has
    /// replaced the one next further in, if any. `read` reads a word of the stack.
    ///
    /// Always empty on aarch64, where a return address has no fixed place.
    fn unchanged_above(
        &self,
        from: u64,
        mut read: impl FnMut(u64) -> Result<u64, ()>,
    ) -> (&[(u64, u64)], Option<ReplacedReturnAddress>) {
        let known = self.frames.get(..self.length).unwrap_or_default();
        if cfg!(not(target_arch = "x86_64")) {
            return (&[], None);
        }
        let mut word_of = |&(_, pointer): &(u64, u64)| {
            let place = pointer.wrapping_sub(WORD_BYTES);
            (place >= from).then(|| read(place).ok()).flatten()
        };
        let mut is_there = |frame: &&(u64, u64)| word_of(frame) == Some(frame.0.wrapping_add(1));
        let count = known.iter().rev().take_while(|frame| is_there(frame)).count();
        let (inner, unchanged) = known.split_at(known.len() - count);
        let replaced = inner.last().zip(unchanged.first()).and_then(|(further_in, outer)| {
            let return_address = word_of(further_in)?;
            Some(ReplacedReturnAddress { return_address, pointer: further_in.1, outer: outer.1 })
        });
        (unchanged, replaced)
    }
}

/// Stack word that held a return address in an earlier walk and holds another value. It may be the
/// return address of another call of the same function.
pub(crate) struct ReplacedReturnAddress {
    /// Current value of the word.
    pub(crate) return_address: u64,
    /// Stack pointer of the frame that it would return to.
    pub(crate) pointer: u64,
    /// Stack pointer of the next frame further out, which is unchanged.
    pub(crate) outer: u64,
}

/// Receiver of the frames of one walk.
pub(crate) struct FrameBuffer<'a, const N: usize> {
    frames: &'a mut [u64],
    /// Stack pointers of the frames, up to the length of the slice.
    pointers: &'a mut [u64],
    count: usize,
    latest: [(u64, u64); N],
}

impl<'a, const N: usize> FrameBuffer<'a, N> {
    pub(crate) fn new(frames: &'a mut [u64], pointers: &'a mut [u64]) -> Self {
        Self { frames, pointers, count: 0, latest: [(0, 0); N] }
    }

    /// Adds a frame and its stack pointer. Returns `false` at the maximum number of frames.
    #[inline]
    pub(crate) fn push(&mut self, frame: u64, pointer: u64) -> bool {
        if self.count >= MAX_WALKED_FRAMES {
            return false;
        }
        self.store(frame, pointer);
        true
    }

    #[inline]
    fn store(&mut self, frame: u64, pointer: u64) {
        let length = self.frames.len();
        let at = if self.count < length { self.count } else { self.ring_index(self.count) };
        if let Some(place) = self.frames.get_mut(at) {
            *place = frame;
        }
        if let Some(place) = self.pointers.get_mut(at) {
            *place = pointer;
        }
        if let Some(place) = self.latest.get_mut(self.count % N) {
            *place = (frame, pointer);
        }
        self.count += 1;
    }

    /// Returns the ring index of frame `number`.
    fn ring_index(&self, number: usize) -> usize {
        let inner = self.frames.len() / 2;
        let outer = (self.frames.len() - inner).max(1);
        inner + (number - inner) % outer
    }

    /// Returns the outermost frames of a complete walk.
    pub(crate) fn outermost(&self) -> OutermostFrames<N> {
        // The innermost frame has no return address above its own stack pointer.
        let length = self.count.saturating_sub(1).min(N);
        let mut frames = [(0, 0); N];
        let numbers = self.count - length..self.count;
        for (place, number) in frames.iter_mut().zip(numbers) {
            *place = self.latest.get(number % N).copied().unwrap_or_default();
        }
        OutermostFrames { frames, length }
    }

    /// Appends the frames of an earlier walk that are unchanged above `from`. Returns `true` if
    /// there are any. `is_frame` decides if a replaced return address fits the frames further out.
    pub(crate) fn append_outermost(
        &mut self,
        earlier: &OutermostFrames<N>,
        from: u64,
        read: impl FnMut(u64) -> Result<u64, ()>,
        is_frame: impl FnOnce(&ReplacedReturnAddress) -> bool,
    ) -> bool {
        let (outer, replaced) = earlier.unchanged_above(from, read);
        let Some(&(_, pointer)) = outer.first() else { return false };
        self.store(Marker::Omitted.address(), pointer);
        if let Some(replaced) = replaced.filter(is_frame) {
            self.store(replaced.return_address.wrapping_sub(1), replaced.pointer);
        }
        outer.iter().for_each(|&(frame, pointer)| self.store(frame, pointer));
        true
    }

    /// Completes the list, with a marker in place of missing outermost frames. Returns the number
    /// of frames written and the number left out between them.
    pub(crate) fn finish(mut self, end: WalkEnd) -> (usize, usize) {
        let marker = match end {
            WalkEnd::Complete => None,
            WalkEnd::CopyTooShort => Some(Marker::CopyTooShort),
            WalkEnd::TooManyFrames => Some(Marker::TooManyFrames),
            WalkEnd::NoUnwindInfo => Some(Marker::NoUnwindInfo),
            WalkEnd::OtherStack => Some(Marker::AlternateStack),
        };
        if let Some(marker) = marker {
            self.store(marker.address(), u64::MAX);
        }
        let count = self.count;
        let length = self.frames.len();
        if count <= length || length == 0 {
            return (count.min(length), 0);
        }
        let first = self.ring_index(count);
        let inner = length / 2;
        for words in [&mut *self.frames, &mut *self.pointers] {
            if let Some(ring) = words.get_mut(inner..).filter(|ring| first - inner <= ring.len()) {
                ring.rotate_left(first - inner);
            }
        }
        if length > 1
            && let Some(place) = self.frames.get_mut(inner)
        {
            *place = Marker::Omitted.address();
        }
        (length, count - length + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OMITTED: u64 = Marker::Omitted.address();
    const BROKEN: u64 = Marker::NoUnwindInfo.address();

    fn kept(count: u64, length: usize, end: WalkEnd) -> (Vec<u64>, usize) {
        let mut frames = vec![0; length];
        let mut pointers = vec![0; length];
        let mut kept = FrameBuffer::<8>::new(&mut frames, &mut pointers);
        assert!((1..=count).all(|frame| kept.push(frame, frame * 10)));
        let (depth, omitted) = kept.finish(end);
        for (frame, pointer) in frames.iter().zip(&pointers).take(depth) {
            if Marker::from_address(*frame).is_none() {
                assert_eq!(*pointer, frame * 10);
            }
        }
        frames.truncate(depth);
        (frames, omitted)
    }

    #[test]
    fn deep_stack_keeps_both_ends() {
        assert_eq!(kept(5, 6, WalkEnd::Complete), (vec![1, 2, 3, 4, 5], 0));
        assert_eq!(kept(6, 6, WalkEnd::Complete), (vec![1, 2, 3, 4, 5, 6], 0));
        assert_eq!(kept(7, 6, WalkEnd::Complete), (vec![1, 2, 3, OMITTED, 6, 7], 2));
        assert_eq!(kept(8, 6, WalkEnd::Complete), (vec![1, 2, 3, OMITTED, 7, 8], 3));
        assert_eq!(kept(99, 6, WalkEnd::Complete), (vec![1, 2, 3, OMITTED, 98, 99], 94));
        assert_eq!(kept(99, 7, WalkEnd::Complete), (vec![1, 2, 3, OMITTED, 97, 98, 99], 93));
    }

    #[test]
    fn incomplete_stack_ends_with_a_marker() {
        assert_eq!(kept(2, 6, WalkEnd::NoUnwindInfo), (vec![1, 2, BROKEN], 0));
        assert_eq!(kept(6, 6, WalkEnd::NoUnwindInfo), (vec![1, 2, 3, OMITTED, 6, BROKEN], 2));
        assert_eq!(kept(9, 1, WalkEnd::NoUnwindInfo).0, [BROKEN]);
        assert_eq!(kept(9, 0, WalkEnd::NoUnwindInfo).0, [0; 0]);
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn earlier_outermost_frames_are_appended_while_unchanged() {
        let mut frames = [0; 20];
        let mut whole = FrameBuffer::<8>::new(&mut frames, &mut []);
        assert!((1..=12).all(|frame| whole.push(frame, 1000 + frame * 8)));
        let earlier = whole.outermost();
        let joined = |from, changed: u64, is_frame: bool| {
            let mut frames = [0; 20];
            let mut short = FrameBuffer::<8>::new(&mut frames, &mut []);
            short.push(77, 1000);
            let read = |at: u64| Ok(if at == changed { 0 } else { (at - 1000) / 8 + 2 });
            let has_joined = short.append_outermost(&earlier, from, read, |_| is_frame);
            let (depth, _) =
                short.finish(if has_joined { WalkEnd::Complete } else { WalkEnd::NoUnwindInfo });
            frames[..depth].to_vec()
        };
        assert_eq!(joined(0, 0, true), [77, OMITTED, 5, 6, 7, 8, 9, 10, 11, 12]);
        assert_eq!(joined(1000 + 8 * 10, 0, true), [77, OMITTED, 11, 12], "the rest is not above");
        assert_eq!(
            joined(0, 1000 + 8 * 10, false),
            [77, OMITTED, 12],
            "what is further in is another"
        );
        let other = 0u64.wrapping_sub(1);
        assert_eq!(joined(0, 1000 + 8 * 10, true), [77, OMITTED, other, 12], "another call");
        assert_eq!(joined(0, 1000 + 8 * 11, true), [77, BROKEN]);
    }

    #[test]
    fn number_of_walked_frames_is_bounded() {
        let mut frames = [0; 4];
        let mut kept = FrameBuffer::<8>::new(&mut frames, &mut []);
        let walked = (0..1 << 20).take_while(|&frame| kept.push(frame, frame)).count();
        assert_eq!(walked, MAX_WALKED_FRAMES);
    }
}
