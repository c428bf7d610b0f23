//! A machine that prepares disks with the tools of stage 1: LVM, LUKS and MD need a kernel that takes them, and the host's may not.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::Flavour;
use crate::disk::Disk;
use crate::initrd::Initrd;
use crate::qemu::beside::Device;
use crate::qemu::{End, Machine};
use crate::trial::Trial;

const INIT: &str = include_str!("../../guest/stage-1/workshop-init.sh");

/// Runs `script` with `disks`, of which the last one is the filled cache; an error holds what the machine said.
pub fn run(trial: &Trial<'_>, disks: &[Disk], script: &str, life: Duration) -> Result<()> {
    run_with(trial, disks, None, script, life)
}

/// The same with a device beside it.
pub fn run_with(trial: &Trial<'_>, disks: &[Disk], device: Option<&Device>, script: &str, life: Duration) -> Result<()> {
    let lab = trial.lab;
    let initrd = trial.dir.join("workshop-initrd");
    Initrd::new()
        .text("/init", INIT, 0o755)
        .text("/script", script, 0o755)
        .build_onto(&lab.stage_1(Flavour::Debian12)?, &initrd)?;
    let mut machine = Machine::new(&lab.kernel.image, &initrd, "console=ttyS0 loglevel=4 panic=-1");
    for (number, disk) in disks.iter().enumerate() {
        machine = machine.disk(disk, &format!("disk{number}"));
    }
    if let Some(device) = device {
        machine = machine.device(device);
    }
    let mut vm = machine.start(lab.accelerator, &trial.dir, "workshop", life * lab.accelerator.patience())?;
    let end = vm.wait_end()?;
    let said = vm.said();
    ensure!(
        end == End::PoweredOff && said.contains("WORKSHOP-DONE"),
        "the disks were not prepared:\n{said}"
    );
    Ok(())
}
