//! Waiting for a device.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::path::Path;
use std::time::Instant;

use super::name::DeviceName;
use super::observe::{BlockDevice, observe_again};
use super::resolve::{Match, Members, members, resolve};
use crate::uevent::{Received, Source, Uevent};

/// How often it is looked again before a decision because more devices came in the meantime. A device that sends events without end is not to
/// keep the boot waiting.
const MOST_LOOKS: usize = 16;

/// How many events are taken in a row before it is looked at the clock or at the disks, for the same reason.
const MOST_EVENTS: u32 = 4096;

/// Why a device was not found.
#[derive(Debug)]
pub enum FindError {
    /// It did not appear before the deadline; `seen` is what was there.
    NotFound {
        /// What was looked for.
        name: DeviceName,
        /// All devices at the last look.
        seen: Vec<BlockDevice>,
    },
    /// Several devices bear the name.
    Ambiguous {
        /// What was looked for.
        name: DeviceName,
        /// All that bear it.
        devices: Vec<BlockDevice>,
    },
    /// The device is there, but what it holds cannot be told.
    Unsupported {
        /// What was looked for.
        name: DeviceName,
        /// The device that bears it.
        device: Box<BlockDevice>,
    },
    /// The device is there, and a hibernated system is on it.
    Hibernated(Box<BlockDevice>),
    /// Devices of a file system that has several are missing at the deadline.
    Fewer {
        /// Those that are there.
        there: Vec<BlockDevice>,
        /// How many there are to be.
        of: u64,
    },
    /// A device of a file system that has several is there twice.
    Twice {
        /// The two.
        devices: Vec<BlockDevice>,
    },
    /// Devices cannot be looked at, or their events not be followed.
    Io {
        /// What was being done.
        doing: &'static str,
        /// The system's answer.
        error: io::Error,
    },
}

impl fmt::Display for FindError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |devices: &[BlockDevice]| devices.iter().map(BlockDevice::to_string).collect::<Vec<_>>().join(", ");
        match self {
            Self::NotFound { name, seen } if seen.is_empty() => {
                write!(
                    f,
                    "no device is {name}: there is no block device at all; is the driver of the disk among the modules of the initrd?"
                )
            }
            Self::NotFound { name, seen } => write!(f, "no device is {name}; there are: {}", list(seen)),
            Self::Ambiguous { name, devices } => {
                write!(
                    f,
                    "{name} is on several devices: {}; give all but one another name, or name the one by UUID or PARTUUID",
                    list(devices)
                )
            }
            Self::Unsupported { name, device } => {
                write!(
                    f,
                    "{name} is on {device}; remove what is out of date with `wipefs --types <type> {}`",
                    device.path.display()
                )
            }
            Self::Hibernated(device) => write!(
                f,
                "{device} holds a hibernated system, and is left alone: resume that system, or overwrite what is left of it with `wipefs --types swsuspend {}`",
                device.path.display()
            ),
            Self::Fewer { there, of } => write!(
                f,
                "the file system has {of} devices, and of these there are {}: {}; connect the others, or give the option «degraded»",
                there.len(),
                list(there)
            ),
            Self::Twice { devices } => write!(
                f,
                "two devices are the same part of one file system: {}; unplug the copy (or give that of a btrfs an id of its own with `btrfstune -u`)",
                list(devices)
            ),
            Self::Io { doing, error } => write!(f, "{doing}: {error}"),
        }
    }
}

impl std::error::Error for FindError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io { error, .. } => Some(error),
            Self::NotFound { .. } | Self::Ambiguous { .. } | Self::Unsupported { .. } => None,
            Self::Hibernated(_) | Self::Fewer { .. } | Self::Twice { .. } => None,
        }
    }
}

/// What happens while a device is waited for. The caller loads drivers by it, and tells the person at the console.
#[derive(Debug)]
pub enum Progress<'a> {
    /// These devices are there, and what is looked for is not, or not alone.
    Looked(&'a [BlockDevice]),
    /// A device of any kind came, changed or went; its driver may have to be loaded for a disk to appear.
    Event(&'a Uevent),
    /// Events were lost: drivers are to be looked for anew.
    Overrun,
}

/// What the last look saw, for the next one that follows the same events: of a device that no event has named since, nothing is read again.
///
/// Who writes to a disk has to [`forget`](Seen::forget): the kernel sends no event for what is written.
#[derive(Debug, Default)]
pub struct Seen(Option<Vec<BlockDevice>>);

impl Seen {
    /// Makes the next look read everything.
    pub fn forget(&mut self) {
        self.0 = None;
    }
}

/// Waits until `name` means one device, by the events of the kernel, and at most until `deadline`.
///
/// It decides only when no event is waiting to be read: of two disks with one label that came together, the second is then seen too, and
/// no time is spent on waiting for one that may never come. A second disk that comes after the decision is not seen. Nodes are those of
/// devtmpfs, which the kernel makes before it sends the event; udev is not needed. At the deadline it looks a last time, at all
/// devices anew.
///
/// `events` must have been opened before the devices that are waited for could appear; `root` is `/` but in tests.
///
/// # Errors
/// [`FindError`]. A name that two devices bear is refused at once, whatever is left of the time, and so is a device with a hibernated system.
pub fn wait_for(
    root: &Path,
    name: &DeviceName,
    deadline: Instant,
    events: &mut impl Source,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<BlockDevice, FindError> {
    wait_for_again(root, name, deadline, events, progress, &mut Seen::default())
}

/// As [`wait_for`], with what was seen before. If that has the device, and no event is waiting to be read, it is not looked at anything.
///
/// # Errors
/// As of [`wait_for`].
pub fn wait_for_again(
    root: &Path,
    name: &DeviceName,
    deadline: Instant,
    events: &mut impl Source,
    progress: &mut dyn FnMut(Progress<'_>),
    seen: &mut Seen,
) -> Result<BlockDevice, FindError> {
    let judge = |seen: &[BlockDevice]| resolve(name, seen);
    let (found, seen) = wait_until(root, deadline, events, progress, &judge, seen)?;
    conclude(name, found, seen)
}

/// Waits until all devices of the file system on `device` are there, itself among them: a btrfs may have several.
///
/// # Errors
/// [`FindError`]: it is not whole at the deadline, or one of them is there twice.
pub fn wait_for_members(
    root: &Path,
    device: &BlockDevice,
    deadline: Instant,
    events: &mut impl Source,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Vec<BlockDevice>, FindError> {
    wait_for_members_again(root, device, deadline, events, progress, &mut Seen::default())
}

/// As [`wait_for_members`], with what was seen before.
///
/// # Errors
/// As of [`wait_for_members`].
pub fn wait_for_members_again(
    root: &Path,
    device: &BlockDevice,
    deadline: Instant,
    events: &mut impl Source,
    progress: &mut dyn FnMut(Progress<'_>),
    seen: &mut Seen,
) -> Result<Vec<BlockDevice>, FindError> {
    let judge = |seen: &[BlockDevice]| members(device, seen);
    match wait_until(root, deadline, events, progress, &judge, seen)?.0 {
        Members::All(devices) => Ok(devices),
        Members::Fewer { there, of } => Err(FindError::Fewer { there, of }),
        Members::Twice(devices) => Err(FindError::Twice { devices }),
    }
}

/// What a look at the devices comes to.
trait Judgement {
    /// Whether there is nothing to wait for any more.
    fn decided(&self) -> bool;
    /// Whether it is what was wanted.
    fn good(&self) -> bool;
}

impl Judgement for Match {
    fn decided(&self) -> bool {
        !matches!(self, Self::None)
    }
    fn good(&self) -> bool {
        matches!(self, Self::One(_))
    }
}

impl Judgement for Members {
    fn decided(&self) -> bool {
        !matches!(self, Self::Fewer { .. })
    }
    fn good(&self) -> bool {
        matches!(self, Self::All(_))
    }
}

fn wait_until<T: Judgement>(
    root: &Path,
    deadline: Instant,
    events: &mut impl Source,
    progress: &mut dyn FnMut(Progress<'_>),
    judge: &dyn Fn(&[BlockDevice]) -> T,
    known: &mut Seen,
) -> Result<(T, Vec<BlockDevice>), FindError> {
    let mut changed = Some(BTreeSet::new());
    let mut seen = Vec::new();
    if let Some(before) = known.0.take() {
        seen = before;
        changed = match news(events, Instant::now(), progress)? {
            News::Changed(names) => Some(names),
            News::Lost => None,
            News::Nothing => {
                let found = judge(&seen);
                if found.good() {
                    known.0 = Some(seen.clone());
                    return Ok((found, seen));
                }
                Some(BTreeSet::new())
            }
        };
    }
    let mut looks = 0;
    let mut last = false;
    loop {
        // Nothing known before is used where events were lost.
        seen = look(root, if changed.is_some() { &seen } else { &[] }, &changed.unwrap_or_default())?;
        looks += 1;
        let found = judge(&seen);
        if !found.good() {
            progress(Progress::Looked(&seen));
        }
        let decided = found.decided();
        if !decided {
            looks = 0;
        }
        let until = if decided || last { Instant::now() } else { deadline };
        let news = news(events, until, progress)?;
        let again = looks < MOST_LOOKS && !last && (decided || Instant::now() < deadline);
        match news {
            News::Changed(names) if again => changed = Some(names),
            News::Lost if again => changed = None,
            News::Changed(_) | News::Lost | News::Nothing if decided || last => {
                // What came or went since is in no event any more that the next look could read.
                if matches!(news, News::Nothing) {
                    known.0 = Some(seen.clone());
                }
                return Ok((found, seen));
            }
            News::Changed(_) | News::Lost | News::Nothing => {
                last = true;
                changed = None;
            }
        }
    }
}

fn look(root: &Path, known: &[BlockDevice], changed: &BTreeSet<String>) -> Result<Vec<BlockDevice>, FindError> {
    observe_again(root, known, changed).map_err(|error| FindError::Io {
        doing: "listing /sys/class/block",
        error,
    })
}

fn conclude(name: &DeviceName, found: Match, seen: Vec<BlockDevice>) -> Result<BlockDevice, FindError> {
    let name = name.clone();
    match found {
        Match::None => Err(FindError::NotFound { name, seen }),
        Match::One(device) if device.is_hibernated() => Err(FindError::Hibernated(Box::new(device))),
        Match::One(device) => Ok(device),
        Match::Ambiguous(devices) => Err(FindError::Ambiguous { name, devices }),
        Match::Conflict(device) => Err(FindError::Unsupported {
            name,
            device: Box::new(device),
        }),
    }
}

/// What the events say about block devices.
enum News {
    /// These came or changed.
    Changed(BTreeSet<String>),
    /// Events were lost.
    Lost,
    /// Nothing until the deadline.
    Nothing,
}

/// Waits until `until` for the first event about a block device, then takes all that are there already, so that a crowd of disks is looked at once.
fn news(events: &mut impl Source, until: Instant, progress: &mut dyn FnMut(Progress<'_>)) -> Result<News, FindError> {
    let mut changed = BTreeSet::new();
    let mut lost = false;
    for received in 0_u32.. {
        let has_news = lost || !changed.is_empty();
        if received >= MOST_EVENTS && (has_news || Instant::now() >= until) {
            break;
        }
        let wait = if has_news { Instant::now() } else { until };
        match events.next(wait).map_err(|error| FindError::Io {
            doing: "following the kernel's uevents",
            error,
        })? {
            Received::Event(event) => {
                if event.is_block_news() {
                    changed.insert(event.device().to_owned());
                }
                progress(Progress::Event(&event));
            }
            Received::Overrun => {
                lost = true;
                progress(Progress::Overrun);
            }
            Received::Deadline => break,
        }
    }
    Ok(match (lost, changed.is_empty()) {
        (true, _) => News::Lost,
        (false, true) => News::Nothing,
        (false, false) => News::Changed(changed),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use crate::uevent::parse;
    use std::fs;
    use std::time::Duration;

    /// A made-up machine: what the script does happens when the queue of events is asked for the next one.
    struct Machine {
        root: tempfile::TempDir,
        script: Vec<Step>,
        drained: usize,
    }

    enum Step {
        /// The disk appears with this label, and its event is there to be read.
        Disk(&'static str, &'static str),
        /// The disk appears, its event was lost.
        Lost(&'static str, &'static str),
        /// The disk appears without a word.
        Silent(&'static str, &'static str),
        /// The disk has an event once more.
        Again(&'static str),
        /// An event of another kind.
        Usb,
        /// Nothing is to be read for now.
        Pause,
    }

    impl Machine {
        fn new(script: Vec<Step>) -> Self {
            let root = tempfile::tempdir().unwrap();
            fs::create_dir_all(root.path().join("sys/class/block")).unwrap();
            fs::create_dir_all(root.path().join("dev")).unwrap();
            Self { root, script, drained: 0 }
        }

        /// A disk with swap space of this label.
        fn plug(&self, name: &str, label: &str) {
            let folder = self.root.path().join("sys/class/block").join(name);
            fs::create_dir(&folder).unwrap();
            fs::write(folder.join("dev"), "8:0\n").unwrap();
            fs::write(folder.join("size"), "8\n").unwrap();
            let mut bytes = vec![0; 4096];
            bytes[1052..1052 + label.len()].copy_from_slice(label.as_bytes());
            bytes[4086..].copy_from_slice(b"SWAPSPACE2");
            fs::write(self.root.path().join("dev").join(name), bytes).unwrap();
        }

        fn wait_for(&mut self, name: &str) -> (String, Vec<String>) {
            let root = self.root.path().to_owned();
            let mut words = Vec::new();
            let mut note = |progress: Progress<'_>| {
                words.push(match progress {
                    Progress::Looked(devices) => format!("saw {}", devices.len()),
                    Progress::Event(event) => format!("event {}", event.device()),
                    Progress::Overrun => "overrun".to_owned(),
                });
            };
            let deadline = Instant::now() + Duration::from_secs(3600);
            let answer = match wait_for(&root, &name.parse().unwrap(), deadline, self, &mut note) {
                Ok(device) => device.name,
                Err(error) => error.to_string(),
            };
            (answer, words)
        }
    }

    fn event(path: &str, subsystem: &str) -> Received {
        Received::Event(parse(format!("add@/devices/{path}\0SUBSYSTEM={subsystem}\0").as_bytes()).unwrap())
    }

    impl Source for Machine {
        fn next(&mut self, deadline: Instant) -> io::Result<Received> {
            let now = deadline <= Instant::now();
            while !self.script.is_empty() {
                let step = self.script.remove(0);
                match step {
                    Step::Pause if now => return Ok(Received::Deadline),
                    Step::Pause => {}
                    Step::Usb => return Ok(event("usb1", "usb")),
                    Step::Again(name) => return Ok(event(name, "block")),
                    Step::Silent(name, label) => self.plug(name, label),
                    Step::Disk(name, label) => {
                        self.plug(name, label);
                        return Ok(event(name, "block"));
                    }
                    Step::Lost(name, label) => {
                        self.plug(name, label);
                        return Ok(Received::Overrun);
                    }
                }
            }
            self.drained += 1;
            assert!(self.drained < 50, "asks for ever");
            Ok(Received::Deadline)
        }
    }

    #[test]
    fn a_disk_that_is_there_is_found_at_once() {
        let mut machine = Machine::new(vec![]);
        machine.plug("sda", "cache");
        assert_eq!(machine.wait_for("LABEL=cache"), ("sda".to_owned(), vec![]));
    }

    #[test]
    fn a_hibernated_system_is_left_alone_whatever_the_name() {
        let mut machine = Machine::new(vec![]);
        machine.plug("sda", "cache");
        let node = machine.root.path().join("dev/sda");
        let mut bytes = fs::read(&node).unwrap();
        bytes[4086..].copy_from_slice(b"S1SUSPEND\0");
        fs::write(&node, &bytes).unwrap();
        for name in ["LABEL=cache", "/dev/sda"] {
            let (answer, _) = machine.wait_for(name);
            assert!(answer.contains("holds a hibernated system, and is left alone"), "{answer}");
        }
        // Where an ext4 is beside it, a path means the device all the same, and a label is refused as before.
        bytes.resize(64 * 1024, 0);
        bytes[1024 + 0x38..][..2].copy_from_slice(&[0x53, 0xef]);
        fs::write(&node, &bytes).unwrap();
        let (answer, _) = machine.wait_for("/dev/sda");
        assert!(
            answer.contains("holds a hibernated system") && answer.contains("conflicting"),
            "{answer}"
        );
    }

    #[test]
    fn a_late_disk_is_found_by_its_event() {
        let mut machine = Machine::new(vec![
            Step::Usb,
            Step::Disk("sda", "other"),
            Step::Pause,
            Step::Usb,
            Step::Disk("sdb", "cache"),
        ]);
        let words = ["saw 0", "event usb1", "event sda", "saw 1", "event usb1", "event sdb"];
        assert_eq!(
            machine.wait_for("LABEL=cache"),
            ("sdb".to_owned(), words.map(str::to_owned).to_vec())
        );
    }

    #[test]
    fn of_two_disks_that_come_together_the_second_is_noticed() {
        let mut machine = Machine::new(vec![Step::Disk("sda", "cache"), Step::Pause, Step::Disk("sdb", "cache")]);
        let (answer, _) = machine.wait_for("LABEL=cache");
        assert!(
            answer.starts_with("LABEL=cache is on several devices: /dev/sda") && answer.contains("/dev/sdb"),
            "{answer}"
        );
    }

    #[test]
    fn after_lost_events_all_is_looked_at_anew() {
        let mut machine = Machine::new(vec![Step::Lost("sda", "cache")]);
        assert_eq!(machine.wait_for("LABEL=cache").0, "sda");
    }

    #[test]
    fn what_was_seen_is_not_read_again_unless_an_event_names_it() {
        let mut machine = Machine::new(vec![]);
        machine.plug("sda", "one");
        machine.plug("sdb", "two");
        let root = machine.root.path().to_owned();
        let mut seen = Seen::default();
        let find = |machine: &mut Machine, label: &str, seen: &mut Seen| {
            let name = format!("LABEL={label}").parse().unwrap();
            let soon = Instant::now() + Duration::from_millis(10);
            match wait_for_again(&root, &name, soon, machine, &mut |_| {}, seen) {
                Ok(device) => device.name,
                Err(error) => error.to_string(),
            }
        };
        assert_eq!(find(&mut machine, "one", &mut seen), "sda");
        // Gone without a word: it is known still, until an event names its disk.
        fs::write(machine.root.path().join("dev/sdb"), vec![0; 4096]).unwrap();
        assert_eq!(find(&mut machine, "two", &mut seen), "sdb");
        machine.script = vec![Step::Disk("sdc", "three")];
        assert_eq!(find(&mut machine, "three", &mut seen), "sdc");
        assert_eq!(find(&mut machine, "two", &mut seen), "sdb");
        machine.script = vec![Step::Again("sdb")];
        assert!(find(&mut machine, "two", &mut seen).starts_with("no device is LABEL=two"));
        // After lost events, and when it is told to forget, everything is read.
        fs::write(machine.root.path().join("dev/sda"), vec![0; 4096]).unwrap();
        assert_eq!(find(&mut machine, "one", &mut seen), "sda");
        seen.forget();
        assert!(find(&mut machine, "one", &mut seen).starts_with("no device is LABEL=one"));
        fs::write(machine.root.path().join("dev/sdc"), vec![0; 4096]).unwrap();
        machine.script = vec![Step::Lost("sdd", "four")];
        assert!(find(&mut machine, "three", &mut seen).starts_with("no device is LABEL=three"));
    }

    #[test]
    fn at_the_deadline_there_is_a_last_look() {
        let mut machine = Machine::new(vec![Step::Silent("sda", "cache")]);
        assert_eq!(machine.wait_for("LABEL=cache").0, "sda");
    }

    #[test]
    fn what_was_seen_instead_is_named_at_the_deadline() {
        let mut machine = Machine::new(vec![Step::Disk("sda", "other")]);
        assert_eq!(
            machine.wait_for("LABEL=cache").0,
            "no device is LABEL=cache; there are: /dev/sda (0 MiB, swap LABEL=other)"
        );
        assert!(Machine::new(vec![]).wait_for("LABEL=cache").0.contains("driver of the disk"));
    }

    #[test]
    fn a_device_that_sends_events_without_end_does_not_hold_up_the_decision() {
        let mut machine = Machine::new(vec![]);
        machine.plug("sda", "cache");
        for _ in 0..100 {
            machine.script.extend([Step::Pause, Step::Usb]);
        }
        let names: Vec<&'static str> = (0..60).map(|index| &*Box::leak(format!("sr{index}").into_boxed_str())).collect();
        machine.script = names.iter().flat_map(|name| [Step::Disk(name, "other"), Step::Pause]).collect();
        assert_eq!(machine.wait_for("LABEL=cache").0, "sda");
        assert!(machine.script.len() > 60, "{} left", machine.script.len());
    }

    #[test]
    fn events_without_end_do_not_outlast_the_deadline() {
        struct Endless(&'static [u8]);
        impl Source for Endless {
            fn next(&mut self, _: Instant) -> io::Result<Received> {
                Ok(Received::Event(parse(self.0).unwrap()))
            }
        }
        let machine = Machine::new(vec![]);
        machine.plug("sda", "other");
        for message in [
            &b"add@/devices/usb1\0SUBSYSTEM=usb\0"[..],
            b"change@/devices/sda\0SUBSYSTEM=block\0",
        ] {
            let deadline = Instant::now() + Duration::from_millis(50);
            let error = wait_for(
                machine.root.path(),
                &"LABEL=cache".parse().unwrap(),
                deadline,
                &mut Endless(message),
                &mut |_| {},
            )
            .unwrap_err();
            assert!(Instant::now() >= deadline && error.to_string().contains("/dev/sda"), "{error}");
            wait_for(
                machine.root.path(),
                &"LABEL=other".parse().unwrap(),
                deadline,
                &mut Endless(message),
                &mut |_| {},
            )
            .unwrap();
        }
    }
}
