//! Boots in QEMU: the demo, the tests and the benchmark.
fn main() {}
