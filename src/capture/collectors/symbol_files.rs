//! The files used for symbolization, kept open so that they stay readable when a deployment
//! replaces them.

use crate::model::Vitals;
use crate::os::images;
use crate::os::proc::process;
use crate::symbols;

/// Opens the files of loaded code. Takes some milliseconds.
pub(crate) fn open_files() {
    refresh(None, process::descriptor_limit());
}

/// Opens the files of code loaded since the last tick. Closes files if the process is short of
/// descriptors.
pub(crate) fn tick(vitals: &Vitals) {
    refresh(vitals.fds, vitals.fd_limit);
}

fn refresh(open: Option<u64>, limit: Option<u64>) {
    if images::refresh(open, limit) {
        // Without /proc there are no function names, which every capture reports.
        symbols::find_debug_files(&images::loaded().unwrap_or_default());
    }
}
