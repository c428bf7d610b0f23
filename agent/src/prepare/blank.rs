//! Whether a disk is blank: decided from what was seen, and nothing but zeros will do.
//!
//! | looked at | it must be |
//! |---|---|
//! | which disk | the declared one, and no second one of that name |
//! | its size | within the declared range |
//! | how it is attached | writable; not removable, unless declared so |
//! | who uses it | nobody: no partitions, no holders, no mount, no swap, no loop device, nobody else with an exclusive open |
//! | both ends, places of superblocks and of their copies | zero |
//! | samples in between, or all of it | zero |
//! | our probe, and libblkid's where it is there | see nothing |
//! | every read | succeeds |

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::fmt;

use crate::device::observe::BlockDevice;
use crate::device::probe::{ReadAt, Signature, read};
use crate::foreign::sentence;
use crate::settings::value::show_bytes;

use super::declaration::{BlankCheck, Declared};
use super::marks::Mark;

/// A disk of at most this size is read as a whole unless the declaration says otherwise.
pub const FULL_UP_TO: u64 = 64 << 30;
/// How many samples are taken at least.
pub const SAMPLES: u64 = 4096;
/// Bytes of each.
pub const SAMPLE: u64 = 64 << 10;
/// So much of either end must be zero, whatever is sampled: headers of LUKS 2 may stand as far in as 4 MiB, their keys behind them.
const EDGE: u64 = 8 << 20;
/// How much is read at a time.
pub const STRIDE: u64 = 1 << 20;

/// Bytes that must be zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Area {
    /// The first.
    pub offset: u64,
    /// How many.
    pub length: u64,
}

/// The check for a disk of this size.
pub fn check_of(declared: &Declared, size: u64) -> BlankCheck {
    declared.blank_check.unwrap_or(if size <= FULL_UP_TO {
        BlankCheck::Full
    } else {
        BlankCheck::Sampled
    })
}

/// What must be zero on a disk of `size` bytes, the most telling first. Areas may overlap; none reaches beyond the disk.
pub fn areas(size: u64, check: BlankCheck) -> Vec<Area> {
    let mut areas = Vec::new();
    let mut add = |offset: u64, length: u64| {
        let length = length.min(size.saturating_sub(offset));
        if length != 0 {
            areas.push(Area { offset, length });
        }
    };
    add(0, EDGE);
    add(size.saturating_sub(EDGE), EDGE);
    // Where copies of superblocks stand: btrfs, and ext with blocks of 1, 2 and 4 KiB (`sparse_super`: groups 1 and powers of 3, 5 and 7).
    for mirror in [64 << 20, 256 << 30, 1 << 50] {
        add(mirror, SAMPLE);
    }
    for group in [8_u64 << 20, 32 << 20, 128 << 20] {
        for number in [1, 3, 5, 7, 9, 25, 27, 49, 81, 125, 243, 343] {
            add(group * number, SAMPLE);
        }
    }
    match check {
        BlankCheck::Full => add(0, size),
        // Where samples would touch one another, there is nothing between them.
        BlankCheck::Sampled if size <= SAMPLES * SAMPLE => add(0, size),
        BlankCheck::Sampled => {
            let span = size - SAMPLE;
            for sample in 0..SAMPLES {
                // At most 2^50 × 2^12: no overflow. Aligned, so that a sample is read without its neighbours.
                let offset = span / (SAMPLES - 1) * sample + span % (SAMPLES - 1) * sample / (SAMPLES - 1);
                add(offset & !4095, SAMPLE);
            }
        }
    }
    areas
}

/// Bytes that the areas come to, overlaps counted twice.
pub fn total(areas: &[Area]) -> u64 {
    areas.iter().map(|area| area.length).fold(0, u64::saturating_add)
}

/// Where the first byte stands that is not zero.
pub fn first_nonzero(bytes: &[u8]) -> Option<usize> {
    const BLOCK: usize = 4096;
    let block = bytes.chunks(BLOCK).position(|block| *block != [0; BLOCK][..block.len()])?;
    let at = block * BLOCK;
    bytes[at..].iter().position(|byte| *byte != 0).map(|more| at + more)
}

/// Reads the areas until something is not zero or cannot be read. `tick` is told how many bytes are behind, and may end it with a reason.
pub fn scan(image: &dyn ReadAt, areas: &[Area], tick: &mut dyn FnMut(u64) -> Result<(), String>) -> Bytes {
    let mut behind: u64 = 0;
    for area in areas {
        let mut done = 0;
        while done < area.length {
            let at = area.offset.saturating_add(done);
            let length = STRIDE.min(area.length - done);
            if let Err(why) = tick(behind) {
                return Bytes::Unreadable(at, why);
            }
            match read(image, at, usize::try_from(length).unwrap_or_default()) {
                Ok(bytes) if bytes.len() as u64 != length => {
                    return Bytes::Unreadable(at.saturating_add(bytes.len() as u64), "the disk ends here".to_owned());
                }
                Ok(bytes) => {
                    if let Some(first) = first_nonzero(&bytes) {
                        return Bytes::NotZero(at.saturating_add(first as u64));
                    }
                }
                Err(error) => return Bytes::Unreadable(at, error.to_string()),
            }
            done += length;
            behind = behind.saturating_add(length);
        }
    }
    Bytes::Zero
}

/// Who uses a disk.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Uses {
    /// Partitions that the kernel sees.
    pub partitions: Vec<String>,
    /// Mounts, swap, loop devices: each in words.
    pub by: Vec<String>,
}

/// Why a disk is not to be touched, whatever is on it.
pub fn unfit(declared: &Declared, disk: &BlockDevice, uses: &Uses) -> Vec<String> {
    let mut reasons = Vec::new();
    if disk.size < declared.min || disk.size > declared.max {
        reasons.push(format!(
            "its size of {} bytes is not within {} and {} (disks.{}.size)",
            disk.size,
            show_bytes(declared.min),
            show_bytes(declared.max),
            declared.name
        ));
    }
    if disk.partition.is_some() {
        reasons.push("it is a partition, not a disk".to_owned());
    }
    if disk.read_only {
        reasons.push("it is read-only".to_owned());
    }
    if disk.removable && !declared.removable {
        reasons.push(format!("its medium is removable, and disks.{}.removable is not set", declared.name));
    }
    if !uses.partitions.is_empty() {
        reasons.push(format!("it has partitions: {}", uses.partitions.join(", ")));
    }
    if !disk.holders.is_empty() {
        reasons.push(format!("it is held by {}", disk.holders.join(", ")));
    }
    reasons.extend(uses.by.iter().cloned());
    reasons
}

/// What libblkid says, the second probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Libblkid {
    /// There is no `blkid` here.
    Absent,
    /// It sees nothing.
    Nothing,
    /// It sees this.
    Found(String),
    /// It could not say.
    Failed(String),
}

/// What reading came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Bytes {
    /// Every area was read, and is zero.
    Zero,
    /// The first byte that was met and is not zero is here.
    NotZero(u64),
    /// It could not be read here.
    Unreadable(u64, String),
}

/// What is on a disk, as far as was looked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Evidence {
    /// Zeros.
    pub bytes: Bytes,
    /// Our probe; an error where it could not read.
    pub signatures: Result<Vec<Signature>, String>,
    /// What else gives its content away.
    pub marks: Vec<Mark>,
    /// The other probe.
    pub libblkid: Libblkid,
}

/// Why a disk is not blank; nothing: it is.
pub fn not_blank(evidence: &Evidence) -> Vec<String> {
    let mut reasons = Vec::new();
    match &evidence.signatures {
        Ok(found) => reasons.extend(found.iter().map(|signature| format!("it holds {signature}"))),
        Err(error) => reasons.push(format!("our probe could not read it: {error}")),
    }
    reasons.extend(evidence.marks.iter().map(|mark| format!("it holds {mark}")));
    match &evidence.libblkid {
        Libblkid::Absent | Libblkid::Nothing => {}
        Libblkid::Found(what) => reasons.push(format!("blkid sees {}", sentence(what))),
        Libblkid::Failed(why) => reasons.push(format!("blkid could not say what it holds: {}", sentence(why))),
    }
    match &evidence.bytes {
        Bytes::Zero => {}
        Bytes::NotZero(offset) => reasons.push(format!("the byte at {offset} is not zero")),
        Bytes::Unreadable(offset, error) => reasons.push(format!("it cannot be read at {offset}: {error}")),
    }
    reasons
}

/// Why a disk is left alone: named, with all reasons and what a person can do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The disk's name in the configuration.
    pub name: String,
    /// The disk itself, or what was looked for.
    pub disk: String,
    /// What is not done with it: `prepared` or `grown`.
    pub undone: &'static str,
    /// Why.
    pub reasons: Vec<String>,
    /// What to do.
    pub remedy: &'static str,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "disks.{}: {} is not {}: {}; {}",
            self.name,
            self.disk,
            self.undone,
            self.reasons.join("; "),
            self.remedy
        )
    }
}

impl std::error::Error for Refusal {}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn nothing() -> Evidence {
        Evidence {
            bytes: Bytes::Zero,
            signatures: Ok(Vec::new()),
            marks: Vec::new(),
            libblkid: Libblkid::Nothing,
        }
    }

    #[test]
    fn blank_is_what_every_look_finds_nothing_on() {
        use crate::device::probe::Kind;
        assert_eq!(not_blank(&nothing()), Vec::<String>::new());
        let without = Evidence {
            libblkid: Libblkid::Absent,
            ..nothing()
        };
        assert_eq!(not_blank(&without), Vec::<String>::new());
        let ext4 = Signature::new(Kind::Ext4, Some("data".to_owned()), None);
        for (evidence, words) in [
            (
                Evidence {
                    bytes: Bytes::NotZero(1080),
                    ..nothing()
                },
                "the byte at 1080",
            ),
            (
                Evidence {
                    bytes: Bytes::Unreadable(512, "Input/output error".to_owned()),
                    ..nothing()
                },
                "cannot be read at 512: Input",
            ),
            (
                Evidence {
                    signatures: Ok(vec![ext4]),
                    ..nothing()
                },
                "it holds ext4 LABEL=data",
            ),
            (
                Evidence {
                    signatures: Err("x".to_owned()),
                    ..nothing()
                },
                "our probe could not read it: x",
            ),
            (
                Evidence {
                    marks: vec![Mark {
                        what: "a GPT",
                        offset: 512,
                    }],
                    ..nothing()
                },
                "a GPT at 512",
            ),
            (
                Evidence {
                    libblkid: Libblkid::Found("TYPE=xfs".to_owned()),
                    ..nothing()
                },
                "blkid sees TYPE=xfs",
            ),
            (
                Evidence {
                    libblkid: Libblkid::Failed("killed".to_owned()),
                    ..nothing()
                },
                "blkid could not say what it holds: killed",
            ),
        ] {
            let reasons = not_blank(&evidence);
            assert!(reasons.len() == 1 && reasons[0].contains(words), "{reasons:?}");
        }
    }

    #[test]
    fn a_small_disk_is_read_as_a_whole_and_a_large_one_in_samples() {
        let declared = |check| Declared {
            blank_check: check,
            ..crate::prepare::tests::declared()
        };
        for (check, size, expected) in [
            (None, FULL_UP_TO, BlankCheck::Full),
            (None, FULL_UP_TO + 1, BlankCheck::Sampled),
            (Some(BlankCheck::Sampled), 1 << 30, BlankCheck::Sampled),
            (Some(BlankCheck::Full), 1 << 42, BlankCheck::Full),
        ] {
            assert_eq!(check_of(&declared(check), size), expected);
        }
    }

    #[test]
    fn samples_are_spread_evenly_from_one_end_to_the_other() {
        for size in [(300 << 20) + 512, 1 << 40, (16 << 40) + 4096 * 3] {
            let areas = areas(size, BlankCheck::Sampled);
            let samples = &areas[areas.len() - SAMPLES as usize..];
            assert_eq!(samples[0].offset, 0);
            assert!(size - samples[SAMPLES as usize - 1].offset < SAMPLE + 4096);
            let distance = (size - SAMPLE) / (SAMPLES - 1);
            for pair in samples.windows(2) {
                let gap = pair[1].offset - pair[0].offset;
                assert!(gap <= distance + 8192 && gap + 8192 >= distance, "{gap} of {distance}");
            }
            let edges = &areas[..2];
            assert_eq!((edges[0].offset, edges[1].offset + edges[1].length), (0, size));
            assert!(edges.iter().all(|edge| edge.length >= 1 << 20));
        }
    }

    #[test]
    fn the_first_byte_that_is_not_zero_is_found_wherever_it_is() {
        let mut bytes = vec![0; 3 * 4096 + 7];
        assert_eq!(first_nonzero(&bytes), None);
        assert_eq!(first_nonzero(&[]), None);
        for at in [0, 1, 4095, 4096, 8191, 12287, 12288, 12294] {
            bytes[at] = 1;
            assert_eq!(first_nonzero(&bytes), Some(at));
            bytes[at] = 0;
        }
    }

    /// A large disk that is zero but for one byte, and that fails where it is told to.
    struct Sparse {
        size: u64,
        byte: Option<u64>,
        bad: Option<u64>,
    }

    impl ReadAt for Sparse {
        fn read_at(&self, buffer: &mut [u8], offset: u64) -> std::io::Result<usize> {
            let length = usize::try_from(self.size.saturating_sub(offset)).unwrap().min(buffer.len());
            let within = |at: &u64| (offset..offset + length as u64).contains(at);
            if self.bad.as_ref().is_some_and(within) {
                return Err(std::io::Error::from_raw_os_error(5));
            }
            buffer[..length].fill(0);
            if let Some(at) = self.byte.filter(|at| within(at)) {
                buffer[usize::try_from(at - offset).unwrap()] = 1;
            }
            Ok(length)
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn one_byte_or_one_bad_sector_in_any_checked_area_is_met(size in (300_u64 << 20)..(1 << 42), area in any::<prop::sample::Index>(), within in any::<prop::sample::Index>(), bad in any::<bool>()) {
            let areas = areas(size, BlankCheck::Sampled);
            let area = area.get(&areas);
            let at = area.offset + within.index(usize::try_from(area.length).unwrap()) as u64;
            let disk = Sparse { size, byte: (!bad).then_some(at), bad: bad.then_some(at) };
            match scan(&disk, &areas, &mut |_| Ok(())) {
                Bytes::NotZero(found) => prop_assert!(!bad && found == at),
                Bytes::Unreadable(found, _) => prop_assert!(bad && found <= at && at < found + STRIDE),
                Bytes::Zero => prop_assert!(false, "nothing was met at {}", at),
            }
        }
    }

    #[test]
    fn a_scan_ends_when_it_is_told_to_and_at_the_end_of_a_disk_that_is_shorter_than_it_says() {
        let disk = Sparse {
            size: 4 << 20,
            byte: None,
            bad: None,
        };
        let whole = [Area {
            offset: 0,
            length: 5 << 20,
        }];
        assert_eq!(
            scan(&disk, &whole, &mut |_| Ok(())),
            Bytes::Unreadable(4 << 20, "the disk ends here".to_owned())
        );
        let late = |behind| if behind < 2 << 20 { Ok(()) } else { Err("late".to_owned()) };
        assert_eq!(
            scan(&disk, &whole[..1], &mut { late }),
            Bytes::Unreadable(2 << 20, "late".to_owned())
        );
        assert_eq!(
            scan(
                &disk,
                &[Area {
                    offset: 0,
                    length: 4 << 20
                }],
                &mut |_| Ok(())
            ),
            Bytes::Zero
        );
    }

    proptest! {
        #[test]
        fn no_area_is_empty_or_reaches_beyond_the_disk_and_both_ends_are_covered(size in 1_u64..(1 << 50), full in any::<bool>()) {
            let areas = areas(size, if full { BlankCheck::Full } else { BlankCheck::Sampled });
            prop_assert!(areas.iter().all(|area| area.length != 0 && area.offset + area.length <= size));
            let covers = |at: u64| areas.iter().any(|area| area.offset <= at && at < area.offset + area.length);
            let edge = (1 << 20).min(size);
            prop_assert!(covers(0) && covers(edge - 1) && covers(size - edge) && covers(size - 1));
            prop_assert!(!full || areas.iter().any(|area| area.offset == 0 && area.length == size));
        }
    }
}
