//! A profile: stacks with values, and what is needed to read them.

use std::time::Duration;

use jiff::Timestamp;

use super::losses::Losses;
use super::marker::Marker;
use super::stacks::{
    FrameHandle, FrameTable, Line, Mapping, MappingHandle, StackHandle, StackTable,
};
use super::strings::{StringHandle, StringTable};
use crate::base::Moment;

/// What a value counts, in the vocabulary of `profile.proto`: `inuse_space`/`bytes`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ValueType {
    /// What is counted.
    pub name: &'static str,
    /// In which unit.
    pub unit: &'static str,
}

/// A row of a profile's functions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FunctionHandle(pub u32);

impl FunctionHandle {
    /// Its place in the profile's functions.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// A function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Function {
    /// Its demangled name.
    pub name: StringHandle,
    /// Its name as the linker knows it.
    pub system_name: StringHandle,
    /// Its source file; empty when unknown.
    pub file: StringHandle,
}

/// What a label says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LabelValue {
    /// A text.
    Text(StringHandle),
    /// A number and its unit (empty: none).
    Number(i64, StringHandle),
}

/// A remark on a sample: the thread's name, the size of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Label {
    /// What the remark is about.
    pub key: StringHandle,
    /// What it says.
    pub value: LabelValue,
}

/// Values seen at one stack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Where; none when the stack could not be read.
    pub stack: Option<StackHandle>,
    /// One value for each of the profile's types, in their order.
    pub values: Vec<i64>,
    /// Remarks.
    pub labels: Vec<Label>,
}

/// One sampling of a thread: what a [`Sample`] counts many of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimedSample {
    /// The thread, by its id in the kernel.
    pub tid: u32,
    /// When it was sampled.
    pub at: Moment,
    /// The place of its sample in [`Profile::samples`].
    pub sample: u32,
    /// For how many periods it stands.
    pub weight: u32,
}

/// Stacks with values, as a collector reports them.
///
/// Handles in `samples` are of this profile's own tables.
#[derive(Clone, Debug)]
pub struct Profile {
    /// What the values of each sample mean, in order.
    pub sample_types: Vec<ValueType>,
    /// The name of the type a reader should show first.
    pub default_sample_type: &'static str,
    /// Functions a reader is to leave out, with all they call: a pattern of whole names; empty: none.
    pub drop_frames: String,
    /// What one `period` is of: `cpu`/`nanoseconds`, `space`/`bytes`.
    pub period_type: ValueType,
    /// How much of it lies between two samples, on average.
    pub period: i64,
    /// When the capture began.
    pub started: Timestamp,
    /// How long it lasted; zero for a snapshot.
    pub duration: Duration,
    /// The texts.
    pub strings: StringTable,
    /// The files the code came from.
    pub mappings: Vec<Mapping>,
    /// The functions.
    pub functions: Vec<Function>,
    /// The frames.
    pub frames: FrameTable,
    /// The stacks.
    pub stacks: StackTable,
    /// The samples.
    pub samples: Vec<Sample>,
    /// What the reader must know, a line each.
    pub comments: Vec<String>,
    /// What was not recorded.
    pub losses: Losses,
    /// When and on which thread it was sampled, in the order of time, where that was kept: of CPU time, as
    /// far as the room for it went.
    pub timed: Vec<TimedSample>,
}

impl Profile {
    /// An empty profile of these types; the first is shown first.
    pub fn new(
        sample_types: &[ValueType],
        period_type: ValueType,
        period: i64,
        started: Timestamp,
    ) -> Self {
        Self {
            sample_types: sample_types.to_vec(),
            default_sample_type: sample_types.first().map_or("", |first| first.name),
            drop_frames: String::new(),
            period_type,
            period,
            started,
            duration: Duration::ZERO,
            strings: StringTable::default(),
            mappings: Vec::new(),
            functions: Vec::new(),
            frames: FrameTable::default(),
            stacks: StackTable::default(),
            samples: Vec::new(),
            comments: Vec::new(),
            losses: Losses::default(),
            timed: Vec::new(),
        }
    }

    /// The stack of these addresses, innermost first; none of none. A [`Marker`] among them gets its name.
    pub fn intern_stack(&mut self, addresses: &[u64]) -> Option<StackHandle> {
        addresses.iter().rev().fold(None, |parent, &address| {
            let frame = self.frames.intern(address);
            if let Some(marker) = Marker::of(address) {
                self.name_frame(frame, marker.name());
            }
            Some(self.stacks.intern(parent, frame))
        })
    }

    /// Gives a frame that has no line yet a function of this name.
    pub fn name_frame(&mut self, frame: FrameHandle, name: &str) {
        if !self.frames.get(frame).lines.is_empty() {
            return;
        }
        let name = self.strings.intern(name);
        let same = |function: &Function| function.system_name == name;
        let known = self.functions.iter().rposition(same);
        let place = known.unwrap_or_else(|| {
            self.functions.push(Function { name, system_name: name, file: StringHandle::EMPTY });
            self.functions.len() - 1
        });
        let Ok(place) = u32::try_from(place) else { return };
        let line = Line { function: FunctionHandle(place), line: 0 };
        self.frames.get_mut(frame).lines.push(line);
    }

    /// A label with a text.
    pub fn text_label(&mut self, key: &str, value: &str) -> Label {
        let value = LabelValue::Text(self.strings.intern(value));
        Label { key: self.strings.intern(key), value }
    }

    /// A label with a number.
    pub fn number_label(&mut self, key: &str, value: i64, unit: &str) -> Label {
        let value = LabelValue::Number(value, self.strings.intern(unit));
        Label { key: self.strings.intern(key), value }
    }

    /// Gives every frame the one of `images` that holds its address, and keeps those that hold any,
    /// in address order, behind the first of `images`: the main executable, which readers of pprof
    /// files expect first and which is kept in any case. Replaces what was attached before.
    pub fn attach_mappings(&mut self, images: Vec<Mapping>) {
        let mut by_start: Vec<usize> = (0..images.len()).collect();
        by_start.sort_by_key(|&image| images[image].start);
        let holder = |address: u64| {
            let after = by_start.partition_point(|&image| images[image].start <= address);
            let image = *by_start.get(after.checked_sub(1)?)?;
            (address < images[image].end).then_some(image)
        };
        let held: Vec<Option<usize>> =
            self.frames.iter().map(|frame| holder(frame.address)).collect();
        let mut used = vec![false; images.len()];
        used.iter_mut().take(1).for_each(|first| *first = true);
        held.iter().flatten().for_each(|&image| used[image] = true);

        let mut handles = vec![None; images.len()];
        let rest = by_start.into_iter().filter(|&image| image != 0);
        let order = (0..images.len().min(1)).chain(rest).filter(|&image| used[image]);
        for (handle, image) in (0..).zip(order) {
            handles[image] = Some(MappingHandle(handle));
        }
        for (frame, image) in self.frames.iter_mut().zip(held) {
            frame.mapping = image.and_then(|image| handles[image]);
        }
        let mut kept: Vec<(MappingHandle, Mapping)> = handles
            .into_iter()
            .zip(images)
            .filter_map(|(handle, image)| Some((handle?, image)))
            .collect();
        kept.sort_by_key(|(handle, _)| handle.index());
        self.mappings = kept.into_iter().map(|(_, image)| image).collect();
    }

    /// The sum over all samples of the type called `name`; none if the profile has no such type.
    pub fn total(&self, name: &str) -> Option<i64> {
        let column = self.sample_types.iter().position(|kind| kind.name == name)?;
        Some(self.samples.iter().map(|sample| sample.values[column]).sum())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stack_of_addresses_reads_back_innermost_first() {
        let cpu = ValueType { name: "cpu", unit: "nanoseconds" };
        let mut profile = Profile::new(&[cpu], cpu, 1, Timestamp::UNIX_EPOCH);
        let stack = profile.intern_stack(&[30, 20, 10]);
        let read: Vec<u64> =
            profile.stacks.frames(stack).map(|frame| profile.frames.get(frame).address).collect();
        assert_eq!(read, [30, 20, 10]);
        assert_eq!(profile.intern_stack(&[]), None);
    }

    #[test]
    fn totals_are_by_type_name() {
        let (n, bytes) =
            (ValueType { name: "n", unit: "count" }, ValueType { name: "b", unit: "bytes" });
        let mut profile = Profile::new(&[n, bytes], bytes, 1, Timestamp::UNIX_EPOCH);
        for values in [[1, 10], [2, 20]] {
            profile.samples.push(Sample { stack: None, values: values.to_vec(), labels: vec![] });
        }
        assert_eq!((profile.total("n"), profile.total("b")), (Some(3), Some(30)));
        assert_eq!(profile.total("x"), None);
    }

    fn image(path: &str, start: u64, end: u64) -> Mapping {
        let build_id = String::new();
        Mapping {
            start,
            end,
            file_offset: 0,
            path: path.into(),
            build_id,
            has_functions: false,
            file: None,
        }
    }

    #[test]
    fn frames_find_their_image_and_unused_images_are_left_out() {
        let cpu = ValueType { name: "cpu", unit: "nanoseconds" };
        let mut profile = Profile::new(&[cpu], cpu, 1, Timestamp::UNIX_EPOCH);
        profile.intern_stack(&[99, 100, 199, 200, 10, 19, 20, 300]);
        profile.attach_mappings(vec![
            image("main", 100, 200),
            image("unused", 50, 60),
            image("late", 300, 400),
            image("early", 10, 20),
        ]);
        let paths: Vec<_> = profile.mappings.iter().map(|m| m.path.to_str().unwrap()).collect();
        assert_eq!(paths, ["main", "early", "late"]);
        let mut found: Vec<_> = profile
            .frames
            .iter()
            .map(|frame| (frame.address, frame.mapping.map(|mapping| mapping.index())))
            .collect();
        found.sort_unstable();
        let (main, early, late) = (Some(0), Some(1), Some(2));
        assert_eq!(
            found,
            [
                (10, early),
                (19, early),
                (20, None),
                (99, None),
                (100, main),
                (199, main),
                (200, None),
                (300, late)
            ]
        );
    }

    #[test]
    fn the_main_executable_stays_though_no_frame_is_in_it() {
        let cpu = ValueType { name: "cpu", unit: "nanoseconds" };
        let mut profile = Profile::new(&[cpu], cpu, 1, Timestamp::UNIX_EPOCH);
        profile.attach_mappings(vec![image("main", 100, 200), image("other", 10, 20)]);
        assert_eq!(profile.mappings, [image("main", 100, 200)]);
        profile.attach_mappings(Vec::new());
        assert!(profile.mappings.is_empty());
    }
}
