//! Fuzz targets: one for each parser of bytes from outside.
//!
//! A target is a plain function over bytes that says what holds for every input, by panicking where it does not: «no panic» is the least of it.
//! libFuzzer looks for inputs that a target does not survive (`docs/testing.md`, «Fuzzing»); what it found once is kept below `regressions/` and is, with
//! the seeds below `corpus/`, an ordinary test, which needs neither libFuzzer nor C++.

// A finding is a panic.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

pub mod input;
pub mod seeds;
mod sparse;
mod targets;

use std::fmt;
use std::path::{Path, PathBuf};

use peak_alloc::PeakAlloc;

pub use targets::{PLANTED, TARGETS};

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

/// What a target may allocate whatever its input is: tables, and copies of small things for comparison.
const MEMORY: usize = 1 << 20;

/// One parser, or a few that read the same bytes, with what holds for them.
#[derive(Clone, Copy)]
pub struct Target {
    /// Its name, which is that of its folders and of its dictionary.
    pub name: &'static str,
    /// Longest input that is tried, in bytes.
    pub longest: usize,
    /// Bytes that it may allocate at once for each byte of input, on top of a megabyte.
    pub memory: usize,
    /// Panics if something does not hold.
    pub check: fn(&[u8]),
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl Target {
    /// The target called `name`; the planted one too.
    pub fn by_name(name: &str) -> Option<Self> {
        TARGETS.iter().chain([&PLANTED]).find(|target| target.name == name).copied()
    }

    /// Checks one input.
    ///
    /// # Panics
    /// If something does not hold, or more memory was taken than an input of this length may cost.
    pub fn run(&self, input: &[u8]) {
        let before = ALLOCATOR.current_usage();
        ALLOCATOR.reset_peak_usage();
        (self.check)(input);
        let taken = ALLOCATOR.peak_usage().saturating_sub(before);
        let allowed = MEMORY + self.memory * input.len();
        assert!(
            taken <= allowed,
            "{} bytes of input made {} take {taken} bytes of memory, {allowed} are allowed",
            input.len(),
            self.name
        );
    }

    /// The folders with the inputs that are kept: seeds, and what did not hold once.
    pub fn folders(&self) -> [PathBuf; 2] {
        ["corpus", "regressions"].map(|kind| Path::new(env!("CARGO_MANIFEST_DIR")).join(kind).join(self.name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::sync::{Mutex, PoisonError};

    /// Memory is counted for the whole process: a test that counts it, and one that panics on purpose, has the process to itself.
    static ALONE: Mutex<()> = Mutex::new(());

    fn kept(folder: &Path) -> Vec<PathBuf> {
        let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
        let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
        files.sort();
        files
    }

    #[test]
    fn every_input_that_is_kept_passes() {
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        for target in TARGETS {
            let [seeds, regressions] = target.folders();
            assert!(
                kept(&seeds).len() >= 3,
                "{} has next to no seeds: «freshroot-fuzz seeds» makes them",
                target.name
            );
            for file in kept(&seeds).into_iter().chain(kept(&regressions)) {
                let input = fs::read(&file).unwrap();
                eprintln!("{}", file.display());
                target.run(&input);
            }
            // What every parser meets, and nobody keeps as a file.
            for input in [&b""[..], b"\0", b"\xff\xfe\xfd", &[0; 4096], &[0xff; 4096]] {
                target.run(&input[..input.len().min(target.longest)]);
            }
        }
    }

    #[test]
    fn seeds_are_small_and_belong_to_a_target() {
        for kind in ["corpus", "regressions"] {
            for folder in kept(&Path::new(env!("CARGO_MANIFEST_DIR")).join(kind)) {
                let name = folder.file_name().unwrap().to_str().unwrap().to_owned();
                let target = Target::by_name(&name).unwrap_or_else(|| panic!("{} belongs to no target", folder.display()));
                let sizes: Vec<u64> = kept(&folder).iter().map(|file| file.metadata().unwrap().len()).collect();
                assert!(sizes.iter().sum::<u64>() < 100_000, "{name} keeps more than 100 kB");
                assert!(
                    sizes.iter().all(|size| *size <= target.longest as u64),
                    "{name} keeps more than it tries"
                );
            }
        }
    }

    #[test]
    fn a_target_that_takes_too_much_memory_is_a_finding() {
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let greedy = Target {
            name: "greedy",
            longest: 10,
            memory: 8,
            check: |input| drop(vec![0_u8; (2 << 20) * input.len()]),
        };
        greedy.run(b"");
        assert!(std::panic::catch_unwind(|| greedy.run(b"x")).is_err());
    }

    #[test]
    fn the_planted_bug_is_there() {
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        PLANTED.run(b"anything else");
        assert!(std::panic::catch_unwind(|| PLANTED.run(targets::planted::KEY)).is_err());
    }
}
