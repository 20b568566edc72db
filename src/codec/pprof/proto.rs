//! The messages of `profile.proto`, as Go's reader knows them.
//!
//! Integers that name a text are places in [`Profile::string_table`]; ids are any numbers but 0.

/// A profile.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Profile {
    /// What the values of each sample mean, in order.
    #[prost(message, repeated, tag = "1")]
    pub sample_type: Vec<ValueType>,
    /// The samples.
    #[prost(message, repeated, tag = "2")]
    pub sample: Vec<Sample>,
    /// The files code was mapped from; the first is the executable.
    #[prost(message, repeated, tag = "3")]
    pub mapping: Vec<Mapping>,
    /// The places in code.
    #[prost(message, repeated, tag = "4")]
    pub location: Vec<Location>,
    /// The functions.
    #[prost(message, repeated, tag = "5")]
    pub function: Vec<Function>,
    /// The texts; the first is empty.
    #[prost(string, repeated, tag = "6")]
    pub string_table: Vec<String>,
    /// Text: a pattern of functions a reader drops, with what they call.
    #[prost(int64, tag = "7")]
    pub drop_frames: i64,
    /// Text: a pattern of functions a reader keeps all the same.
    #[prost(int64, tag = "8")]
    pub keep_frames: i64,
    /// When it began, in nanoseconds since 1970.
    #[prost(int64, tag = "9")]
    pub time_nanos: i64,
    /// How long it lasted, in nanoseconds.
    #[prost(int64, tag = "10")]
    pub duration_nanos: i64,
    /// What one `period` is of.
    #[prost(message, optional, tag = "11")]
    pub period_type: Option<ValueType>,
    /// How much of it lies between two samples.
    #[prost(int64, tag = "12")]
    pub period: i64,
    /// Texts: remarks.
    #[prost(int64, repeated, tag = "13")]
    pub comment: Vec<i64>,
    /// Text: the name of the sample type to show first.
    #[prost(int64, tag = "14")]
    pub default_sample_type: i64,
    /// Text: where this kind of profile is explained.
    #[prost(int64, tag = "15")]
    pub doc_url: i64,
}

impl Profile {
    /// The text at `index`; empty when there is none, which a profile that was read does not have.
    pub fn text(&self, index: i64) -> &str {
        usize::try_from(index).ok().and_then(|at| self.string_table.get(at)).map_or("", |text| text)
    }
}

/// What a value counts.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct ValueType {
    /// Text: what is counted.
    #[prost(int64, tag = "1")]
    pub r#type: i64,
    /// Text: in which unit.
    #[prost(int64, tag = "2")]
    pub unit: i64,
}

/// Values seen at one stack.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Sample {
    /// The ids of its locations, innermost first.
    #[prost(uint64, repeated, tag = "1")]
    pub location_id: Vec<u64>,
    /// One value for each sample type.
    #[prost(int64, repeated, tag = "2")]
    pub value: Vec<i64>,
    /// Remarks.
    #[prost(message, repeated, tag = "3")]
    pub label: Vec<Label>,
}

/// A remark on a sample: a text, or a number with a unit.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Label {
    /// Text: what the remark is about.
    #[prost(int64, tag = "1")]
    pub key: i64,
    /// Text: what it says.
    #[prost(int64, tag = "2")]
    pub str: i64,
    /// The number it says.
    #[prost(int64, tag = "3")]
    pub num: i64,
    /// Text: the number's unit.
    #[prost(int64, tag = "4")]
    pub num_unit: i64,
}

/// A file mapped into the process.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Mapping {
    /// Its id.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// First address.
    #[prost(uint64, tag = "2")]
    pub memory_start: u64,
    /// One past the last address.
    #[prost(uint64, tag = "3")]
    pub memory_limit: u64,
    /// Offset in the file that is mapped at `memory_start`.
    #[prost(uint64, tag = "4")]
    pub file_offset: u64,
    /// Text: the file.
    #[prost(int64, tag = "5")]
    pub filename: i64,
    /// Text: its build id.
    #[prost(int64, tag = "6")]
    pub build_id: i64,
    /// Whether functions have been looked up in it.
    #[prost(bool, tag = "7")]
    pub has_functions: bool,
    /// Whether source files have.
    #[prost(bool, tag = "8")]
    pub has_filenames: bool,
    /// Whether line numbers have.
    #[prost(bool, tag = "9")]
    pub has_line_numbers: bool,
    /// Whether inlined functions have.
    #[prost(bool, tag = "10")]
    pub has_inline_frames: bool,
}

/// A place in code.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Location {
    /// Its id.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// The id of the mapping that holds it; 0 for none.
    #[prost(uint64, tag = "2")]
    pub mapping_id: u64,
    /// Its address.
    #[prost(uint64, tag = "3")]
    pub address: u64,
    /// What it stands for, innermost inlined function first.
    #[prost(message, repeated, tag = "4")]
    pub line: Vec<Line>,
    /// Whether other functions are at the same address, folded by the linker.
    #[prost(bool, tag = "5")]
    pub is_folded: bool,
}

/// A source position.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Line {
    /// The id of the function.
    #[prost(uint64, tag = "1")]
    pub function_id: u64,
    /// The line in its file; 0 when unknown.
    #[prost(int64, tag = "2")]
    pub line: i64,
    /// The column in that line; 0 when unknown.
    #[prost(int64, tag = "3")]
    pub column: i64,
}

/// A function.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Function {
    /// Its id.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// Text: its name for people.
    #[prost(int64, tag = "2")]
    pub name: i64,
    /// Text: its name for the linker.
    #[prost(int64, tag = "3")]
    pub system_name: i64,
    /// Text: its source file.
    #[prost(int64, tag = "4")]
    pub filename: i64,
    /// The line it begins at.
    #[prost(int64, tag = "5")]
    pub start_line: i64,
}
