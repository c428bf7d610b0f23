//! Whether an ext2, ext3 or ext4 was left clean: what e2fsck looks at before it says «clean» and ends.
//!
//! | what | clean |
//! |---|---|
//! | superblock | valid, no error was ever counted, no journal to be replayed, no orphans, its checksum right, its numbers sane |
//! | limits | less mounts than the most between two checks, its last check not too long ago nor in the future |
//! | features | none but those below: others may need more |
//! | descriptors of the groups | each checksum right, each place within the file system |
//! | the first copy of the superblock | the same features, sizes and id |
//! | journal | its inode as the superblock has it, its own superblock right, empty and without an error |
//!
//! Facts: e2fsprogs' `e2fsck/unix.c` (`check_if_skip`), `super.c` (`check_super_block`, `check_backup_super_block`), `journal.c`
//! (`e2fsck_check_ext3_journal`); Linux `fs/ext4/ext4.h`, `include/linux/jbd2.h`. Whatever is in doubt here is not clean: the program then decides.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use crate::device::probe::{ReadAt, array, has, le16, le32, read};
use crate::device::table::Crc;

const HAS_JOURNAL: u32 = 0x4;
const DIR_INDEX: u32 = 0x20;
const ORPHAN_FILE: u32 = 0x1000;
/// These, extended attributes, an inode for resizing.
const COMPATIBLE: u32 = HAS_JOURNAL | 0x8 | 0x10 | DIR_INDEX | ORPHAN_FILE;

const EXTENTS: u32 = 0x40;
const WIDE: u32 = 0x80;
const FLEXIBLE_GROUPS: u32 = 0x200;
const CHECKSUM_SEED: u32 = 0x2000;
/// These, file types in directories, attributes in inodes, large directories, data in inodes, encryption.
const INCOMPATIBLE: u32 = 0x2 | EXTENTS | WIDE | FLEXIBLE_GROUPS | 0x400 | CHECKSUM_SEED | 0x4000 | 0x8000 | 0x1_0000;
/// A copy of the superblock may be without: extents, a journal to be replayed.
const INCOMPATIBLE_LATER: u32 = 0x44;

const GROUP_CHECKSUMS: u32 = 0x10;
const CHECKSUMS: u32 = 0x400;
/// These, sparse copies of the superblock, large and huge files, many links, large inodes, verity.
const RO_COMPATIBLE: u32 = 0x1 | 0x2 | 0x8 | GROUP_CHECKSUMS | 0x20 | 0x40 | CHECKSUMS | 0x8000;
/// As above: large files, many links.
const RO_COMPATIBLE_LATER: u32 = 0x22;

/// Of an inode.
const USES_EXTENTS: u32 = 0x8_0000;

/// Descriptors of groups that are read at most, in bytes: those of 8 TiB.
const MOST: u64 = 4 << 20;

/// CRC-32C and CRC-16, reversed.
const CASTAGNOLI: u32 = 0x82f6_3b78;
const SIXTEEN: u32 = 0xa001;

/// Whether the ext2, ext3 or ext4 on `image`, which is `size` bytes long, was left clean and needs no check at `now` (seconds since 1970).
pub fn is_clean(image: &dyn ReadAt, size: u64, now: u64) -> bool {
    clean(image, size, now).is_some()
}

fn clean(image: &dyn ReadAt, size: u64, now: u64) -> Option<()> {
    // What cannot be read is for the program to tell.
    let bytes = |offset: u64, length: usize| match read(image, offset, length) {
        Ok(bytes) if bytes.len() == length => Some(bytes),
        Ok(_) | Err(_) => None,
    };
    let block = bytes(1024, 1024)?;
    let castagnoli = Crc::new(CASTAGNOLI);
    let shape = superblock(&block, &castagnoli, size, now)?;
    let descriptors = bytes(
        (shape.first + 1) * shape.block,
        usize::try_from(shape.groups * shape.descriptor).ok()?,
    )?;
    let inodes = groups(&shape, &descriptors, &castagnoli)?;
    if shape.groups > 1 {
        is_same(&block, &bytes((shape.first + shape.per_group) * shape.block, 1024)?)?;
    }
    if shape.compatible & HAS_JOURNAL == 0 {
        return Some(());
    }
    let inode = bytes(inodes * shape.block + 7 * shape.inode, usize::try_from(shape.inode).ok()?)?;
    let blocks = inode.get(0x28..0x64)?;
    let flags = le32(&inode, 0x20)?;
    is(le16(&inode, 0)? & 0xf000 == 0x8000 && le16(&inode, 0x1a)? == 1 && flags & !USES_EXTENTS == 0)?;
    let copied = |own: usize, copy: usize| le32(&inode, own) == le32(&block, copy);
    is(has(&block, 0x10c, blocks) && copied(0x6c, 0x148) && copied(0x4, 0x14c))?;
    let seed = castagnoli.of(castagnoli.of(shape.seed, &8_u32.to_le_bytes()), inode.get(0x64..0x68)?);
    if shape.ro_compatible & CHECKSUMS != 0 {
        is_sound(&inode, seed, &castagnoli)?;
    }
    let length = wide(&inode, 0x4, 0x6c)?;
    let mut file = Blocks {
        shape: &shape,
        castagnoli: &castagnoli,
        seed,
        read: &|at| bytes(at, usize::try_from(shape.block).ok()?),
        first: None,
        count: 0,
        wanted: length.div_ceil(shape.block),
    };
    if flags == USES_EXTENTS {
        let depth = le16(blocks, 6)?;
        // Linux has no deeper ones.
        is(depth <= 5)?;
        file.extents(blocks, depth)?;
    } else {
        file.pointers(blocks.get(..48)?, 0)?;
        for (level, pointer) in (1..).zip(blocks.get(48..)?.chunks_exact(4)) {
            file.pointers(pointer, level)?;
        }
    }
    is(file.count >= file.wanted)?;
    journal(bytes(file.first? * shape.block, 1024)?, &shape, length, &castagnoli)
}

/// The blocks of the journal's file, walked from its first one on.
struct Blocks<'a> {
    shape: &'a Shape,
    castagnoli: &'a Crc,
    /// What checksums of its own begin with.
    seed: u32,
    /// A block at so many bytes.
    read: &'a dyn Fn(u64) -> Option<Vec<u8>>,
    first: Option<u64>,
    count: u64,
    wanted: u64,
}

impl Blocks<'_> {
    fn take(&mut self, at: u64, count: u64) -> Option<()> {
        is(at >= self.shape.first && at.checked_add(count)? <= self.shape.blocks)?;
        self.first.get_or_insert(at);
        self.count += count;
        Some(())
    }

    fn block(&self, at: u64) -> Option<Vec<u8>> {
        is((self.shape.first..self.shape.blocks).contains(&at))?;
        (self.read)(at * self.shape.block)
    }

    /// A node of a tree of extents, as many levels above these.
    fn extents(&mut self, node: &[u8], depth: u16) -> Option<()> {
        let entries = le16(node, 2)?;
        is(le16(node, 0)? == 0xf30a && le16(node, 6)? == depth && entries > 0)?;
        for entry in node.get(12..12 + 12 * usize::from(entries))?.chunks_exact(12) {
            is(u64::from(le32(entry, 0)?) == self.count)?;
            let at = |low, high| Some(u64::from(le32(entry, low)?) | u64::from(le16(entry, high)?) << 32);
            if depth == 0 {
                let count = le16(entry, 4)?;
                is((1..=0x8000).contains(&count))?;
                self.take(at(8, 6)?, u64::from(count))?;
            } else {
                let below = self.block(at(4, 8)?)?;
                let end = 12 + 12 * usize::from(le16(&below, 4)?);
                is(self.shape.ro_compatible & CHECKSUMS == 0 || self.castagnoli.of(self.seed, below.get(..end)?) == le32(&below, end)?)?;
                self.extents(&below, depth - 1)?;
            }
        }
        Some(())
    }

    /// Pointers to blocks, as many levels above these.
    fn pointers(&mut self, pointers: &[u8], level: u32) -> Option<()> {
        for pointer in pointers.chunks_exact(4) {
            if self.count >= self.wanted {
                break;
            }
            let at = u64::from(le32(pointer, 0)?);
            if level == 0 {
                self.take(at, 1)?;
            } else {
                let below = self.block(at)?;
                self.pointers(&below, level - 1)?;
            }
        }
        Some(())
    }
}

/// Whether the checksum of the journal's inode is right.
fn is_sound(inode: &[u8], seed: u32, castagnoli: &Crc) -> Option<()> {
    let mut zeroed = inode.to_vec();
    zeroed.get_mut(0x7c..0x7e)?.fill(0);
    let mut sum = u32::from(le16(inode, 0x7c)?);
    let mut mask = 0xffff;
    if inode.len() > 128 {
        is(le16(inode, 0x80)? >= 4)?;
        sum |= u32::from(le16(inode, 0x82)?) << 16;
        zeroed.get_mut(0x82..0x84)?.fill(0);
        mask = u32::MAX;
    }
    is(castagnoli.of(seed, &zeroed) & mask == sum)
}

fn is(so: bool) -> Option<()> {
    so.then_some(())
}

/// The number whose lower half is at `low`, and whose upper half is at `high`.
fn wide(bytes: &[u8], low: usize, high: usize) -> Option<u64> {
    Some(u64::from(le32(bytes, low)?) | u64::from(le32(bytes, high)?) << 32)
}

/// Places and sizes, the latter in bytes but for those of groups.
struct Shape {
    block: u64,
    /// The first block that counts.
    first: u64,
    blocks: u64,
    per_group: u64,
    groups: u64,
    inodes_per_group: u64,
    inode: u64,
    descriptor: u64,
    compatible: u32,
    incompatible: u32,
    ro_compatible: u32,
    /// What checksums begin with.
    seed: u32,
    uuid: [u8; 16],
}

/// The superblock by itself.
fn superblock(block: &[u8], castagnoli: &Crc, size: u64, now: u64) -> Option<Shape> {
    let number = |at| le32(block, at).map(u64::from);
    let (compatible, incompatible, ro_compatible) = (le32(block, 0x5c)?, le32(block, 0x60)?, le32(block, 0x64)?);
    is(le16(block, 0x38)? == 0xef53 && number(0x4c)? == 1 && number(0x48)? == 0)?;
    is(compatible & !COMPATIBLE == 0 && incompatible & !INCOMPATIBLE == 0 && ro_compatible & !RO_COMPATIBLE == 0)?;
    let set = |features: u32, all: u32| features & all == all;
    let sums = set(ro_compatible, CHECKSUMS);
    let sensible = !set(ro_compatible, CHECKSUMS | GROUP_CHECKSUMS)
        && (sums || !set(incompatible, CHECKSUM_SEED))
        && (!set(incompatible, WIDE) || set(incompatible, EXTENTS))
        && (!set(compatible, ORPHAN_FILE) || set(compatible, HAS_JOURNAL));
    is(sensible)?;
    if sums {
        is(block.get(0x175)? == &1 && castagnoli.of(u32::MAX, block.get(..0x3fc)?) == le32(block, 0x3fc)?)?;
    }

    // Valid, and nothing else; errors; orphans.
    is(le16(block, 0x3a)? == 1 && number(0x194)? == 0 && number(0xe8)? == 0)?;
    let most = le16(block, 0x36)?;
    is(most == 0 || most > i16::MAX.unsigned_abs() || le16(block, 0x34)? < most)?;
    let interval = number(0x40 + 4)?;
    if interval != 0 {
        let time = |low: usize, high: usize| Some(number(low)? | u64::from(*block.get(high)?) << 32);
        let checked = time(0x40, 0x277)?;
        is(checked <= now && now - checked < interval && time(0x2c, 0x275)? <= now && time(0x30, 0x274)? <= now)?;
    }
    // Quotas; a hash of names without its kind, a file system for tests.
    is([0x240, 0x244, 0x26c].iter().all(|at| le32(block, *at) == Some(0)))?;
    let flags = number(0x160)?;
    is(flags & 4 == 0 && (compatible & DIR_INDEX == 0 || flags & 3 != 0))?;
    let uuid = array(block, 0x68)?;
    is(uuid != [0; 16])?;

    let bits = number(0x18)?;
    is(bits <= 6 && number(0x1c)? == bits)?;
    let size_of_block = 1024 << bits;
    let high = if set(incompatible, WIDE) { u64::MAX } else { u64::from(u32::MAX) };
    let blocks = wide(block, 0x4, 0x150)? & high;
    let first = number(0x14)?;
    is(first == u64::from(bits == 0) && first < blocks && blocks.checked_mul(size_of_block)? <= size)?;
    let per_group = number(0x20)?;
    is(number(0x24)? == per_group && (8..=(8 * size_of_block).min(65528)).contains(&per_group))?;
    let inode = u64::from(le16(block, 0x58)?);
    is(inode.is_power_of_two() && (128..=size_of_block).contains(&inode))?;
    let inodes_per_block = size_of_block / inode;
    let inodes_per_group = number(0x28)?;
    let most = (inodes_per_block * (per_group - 4)).min(65536 - inodes_per_block);
    is((inodes_per_block..=most).contains(&inodes_per_group))?;
    let groups = (blocks - first).div_ceil(per_group);
    let inodes = number(0)?;
    is(inodes == groups.checked_mul(inodes_per_group)? && (11..=inodes).contains(&number(0x54)?))?;
    let descriptor = match (set(incompatible, WIDE), le16(block, 0xfe)?) {
        (true, 64) => 64,
        (false, 0 | 32 | 64) => 32,
        _ => return None,
    };
    is(groups.checked_mul(descriptor)? <= MOST)?;
    let (reserved, free) = (wide(block, 0x8, 0x154)? & high, wide(block, 0xc, 0x158)? & high);
    is(reserved <= blocks / 2 && free <= blocks && number(0x10)? <= inodes)?;
    is(u64::from(le16(block, 0xce)?) <= size_of_block / 4)?;
    if inode > 128 {
        let extra = |at| {
            le16(block, at)
                .map(u64::from)
                .filter(|extra| *extra == 0 || (4..=inode - 128).contains(extra) && extra % 4 == 0)
        };
        extra(0x15c).and(extra(0x15e))?;
    }
    // The journal is the inode that is meant for it, and where that is stands in the superblock.
    let own = set(compatible, HAS_JOURNAL);
    is(number(0xe0)? == if own { 8 } else { 0 } && number(0xe4)? == 0 && has(block, 0xd0, &[0; 16]))?;
    is(!own || block.get(0xfd)? == &1)?;
    let seed = match (set(incompatible, CHECKSUM_SEED), sums) {
        (true, _) => le32(block, 0x270)?,
        (false, true) => castagnoli.of(u32::MAX, &uuid),
        (false, false) => 0,
    };
    Some(Shape {
        block: size_of_block,
        first,
        blocks,
        per_group,
        groups,
        inodes_per_group,
        inode,
        descriptor,
        compatible,
        incompatible,
        ro_compatible,
        seed,
        uuid,
    })
}

/// The descriptors of the groups; where the inodes of the first one are.
fn groups(shape: &Shape, descriptors: &[u8], castagnoli: &Crc) -> Option<u64> {
    let sixteen = Crc::new(SIXTEEN);
    let table = (shape.inodes_per_group * shape.inode).div_ceil(shape.block);
    let summed = shape.ro_compatible & (CHECKSUMS | GROUP_CHECKSUMS) != 0;
    let mut inodes = None;
    for (number, group) in (0_u32..).zip(descriptors.chunks_exact(usize::try_from(shape.descriptor).ok()?)) {
        let start = shape.first + u64::from(number) * shape.per_group;
        let (first, end) = match shape.incompatible & FLEXIBLE_GROUPS {
            0 => (start, (start + shape.per_group).min(shape.blocks)),
            _ => (shape.first, shape.blocks),
        };
        let is_wide = group.len() > 32;
        let place = |at| {
            if is_wide {
                wide(group, at, at + 0x20)
            } else {
                le32(group, at).map(u64::from)
            }
        };
        let count = |at: usize, high: usize| {
            let high = if is_wide { le16(group, high)? } else { 0 };
            Some(u64::from(le16(group, at)?) | u64::from(high) << 16)
        };
        let range = first..end;
        let own = place(8)?;
        is(range.contains(&place(0)?) && range.contains(&place(4)?) && range.contains(&own) && end - own >= table)?;
        let (free, unused, flags) = (count(0xe, 0x2e)?, count(0x1c, 0x32)?, le16(group, 0x12)?);
        is(count(0xc, 0x2c)? <= shape.per_group && free <= shape.inodes_per_group && count(0x10, 0x30)? <= shape.inodes_per_group)?;
        let last = u64::from(number) + 1 == shape.groups;
        is(if summed {
            unused <= free && !(last && flags & 2 != 0)
        } else {
            unused == 0 && flags & 3 == 0
        })?;
        // The checksum is over the descriptor with the checksum itself as zero, or without it.
        let (head, tail) = (group.get(..0x1e)?, group.get(0x20..)?);
        let sum = if shape.ro_compatible & CHECKSUMS != 0 {
            [&number.to_le_bytes()[..], head, &[0; 2], tail]
                .iter()
                .fold(shape.seed, |sum, bytes| castagnoli.of(sum, bytes))
        } else {
            [&shape.uuid[..], &number.to_le_bytes(), head, tail]
                .iter()
                .fold(0xffff, |sum, bytes| sixteen.of(sum, bytes))
        };
        is(!summed || sum.to_le_bytes().first_chunk() == group.get(0x1e..)?.first_chunk::<2>())?;
        inodes = inodes.or(Some(own));
    }
    inodes
}

/// Whether a copy of the superblock has the same features, sizes and id.
fn is_same(block: &[u8], copy: &[u8]) -> Option<()> {
    let same = |at, but: u32| is((le32(block, at)? ^ le32(copy, at)?) & !but == 0);
    for (at, but) in [
        (0, 0),
        (0x4, 0),
        (0x150, 0),
        (0x5c, 0),
        (0x60, INCOMPATIBLE_LATER),
        (0x64, RO_COMPATIBLE_LATER),
    ] {
        same(at, but)?;
    }
    is(has(copy, 0x38, &[0x53, 0xef]) && has(copy, 0x68, block.get(0x68..0x78)?))
}

/// The journal's own superblock, big-endian. It is empty, and nobody has left an error there; `length` is that of its file.
fn journal(mut block: Vec<u8>, shape: &Shape, length: u64, castagnoli: &Crc) -> Option<()> {
    const CHECKSUMS_2: u32 = 0x8;
    const CHECKSUMS_3: u32 = 0x10;
    /// These, revoked blocks, wide numbers.
    const INCOMPATIBLE: u32 = 0x1 | 0x2 | CHECKSUMS_2 | CHECKSUMS_3;
    let sum: [u8; 4] = array(&block, 0xfc)?;
    block.get_mut(0xfc..0x100)?.fill(0);
    let number = |at| array(&block, at).map(u32::from_be_bytes);
    is(number(0)? == 0xc03b_3998 && number(4)? == 4 && u64::from(number(12)?) == shape.block)?;
    is(u64::from(number(16)?).checked_mul(shape.block)? <= length)?;
    // Its start, its error, its features; that it has one user.
    is(number(0x1c)? == 0 && number(0x20)? == 0 && number(0x24)? == 0 && number(0x2c)? == 0 && number(0x40)? <= 1)?;
    let features = number(0x28)?;
    match features & (CHECKSUMS_2 | CHECKSUMS_3) {
        0 => {}
        CHECKSUMS_2 | CHECKSUMS_3 => is(block.get(0x50)? == &4 && castagnoli.of(u32::MAX, &block).to_be_bytes() == sum)?,
        _ => return None,
    }
    is(features & !INCOMPATIBLE == 0)
}
