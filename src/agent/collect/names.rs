//! The files that names of functions are read from, kept readable whatever a deployment does to them.

use crate::model::Vitals;
use crate::os::{images, process};
use crate::symbols;

/// Opens the files of code that is loaded. Some milliseconds.
pub(in crate::agent) fn begin() {
    refresh(None, process::descriptor_limit());
}

/// The same for what was loaded since the last tick. Gives descriptors back if the process is short of them.
pub(in crate::agent) fn tick(vitals: &Vitals) {
    refresh(vitals.fds, vitals.fd_limit);
}

fn refresh(open: Option<u64>, limit: Option<u64>) {
    if images::refresh(open, limit) {
        // Without /proc there are no names, which every capture says.
        symbols::find_debug_files(&images::loaded().unwrap_or_default());
    }
}
