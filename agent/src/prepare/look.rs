//! Looking at a declared disk: read-only, and with an exclusive hold on it from the first look to the last write.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use rustix::fs::{Advice, OFlags, fadvise};

use crate::device::observe::BlockDevice;
use crate::device::probe::{ReadAt, read, signatures};
use crate::device::table::{Table, table};
use crate::tool::{Input, Tool};

use super::blank::{Bytes, Evidence, Libblkid, Refusal, areas, check_of, not_blank, scan, total, unfit};
use super::claim;
use super::declaration::{BlankCheck, Declared};
use super::identity::{Known, meant};
use super::layout::{ALIGNMENT, Geometry, Seed, places};
use super::marks::marks;
use super::plan::{Begun, Claimed, Preparation, begun, preparation, tail_start};
use super::sysfs::{node, sector, uses};

/// What a person can do about a disk that is not blank.
const NOT_BLANK: &str = "if nothing on it is needed, erase it by hand (blkdiscard --zeroout, or dd from /dev/zero); else declare another disk, or remove prepare";
/// What a person can do about a disk that is not there, or not as it is declared.
const NOT_MEANT: &str = "correct the declaration, or remove prepare and grow";
/// What a person can do about a disk that is in use or cannot be used.
const NOT_FREE: &str = "end that use or replace the disk, or remove prepare";
/// What a person can do about a preparation that cannot be gone on with.
const NOT_OURS: &str = "if nothing on it is needed, erase its first MiB by hand (dd from /dev/zero); else remove prepare";

/// What is not done with a disk that is refused.
const PREPARED: &str = "prepared";
pub(super) const GROWN: &str = "grown";

/// A disk that is read more slowly than this is given up, so that every wait ends.
pub const SLOWEST: u64 = 4 << 20;
/// What it may take besides.
pub const GRACE: Duration = Duration::from_secs(120);
/// `blkid` reads some hundred KiB.
const BLKID_LIMIT: Duration = Duration::from_secs(60);
/// Between two lines about a disk that is being read.
const TELL_AFTER: Duration = Duration::from_secs(5);

/// The one disk that a declaration means.
///
/// # Errors
/// It is not there, or there are several.
pub fn the_one<'a>(declared: &Declared, disks: &'a [Known]) -> Result<&'a Known, Refusal> {
    let found = meant(&declared.device, disks);
    let names = |disks: &mut dyn Iterator<Item = &Known>| disks.map(Known::shown).collect::<Vec<_>>().join(", ");
    let refuse = |reason: String| Refusal {
        name: declared.name.clone(),
        disk: declared.device.to_string(),
        undone: if declared.prepare { PREPARED } else { GROWN },
        reasons: vec![reason],
        remedy: NOT_MEANT,
    };
    match found.as_slice() {
        [one] => Ok(one),
        [] => Err(refuse(format!("no disk has this name; there are: {}", names(&mut disks.iter())))),
        several => Err(refuse(format!(
            "several disks have this name: {}",
            names(&mut several.iter().copied())
        ))),
    }
}

/// What a look at a disk comes to.
#[derive(Debug)]
pub enum Looked {
    /// It has the declared partitions.
    Prepared,
    /// It is blank, or its preparation was interrupted: this is to be done.
    ToDo(Box<Preparation>, Box<Hold>),
}

/// Whether a disk is looked at only, or to be written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Intent {
    /// A dry run.
    Look,
    /// It is to be prepared.
    Write,
}

/// A disk held exclusively: nobody else can mount it, or anything on it, until this is dropped.
#[derive(Debug)]
pub struct Hold {
    root: PathBuf,
    declared: Declared,
    known: Known,
    geometry: Geometry,
    file: File,
    /// What it was found as.
    begun: Begun,
}

/// Looks at the disk of a declaration, as thoroughly as it takes to know.
///
/// # Errors
/// [`Refusal`]: it is to be left alone.
pub fn look(root: &Path, declared: &Declared, known: &Known, intent: Intent, seed: &Seed) -> Result<Looked, Refusal> {
    let Known { disk, .. } = known;
    let failed = |error: anyhow::Error| Refusal {
        name: declared.name.clone(),
        disk: known.shown(),
        undone: PREPARED,
        reasons: vec![format!("{error:#}")],
        remedy: NOT_FREE,
    };
    let geometry = Geometry {
        size: disk.size,
        sector: sector(root, &disk.name).map_err(failed)?,
    };
    let first = first_look(root, declared, disk, geometry).map_err(failed)?;
    if first.prepared && !first.claimed {
        return Ok(Looked::Prepared);
    }
    match look_closely(root, declared, known, geometry, &first, intent, seed) {
        // Somebody uses it, or it has changed since: only a claim was left on it.
        Err(refusal) if first.prepared => {
            log::info!("{} is prepared; a claim is left at {}: {refusal}", known.shown(), claim::OFFSET);
            Ok(Looked::Prepared)
        }
        looked => looked,
    }
}

fn look_closely(
    root: &Path,
    declared: &Declared,
    known: &Known,
    geometry: Geometry,
    first: &FirstLook,
    intent: Intent,
    seed: &Seed,
) -> Result<Looked, Refusal> {
    let refuse = |reasons: Vec<String>, remedy| Refusal {
        name: declared.name.clone(),
        disk: known.shown(),
        undone: PREPARED,
        reasons,
        remedy,
    };
    let failed = |error: anyhow::Error| refuse(vec![format!("{error:#}")], NOT_FREE);
    let disk = &known.disk;
    let mut uses = uses(root, disk).map_err(failed)?;
    // Where only the claim is left to be erased, the kernel has seen the table.
    let partitions = if first.claimed {
        std::mem::take(&mut uses.partitions)
    } else {
        Vec::new()
    };
    let reasons = unfit(declared, disk, &uses);
    if !reasons.is_empty() {
        return Err(refuse(reasons, NOT_FREE));
    }
    // Before anything is looked at that somebody else could change.
    let file = hold(root, disk, intent).map_err(failed)?;
    let mut hold = Hold {
        root: root.to_owned(),
        declared: declared.clone(),
        known: known.clone(),
        geometry,
        file,
        begun: Begun::Nothing,
    };
    let mut seed = *seed;
    match hold.claim().map_err(failed)? {
        claim::Found::Nothing => {
            let reasons = hold.not_blank(check_of(declared, disk.size));
            if !reasons.is_empty() {
                return Err(refuse(reasons, NOT_BLANK));
            }
        }
        claim::Found::Damaged => {
            let reason = format!("at {} is a claim of ours that is damaged, or of a newer version", claim::OFFSET);
            return Err(refuse(vec![reason], NOT_OURS));
        }
        claim::Found::Claim(claim) => {
            seed = claim.seed;
            let seen = hold.claimed(claim).map_err(failed)?;
            hold.begun = begun(declared, geometry, &seen).map_err(|reason| refuse(vec![reason], NOT_OURS))?;
            if hold.begun != Begun::Complete && !partitions.is_empty() {
                let reason = format!("its preparation was interrupted, and it has partitions: {}", partitions.join(", "));
                return Err(refuse(vec![reason], NOT_FREE));
            }
        }
    }
    match preparation(declared, disk.path.clone(), known.shown(), geometry, &seed, hold.begun) {
        Ok(preparation) => Ok(Looked::ToDo(Box::new(preparation), Box::new(hold))),
        Err(reason) => Err(refuse(vec![reason], NOT_MEANT)),
    }
}

impl Hold {
    /// Looks once more, right before the first write: at who uses it, at both ends, at samples, with both probes.
    ///
    /// # Errors
    /// [`Refusal`]: it is not what it was.
    pub fn look_again(&self) -> Result<(), Refusal> {
        let refuse = |reasons: Vec<String>, remedy| Refusal {
            name: self.declared.name.clone(),
            disk: self.known.shown(),
            undone: PREPARED,
            reasons,
            remedy,
        };
        let failed = |error: anyhow::Error| refuse(vec![format!("{error:#}")], NOT_FREE);
        let mut uses = uses(&self.root, &self.known.disk).map_err(failed)?;
        if self.begun == Begun::Complete {
            uses.partitions.clear();
        }
        let mut reasons = unfit(&self.declared, &self.known.disk, &uses);
        if !reasons.is_empty() {
            return Err(refuse(reasons, NOT_FREE));
        }
        match (self.begun, self.claim().map_err(failed)?) {
            (Begun::Nothing, _) => reasons = self.not_blank(BlankCheck::Sampled),
            (Begun::Claimed | Begun::Complete, claim::Found::Claim(claim)) => {
                let seen = self.claimed(claim).map_err(failed)?;
                match begun(&self.declared, self.geometry, &seen) {
                    Ok(now) if now == self.begun => {}
                    Ok(_) => reasons.push("somebody else goes on with its preparation".to_owned()),
                    Err(reason) => reasons.push(reason),
                }
            }
            (Begun::Claimed | Begun::Complete, claim::Found::Nothing | claim::Found::Damaged) => {
                reasons.push("our claim is gone".to_owned());
            }
        }
        if reasons.is_empty() {
            Ok(())
        } else {
            reasons.insert(0, "it was written to since the first look".to_owned());
            Err(refuse(reasons, NOT_BLANK))
        }
    }

    /// The disk's name in the configuration.
    pub fn name(&self) -> &str {
        &self.declared.name
    }

    /// Everything is below this folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The disk.
    pub const fn file(&self) -> &File {
        &self.file
    }

    /// What is kept in memory of the disk is not to answer for it.
    fn forget(&self) -> Result<()> {
        fadvise(&self.file, 0, None, Advice::DontNeed).context("having the disk read anew")
    }

    fn claim(&self) -> Result<claim::Found> {
        self.forget()?;
        Ok(claim::read(&self.exactly(claim::OFFSET, claim::LENGTH as u64)?))
    }

    fn exactly(&self, offset: u64, length: u64) -> Result<Vec<u8>> {
        let wanted = usize::try_from(length).context("a length")?;
        let bytes = read(&self.file, offset, wanted).with_context(|| format!("reading {length} bytes at {offset}"))?;
        anyhow::ensure!(bytes.len() == wanted, "the disk ends at {}", offset + bytes.len() as u64);
        Ok(bytes)
    }

    fn claimed(&self, claim: claim::Claim) -> Result<Claimed> {
        let tail = tail_start(self.geometry);
        let places = places(&self.declared, self.geometry, &claim.seed).map_err(anyhow::Error::msg)?;
        let mut found = Vec::with_capacity(places.len());
        for place in places {
            let part = Part {
                disk: &self.file,
                start: place.start,
                length: place.length,
            };
            found.push(signatures(&part, place.length).with_context(|| format!("probing the place of {}", place.label))?);
        }
        Ok(Claimed {
            claim,
            head: self.exactly(0, ALIGNMENT)?,
            tail: self.exactly(tail, self.geometry.size - tail)?,
            signatures: found,
        })
    }

    /// Why it is not blank. Samples are only taken where probes and both ends say nothing.
    fn not_blank(&self, check: BlankCheck) -> Vec<String> {
        if let Err(error) = self.forget() {
            return vec![format!("{error:#}")];
        }
        let (size, path) = (self.geometry.size, self.known.disk.path.display().to_string());
        let areas = areas(size, check);
        let (ends, rest) = areas.split_at(areas.len().min(2));
        let mut evidence = Evidence {
            bytes: scan(&self.file, ends, &mut |_| Ok(())),
            signatures: signatures(&self.file, size).map_err(|error| error.to_string()),
            marks: Vec::new(),
            libblkid: libblkid(&self.root, &self.known.disk.path),
        };
        match marks(&self.file, size) {
            Ok(marks) => evidence.marks = marks,
            Err(error) => evidence.signatures = Err(error.to_string()),
        }
        if evidence.libblkid == Libblkid::Absent {
            log::info!("there is no blkid here: {path} is looked at by our own probe alone");
        }
        if !not_blank(&evidence).is_empty() {
            return not_blank(&evidence);
        }
        let mut tick = patience(&path, total(rest));
        evidence.bytes = scan(&self.file, rest, &mut tick);
        // What was read of a large disk is not to stay in memory.
        if let (Bytes::Zero, Err(error)) = (&evidence.bytes, self.forget()) {
            return vec![format!("{error:#}")];
        }
        not_blank(&evidence)
    }
}

impl AsFd for Hold {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// A part of a disk, read as if it were one.
pub struct Part<'a> {
    /// The disk.
    pub disk: &'a File,
    /// Its first byte.
    pub start: u64,
    /// Its bytes.
    pub length: u64,
}

impl ReadAt for Part<'_> {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let left = usize::try_from(self.length.saturating_sub(offset)).unwrap_or(usize::MAX);
        let length = buffer.len().min(left);
        ReadAt::read_at(self.disk, &mut buffer[..length], self.start.saturating_add(offset))
    }
}

/// What a disk is at first sight.
pub(super) struct FirstLook {
    /// It has a GPT with all the declared labels.
    pub prepared: bool,
    /// It has a claim, whole or not.
    claimed: bool,
}

/// Looks without a hold: somebody may be using the disk, as it should be.
pub(super) fn first_look(root: &Path, declared: &Declared, disk: &BlockDevice, geometry: Geometry) -> Result<FirstLook> {
    let path = node(root, disk);
    let file = open(root, disk, OFlags::empty(), Intent::Look)?;
    let table = table(&file, geometry.size, geometry.sector).with_context(|| format!("reading {}", path.display()))?;
    let claim = read(&file, claim::OFFSET, claim::LENGTH).with_context(|| format!("reading {}", path.display()))?;
    let labels: Vec<String> = match table {
        Some(Table::Gpt(entries)) => entries.into_iter().filter_map(|entry| entry.label).collect(),
        Some(Table::Mbr(_)) | None => Vec::new(),
    };
    Ok(FirstLook {
        prepared: declared.partitions.iter().all(|partition| labels.contains(&partition.label)),
        claimed: claim::read(&claim) != claim::Found::Nothing,
    })
}

/// Tells from time to time how far the reading of `all` bytes is, and ends it where it is too slow.
pub(super) fn patience(what: &str, all: u64) -> impl FnMut(u64) -> Result<(), String> + use<'_> {
    let (started, mut told) = (Instant::now(), Instant::now());
    let limit = GRACE + Duration::from_secs(all / SLOWEST);
    move |behind| {
        if told.elapsed() >= TELL_AFTER {
            told = Instant::now();
            log::info!("looking whether {what} is blank: {} of {} MiB", behind >> 20, all >> 20);
        }
        if started.elapsed() > limit {
            return Err(format!("it is read more slowly than {} MiB a second", SLOWEST >> 20));
        }
        Ok(())
    }
}

pub(super) fn open(root: &Path, disk: &BlockDevice, more: OFlags, intent: Intent) -> Result<File> {
    let path = node(root, disk);
    let flags = more | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = OpenOptions::new()
        .read(true)
        .write(intent == Intent::Write)
        .custom_flags(flags.bits().cast_signed())
        .open(&path);
    file.with_context(|| format!("opening {}", path.display()))
}

/// Opens the disk so that nobody else can: with `O_EXCL` the kernel refuses where it, or a part of it, is mounted or held.
pub(super) fn hold(root: &Path, disk: &BlockDevice, intent: Intent) -> Result<File> {
    let path = node(root, disk);
    let busy = |error: &anyhow::Error| {
        let error = error.downcast_ref::<io::Error>();
        error.is_some_and(|error| error.raw_os_error() == Some(rustix::io::Errno::BUSY.raw_os_error()))
    };
    let file = open(root, disk, OFlags::EXCL, intent).map_err(|error| {
        if busy(&error) {
            error.context("somebody holds it: it cannot be opened exclusively")
        } else {
            error
        }
    })?;
    let metadata = file.metadata().with_context(|| format!("looking at {}", path.display()))?;
    let number = (rustix::fs::major(metadata.rdev()), rustix::fs::minor(metadata.rdev()));
    anyhow::ensure!(
        metadata.file_type().is_block_device() && number == disk.number,
        "{} is another device by now ({}:{})",
        path.display(),
        number.0,
        number.1
    );
    Ok(file)
}

/// What `blkid -p` says: the probe of util-linux, which knows some hundred kinds.
fn libblkid(root: &Path, device: &Path) -> Libblkid {
    let Some(blkid) = Tool::find(root, "blkid") else {
        return Libblkid::Absent;
    };
    let arguments = ["-p".as_ref(), "-o".as_ref(), "export".as_ref(), device.as_os_str()];
    match blkid.run(&arguments, Input::Nothing, BLKID_LIMIT) {
        Err(error) => Libblkid::Failed(format!("{error:#}")),
        Ok(ended) => match ended.status.code() {
            // «Nothing was found», as blkid(8) has it.
            Some(2) => Libblkid::Nothing,
            Some(0 | 8) => {
                let telling = |line: &&str| {
                    line.contains("TYPE=") || line.starts_with("LABEL=") || line.starts_with("UUID=") || line.contains("ambivalent")
                };
                let words: Vec<&str> = ended.said().split(" | ").filter(telling).collect();
                Libblkid::Found(if words.is_empty() {
                    "something".to_owned()
                } else {
                    words.join(" ")
                })
            }
            Some(_) | None => Libblkid::Failed(ended.to_string()),
        },
    }
}
