//! Ethernet addresses, as the kernel, PXE and people write them.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::fmt;
use std::str::FromStr;

use crate::foreign;

/// A 48-bit Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac([u8; 6]);

/// Why a text is not an Ethernet address; `position` counts bytes from 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotAMac {
    text: String,
    position: usize,
    expected: &'static str,
}

impl fmt::Display for NotAMac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { text, position, expected } = self;
        write!(
            f,
            "«{text}» is not an Ethernet address: {expected} is expected at position {position} (as in 52:54:00:12:34:56)"
        )
    }
}

impl std::error::Error for NotAMac {}

impl Mac {
    /// An address from its six bytes, as they are on the wire.
    pub const fn new(bytes: [u8; 6]) -> Self {
        Self(bytes)
    }

    /// The six bytes, as they are on the wire.
    pub const fn bytes(self) -> [u8; 6] {
        self.0
    }

    /// Reads the value of `BOOTIF=`: `01-52-54-00-12-34-56` as pxelinux and iPXE write it (hardware type 1 is Ethernet), or a plain address
    /// with `-` or `:`.
    pub fn parse_bootif(text: &str) -> Result<Self, NotAMac> {
        let separators = text.bytes().filter(|b| matches!(b, b'-' | b':')).count();
        if separators != 6 {
            return text.parse();
        }
        match text.strip_prefix("01-").or_else(|| text.strip_prefix("01:")) {
            Some(address) => address.parse().map_err(|err: NotAMac| NotAMac {
                text: foreign::word(text),
                position: err.position + 3,
                expected: err.expected,
            }),
            None => Err(NotAMac {
                text: foreign::word(text),
                position: 0,
                expected: "the hardware type 01 (Ethernet)",
            }),
        }
    }
}

impl FromStr for Mac {
    type Err = NotAMac;

    fn from_str(text: &str) -> Result<Self, NotAMac> {
        let fail = |position, expected| NotAMac {
            text: foreign::word(text),
            position,
            expected,
        };
        let mut bytes = [0; 6];
        let input = text.as_bytes();
        let separator = input.get(2).copied();
        for (i, byte) in bytes.iter_mut().enumerate() {
            let at = i * 3;
            if i > 0 && (input.get(at - 1).copied() != separator || !matches!(separator, Some(b'-' | b':'))) {
                return Err(fail(at - 1, "the separator «:» or «-», the same one throughout"));
            }
            *byte = hex(input.get(at)).ok_or_else(|| fail(at, "a hexadecimal digit"))? << 4
                | hex(input.get(at + 1)).ok_or_else(|| fail(at + 1, "a hexadecimal digit"))?;
        }
        if input.len() != 17 {
            return Err(fail(17, "the end"));
        }
        Ok(Self(bytes))
    }
}

fn hex(digit: Option<&u8>) -> Option<u8> {
    let value = char::from(*digit?).to_digit(16)?;
    u8::try_from(value).ok()
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn bootif_is_read_in_both_spellings() {
        let expected = Mac::new([0x52, 0x54, 0, 0xab, 0xcd, 0xef]);
        for text in [
            "01-52-54-00-ab-cd-ef",
            "01:52:54:00:AB:CD:EF",
            "52-54-00-ab-cd-ef",
            "52:54:00:ab:cd:ef",
        ] {
            assert_eq!(Mac::parse_bootif(text).unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn what_is_wrong_is_named_with_its_position() {
        for (text, position) in [
            ("", 0),
            ("52:54:00:ab:cd", 14),
            ("52:54-00:ab:cd:ef", 5),
            ("52:54:0x:ab:cd:ef", 7),
            ("52:54:00:ab:cd:ef ", 17),
            ("06-52-54-00-ab-cd-ef", 0),
            ("01-52-54-00-ab-cd-eg", 19),
            ("525400abcdef", 2),
        ] {
            assert_eq!(Mac::parse_bootif(text).unwrap_err().position, position, "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "\\PC{0,30}") {
            prop_assert!(Mac::parse_bootif(&text).is_ok() || Mac::parse_bootif(&text).is_err());
        }

        #[test]
        fn what_is_printed_is_read_again(bytes: [u8; 6]) {
            prop_assert_eq!(Mac::parse_bootif(&Mac::new(bytes).to_string()).unwrap(), Mac::new(bytes));
        }
    }
}
