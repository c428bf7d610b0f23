//! Boot tests: one behaviour each.

pub mod baseline;
mod cut;
mod disks;
mod fallback;
mod iso;
mod kinds;
mod memory;
mod network;
mod stage_2;
pub mod warm;
mod ways;

use anyhow::{Result, ensure};

use crate::lab::Lab;
use crate::qemu::{End, Vm};
use crate::trial::Trial;

/// A boot test.
pub struct Scenario {
    /// A sentence about the behaviour.
    pub name: &'static str,
    /// Name of its folder below `target/vm/logs`.
    pub folder: &'static str,
    /// Whether it runs only in the nightly layer, since it takes long.
    pub nightly: bool,
    run: fn(&Trial<'_>) -> Result<()>,
}

impl Scenario {
    const fn new(folder: &'static str, name: &'static str, run: fn(&Trial<'_>) -> Result<()>) -> Self {
        Self {
            name,
            folder,
            nightly: false,
            run,
        }
    }

    /// Leaves it to the nightly layer.
    const fn nightly(mut self) -> Self {
        self.nightly = true;
        self
    }

    /// Runs it in a folder of its own.
    pub fn run(&self, lab: &Lab) -> Result<()> {
        let trial = Trial::new(lab, self.folder)?;
        (self.run)(&trial)?;
        trial.tidy()
    }
}

/// Every boot test, in the order in which they are started.
pub fn all() -> Vec<&'static Scenario> {
    [
        baseline::ALL,
        warm::ALL,
        cut::ALL,
        fallback::ALL,
        disks::ALL,
        network::ALL,
        memory::ALL,
        kinds::ALL,
        stage_2::ALL,
        ways::ALL,
        iso::ALL,
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Waits for a boot that must fail: it powers off as the usual configuration says, after it has said all of `words` and without booting a system.
fn must_refuse(vm: &mut Vm, words: &[&str]) -> Result<()> {
    let end = vm.wait_end()?;
    let said = vm.said();
    ensure!(!said.contains("DEMO-READY"), "it booted instead of refusing");
    for word in words {
        ensure!(said.contains(word), "the console does not say «{word}»; it says:\n{said}");
    }
    ensure!(
        end == End::PoweredOff,
        "the failure policy is to power off, but it ended otherwise: {end:?}"
    );
    Ok(())
}
