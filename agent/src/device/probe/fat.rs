//! FAT12, FAT16, FAT32 and exFAT.
//!
//! Layouts: Microsoft's «FAT: General Overview of On-Disk Format» 1.03 and its exFAT file system specification.

use std::io;

use super::source::{has, le16, le32, text, text16};
use super::{Kind, Signature, Source};

/// Clusters of a root folder that are looked through for its label, which mkfs puts first.
const MOST_CLUSTERS: usize = 32;

/// Bytes of one cluster, or of a FAT12/16 root folder, that are looked through.
const MOST_BYTES: u64 = 64 * 1024;

/// Length of an entry in a folder.
const ENTRY: usize = 32;

/// Where the clusters of a file system are.
struct Clusters {
    /// Offset of the file allocation table.
    table: u64,
    /// Offset of cluster 2.
    data: u64,
    /// Bytes in a cluster.
    size: u64,
    /// Bits of a table entry that name a cluster.
    mask: u32,
}

impl Clusters {
    /// Calls `look` for each cluster of the chain from `first` on until it answers or a limit is reached.
    fn find<T>(&self, source: &Source<'_>, first: u32, look: impl Fn(&[u8]) -> Look<T>) -> io::Result<Option<T>> {
        let mut cluster = first & self.mask;
        for _ in 0..MOST_CLUSTERS {
            let Some(index) = cluster.checked_sub(2) else { return Ok(None) };
            let length = usize::try_from(self.size.min(MOST_BYTES)).unwrap_or_default();
            let Some(bytes) = source.bytes(self.data.saturating_add(u64::from(index).saturating_mul(self.size)), length)? else {
                return Ok(None);
            };
            match look(&bytes) {
                Look::Found(value) => return Ok(Some(value)),
                Look::End => return Ok(None),
                Look::More => {}
            }
            let Some(next) = source.bytes(self.table.saturating_add(u64::from(cluster) * 4), 4)? else {
                return Ok(None);
            };
            cluster = le32(&next, 0).unwrap_or_default() & self.mask;
        }
        Ok(None)
    }
}

/// What a stretch of a folder says about its label.
enum Look<T> {
    Found(T),
    End,
    More,
}

/// FAT12, FAT16 or FAT32. The label in the root folder counts (it is what `blkid` and every system show), then that of the boot sector.
pub(super) fn vfat(source: &Source<'_>) -> io::Result<Option<Signature>> {
    let Some(boot) = source.bytes(0, 512)? else { return Ok(None) };
    let Some(geometry) = geometry(&boot) else { return Ok(None) };
    // In FAT32 the extended boot record begins 28 bytes later.
    let record = if geometry.fat32 { 0x43 } else { 0x27 };
    let serial = le32(&boot, record).map(serial);
    let of_root = if geometry.fat32 {
        let clusters = Clusters {
            table: geometry.table,
            data: geometry.data,
            size: geometry.cluster,
            mask: 0x0fff_ffff,
        };
        clusters.find(source, le32(&boot, 44).unwrap_or_default(), volume_label)?
    } else {
        let length = usize::try_from(geometry.root_bytes.min(MOST_BYTES)).unwrap_or_default();
        let Some(root) = source.bytes(geometry.root, length)? else {
            return Ok(None);
        };
        match volume_label(&root) {
            Look::Found(label) => Some(label),
            Look::End | Look::More => None,
        }
    };
    let label = of_root.or_else(|| text(&boot, record + 4, 11).filter(|label| label != "NO NAME"));
    Ok(Some(Signature::new(Kind::Vfat, label, serial)))
}

/// A volume serial as it is shown.
fn serial(serial: u32) -> String {
    format!("{:04X}-{:04X}", serial >> 16, serial & 0xffff)
}

/// Offsets and lengths in bytes.
struct Geometry {
    fat32: bool,
    table: u64,
    root: u64,
    root_bytes: u64,
    data: u64,
    cluster: u64,
}

/// The geometry in a boot sector, if every field of it makes sense: the magic of FAT alone, `55 AA`, is that of any boot sector.
fn geometry(boot: &[u8]) -> Option<Geometry> {
    if !has(boot, 510, &[0x55, 0xaa]) || !matches!(boot.first()?, 0xeb | 0xe9) {
        return None;
    }
    let sector = u64::from(le16(boot, 11)?);
    let per_cluster = u64::from(*boot.get(13)?);
    let reserved = u64::from(le16(boot, 14)?);
    let tables = u64::from(*boot.get(16)?);
    let root_entries = u64::from(le16(boot, 17)?);
    let media = *boot.get(21)?;
    let short_table = u64::from(le16(boot, 22)?);
    let per_table = if short_table == 0 {
        u64::from(le32(boot, 36)?)
    } else {
        short_table
    };
    let sane = sector.is_power_of_two()
        && (512..=4096).contains(&sector)
        && per_cluster.is_power_of_two()
        && reserved != 0
        && (1..=2).contains(&tables)
        && (media == 0xf0 || media >= 0xf8)
        && per_table != 0
        && (short_table == 0 || root_entries != 0);
    sane.then(|| {
        let table = reserved * sector;
        let root = table + tables * per_table * sector;
        let root_bytes = root_entries * ENTRY as u64;
        let data = root + root_bytes.next_multiple_of(sector);
        Geometry {
            fat32: short_table == 0,
            table,
            root,
            root_bytes,
            data,
            cluster: per_cluster * sector,
        }
    })
}

/// Looks for the entry that holds the volume's label: attribute «volume», not «folder», and not the mark of a long name.
fn volume_label(folder: &[u8]) -> Look<String> {
    for entry in folder.chunks_exact(ENTRY) {
        if entry[0] == 0 {
            return Look::End;
        }
        let attributes = entry[11];
        if entry[0] == 0xe5 || attributes & 0x3f == 0x0f || attributes & 0x18 != 0x08 {
            continue;
        }
        let mut name = [0; 11];
        name.copy_from_slice(&entry[..11]);
        // 0xe5 marks a deleted entry, so a name that begins with it is stored so.
        if name[0] == 0x05 {
            name[0] = 0xe5;
        }
        return text(&name, 0, 11).map_or(Look::End, Look::Found);
    }
    Look::More
}

/// exFAT.
pub(super) fn exfat(source: &Source<'_>) -> io::Result<Option<Signature>> {
    let Some(boot) = source.bytes(0, 512)? else { return Ok(None) };
    if !has(&boot, 3, b"EXFAT   ") || !has(&boot, 510, &[0x55, 0xaa]) {
        return Ok(None);
    }
    let (sector_shift, cluster_shift) = (boot[108], boot[109]);
    if !(9..=12).contains(&sector_shift) || cluster_shift > 25 - sector_shift {
        return Ok(None);
    }
    let field = |at: usize| u64::from(le32(&boot, at).unwrap_or_default()) << sector_shift;
    let clusters = Clusters {
        table: field(80),
        data: field(88),
        size: 1 << (sector_shift + cluster_shift),
        mask: u32::MAX,
    };
    let label = clusters.find(source, le32(&boot, 96).unwrap_or_default(), exfat_label)?;
    Ok(Some(Signature::new(Kind::Exfat, label.flatten(), le32(&boot, 100).map(serial))))
}

/// Looks for the entry of type 0x83; one that is not in use (0x03) says that there is no label.
fn exfat_label(folder: &[u8]) -> Look<Option<String>> {
    for entry in folder.chunks_exact(ENTRY) {
        match entry[0] {
            0x00 | 0x03 => return Look::End,
            0x83 => return Look::Found(text16(entry, 2, 2 * usize::from(entry[1].min(11)))),
            _ => {}
        }
    }
    Look::More
}
