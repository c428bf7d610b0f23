//! Drivers for the devices that are there, and for those that come while they are looked at.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;
use std::time::Instant;

use super::insert::Insert;
use super::loader::{Loader, Report};
use crate::uevent::{Received, Source};

/// An alias has at most a page, as every attribute of sysfs.
const LONGEST: u64 = 4096;

/// What came of loading drivers until no device needed one any more.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settled {
    /// The modules.
    pub report: Report,
    /// Whether it became quiet before the deadline.
    pub quiet: bool,
}

impl<I: Insert> Loader<I> {
    /// Loads what matches the devices that are there: each has its alias in a file `modalias` below `/sys/devices`.
    ///
    /// # Errors
    /// Only if `/sys/devices` cannot be listed. Devices that vanish meanwhile are passed over.
    pub fn coldplug(&mut self) -> io::Result<Report> {
        let mut aliases = BTreeSet::new();
        let devices = self.root().join("sys/devices");
        collect(&devices, &mut aliases, fs::read_dir(&devices)?);
        let mut report = Report::default();
        for alias in aliases {
            report.add(self.load_matching(&alias));
        }
        Ok(report)
    }
}

/// Gathers the aliases in a folder and those beneath. Links are not followed: they lead to other devices, and in circles.
fn collect(folder: &Path, aliases: &mut BTreeSet<String>, entries: fs::ReadDir) {
    for entry in entries.flatten() {
        let path = entry.path();
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => match fs::read_dir(&path) {
                Ok(beneath) => collect(&path, aliases, beneath),
                Err(error) => log::debug!("passing over {}: {error}", path.display()),
            },
            Ok(kind) if kind.is_file() && entry.file_name() == "modalias" => match alias(&path) {
                Ok(alias) if alias.is_empty() => {}
                Ok(alias) => {
                    aliases.insert(alias);
                }
                Err(error) => log::debug!("passing over {}: {error}", path.display()),
            },
            Ok(_) => {}
            Err(error) => log::debug!("passing over {} in {}: {error}", path.display(), folder.display()),
        }
    }
}

fn alias(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(LONGEST).read_to_string(&mut text)?;
    Ok(text.trim_end().to_owned())
}

/// Loads drivers until it is quiet: what the devices that are there need, then what each device needs that came of it, until no event is
/// waiting. A second walk over all devices is made only if events were lost: each that came since the first is in an event.
///
/// It never sleeps: a driver that the kernel has taken has met the devices on its bus when the call returns, and their events are in the queue.
/// Drivers that look for their devices in the background (NVMe, SCSI, USB) are not waited for here, since nothing says how long that
/// takes; who waits for a disk follows the same events, and has [`Loader::load_matching`] load what they name. The deadline ends a
/// machine whose devices come and go for ever.
///
/// # Errors
/// Those of listing `/sys/devices` and of following events.
pub fn settle<I: Insert>(loader: &mut Loader<I>, events: &mut impl Source, deadline: Instant) -> io::Result<Settled> {
    let mut settled = Settled::default();
    loop {
        settled.report.add(loader.coldplug()?);
        let mut lost = false;
        loop {
            match events.next(Instant::now())? {
                Received::Event(event) => {
                    if let Some(modalias) = event.new_modalias() {
                        settled.report.add(loader.load_matching(modalias));
                    }
                }
                Received::Overrun => lost = true,
                Received::Deadline => break,
            }
            if Instant::now() >= deadline {
                return Ok(settled);
            }
        }
        settled.quiet = !lost;
        if settled.quiet || Instant::now() >= deadline {
            return Ok(settled);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::super::loader::tests::{loader, root};
    use super::*;
    use crate::uevent::parse;
    use std::time::Duration;

    fn device(root: &Path, path: &str, modalias: &str) {
        let folder = root.join("sys/devices").join(path);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("modalias"), format!("{modalias}\n")).unwrap();
    }

    /// Events that are there already, and never more.
    struct Queue(Vec<Received>);

    impl Source for Queue {
        fn next(&mut self, _: Instant) -> io::Result<Received> {
            Ok(if self.0.is_empty() { Received::Deadline } else { self.0.remove(0) })
        }
    }

    fn added(modalias: &str) -> Received {
        Received::Event(parse(format!("add@/devices/x\0MODALIAS={modalias}\0").as_bytes()).unwrap())
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    #[test]
    fn devices_at_any_depth_get_their_drivers_and_links_are_not_followed() {
        let root = root();
        device(root.path(), "pci0/0000:00:04.0/virtio1", "virtio:d2v1AF4");
        device(root.path(), "pci0", "");
        std::os::unix::fs::symlink("..", root.path().join("sys/devices/pci0/subsystem")).unwrap();
        let report = loader(root.path(), "modprobe.blacklist=broken").coldplug().unwrap();
        assert_eq!((report.loaded, report.failures), (vec!["virtio_blk".to_owned()], vec![]));
    }

    #[test]
    fn it_is_quiet_when_a_walk_and_the_queue_bring_nothing_new() {
        let root = root();
        device(root.path(), "virtio1", "virtio:d2v1AF4");
        let mut queue = Queue(vec![added("usb:v1p2"), Received::Overrun, added("usb:v1p2")]);
        let settled = settle(&mut loader(root.path(), "modprobe.blacklist=broken softdep"), &mut queue, soon()).unwrap();
        // `late` came with virtio_blk, so the event for it brings nothing.
        assert_eq!((settled.report.loaded, settled.quiet), (vec!["virtio_blk".to_owned()], true));
        let settled = settle(
            &mut loader(root.path(), "modprobe.blacklist=broken,virtio_blk"),
            &mut Queue(vec![added("usb:v1p2")]),
            soon(),
        )
        .unwrap();
        assert_eq!((settled.report.loaded, settled.quiet), (vec!["late".to_owned()], true));
    }

    #[test]
    fn devices_that_come_and_go_for_ever_end_at_the_deadline() {
        struct Endless;
        impl Source for Endless {
            fn next(&mut self, _: Instant) -> io::Result<Received> {
                Ok(Received::Overrun)
            }
        }
        let root = root();
        fs::create_dir_all(root.path().join("sys/devices")).unwrap();
        let settled = settle(
            &mut loader(root.path(), ""),
            &mut Endless,
            Instant::now() + Duration::from_millis(20),
        )
        .unwrap();
        assert!(!settled.quiet);
    }

    #[test]
    fn without_sysfs_there_is_an_error() {
        let root = root();
        assert!(loader(root.path(), "").coldplug().is_err());
    }
}
