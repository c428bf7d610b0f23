//! Boots with a real systemd as stage 1, and the units that the NixOS module generates in it.

mod disks;
mod failures;
mod harness;
mod limits;
mod main_job;
mod network;
mod prepare;
mod tries;
mod verify;

use super::Scenario;
use crate::trial::{Boot, Trial};

/// The tests of this folder.
pub const ALL: &[&[Scenario]] = &[
    disks::ALL,
    super::disk_faults::SYSTEMD,
    super::homestaker::SYSTEMD,
    super::unlock::SYSTEMD,
    limits::ALL,
    tries::ALL,
    failures::ALL,
    network::ALL,
    main_job::ALL,
    prepare::ALL,
    verify::ALL,
    harness::ALL,
];

/// A boot with Debian 12's systemd as stage 1 and the usual configuration.
fn boot<'a>(trial: &'a Trial<'_>) -> Boot<'a> {
    trial.boot().systemd(trial.stage_1())
}
