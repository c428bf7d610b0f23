//! What a kernel's file says of itself: the release of an x86 one, read from its setup header (`Documentation/arch/x86/boot.rst` of Linux, protocol
//! 2.00 and later), and for which machine it is.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

/// Enough of a kernel's file for [`release`]: the setup code, whose length is at most 64 sectors of 512 bytes after the first.
pub const HEAD: u64 = 65 * 512;
const MAGIC_AT: usize = 0x202;
const VERSION_AT: usize = 0x20e;

/// The release (`uname -r`) that a kernel's file speaks of, given its first [`HEAD`] bytes. None: not an x86 kernel image, or one that does not say.
pub fn release(head: &[u8]) -> Option<&str> {
    if head.get(MAGIC_AT..MAGIC_AT + 4)? != b"HdrS" {
        return None;
    }
    let pointer = u16::from_le_bytes(head.get(VERSION_AT..VERSION_AT + 2)?.try_into().ok()?);
    if pointer == 0 {
        return None;
    }
    let text = head.get(usize::from(pointer) + 0x200..)?;
    // The release, then who built it and when.
    let end = text.iter().position(|byte| *byte == b' ' || *byte == 0)?;
    std::str::from_utf8(&text[..end]).ok().filter(|release| !release.is_empty())
}

/// The machine that a kernel is for, as `uname -m` says it, given the first [`HEAD`] bytes of its file. None: it cannot be told.
pub fn machine(head: &[u8]) -> Option<&'static str> {
    /// `xloadflags`, protocol 2.12; bit 0: there is a 64-bit entry point.
    const LOAD_FLAGS_AT: usize = 0x236;
    /// `Documentation/arch/arm64/booting.rst`: the magic number of an uncompressed image.
    const ARM64_MAGIC_AT: usize = 0x38;
    if head.get(MAGIC_AT..MAGIC_AT + 4)? == b"HdrS" {
        return (head.get(LOAD_FLAGS_AT)? & 1 == 1).then_some("x86_64");
    }
    (head.get(ARM64_MAGIC_AT..ARM64_MAGIC_AT + 4)? == b"ARM\x64").then_some("aarch64")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_release_is_the_first_word_of_the_version() {
        let mut head = vec![0; 0x400];
        head[MAGIC_AT..MAGIC_AT + 4].copy_from_slice(b"HdrS");
        assert_eq!(release(&head), None);
        head[VERSION_AT..VERSION_AT + 2].copy_from_slice(&0x100_u16.to_le_bytes());
        let version = b"6.1.0-56-cloud-amd64 (debian-kernel@lists.debian.org) #1 SMP\0";
        head[0x300..0x300 + version.len()].copy_from_slice(version);
        assert_eq!(release(&head), Some("6.1.0-56-cloud-amd64"));
        for length in 0..0x310 {
            assert_eq!(release(&head[..length]), None, "{length}");
        }
        head[VERSION_AT..VERSION_AT + 2].copy_from_slice(&u16::MAX.to_le_bytes());
        assert_eq!(release(&head), None);
        head[MAGIC_AT] = b'h';
        assert_eq!(release(&head), None);
    }

    #[test]
    fn the_machine_is_told_by_the_magic_numbers_of_two_kinds_of_kernels() {
        let mut x86 = vec![0; 0x400];
        x86[MAGIC_AT..MAGIC_AT + 4].copy_from_slice(b"HdrS");
        assert_eq!(machine(&x86), None);
        x86[0x236] = 0x2f;
        assert_eq!(machine(&x86), Some("x86_64"));
        let mut arm = vec![0; 0x400];
        arm[0x38..0x3c].copy_from_slice(b"ARM\x64");
        assert_eq!(machine(&arm), Some("aarch64"));
        assert_eq!(machine(b"kernel"), None);
        assert_eq!(machine(&vec![0; 0x400]), None);
    }
}
