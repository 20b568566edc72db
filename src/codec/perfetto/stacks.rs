//! Stacks of a profile by id, with their definitions for the sequence's reader.
//!
//! ```text
//! callstack  -> frames, root first -> function name, mapping -> path, build id
//! ```
//!
//! Each is defined once, in the first packet that needs it. An id is the index in the profile's
//! table plus one, so a bitmap per table suffices and no map is needed. A frame without a mapping
//! gets one without a path. A sample without a stack gets the frame [`STACK_UNKNOWN`], because
//! Perfetto counts an undefined id as an error.

use prost::Message;

use super::proto::InternedString;
use crate::codec::pprof::STACK_UNKNOWN;
use crate::model::{Frame, FrameHandle, Mapping, Profile, StackHandle};

/// Fields of `InternedData` that define stacks.
#[derive(Clone, PartialEq, Message)]
pub(super) struct StackNames {
    #[prost(message, repeated, tag = "5")]
    pub(super) function_names: Vec<InternedString>,
    #[prost(message, repeated, tag = "6")]
    pub(super) frames: Vec<ShownFrame>,
    #[prost(message, repeated, tag = "7")]
    pub(super) callstacks: Vec<Callstack>,
    #[prost(message, repeated, tag = "16")]
    pub(super) build_ids: Vec<InternedBytes>,
    #[prost(message, repeated, tag = "17")]
    pub(super) mapping_paths: Vec<InternedString>,
    #[prost(message, repeated, tag = "19")]
    pub(super) mappings: Vec<ShownMapping>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct InternedBytes {
    #[prost(uint64, tag = "1")]
    pub(super) iid: u64,
    #[prost(bytes = "vec", tag = "2")]
    pub(super) bytes: Vec<u8>,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub(super) struct ShownFrame {
    #[prost(uint64, tag = "1")]
    pub(super) iid: u64,
    #[prost(uint64, tag = "2")]
    pub(super) function_name_id: u64,
    #[prost(uint64, tag = "3")]
    pub(super) mapping_id: u64,
    #[prost(uint64, tag = "4")]
    pub(super) rel_pc: u64,
    #[prost(uint32, tag = "6")]
    pub(super) line_number: u32,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Callstack {
    #[prost(uint64, tag = "1")]
    pub(super) iid: u64,
    #[prost(uint64, repeated, packed = "false", tag = "2")]
    pub(super) frame_ids: Vec<u64>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ShownMapping {
    #[prost(uint64, tag = "1")]
    pub(super) iid: u64,
    #[prost(uint64, tag = "2")]
    pub(super) build_id: u64,
    #[prost(uint64, tag = "4")]
    pub(super) start: u64,
    #[prost(uint64, tag = "5")]
    pub(super) end: u64,
    #[prost(uint64, repeated, packed = "false", tag = "7")]
    pub(super) path_string_ids: Vec<u64>,
}

/// State of the definitions of one sequence: those already sent, and those for the next packet.
pub(super) struct StackInterner<'a> {
    profile: &'a Profile,
    stacks: Vec<bool>,
    frames: Vec<bool>,
    functions: Vec<bool>,
    /// One more than the profile has, for frames without a mapping.
    mappings: Vec<bool>,
    unknown_sent: bool,
    pending: StackNames,
}

impl<'a> StackInterner<'a> {
    /// Creates an interner with no definitions sent.
    pub(super) fn new(profile: &'a Profile) -> Self {
        Self {
            profile,
            stacks: vec![false; profile.stacks.len()],
            frames: vec![false; profile.frames.iter().len()],
            functions: vec![false; profile.functions.len()],
            mappings: vec![false; profile.mappings.len() + 1],
            unknown_sent: false,
            pending: StackNames::default(),
        }
    }

    /// Returns the id of a stack.
    pub(super) fn stack(&mut self, stack: Option<StackHandle>) -> u64 {
        let Some(stack) = stack.filter(|stack| stack.index() < self.stacks.len()) else {
            return self.unknown_stack();
        };
        let iid = iid(stack.index());
        if mark_sent(&mut self.stacks, stack.index()) {
            let profile = self.profile;
            let frames = profile.stacks.frames(Some(stack));
            let mut frame_ids: Vec<u64> = frames.map(|frame| self.frame(frame)).collect();
            frame_ids.reverse();
            self.pending.callstacks.push(Callstack { iid, frame_ids });
        }
        iid
    }

    /// Returns the definitions that the current packet must contain.
    pub(super) fn take_pending(&mut self) -> Option<StackNames> {
        (self.pending != StackNames::default()).then(|| std::mem::take(&mut self.pending))
    }

    fn frame(&mut self, handle: FrameHandle) -> u64 {
        let iid = iid(handle.index());
        if mark_sent(&mut self.frames, handle.index()) {
            let profile = self.profile;
            let frame = profile.frames.get(handle);
            let mapping = frame.mapping.map(|mapping| mapping.index());
            let mapping_id = self.mapping(mapping);
            let mapping = mapping.and_then(|mapping| profile.mappings.get(mapping));
            // The outermost function: functions inlined into it have no separate frame here.
            let line = frame.lines.last();
            let function_name_id = line.map_or(0, |line| self.function(line.function.index()));
            self.pending.frames.push(ShownFrame {
                iid,
                function_name_id,
                mapping_id,
                rel_pc: file_offset(frame, mapping),
                line_number: line.map_or(0, |line| line.line),
            });
        }
        iid
    }

    fn function(&mut self, index: usize) -> u64 {
        let Some(function) = self.profile.functions.get(index) else { return 0 };
        if mark_sent(&mut self.functions, index) {
            let name = self.profile.strings.get(function.name).to_owned();
            self.pending.function_names.push(InternedString { iid: iid(index), name });
        }
        iid(index)
    }

    fn mapping(&mut self, index: Option<usize>) -> u64 {
        let known = index.and_then(|index| Some((index, self.profile.mappings.get(index)?)));
        let at = known.map_or(self.profile.mappings.len(), |(index, _)| index);
        let iid = iid(at);
        if mark_sent(&mut self.mappings, at) {
            let mut message = ShownMapping { iid, ..ShownMapping::default() };
            if let Some((_, mapping)) = known {
                message.start = mapping.start;
                message.end = mapping.end;
                let path = mapping.path.to_string_lossy();
                // Perfetto adds a slash before each part.
                let name = path.strip_prefix('/').unwrap_or(&path).to_owned();
                self.pending.mapping_paths.push(InternedString { iid, name });
                message.path_string_ids.push(iid);
                if let Some(bytes) = decode_hex(&mapping.build_id) {
                    self.pending.build_ids.push(InternedBytes { iid, bytes });
                    message.build_id = iid;
                }
            }
            self.pending.mappings.push(message);
        }
        iid
    }

    /// Returns the id of the stack for samples that have none.
    fn unknown_stack(&mut self) -> u64 {
        let stack = iid(self.profile.stacks.len());
        if !std::mem::replace(&mut self.unknown_sent, true) {
            let frame = iid(self.profile.frames.iter().len());
            let function_name_id = iid(self.profile.functions.len());
            let mapping_id = self.mapping(None);
            let name = STACK_UNKNOWN.to_owned();
            self.pending.function_names.push(InternedString { iid: function_name_id, name });
            let message =
                ShownFrame { iid: frame, function_name_id, mapping_id, ..Default::default() };
            self.pending.frames.push(message);
            self.pending.callstacks.push(Callstack { iid: stack, frame_ids: vec![frame] });
        }
        stack
    }
}

/// 0 means none.
const fn iid(index: usize) -> u64 {
    index as u64 + 1
}

fn mark_sent(known: &mut [bool], index: usize) -> bool {
    known.get_mut(index).is_some_and(|known| !std::mem::replace(known, true))
}

fn file_offset(frame: &Frame, mapping: Option<&Mapping>) -> u64 {
    mapping.map_or(frame.address, |mapping| {
        frame.address.wrapping_sub(mapping.start).wrapping_add(mapping.file_offset)
    })
}

/// Decodes an even number of hexadecimal digits.
fn decode_hex(hex: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> =
        hex.chars().map(|digit| digit.to_digit(16).map(|digit| digit as u8)).collect();
    let digits = digits.filter(|digits| !digits.is_empty() && digits.len() % 2 == 0)?;
    let pairs = digits.chunks_exact(2);
    Some(pairs.map(|pair| pair.iter().fold(0, |byte, digit| byte << 4 | digit)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn build_id_is_decoded_from_hex() {
        assert_eq!(decode_hex("00ff1a"), Some(vec![0, 255, 26]));
        for broken in ["", "abc", "zz"] {
            assert_eq!(decode_hex(broken), None, "{broken}");
        }
    }
}
