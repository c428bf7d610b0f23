//! Entry point of the publishing side.
fn main() {}
