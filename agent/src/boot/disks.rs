//! Drivers and disks: the two go together, since a disk that is waited for may need a driver that is not loaded yet.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::Stage;
use crate::cmdline::CommandLine;
use crate::device::find::{FindError, Progress, Seen, wait_for_again, wait_for_members_again};
use crate::device::name::DeviceName;
use crate::device::observe::BlockDevice;
use crate::device::probe::Kind;
use crate::kmod::{self, Loader, Options};
use crate::mode::Mode;
use crate::settings::Settings;
use crate::stack::assemble::Assembler;
use crate::uevent::{Received, Socket, Source as _};

/// What every boot needs, whatever the hardware.
const ALWAYS: &[&str] = &["loop", "squashfs", "overlay"];
/// vfat asks for these by itself, and there is no program that the kernel could call to load them.
const VFAT: &[&str] = &["nls_cp437", "nls_ascii", "nls_iso8859_1", "nls_utf8"];
/// How long an array is waited for that lacks a member, before it is started without it; as long as under systemd (`mdadm-last-resort@.timer`).
const ARRAY_WAIT: Duration = Duration::from_secs(30);
/// How long what was started without a member may take to be there.
const ARRAY_START: Duration = Duration::from_secs(5);
/// How long a wait may be silent.
const TELL_AFTER: Duration = Duration::from_secs(2);

/// What is done while a device is waited for.
struct Watch<'a> {
    name: &'a str,
    standalone: bool,
    end: Instant,
    told: Option<Instant>,
    loader: &'a mut Loader,
    assembler: Option<&'a mut Assembler>,
}

impl Watch<'_> {
    fn take(&mut self, progress: Progress<'_>) {
        match progress {
            Progress::Event(_) | Progress::Overrun if !self.standalone => {}
            Progress::Event(event) => {
                if let Some(alias) = event.new_modalias() {
                    self.loader.load_matching(alias);
                }
            }
            Progress::Overrun => {
                if let Err(error) = self.loader.coldplug() {
                    log::warn!("looking for drivers anew: {error}");
                }
            }
            Progress::Looked(seen) => {
                if let Some(assembler) = &mut self.assembler {
                    let mut load = |name: &str| {
                        if let Err(error) = self.loader.load(name, "") {
                            log::debug!("{error}");
                        }
                    };
                    assembler.look(seen, &mut load);
                }
                if self.told.is_none_or(|told| told.elapsed() >= TELL_AFTER) {
                    self.told = Some(Instant::now());
                    log::info!(
                        "waiting for {}, at most {} s",
                        self.name,
                        self.end.saturating_duration_since(Instant::now()).as_secs()
                    );
                }
            }
        }
    }
}

/// Drivers and disks.
#[derive(Debug)]
pub struct Disks<'a> {
    root: PathBuf,
    stage: &'a Stage,
    events: Socket,
    loader: Loader,
    seen: Seen,
    /// None where udev does it.
    assembler: Option<Assembler>,
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
            seen: Seen::default(),
            assembler: match stage.mode {
                Mode::Standalone => Some(Assembler::new(root)),
                Mode::Systemd => None,
            },
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

    /// Which part of stage 1 this is.
    pub const fn mode(&self) -> Mode {
        self.stage.mode
    }

    /// Waits for a device, loading drivers meanwhile.
    ///
    /// # Errors
    /// If no device, or more than one, has this name when `limit` is over.
    pub fn find(&mut self, name: &str, limit: Duration) -> Result<BlockDevice> {
        self.find_since(name, Instant::now(), limit)
    }

    /// As [`Disks::find`], with the limit counted from `started`: of several devices that are waited for, none has to wait for the time of another.
    ///
    /// # Errors
    /// As of [`Disks::find`].
    pub fn find_since(&mut self, name: &str, started: Instant, limit: Duration) -> Result<BlockDevice> {
        self.seen.forget();
        self.find_also(name, started, limit)
    }

    /// As [`Disks::find_since`], for the next of several devices: those that were seen for the one before are not read again, which is right only if nothing
    /// was written to any of them since.
    ///
    /// # Errors
    /// As of [`Disks::find`].
    pub fn find_also(&mut self, name: &str, started: Instant, limit: Duration) -> Result<BlockDevice> {
        let name: DeviceName = name.parse()?;
        ensure!(
            self.stage.mode == Mode::Systemd || !name.needs_udev(),
            "{name} is a link that udev makes, which does not run here; use the label or the UUID that `blkid` prints"
        );
        let shown = name.to_string();
        let mut seen = std::mem::take(&mut self.seen);
        let found = self.wait(&shown, started, limit, |root, until, events, progress| {
            wait_for_again(root, &name, until, events, progress, &mut seen)
        });
        self.seen = seen;
        found
    }

    /// Makes the next look read all devices anew.
    pub fn forget(&mut self) {
        self.seen.forget();
    }

    /// All devices of the file system on `device`, itself first. With `degraded`, at the end of the limit those that are there.
    ///
    /// # Errors
    /// If one is missing, or there twice.
    pub fn members(&mut self, device: &BlockDevice, degraded: bool, started: Instant, limit: Duration) -> Result<Vec<BlockDevice>> {
        if device
            .content
            .signature()
            .is_none_or(|signature| signature.devices.is_none_or(|count| count < 2))
        {
            return Ok(vec![device.clone()]);
        }
        // A bcachefs counts devices that were taken out: whether those that are there suffice, its kernel knows.
        let is_bcachefs = device.content.signature().is_some_and(|signature| signature.kind == Kind::Bcachefs);
        let degraded = degraded || is_bcachefs;
        let mut seen = std::mem::take(&mut self.seen);
        let members = self.wait(
            "all devices of a file system",
            started,
            limit,
            |root, until, events, progress| match wait_for_members_again(root, device, until, events, progress, &mut seen) {
                Err(FindError::Fewer { there, of }) if degraded => {
                    log::warn!(
                        "of {of} devices of the file system on {device} there are {}: it is mounted without the others",
                        there.len()
                    );
                    Ok(there)
                }
                other => other,
            },
        );
        self.seen = seen;
        members
    }

    /// What was odd about the devices, once.
    pub fn take_warnings(&mut self) -> Vec<String> {
        self.assembler.as_mut().map(Assembler::take_warnings).unwrap_or_default()
    }

    /// Loads what opens LUKS containers. The ciphers are among the configured modules.
    pub fn load_for_luks(&mut self) {
        for name in ["dm_mod", "dm_crypt"] {
            self.load(name);
        }
    }

    /// Waits in one way or another, meanwhile loading drivers and putting volume groups and arrays together.
    fn wait<T>(
        &mut self,
        name: &str,
        started: Instant,
        limit: Duration,
        mut how: impl FnMut(&Path, Instant, &mut Socket, &mut dyn FnMut(Progress<'_>)) -> Result<T, FindError>,
    ) -> Result<T> {
        let deadline = &self.stage.deadline;
        let mut end = started + limit;
        // An array that lacks a disk may be what is waited for: not all of the time is for that disk.
        let arrays = self.assembler.as_ref().is_some_and(Assembler::has_arrays);
        let mut until = if arrays { end.min(started + ARRAY_WAIT) } else { end };
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let mut watch = Watch {
                name,
                standalone: self.stage.mode == Mode::Standalone,
                end,
                told: None,
                loader: &mut self.loader,
                assembler: self.assembler.as_mut(),
            };
            let (root, events) = (&self.root, &mut self.events);
            let error = match deadline.moved_within(left, || how(root, until, events, &mut |progress| watch.take(progress))) {
                Ok(found) => return Ok(found),
                Err(error) => error,
            };
            let started_degraded = match (&error, &mut self.assembler) {
                (FindError::NotFound { seen, .. }, Some(assembler)) => assembler.start_degraded(seen),
                (FindError::NotFound { .. }, None)
                | (FindError::Ambiguous { .. } | FindError::Unsupported { .. } | FindError::Hibernated(_), _)
                | (FindError::Fewer { .. } | FindError::Twice { .. } | FindError::Io { .. }, _) => false,
            };
            let waits_on = matches!(error, FindError::NotFound { .. } | FindError::Fewer { .. });
            if started_degraded {
                end = end.max(Instant::now() + ARRAY_START);
            } else if !waits_on || until >= end {
                return Err(error.into());
            }
            until = end;
        }
    }

    /// Waits until a block device came, changed or went, loading drivers meanwhile. False if nothing did until the deadline.
    ///
    /// # Errors
    /// If the kernel's events cannot be followed.
    pub fn wait_for_news(&mut self, deadline: Instant) -> Result<bool> {
        // What these events say is not said again.
        self.seen.forget();
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
    device.mountable()?;
    let signature = device.content.signature().filter(|signature| signature.kind.is_file_system());
    signature
        .map(|signature| signature.kind.name().to_owned())
        .with_context(|| format!("{device} holds no file system"))
}
