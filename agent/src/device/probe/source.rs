//! Bounded reading of an image, and the fields of its structures.

use std::borrow::Cow;
use std::io;
use std::os::unix::fs::FileExt;

/// Something that can be read at an offset: a file, a block device, or bytes.
pub trait ReadAt {
    /// Reads into `buffer` from `offset` on; fewer bytes than asked for, or none, at the end.
    ///
    /// # Errors
    /// Those of the underlying read.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
}

#[allow(
    clippy::disallowed_types,
    reason = "the one place where a probe meets a device; all else here sees bytes at offsets"
)]
impl ReadAt for std::fs::File {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        FileExt::read_at(self, buffer, offset)
    }
}

impl ReadAt for &[u8] {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let rest = usize::try_from(offset).map_or(&[][..], |offset| self.get(offset..).unwrap_or_default());
        let length = rest.len().min(buffer.len());
        buffer[..length].copy_from_slice(&rest[..length]);
        Ok(length)
    }
}

/// The head holds nearly every superblock (btrfs's, at 64 KiB, is the last), so one read is enough for most devices.
const HEAD: usize = 72 * 1024;

/// Where the others are: a ZFS label's list, and what stands at the end of a device, the farthest of it at 128 KiB (RAID, metadata 0.90).
const ZFS_LIST: (u64, u64) = (272 * 1024, 4096);
const TAIL: u64 = 128 * 1024;

/// Offsets and lengths of what every probe of a device of `size` bytes reads.
pub fn places(size: u64) -> [(u64, u64); 3] {
    [(0, HEAD as u64), ZFS_LIST, (size.saturating_sub(TAIL), TAIL)]
}

/// The most that is read in one piece: the pointers on a device are not to be trusted.
const MOST: usize = 128 * 1024;

/// An image with its size and its head.
pub(crate) struct Source<'a> {
    image: &'a dyn ReadAt,
    size: u64,
    head: Vec<u8>,
}

impl<'a> Source<'a> {
    /// Reads the head of `image`.
    pub(crate) fn new(image: &'a dyn ReadAt, size: u64) -> io::Result<Self> {
        let wanted = usize::try_from(size).unwrap_or(HEAD).min(HEAD);
        let head = read(image, 0, wanted)?;
        Ok(Self { image, size, head })
    }

    /// Size in bytes.
    pub(crate) const fn size(&self) -> u64 {
        self.size
    }

    /// `length` bytes from `offset` on, or `None` where the image does not have them all.
    pub(crate) fn bytes(&self, offset: u64, length: usize) -> io::Result<Option<Cow<'_, [u8]>>> {
        let Some(end) = offset.checked_add(length as u64) else {
            return Ok(None);
        };
        if length > MOST || end > self.size {
            return Ok(None);
        }
        if let Some(bytes) = usize::try_from(offset).map_or(None, |offset| self.head.get(offset..offset.checked_add(length)?)) {
            return Ok(Some(Cow::Borrowed(bytes)));
        }
        let bytes = read(self.image, offset, length)?;
        Ok((bytes.len() == length).then_some(Cow::Owned(bytes)))
    }
}

/// Up to `length` bytes; fewer at the end of the image.
pub(crate) fn read(image: &dyn ReadAt, offset: u64, length: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    let mut have = 0;
    while have < length {
        match image.read_at(&mut bytes[have..], offset.saturating_add(have as u64)) {
            Ok(0) => break,
            Ok(more) => have += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    bytes.truncate(have);
    Ok(bytes)
}

/// `N` bytes at `at`.
pub(crate) fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

/// A little-endian field of 16 bits.
pub(crate) fn le16(bytes: &[u8], at: usize) -> Option<u16> {
    array(bytes, at).map(u16::from_le_bytes)
}

/// A little-endian field of 32 bits.
pub(crate) fn le32(bytes: &[u8], at: usize) -> Option<u32> {
    array(bytes, at).map(u32::from_le_bytes)
}

/// A little-endian field of 64 bits.
pub(crate) fn le64(bytes: &[u8], at: usize) -> Option<u64> {
    array(bytes, at).map(u64::from_le_bytes)
}

/// Whether `magic` stands at `at`.
pub(crate) fn has(bytes: &[u8], at: usize, magic: &[u8]) -> bool {
    bytes.get(at..).is_some_and(|rest| rest.starts_with(magic))
}

/// The UUID of 16 bytes at `at`, as 8-4-4-4-12 in lower case; none if it is all zeros.
pub(crate) fn uuid(bytes: &[u8], at: usize) -> Option<String> {
    let raw: [u8; 16] = array(bytes, at)?;
    (raw != [0; 16]).then(|| dashed(&raw))
}

/// 16 bytes as 8-4-4-4-12.
pub(crate) fn dashed(raw: &[u8; 16]) -> String {
    let mut text = String::with_capacity(36);
    for (index, byte) in raw.iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.push_str(&format!("{byte:02x}"));
    }
    text
}

/// The text in `length` bytes at `at`: up to a NUL, without the spaces after it; none if nothing is left. Bytes that are not UTF-8 are replaced.
pub(crate) fn text(bytes: &[u8], at: usize, length: usize) -> Option<String> {
    let field = bytes.get(at..at.checked_add(length)?)?;
    let end = field.iter().position(|byte| *byte == 0).unwrap_or(length);
    some_text(&String::from_utf8_lossy(&field[..end]))
}

/// The UTF-16LE text in `length` bytes at `at`, by the same rules.
pub(crate) fn text16(bytes: &[u8], at: usize, length: usize) -> Option<String> {
    let field = bytes.get(at..at.checked_add(length)?)?;
    let units = field
        .chunks_exact(2)
        .map(|pair| u16::from_le_bytes([pair[0], pair[1]]))
        .take_while(|unit| *unit != 0);
    some_text(
        &char::decode_utf16(units)
            .map(|unit| unit.unwrap_or(char::REPLACEMENT_CHARACTER))
            .collect::<String>(),
    )
}

fn some_text(text: &str) -> Option<String> {
    let text = text.trim_end();
    (!text.is_empty()).then(|| text.to_owned())
}
