//! Settings: what they are, what they default to, and how a file of them is read and watched.

mod settings;

pub use settings::{
    CpuSettings, HeapSettings, HttpSettings, Listen, Room, Secret, Settings, StoreSettings,
    ToggleSettings, ToggleSignal, TraceSettings,
};
