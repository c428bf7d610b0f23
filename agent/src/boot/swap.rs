//! Swap space in standalone mode, and what becomes of a hibernated system.
//!
//! Nobody waits for swap space, and no boot fails without it: what is there is turned on, devices before anything is fetched (an image that is kept in RAM may
//! need it), files when all is mounted. The rest is the running system's, whose units find the former turned on.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::path::Path;

use anyhow::{Context as _, Result, bail};

use crate::cmdline::CommandLine;
use crate::device::observe::{BlockDevice, observe};
use crate::device::probe::{Content, Kind, probe};
use crate::device::resolve::{Match, resolve};
use crate::mode::Mode;
use crate::mount::below::Below;
use crate::mount::kernel_log::KernelLog;
use crate::report::Report;
use crate::settings::Settings;
use crate::stack::records;
use crate::stack::swap::{Place, SwapArea};
use crate::sys;

/// Swap space that was not decided on yet.
#[derive(Debug)]
pub struct Swaps {
    left: Vec<(String, SwapArea)>,
    unknown: BTreeSet<String>,
}

impl Swaps {
    /// Those of the settings; under systemd none, since there its units have them.
    pub fn new(settings: &Settings, mode: Mode) -> Self {
        let left = match mode {
            Mode::Standalone => settings.swap_devices.clone().into_iter().filter(|(_, area)| !area.noauto).collect(),
            Mode::Systemd => Vec::new(),
        };
        Self {
            left,
            unknown: BTreeSet::new(),
        }
    }

    /// Turns on the devices that are there now. `root` is `/`.
    pub fn devices(&mut self, root: &Path, report: &mut Report) {
        let is_device = |area: &SwapArea| matches!(area.place, Place::Device(_));
        if !self.left.iter().any(|(_, area)| is_device(area)) {
            return;
        }
        let seen = match observe(root) {
            Ok(seen) => seen,
            Err(error) => return report.warn(format!("no swap device is turned on: looking at the devices: {error}")),
        };
        self.each(report, |name, area| match &area.place {
            Place::Device(device) => match resolve(device, &seen) {
                Match::None => Ok(false),
                Match::One(found) => device_on(root, name, &found, area).map(|()| true),
                Match::Ambiguous(devices) => {
                    let all: Vec<String> = devices.iter().map(BlockDevice::to_string).collect();
                    bail!("it is on several devices: {}; give all but one another name", all.join(", "))
                }
                Match::Conflict(device) => bail!("it is on {device}; remove what is out of date with `wipefs`"),
            },
            Place::File(_) => Ok(false),
        });
    }

    /// Turns on the files that are there below `sysroot`.
    pub fn files(&mut self, sysroot: &Path, report: &mut Report) {
        self.each(report, |_, area| match &area.place {
            Place::Device(_) => Ok(false),
            Place::File(file) => file_on(sysroot, file, area),
        });
        for (name, _) in &self.left {
            log::info!("the swap space {name} is not there: it is left to the running system");
        }
    }

    /// Tries each that is left; `turn_on` says whether it was there.
    fn each(&mut self, report: &mut Report, turn_on: impl Fn(&str, &SwapArea) -> Result<bool>) {
        let Self { left, unknown } = self;
        left.retain(|(name, area)| {
            for word in &area.unknown {
                if unknown.insert(format!("{name} {word}")) {
                    log::warn!("the option «{word}» of the swap space {name} says nothing about swap space, and is left aside");
                }
            }
            match turn_on(name, area) {
                Ok(there) => !there,
                Err(error) => {
                    report.warn(format!("the swap space {name} is not turned on: {error:#}"));
                    false
                }
            }
        });
    }
}

fn device_on(root: &Path, name: &str, device: &BlockDevice, area: &SwapArea) -> Result<()> {
    is_swap(&device.content, &device.to_string())?;
    turn_on(root, &device.path, area)?;
    // The units of the running system are called as its configuration calls the device. systemd knows that it is turned on by all names that udev's
    // record has, and else it would turn it on once more, and fail.
    if let Place::Device(written) = &area.place
        && let Some(link) = written.link().filter(|link| *link != device.path)
        && let Err(error) = records::add_link(root, device.number, &link)
    {
        log::warn!("the running system may try to turn on {name} once more: {error:#}");
    }
    Ok(())
}

fn file_on(sysroot: &Path, file: &Path, area: &SwapArea) -> Result<bool> {
    let below = Below::open(sysroot)?;
    let Some(found) = below.find(file)? else { return Ok(false) };
    let path = below.real_path(found.as_fd())?;
    let open = File::open(&path).with_context(|| format!("opening {}", path.display()))?;
    let metadata = open.metadata().with_context(|| format!("looking at {}", path.display()))?;
    if !metadata.is_file() {
        bail!("{} is no file", file.display());
    }
    is_swap(&probe(&open, metadata.len()), &file.display().to_string())?;
    turn_on(Path::new("/"), &path, area)?;
    Ok(true)
}

/// Whether swap space may be turned on: it is such, and holds no hibernated system.
fn is_swap(content: &Content, what: &str) -> Result<()> {
    match content.signature().map(|signature| signature.kind) {
        Some(Kind::Swap) => Ok(()),
        Some(Kind::Hibernation) => bail!(
            "{what} holds a hibernated system, and is left alone. It must not be resumed any more: what it had mounted is mounted now. `mkswap` makes it swap space again"
        ),
        Some(_) | None => bail!("{what} holds no swap space: make it once with `mkswap`"),
    }
}

/// Turns on swap space, unless it is.
fn turn_on(root: &Path, path: &Path, area: &SwapArea) -> Result<()> {
    let log = KernelLog::from_now();
    match sys::swapon(path, area.flags) {
        Ok(()) => {
            log::info!("swap on {}", path.display());
            Ok(())
        }
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy && is_on(root, path) => {
            log::info!("swap on {} already", path.display());
            Ok(())
        }
        Err(error) => {
            let said = log.said_about(&["swap"]);
            let said = if said.is_empty() {
                String::new()
            } else {
                format!("; the kernel says: {}", said.join(" | "))
            };
            bail!("swapon {}: {error}{said}", path.display())
        }
    }
}

fn is_on(root: &Path, path: &Path) -> bool {
    let shown = path.display().to_string().replace('\\', "\\134").replace(' ', "\\040");
    std::fs::read_to_string(root.join("proc/swaps"))
        .is_ok_and(|text| text.lines().any(|line| line.split_whitespace().next() == Some(shown.as_str())))
}

/// What is to be said about `resume=` on the command line: nothing is resumed without systemd.
pub fn about_resume(line: &CommandLine, mode: Mode) -> Option<String> {
    let device = line.last("resume")?.value.clone().filter(|device| !device.is_empty())?;
    if mode == Mode::Systemd || line.last("noresume").is_some() {
        return None;
    }
    Some(format!(
        "resume={}: nothing is resumed in standalone mode, and the system boots anew; a hibernated system there is left alone, and must not be resumed later, since what it \
         had mounted is mounted now. Remove resume= from the command line, or use systemd stage 1 where the machine is to hibernate",
        crate::foreign::word(&device)
    ))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_word_that_asks_to_resume_is_answered_where_nobody_does() {
        for (line, mode, said) in [
            ("resume=LABEL=swap quiet", Mode::Standalone, Some("resume=LABEL=swap:")),
            ("resume=/dev/vda2 resume=/dev/vda3", Mode::Standalone, Some("resume=/dev/vda3:")),
            ("resume=LABEL=swap", Mode::Systemd, None),
            ("resume=LABEL=swap noresume", Mode::Standalone, None),
            ("resume= resumewait", Mode::Standalone, None),
            ("quiet", Mode::Standalone, None),
        ] {
            let warning = about_resume(&CommandLine::parse(line.as_bytes()).unwrap(), mode);
            assert_eq!(warning.is_some(), said.is_some(), "{line}");
            assert!(warning.unwrap_or_default().contains(said.unwrap_or_default()), "{line}");
        }
    }
}
