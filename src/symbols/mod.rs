//! Files and addresses to names of functions. Knows nothing of the running process.
