//! What the operating system tells about the process and lets it do.
