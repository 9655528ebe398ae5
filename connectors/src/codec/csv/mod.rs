//! CSV as of RFC 4180, with the usual liberties.

pub(super) mod frame;
