//! Drivers and disks: the two go together, since a disk that is waited for may need a driver that is not loaded yet.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::Stage;
use crate::cmdline::CommandLine;
use crate::device::find::{Progress, wait_for};
use crate::device::name::DeviceName;
use crate::device::observe::BlockDevice;
use crate::kmod::{self, Loader, Options};
use crate::mode::Mode;
use crate::settings::Settings;
use crate::uevent::{Received, Socket, Source as _};

/// What every boot needs, whatever the hardware.
const ALWAYS: &[&str] = &["loop", "squashfs", "overlay"];
/// vfat asks for these by itself, and there is no program that the kernel could call to load them.
const VFAT: &[&str] = &["nls_cp437", "nls_ascii", "nls_iso8859_1", "nls_utf8"];
/// How long a wait may be silent.
const TELL_AFTER: Duration = Duration::from_secs(2);

/// Drivers and disks.
#[derive(Debug)]
pub struct Disks<'a> {
    root: PathBuf,
    stage: &'a Stage,
    events: Socket,
    loader: Loader,
}

impl<'a> Disks<'a> {
    /// Loads drivers: the configured ones, and, where there is no udev that does so, those for the hardware that is there. Returns what was odd.
    ///
    /// # Errors
    /// If the kernel's events cannot be followed.
    pub fn open(root: &Path, stage: &'a Stage, settings: &Settings, command_line: &CommandLine) -> Result<(Self, Vec<String>)> {
        // Before the first look, so that no event falls in between.
        let events = match stage.mode {
            Mode::Standalone => Socket::open(),
            Mode::Systemd => Socket::open_with_udev(),
        };
        let events = events.context("following the kernel's events")?;
        let loader = Loader::new(root, None, Options::from_command_line(command_line))?;
        let mut disks = Self {
            root: root.to_owned(),
            stage,
            events,
            loader,
        };
        let mut oddities = Vec::new();
        let configured = settings.kernel.modules.iter().map(|name| (name.as_str(), ""));
        let report = disks.loader.load_all(configured);
        oddities.extend(report.failures.iter().map(ToString::to_string));
        for name in ALWAYS {
            disks.load(name);
        }
        if settings.kernel.autoload && stage.mode == Mode::Standalone {
            let settled =
                kmod::settle(&mut disks.loader, &mut disks.events, Instant::now() + settings.kernel.settle).context("loading drivers")?;
            // A driver that does not fit its device is everyday life; what is missing because of it says so later.
            for failure in &settled.report.failures {
                log::debug!("{failure}");
            }
            log::info!("{} drivers loaded", settled.report.loaded.len());
            if !settled.quiet {
                oddities.push("devices still come and go (kernel.settle is over): the boot goes on with those that are there".to_owned());
            }
        }
        Ok((disks, oddities))
    }

    /// Waits for a device, loading drivers meanwhile.
    ///
    /// # Errors
    /// If no device, or more than one, has this name when `limit` is over.
    pub fn find(&mut self, name: &str, limit: Duration) -> Result<BlockDevice> {
        let name: DeviceName = name.parse()?;
        ensure!(
            self.stage.mode == Mode::Systemd || !name.needs_udev(),
            "{name} is a link that udev makes, which does not run here; use the label or the UUID that `blkid` prints"
        );
        let started = Instant::now();
        let mut told = started;
        let (loader, root, stage) = (&mut self.loader, &self.root, self.stage);
        let mut on_progress = |progress: Progress<'_>| match progress {
            Progress::Event(_) | Progress::Overrun if stage.mode == Mode::Systemd => {}
            Progress::Event(event) => {
                if let Some(alias) = event.new_modalias() {
                    loader.load_matching(alias);
                }
            }
            Progress::Overrun => {
                if let Err(error) = loader.coldplug() {
                    log::warn!("looking for drivers anew: {error}");
                }
            }
            Progress::Looked(_) => {
                if told == started || told.elapsed() >= TELL_AFTER {
                    told = Instant::now();
                    log::info!(
                        "waiting for {name}, at most {} s",
                        limit.saturating_sub(started.elapsed()).as_secs()
                    );
                }
            }
        };
        let events = &mut self.events;
        let wait = || wait_for(root, &name, started + limit, events, &mut on_progress);
        Ok(stage.deadline.moved_within(limit, wait)?)
    }

    /// Waits until a block device came, changed or went, loading drivers meanwhile. False if nothing did until the deadline.
    ///
    /// # Errors
    /// If the kernel's events cannot be followed.
    pub fn wait_for_news(&mut self, deadline: Instant) -> Result<bool> {
        loop {
            match self.events.next(deadline).context("following the kernel's uevents")? {
                Received::Event(event) => {
                    if let Some(alias) = event.new_modalias().filter(|_| self.stage.mode == Mode::Standalone) {
                        self.loader.load_matching(alias);
                    }
                    // A device that sends events without end is not to keep the boot waiting.
                    if event.is_block_news() || Instant::now() >= deadline {
                        return Ok(true);
                    }
                }
                Received::Overrun => {
                    if self.stage.mode == Mode::Standalone {
                        self.loader.coldplug().context("looking for drivers anew")?;
                    }
                    return Ok(true);
                }
                Received::Deadline => return Ok(false),
            }
        }
    }

    /// Loads a module, or does without it: the kernel may have it built in, and what needs it says so.
    fn load(&mut self, name: &str) {
        if let Err(error) = self.loader.load(name, "") {
            log::debug!("{error}");
        }
    }

    /// Loads what a file system needs: in an initrd there is no `modprobe` that the kernel could call.
    pub fn load_file_system(&mut self, name: &str) {
        for failure in self.loader.load_matching(&format!("fs-{name}")).failures {
            log::warn!("{failure}");
        }
        if name == "vfat" {
            for module in VFAT {
                self.load(module);
            }
        }
    }
}

/// The file system that a device holds, as a mount names it.
///
/// # Errors
/// If it holds none.
pub fn file_system_of(device: &BlockDevice) -> Result<String> {
    let signature = device.content.signature().filter(|signature| signature.kind.is_file_system());
    signature
        .map(|signature| signature.kind.name().to_owned())
        .with_context(|| format!("{device} holds no file system"))
}
