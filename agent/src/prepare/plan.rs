//! What would be written to a disk, to the byte, in the order in which it is written.
//!
//! | state of the disk | how it is told | what is done |
//! |---|---|---|
//! | prepared | its GPT has all the declared labels, and no claim that is ours to erase | nothing |
//! | blank | nothing but zeros (see [`super::blank`]) | claim, file systems, table, claim erased |
//! | unfinished | a whole claim of this declaration and size; both ends hold zeros or what would be written, the places of partitions nothing known or what we make | the same, from the file systems on |
//! | complete but for the claim | the same, and the whole table is there | claim erased |
//! | anything else | | refused |
//!
//! The claim comes first and the table last: a disk whose preparation was cut off has no table, so nobody can have used what was made on it. The table's own last
//! sector is the protective MBR, without which no system sees a GPT.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::fmt;
use std::path::PathBuf;

use crate::device::probe::{Signature, dashed};
use crate::digest::Digest;

use super::claim::{self, Claim};
use super::content::{Content, Format, KeyFile};
use super::declaration::Declared;
use super::layout::{ALIGNMENT, Geometry, Piece, Place, Seed, id, places, table};

/// One step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Bytes are written.
    Write(Piece),
    /// A program makes something in a partition.
    Make(Making),
    /// All that was written is on the medium.
    Flush,
    /// The kernel looks for partitions.
    Reread,
}

/// What a program makes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Making {
    /// Label of the partition.
    pub label: String,
    /// Its first byte.
    pub start: u64,
    /// Its bytes.
    pub length: u64,
    /// What is made there.
    pub made: Made,
}

/// What a program makes, wherever that is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Made {
    /// The format.
    pub format: Format,
    /// Its UUID or serial, as the probe writes it.
    pub uuid: String,
    /// Arguments of the program; the device follows them.
    pub arguments: Vec<String>,
    /// Subvolumes.
    pub subvolumes: Vec<String>,
    /// The key of a LUKS container, and what is made in it.
    pub inside: Option<(KeyFile, Option<Box<Made>>)>,
}

impl Made {
    /// Itself, and what is made in it.
    pub fn layers(&self) -> Vec<&Self> {
        let inside = self.inside.as_ref().and_then(|(_, made)| made.as_deref());
        std::iter::once(self).chain(inside.into_iter().flat_map(Self::layers)).collect()
    }
}

/// Everything that is done to a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Preparation {
    /// Its name in the configuration.
    pub name: String,
    /// Its node.
    pub device: PathBuf,
    /// The disk, in words.
    pub shown: String,
    /// Size and sectors.
    pub geometry: Geometry,
    /// The partitions.
    pub places: Vec<Place>,
    /// The steps.
    pub steps: Vec<Step>,
}

/// How far an interrupted preparation came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begun {
    /// Not at all: the disk is blank.
    Nothing,
    /// The claim is there, the table is not.
    Claimed,
    /// Only the claim is left to be erased.
    Complete,
}

/// The preparation of a disk.
///
/// # Errors
/// If the partitions do not fit.
pub fn preparation(
    declared: &Declared,
    device: PathBuf,
    shown: String,
    geometry: Geometry,
    seed: &Seed,
    begun: Begun,
) -> Result<Preparation, String> {
    let places = places(declared, geometry, seed)?;
    let claim = Claim {
        declaration: declared.digest(),
        seed: *seed,
        size: geometry.size,
    };
    let mut steps = Vec::new();
    if begun == Begun::Nothing {
        steps.extend([Step::Write(claim.piece()), Step::Flush]);
    }
    if begun != Begun::Complete {
        for (index, (place, partition)) in places.iter().zip(&declared.partitions).enumerate() {
            let Some(content) = &partition.content else { continue };
            if begun == Begun::Claimed {
                // What an interrupted run left behind; programs refuse to write over it.
                let zeros = Piece {
                    offset: place.start,
                    bytes: vec![0; ALIGNMENT as usize],
                    what: "zeros over what was begun",
                };
                steps.extend([Step::Write(zeros), Step::Flush]);
            }
            steps.push(Step::Make(Making {
                label: place.label.clone(),
                start: place.start,
                length: place.length,
                made: made(content, seed, &format!("content {index}")),
            }));
        }
        steps.push(Step::Flush);
        for (number, piece) in table(&places, geometry, seed).into_iter().enumerate() {
            steps.push(Step::Write(piece));
            // The copy, then what it is a copy of, then what makes both count.
            if matches!(number, 1 | 3 | 4) {
                steps.push(Step::Flush);
            }
        }
    }
    let erased = Piece {
        offset: claim::OFFSET,
        bytes: vec![0; claim::LENGTH],
        what: "zeros over the claim",
    };
    steps.extend([Step::Write(erased), Step::Flush, Step::Reread]);
    Ok(Preparation {
        name: declared.name.clone(),
        device,
        shown,
        geometry,
        places,
        steps,
    })
}

/// Serial numbers of FAT have 4 bytes, everything else a UUID.
fn written(format: Format, id: &[u8; 16]) -> String {
    match format {
        Format::Vfat => format!("{:02X}{:02X}-{:02X}{:02X}", id[0], id[1], id[2], id[3]),
        Format::Ext4 | Format::Xfs | Format::Btrfs | Format::Swap | Format::Luks => dashed(id),
    }
}

/// None is told to write over what it finds: its own look is one more.
fn made(content: &Content, seed: &Seed, name: &str) -> Made {
    let format = content.format;
    let uuid = written(format, &id(seed, name));
    let mut arguments: Vec<String> = Vec::new();
    let mut add = |words: &[&str]| arguments.extend(words.iter().map(|word| (*word).to_owned()));
    match format {
        Format::Xfs => add(&["-q", "-m", &format!("uuid={uuid}")]),
        Format::Vfat => add(&["-i", &uuid.replace('-', "")]),
        Format::Ext4 | Format::Btrfs | Format::Swap => add(&["-q", "-U", &uuid]),
        Format::Luks => add(&["luksFormat", "-q", "--type", "luks2", "--uuid", &uuid]),
    }
    if let Some(label) = &content.label {
        let option = match format {
            Format::Vfat => "-n",
            Format::Luks => "--label",
            Format::Ext4 | Format::Xfs | Format::Btrfs | Format::Swap => "-L",
        };
        add(&[option, label]);
    }
    arguments.extend(content.arguments.iter().cloned());
    let inside = content.inside.as_ref().map(|inside| {
        let within = inside.content.as_ref();
        let within = within.map(|content| Box::new(made(content, seed, &format!("{name} inside"))));
        (inside.key.clone(), within)
    });
    Made {
        format,
        uuid,
        arguments,
        subvolumes: content.subvolumes.clone(),
        inside,
    }
}

/// What is seen of a disk with a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claimed {
    /// The claim.
    pub claim: Claim,
    /// The first MiB.
    pub head: Vec<u8>,
    /// From the last whole MiB on.
    pub tail: Vec<u8>,
    /// What our probe sees in the place of each partition.
    pub signatures: Vec<Vec<Signature>>,
}

/// Where the tail of a disk begins: what lies from there on belongs to the table.
pub fn tail_start(geometry: Geometry) -> u64 {
    (geometry.size / ALIGNMENT).saturating_sub(1) * ALIGNMENT
}

/// How far the preparation came that a claim tells of.
///
/// # Errors
/// Why it is not gone on with: everything on the disk must be zero, or ours.
pub fn begun(declared: &Declared, geometry: Geometry, seen: &Claimed) -> Result<Begun, String> {
    let claim = seen.claim;
    if claim.declaration != declared.digest() {
        return Err("its preparation was begun by another declaration: go back to that one, or erase the disk".to_owned());
    }
    if claim.size != geometry.size {
        return Err(format!(
            "its preparation was begun on a disk of {} bytes: this is a copy, or was resized",
            claim.size
        ));
    }
    let places = places(declared, geometry, &claim.seed)?;
    let (mut head, mut tail) = (vec![0; seen.head.len()], vec![0; seen.tail.len()]);
    let tail_at = tail_start(geometry);
    let table = table(&places, geometry, &claim.seed);
    for piece in table.iter().chain([&claim.piece()]) {
        let (part, at) = if piece.offset < ALIGNMENT {
            (&mut head, piece.offset)
        } else {
            (&mut tail, piece.offset - tail_at)
        };
        let at = usize::try_from(at).unwrap_or(usize::MAX);
        match at.checked_add(piece.bytes.len()).and_then(|end| part.get_mut(at..end)) {
            Some(target) => target.copy_from_slice(&piece.bytes),
            None => return Err("its ends could not be read".to_owned()),
        }
    }
    for (is, would_be, start) in [(&seen.head, &head, 0), (&seen.tail, &tail, tail_at)] {
        if let Some(at) = is.iter().zip(would_be).position(|(is, would_be)| *is != 0 && is != would_be) {
            return Err(format!(
                "its preparation was interrupted, and somebody else has written to it since: the byte at {} is not ours",
                start + at as u64
            ));
        }
    }
    if seen.head == head && seen.tail == tail {
        return Ok(Begun::Complete);
    }
    // From here on somebody may have used what is there.
    if seen.head.get(510..512) != Some(&[0, 0]) {
        return Err("its preparation had come to its end, and its table is no longer whole".to_owned());
    }
    for (index, (found, partition)) in seen.signatures.iter().zip(&declared.partitions).enumerate() {
        let own = partition
            .content
            .as_ref()
            .map(|content| written(content.format, &id(&claim.seed, &format!("content {index}"))));
        if let Some(foreign) = found.iter().find(|signature| signature.uuid.is_none() || signature.uuid != own) {
            return Err(format!(
                "its preparation was interrupted, and in the place of {} is {foreign}, which is not ours",
                partition.label
            ));
        }
    }
    Ok(Begun::Claimed)
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Write(piece) => write!(
                f,
                "write  {} bytes at {}: {} (sha256 {})",
                piece.bytes.len(),
                piece.offset,
                piece.what,
                Digest::of(&piece.bytes).short()
            ),
            Self::Make(making) => {
                let place = format!("<{} bytes at {}: {}>", making.length, making.start, making.label);
                for (depth, made) in making.made.layers().into_iter().enumerate() {
                    match depth {
                        0 => f.write_str("run    ")?,
                        _ => f.write_str("\n         in it: ")?,
                    }
                    write!(f, "{} {}", made.format.program(), made.arguments.join(" "))?;
                    if let Some((key, _)) = &made.inside {
                        write!(f, " {key}")?;
                    }
                    if depth == 0 {
                        write!(f, " {place}")?;
                    }
                    made.subvolumes
                        .iter()
                        .try_for_each(|path| write!(f, "\n         subvolume {path}"))?;
                }
                Ok(())
            }
            Self::Flush => f.write_str("flush"),
            Self::Reread => f.write_str("have the kernel look for partitions"),
        }
    }
}

impl fmt::Display for Preparation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "disks.{}: {}, {} bytes, sectors of {}",
            self.name, self.shown, self.geometry.size, self.geometry.sector
        )?;
        for (place, number) in self.places.iter().zip(1..) {
            writeln!(
                f,
                "  partition {number}: {}, {} bytes at {}, type {}, id {}",
                place.label,
                place.length,
                place.start,
                dashed(&place.kind),
                dashed(&place.id)
            )?;
        }
        self.steps.iter().try_for_each(|step| writeln!(f, "  {step}"))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;
    use crate::device::probe::Kind;
    use crate::prepare::tests::declared;
    use proptest::prelude::*;

    const GEOMETRY: Geometry = Geometry {
        size: 512 << 20,
        sector: 512,
    };
    const SEED: Seed = [5; 16];

    fn plan(begun: Begun) -> Preparation {
        preparation(&declared(), "/dev/vdb".into(), "/dev/vdb (x)".to_owned(), GEOMETRY, &SEED, begun).unwrap()
    }

    /// A disk on which the first `steps` steps were done, of each program's work nothing.
    fn after(steps: usize) -> Vec<u8> {
        let mut disk = vec![0; GEOMETRY.size as usize];
        for step in plan(Begun::Nothing).steps.iter().take(steps) {
            if let Step::Write(piece) = step {
                disk[piece.offset as usize..][..piece.bytes.len()].copy_from_slice(&piece.bytes);
            }
        }
        disk
    }

    fn seen(disk: &[u8]) -> Option<Claimed> {
        let claim::Found::Claim(claim) = claim::read(&disk[claim::OFFSET as usize..][..claim::LENGTH]) else {
            return None;
        };
        Some(Claimed {
            claim,
            head: disk[..ALIGNMENT as usize].to_vec(),
            tail: disk[tail_start(GEOMETRY) as usize..].to_vec(),
            signatures: vec![Vec::new(); 3],
        })
    }

    #[test]
    fn the_claim_comes_first_and_goes_last_and_the_mbr_ends_the_table() {
        let steps = plan(Begun::Nothing).steps;
        let words: Vec<String> = steps
            .iter()
            .map(|step| match step {
                Step::Write(piece) => piece.what.to_owned(),
                Step::Make(making) => making.made.format.program().to_owned(),
                Step::Flush => "flush".to_owned(),
                Step::Reread => "reread".to_owned(),
            })
            .collect();
        assert_eq!(
            words,
            [
                "claim",
                "flush",
                "mkfs.vfat",
                "mkswap",
                "mkfs.btrfs",
                "flush",
                "entries of the backup GPT",
                "header of the backup GPT",
                "flush",
                "entries of the GPT",
                "header of the GPT",
                "flush",
                "protective MBR",
                "flush",
                "zeros over the claim",
                "flush",
                "reread"
            ]
        );
    }

    #[test]
    fn a_container_is_made_and_then_what_is_in_it() {
        let source = serde_json::json!({
            "device": "serial=x", "size": {"min": "300M", "max": "8T"}, "prepare": true,
            "partitions": [{"name": "crypt", "size": "100%", "content": {
                "type": "luks", "label": "box", "passwordFile": "/etc/word", "extraFormatArgs": ["--pbkdf", "argon2id"],
                "content": {"type": "btrfs", "label": "data", "subvolumes": ["logs"]},
            }}],
        });
        let declared = crate::prepare::declaration::declared("main", &source).unwrap();
        let plan = preparation(&declared, "/dev/vdb".into(), String::new(), GEOMETRY, &SEED, Begun::Nothing).unwrap();
        let made: Vec<String> = plan
            .steps
            .iter()
            .filter(|step| matches!(step, Step::Make(_)))
            .map(Step::to_string)
            .collect();
        let ids = ["content 0", "content 0 inside"].map(|name| dashed(&id(&SEED, name)));
        assert_eq!(
            made,
            [format!(
                "run    cryptsetup luksFormat -q --type luks2 --uuid {} --label box --pbkdf argon2id --key-file /etc/word (without line ends) \
                 <534773760 bytes at 1048576: disk-main-crypt>\n         in it: mkfs.btrfs -q -U {} -L data\n         subvolume logs",
                ids[0], ids[1]
            )]
        );
    }

    #[test]
    fn programs_are_called_with_ids_that_are_known_before_and_never_told_to_force() {
        let lines = |begun| -> Vec<String> {
            let steps = plan(begun).steps;
            let makes = steps.iter().filter(|step| matches!(step, Step::Make(_)));
            makes.map(|step| step.to_string().lines().next().unwrap().to_owned()).collect()
        };
        let fresh = lines(Begun::Nothing);
        assert!(
            fresh[0].starts_with("run    mkfs.vfat -i ") && fresh[0].contains(" -n BOOT <"),
            "{fresh:?}"
        );
        assert!(fresh.iter().all(|line| !line.contains(" -f") && !line.contains(" -F")), "{fresh:?}");
        assert_eq!(lines(Begun::Claimed), fresh);
        let zeros = plan(Begun::Claimed).steps.into_iter().filter_map(|step| match step {
            Step::Write(piece) if piece.what == "zeros over what was begun" => Some(piece.offset),
            Step::Write(_) | Step::Make(_) | Step::Flush | Step::Reread => None,
        });
        let starts = plan(Begun::Claimed).places.into_iter().map(|place| place.start);
        assert!(zeros.eq(starts), "each place that is written to again begins with zeros");
        assert!(lines(Begun::Complete).is_empty());
        assert_eq!(plan(Begun::Nothing), plan(Begun::Nothing));
        let text = plan(Begun::Nothing).to_string();
        for line in [
            "disks.main: /dev/vdb (x), 536870912 bytes, sectors of 512",
            "  partition 3: disk-main-data, ",
            "  write  512 bytes at 524288: claim (sha256 ",
            "         subvolume logs",
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
    }

    #[test]
    fn a_preparation_cut_off_after_any_step_is_recognised_or_already_over() {
        let steps = plan(Begun::Nothing).steps;
        for done in 1..=steps.len() {
            let disk = after(done);
            let over = steps[..done]
                .iter()
                .any(|step| matches!(step, Step::Write(piece) if piece.what.starts_with("zeros")));
            let Some(seen) = seen(&disk) else {
                assert!(over, "no claim after {done} steps");
                continue;
            };
            let expected = if steps[..done]
                .iter()
                .any(|step| matches!(step, Step::Write(piece) if piece.offset == 0))
            {
                Begun::Complete
            } else {
                Begun::Claimed
            };
            assert_eq!(begun(&declared(), GEOMETRY, &seen), Ok(expected), "after {done} steps");
        }
    }

    #[test]
    fn what_is_not_ours_on_a_claimed_disk_is_refused_by_name() {
        let claimed = seen(&after(1)).unwrap();
        let signature = |uuid: &str| Signature::new(Kind::Ext4, None, Some(uuid.to_owned()));
        let mut foreign = claimed.clone();
        foreign.signatures[1] = vec![signature("1")];
        assert!(
            begun(&declared(), GEOMETRY, &foreign)
                .unwrap_err()
                .contains("disk-main-swap is ext4 UUID=1")
        );
        let mut own = claimed.clone();
        own.signatures[1] = vec![signature(&dashed(&id(&SEED, "content 1")))];
        assert_eq!(begun(&declared(), GEOMETRY, &own), Ok(Begun::Claimed));
        let mut other = claimed.clone();
        other.claim.size += 512;
        assert!(begun(&declared(), GEOMETRY, &other).unwrap_err().contains("a copy, or was resized"));
        let mut used = seen(&after(13)).unwrap();
        used.tail.fill(0);
        assert!(begun(&declared(), GEOMETRY, &used).unwrap_err().contains("no longer whole"));
        let mut other = claimed;
        other.claim.declaration = Digest::of(b"x");
        assert!(begun(&declared(), GEOMETRY, &other).unwrap_err().contains("another declaration"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn any_foreign_byte_at_either_end_of_a_claimed_disk_is_refused(at in 0_usize..(1 << 20), tail in any::<bool>(), byte in 1_u8.., done in 1_usize..14) {
            let mut claimed = seen(&after(done)).unwrap();
            let full = seen(&after(13)).unwrap();
            let (part, would_be) = if tail { (&mut claimed.tail, &full.tail) } else { (&mut claimed.head, &full.head) };
            let foreign = byte != would_be[at];
            part[at] = byte;
            prop_assert_eq!(begun(&declared(), GEOMETRY, &claimed).is_err(), foreign);
        }
    }
}
