//! Where CPU time goes.
