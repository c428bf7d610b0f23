//! Netlink framing: messages and attributes, each a native-endian header with a length, padded to four bytes.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

/// The length of `struct nlmsghdr`.
pub const HEADER_LEN: usize = 16;

/// A message as it is framed: type, flags, sequence number and what follows the header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    /// `nlmsg_type`
    pub kind: u16,
    /// `nlmsg_flags`
    pub flags: u16,
    /// `nlmsg_seq`: that of the request, 0 for a notification.
    pub seq: u32,
    /// What follows the header.
    pub body: &'a [u8],
}

/// The messages in a datagram. Ends at the first one whose length cannot be right.
pub fn frames(mut bytes: &[u8]) -> impl Iterator<Item = Frame<'_>> {
    std::iter::from_fn(move || {
        let length = usize::try_from(u32_at(bytes, 0)?).ok()?;
        let message = bytes.get(..length)?;
        let frame = Frame {
            kind: u16_at(message, 4)?,
            flags: u16_at(message, 6)?,
            seq: u32_at(message, 8)?,
            body: message.get(HEADER_LEN..)?,
        };
        bytes = bytes.get(pad(length)..).unwrap_or_default();
        Some(frame)
    })
}

/// The attributes in a message, behind its fixed part. Ends at the first one whose length cannot be right.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(bytes, 0)?);
        // The two topmost bits say «nested» and «network byte order».
        let kind = u16_at(bytes, 2)? & 0x3fff;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(pad(length)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The first attribute of a kind.
pub fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(k, _)| *k == kind).map(|(_, v)| v)
}

/// A native-endian number.
pub fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// A native-endian number.
pub fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

const fn pad(length: usize) -> usize {
    length.next_multiple_of(4)
}

/// A message that is being written.
#[derive(Debug, Clone)]
pub struct Builder(Vec<u8>);

impl Builder {
    /// Begins a message with its fixed part (`struct ifinfomsg` and so on).
    pub fn new(kind: u16, flags: u16, fixed: &[u8]) -> Self {
        let mut bytes = vec![0; HEADER_LEN];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        bytes.extend(fixed);
        Self(bytes)
    }

    /// Adds an attribute. Ours are addresses and numbers; a value that did not fit 16 bits of length would be cut.
    #[must_use]
    pub fn with(mut self, kind: u16, value: &[u8]) -> Self {
        let value = &value[..value.len().min(usize::from(u16::MAX) - 4)];
        self.0.resize(pad(self.0.len()), 0);
        self.0.extend(u16::try_from(value.len() + 4).unwrap_or(u16::MAX).to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self
    }

    /// The bytes, with the length and this sequence number filled in.
    pub fn finish(mut self, seq: u32) -> Vec<u8> {
        self.0.resize(pad(self.0.len()), 0);
        let length = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        self.0[8..12].copy_from_slice(&seq.to_ne_bytes());
        self.0
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn messages_and_attributes_are_read_as_they_were_written() {
        let mut bytes = Builder::new(16, 5, &[1, 2, 3, 4])
            .with(3, b"eth0\0")
            .with(0x8000 | 4, &[9])
            .finish(77);
        bytes.extend(Builder::new(3, 0, &[0; 4]).finish(78));
        let read: Vec<_> = frames(&bytes).collect();
        assert_eq!(
            (read.len(), read[0].kind, read[0].flags, read[0].seq, read[1].seq),
            (2, 16, 5, 77, 78)
        );
        let inside: Vec<_> = attributes(&read[0].body[4..]).collect();
        assert_eq!(inside, [(3, &b"eth0\0"[..]), (4, &[9][..])]);
    }

    #[test]
    fn a_length_that_cannot_be_right_ends_the_reading() {
        for length in [0u32, 15, 17, u32::MAX] {
            let mut bytes = Builder::new(16, 0, &[]).finish(1);
            bytes[..4].copy_from_slice(&length.to_ne_bytes());
            assert_eq!(frames(&bytes).count(), 0, "{length}");
        }
        for length in [0u16, 3, 9, u16::MAX] {
            let mut bytes = vec![8, 0, 1, 0, 1, 2, 3, 4];
            bytes[..2].copy_from_slice(&length.to_ne_bytes());
            assert_eq!(attributes(&bytes).count(), 0, "{length}");
        }
    }

    proptest! {
        #[test]
        fn reading_any_bytes_ends(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(frames(&bytes).count() <= bytes.len() / HEADER_LEN);
            prop_assert!(attributes(&bytes).count() <= bytes.len() / 4);
        }
    }
}
