//! JSON: one object a line, or the elements of a top-level array.

pub(super) mod frame;
