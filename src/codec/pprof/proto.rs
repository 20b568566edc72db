//! Messages of `profile.proto`, as defined by Go's reader.
//!
//! Integers documented as text are indices in [`Profile::string_table`]. Ids are any numbers but 0.

/// A profile.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Profile {
    /// Meaning of the values of each sample, in order.
    #[prost(message, repeated, tag = "1")]
    pub sample_type: Vec<ValueType>,
    /// Samples.
    #[prost(message, repeated, tag = "2")]
    pub sample: Vec<Sample>,
    /// Mapped files; the first is the executable.
    #[prost(message, repeated, tag = "3")]
    pub mapping: Vec<Mapping>,
    /// Locations in code.
    #[prost(message, repeated, tag = "4")]
    pub location: Vec<Location>,
    /// Functions.
    #[prost(message, repeated, tag = "5")]
    pub function: Vec<Function>,
    /// Texts; the first is empty.
    #[prost(string, repeated, tag = "6")]
    pub string_table: Vec<String>,
    /// Text: pattern of functions that a reader drops, together with their callees.
    #[prost(int64, tag = "7")]
    pub drop_frames: i64,
    /// Text: pattern of functions that a reader keeps despite `drop_frames`.
    #[prost(int64, tag = "8")]
    pub keep_frames: i64,
    /// Start time, in nanoseconds since 1970.
    #[prost(int64, tag = "9")]
    pub time_nanos: i64,
    /// Duration in nanoseconds.
    #[prost(int64, tag = "10")]
    pub duration_nanos: i64,
    /// Type and unit of `period`.
    #[prost(message, optional, tag = "11")]
    pub period_type: Option<ValueType>,
    /// Sampling period.
    #[prost(int64, tag = "12")]
    pub period: i64,
    /// Texts: comments.
    #[prost(int64, repeated, tag = "13")]
    pub comment: Vec<i64>,
    /// Text: name of the sample type to show first.
    #[prost(int64, tag = "14")]
    pub default_sample_type: i64,
    /// Text: URL of the documentation for this kind of profile.
    #[prost(int64, tag = "15")]
    pub doc_url: i64,
}

impl Profile {
    /// Returns the text at `index`, or an empty one if there is none. In a profile that was read,
    /// each text exists.
    pub fn text(&self, index: i64) -> &str {
        usize::try_from(index).ok().and_then(|at| self.string_table.get(at)).map_or("", |text| text)
    }
}

/// Type of a value.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct ValueType {
    /// Text: name of the counted quantity.
    #[prost(int64, tag = "1")]
    pub r#type: i64,
    /// Text: unit.
    #[prost(int64, tag = "2")]
    pub unit: i64,
}

/// Values observed for one stack.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Sample {
    /// Ids of the locations, innermost first.
    #[prost(uint64, repeated, tag = "1")]
    pub location_id: Vec<u64>,
    /// One value per sample type.
    #[prost(int64, repeated, tag = "2")]
    pub value: Vec<i64>,
    /// Labels.
    #[prost(message, repeated, tag = "3")]
    pub label: Vec<Label>,
}

/// A label of a sample: a text, or a number with a unit.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Label {
    /// Text: key.
    #[prost(int64, tag = "1")]
    pub key: i64,
    /// Text: value, if it is a text.
    #[prost(int64, tag = "2")]
    pub str: i64,
    /// Value, if it is a number.
    #[prost(int64, tag = "3")]
    pub num: i64,
    /// Text: unit of the number.
    #[prost(int64, tag = "4")]
    pub num_unit: i64,
}

/// A file mapped into the process.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Mapping {
    /// Unique id.
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
    /// Text: path of the file.
    #[prost(int64, tag = "5")]
    pub filename: i64,
    /// Text: build ID.
    #[prost(int64, tag = "6")]
    pub build_id: i64,
    /// `true` if functions have been symbolized.
    #[prost(bool, tag = "7")]
    pub has_functions: bool,
    /// `true` if source files have been symbolized.
    #[prost(bool, tag = "8")]
    pub has_filenames: bool,
    /// `true` if line numbers have been symbolized.
    #[prost(bool, tag = "9")]
    pub has_line_numbers: bool,
    /// `true` if inlined functions have been symbolized.
    #[prost(bool, tag = "10")]
    pub has_inline_frames: bool,
}

/// A location in code.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Location {
    /// Unique id.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// Id of the mapping that contains it; 0 if none.
    #[prost(uint64, tag = "2")]
    pub mapping_id: u64,
    /// Address.
    #[prost(uint64, tag = "3")]
    pub address: u64,
    /// Functions at this address, innermost inlined function first.
    #[prost(message, repeated, tag = "4")]
    pub line: Vec<Line>,
    /// `true` if the linker folded other functions to the same address.
    #[prost(bool, tag = "5")]
    pub is_folded: bool,
}

/// A source position.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Line {
    /// Id of the function.
    #[prost(uint64, tag = "1")]
    pub function_id: u64,
    /// Line in the source file; 0 if unknown.
    #[prost(int64, tag = "2")]
    pub line: i64,
    /// Column in the line; 0 if unknown.
    #[prost(int64, tag = "3")]
    pub column: i64,
}

/// A function.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Function {
    /// Unique id.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// Text: demangled name.
    #[prost(int64, tag = "2")]
    pub name: i64,
    /// Text: linker name.
    #[prost(int64, tag = "3")]
    pub system_name: i64,
    /// Text: source file.
    #[prost(int64, tag = "4")]
    pub filename: i64,
    /// Line at which it starts.
    #[prost(int64, tag = "5")]
    pub start_line: i64,
}
