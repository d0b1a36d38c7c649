//! The overlay's daemon and its command line.
fn main() {}
