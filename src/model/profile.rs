//! A profile: stacks with values, and the tables needed to read them.

use crate::model::stacks::FunctionHandle;
use std::time::Duration;

use jiff::Timestamp;

use super::losses::Losses;
use super::marker::Marker;
use super::stacks::{
    FrameHandle, FrameTable, Line, Mapping, MappingHandle, StackHandle, StackTable,
};
use super::strings::{StringHandle, StringTable};
use crate::base::Moment;

/// The type of a value, in the terms of `profile.proto`: `inuse_space`/`bytes`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ValueType {
    /// Counted quantity.
    pub name: &'static str,
    /// Unit of the quantity.
    pub unit: &'static str,
}

/// A function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Function {
    /// Demangled name.
    pub name: StringHandle,
    /// Linker symbol name.
    pub system_name: StringHandle,
    /// Source file. Empty if unknown.
    pub file: StringHandle,
}

/// The value of a [`Label`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LabelValue {
    /// A text.
    Text(StringHandle),
    /// A number and its unit. The unit is empty if it has none.
    Number(i64, StringHandle),
}

/// A key-value pair on a sample, such as the thread name or the block size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Label {
    /// Key of the label.
    pub key: StringHandle,
    /// Value of the label.
    pub value: LabelValue,
}

/// The values sampled at one stack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// The stack, or `None` if it could not be read.
    pub stack: Option<StackHandle>,
    /// One value for each of [`Profile::sample_types`], in that order.
    pub values: Vec<i64>,
    /// Labels.
    pub labels: Vec<Label>,
}

/// A single observation of a thread. A [`Sample`] counts many of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimedSample {
    /// Kernel thread id.
    pub tid: u32,
    /// Time of the observation.
    pub at: Moment,
    /// Index in [`Profile::samples`].
    pub sample: u32,
    /// Number of sampling periods it represents.
    pub weight: u32,
}

/// A profile as returned by a collector: stacks with values.
///
/// Handles in `samples` refer to this profile's own tables.
#[derive(Clone, Debug)]
pub struct Profile {
    /// Types of the values of each sample, in order.
    pub sample_types: Vec<ValueType>,
    /// Name of the type that readers should show first.
    pub default_sample_type: &'static str,
    /// Regular expression over whole function names. Readers drop these functions and all their
    /// callees. Empty if nothing is dropped.
    pub drop_frames: String,
    /// Type of `period`: `cpu`/`nanoseconds`, `space`/`bytes`.
    pub period_type: ValueType,
    /// Mean distance between two samples, in units of `period_type`.
    pub period: i64,
    /// Wall-clock time at which the capture started.
    pub started: Timestamp,
    /// Duration of the capture. Zero for a snapshot.
    pub duration: Duration,
    /// Interned texts.
    pub strings: StringTable,
    /// Mapped files that contain the code.
    pub mappings: Vec<Mapping>,
    /// Functions.
    pub functions: Vec<Function>,
    /// Frames.
    pub frames: FrameTable,
    /// Stacks.
    pub stacks: StackTable,
    /// Samples.
    pub samples: Vec<Sample>,
    /// Remarks for the reader, one per line.
    pub comments: Vec<String>,
    /// Data that was not recorded, by cause.
    pub losses: Losses,
    /// Single observations in time order, if recorded: for CPU time only, up to the capacity of the
    /// log.
    pub timed_samples: Vec<TimedSample>,
}

impl Profile {
    /// Creates an empty profile. The first of `sample_types` becomes the default.
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
            timed_samples: Vec::new(),
        }
    }

    /// Interns the stack of these addresses, innermost first. Returns `None` if `addresses` is
    /// empty. A [`Marker`] among them is named.
    pub fn intern_stack(&mut self, addresses: &[u64]) -> Option<StackHandle> {
        addresses.iter().rev().fold(None, |parent, &address| {
            let frame = self.frames.intern(address);
            if let Some(marker) = Marker::from_address(address) {
                self.name_frame(frame, marker.name());
            }
            Some(self.stacks.intern(parent, frame))
        })
    }

    /// Attaches a function called `name` to a frame that has no lines yet.
    pub fn name_frame(&mut self, frame: FrameHandle, name: &str) {
        if !self.frames.get(frame).lines.is_empty() {
            return;
        }
        let name = self.strings.intern(name);
        let is_same = |function: &Function| function.system_name == name;
        let known = self.functions.iter().rposition(is_same);
        let index = known.unwrap_or_else(|| {
            self.functions.push(Function { name, system_name: name, file: StringHandle::EMPTY });
            self.functions.len() - 1
        });
        let Ok(index) = u32::try_from(index) else { return };
        let line = Line { function: FunctionHandle(index), line: 0 };
        self.frames.get_mut(frame).lines.push(line);
    }

    /// Creates a label with a text value.
    pub fn text_label(&mut self, key: &str, value: &str) -> Label {
        let value = LabelValue::Text(self.strings.intern(value));
        Label { key: self.strings.intern(key), value }
    }

    /// Creates a label with a numeric value.
    pub fn number_label(&mut self, key: &str, value: i64, unit: &str) -> Label {
        let value = LabelValue::Number(value, self.strings.intern(unit));
        Label { key: self.strings.intern(key), value }
    }

    /// Assigns each frame to the mapping in `images` that contains its address. Replaces earlier
    /// mappings.
    ///
    /// Keeps only mappings that contain a frame, in address order. The first of `images` is the
    /// main executable. It is always kept and stays first, because pprof readers expect it there.
    pub fn attach_mappings(&mut self, images: Vec<Mapping>) {
        let mut by_start: Vec<usize> = (0..images.len()).collect();
        by_start.sort_by_key(|&image| images[image].start);
        let find_image = |address: u64| {
            let index = by_start.partition_point(|&image| images[image].start <= address);
            let image = *by_start.get(index.checked_sub(1)?)?;
            (address < images[image].end).then_some(image)
        };
        let frame_images: Vec<Option<usize>> =
            self.frames.iter().map(|frame| find_image(frame.address)).collect();
        let mut used = vec![false; images.len()];
        used.iter_mut().take(1).for_each(|first| *first = true);
        frame_images.iter().flatten().for_each(|&image| used[image] = true);

        let mut handles = vec![None; images.len()];
        let rest = by_start.into_iter().filter(|&image| image != 0);
        let order = (0..images.len().min(1)).chain(rest).filter(|&image| used[image]);
        for (handle, image) in (0..).zip(order) {
            handles[image] = Some(MappingHandle(handle));
        }
        for (frame, image) in self.frames.iter_mut().zip(frame_images) {
            frame.mapping = image.and_then(|image| handles[image]);
        }
        let mut used_mappings: Vec<(MappingHandle, Mapping)> = handles
            .into_iter()
            .zip(images)
            .filter_map(|(handle, image)| Some((handle?, image)))
            .collect();
        used_mappings.sort_by_key(|(handle, _)| handle.index());
        self.mappings = used_mappings.into_iter().map(|(_, image)| image).collect();
    }

    /// Returns the sum of all samples for the type called `name`, or `None` if the profile has no
    /// such type.
    pub fn total(&self, name: &str) -> Option<i64> {
        let column = self.sample_types.iter().position(|kind| kind.name == name)?;
        Some(self.samples.iter().map(|sample| sample.values[column]).sum())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interned_stack_lists_frames_innermost_first() {
        let cpu = ValueType { name: "cpu", unit: "nanoseconds" };
        let mut profile = Profile::new(&[cpu], cpu, 1, Timestamp::UNIX_EPOCH);
        let stack = profile.intern_stack(&[30, 20, 10]);
        let read: Vec<u64> =
            profile.stacks.frames(stack).map(|frame| profile.frames.get(frame).address).collect();
        assert_eq!(read, [30, 20, 10]);
        assert_eq!(profile.intern_stack(&[]), None);
    }

    #[test]
    fn total_sums_values_of_named_type() {
        let n = ValueType { name: "n", unit: "count" };
        let bytes = ValueType { name: "b", unit: "bytes" };
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
    fn attach_mappings_assigns_frames_and_drops_unused_images() {
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
        let main = Some(0);
        let early = Some(1);
        let late = Some(2);
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
    fn main_executable_is_kept_without_frames() {
        let cpu = ValueType { name: "cpu", unit: "nanoseconds" };
        let mut profile = Profile::new(&[cpu], cpu, 1, Timestamp::UNIX_EPOCH);
        profile.attach_mappings(vec![image("main", 100, 200), image("other", 10, 20)]);
        assert_eq!(profile.mappings, [image("main", 100, 200)]);
        profile.attach_mappings(Vec::new());
        assert!(profile.mappings.is_empty());
    }
}
