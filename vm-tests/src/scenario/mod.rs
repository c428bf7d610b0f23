//! Boot tests: one behaviour each.

pub mod baseline;
mod cut;
mod disk_faults;
mod disks;
mod fallback;
mod full;
mod homestaker;
mod hostile;
mod iso;
mod kinds;
mod memory;
mod network;
mod prepare;
mod sectors;
mod stacks;
mod stage_2;
mod systemd;
mod trust;
mod unlock;
pub mod warm;
mod ways;
pub mod zoo;

use anyhow::{Result, ensure};

use crate::lab::Lab;
use crate::qemu::{End, Vm};
use crate::stage_1::Flavour;
use crate::trial::Trial;

/// A boot test.
pub struct Scenario {
    /// A sentence about the behaviour.
    pub name: &'static str,
    /// Name of its folder below `target/vm/logs`.
    pub folder: &'static str,
    /// Whether it runs only in the nightly layer, since it takes long.
    pub nightly: bool,
    /// Whether the newest systemd runs it in every run, and not only in the nightly layer.
    pub newest: bool,
    run: fn(&Trial<'_>) -> Result<()>,
}

impl Scenario {
    const fn new(folder: &'static str, name: &'static str, run: fn(&Trial<'_>) -> Result<()>) -> Self {
        Self {
            name,
            folder,
            nightly: false,
            newest: false,
            run,
        }
    }

    /// Leaves it to the nightly layer.
    const fn nightly(mut self) -> Self {
        self.nightly = true;
        self
    }

    /// Runs it with the newest systemd too.
    const fn with_newest(mut self) -> Self {
        self.newest = true;
        self
    }
}

/// A boot test with the systemd that is stage 1 in it, if one is.
pub struct Test {
    scenario: &'static Scenario,
    flavour: Flavour,
}

impl Test {
    /// A sentence about the behaviour.
    pub fn name(&self) -> String {
        match self.flavour {
            Flavour::Debian12 => self.scenario.name.to_owned(),
            Flavour::Newest => format!("{} (Debian's newest systemd)", self.scenario.name),
        }
    }

    /// Name of its folder below `target/vm/logs`.
    pub fn folder(&self) -> String {
        match self.flavour {
            Flavour::Debian12 => self.scenario.folder.to_owned(),
            Flavour::Newest => format!("{}-newest", self.scenario.folder),
        }
    }

    /// Whether it runs only in the nightly layer.
    pub fn nightly(&self) -> bool {
        self.scenario.nightly || (self.flavour == Flavour::Newest && !self.scenario.newest)
    }

    /// Runs it in a folder of its own.
    pub fn run(&self, lab: &Lab) -> Result<()> {
        let trial = Trial::with(lab, &self.folder(), self.flavour)?;
        (self.scenario.run)(&trial)?;
        trial.tidy()
    }
}

/// Every boot test, in the order in which they are started.
pub fn all() -> Vec<Test> {
    let plain = [
        baseline::ALL,
        warm::ALL,
        cut::ALL,
        fallback::ALL,
        disks::ALL,
        disk_faults::ALL,
        stacks::ALL,
        full::ALL,
        prepare::ALL,
        sectors::ALL,
        zoo::ALL,
        homestaker::ALL,
        unlock::ALL,
        network::ALL,
        hostile::ALL,
        memory::ALL,
        kinds::ALL,
        stage_2::ALL,
        trust::ALL,
        ways::ALL,
        iso::ALL,
    ];
    let of = |groups: &[&'static [Scenario]], flavour| -> Vec<Test> {
        groups
            .iter()
            .flat_map(|group| group.iter())
            .map(|scenario| Test { scenario, flavour })
            .collect()
    };
    let mut all = of(&plain, Flavour::Debian12);
    for flavour in [Flavour::Debian12, Flavour::Newest] {
        all.extend(of(systemd::ALL, flavour));
    }
    all
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
