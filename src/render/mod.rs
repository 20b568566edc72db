//! Texts for people, from the values of `analysis`. No function here computes a number.

mod document;
mod escape;
pub(crate) mod markdown;
mod number;
mod sparkline;
