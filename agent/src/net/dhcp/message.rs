//! DHCP messages as bytes. Every length is checked; whatever comes in, nothing panics and nothing grows beyond the message.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::fmt;
use std::net::Ipv4Addr;

use crate::net::mac::Mac;

/// Messages longer than this are refused; we ask servers to stay below [`MAX_SIZE_ASKED`].
pub const MAX_LEN: usize = 2048;
/// The longest message (IP and UDP headers included) that we tell servers to send: what fits an Ethernet frame.
pub const MAX_SIZE_ASKED: u16 = 1500;

const FIXED_LEN: usize = 236;
const COOKIE: [u8; 4] = [99, 130, 83, 99];
/// BOOTP relays drop what is shorter than the 300 bytes of RFC 951.
const MIN_LEN: usize = 300;
const BROADCAST_FLAG: u16 = 0x8000;

/// Option codes of RFC 2132 and 3442 that are read or sent.
pub mod code {
    #![allow(missing_docs)]
    pub const PAD: u8 = 0;
    pub const SUBNET_MASK: u8 = 1;
    pub const ROUTER: u8 = 3;
    pub const DNS: u8 = 6;
    pub const HOST_NAME: u8 = 12;
    pub const DOMAIN: u8 = 15;
    pub const MTU: u8 = 26;
    pub const REQUESTED_ADDRESS: u8 = 50;
    pub const LEASE_TIME: u8 = 51;
    pub const OVERLOAD: u8 = 52;
    pub const MESSAGE_TYPE: u8 = 53;
    pub const SERVER_ID: u8 = 54;
    pub const PARAMETER_LIST: u8 = 55;
    pub const MESSAGE: u8 = 56;
    pub const MAX_MESSAGE_SIZE: u8 = 57;
    pub const T1: u8 = 58;
    pub const T2: u8 = 59;
    pub const VENDOR_CLASS: u8 = 60;
    pub const CLIENT_ID: u8 = 61;
    pub const CLASSLESS_ROUTES: u8 = 121;
    pub const END: u8 = 255;
}

/// What a message is for (option 53).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Client: who is there?
    Discover = 1,
    /// Server: this is what you could have.
    Offer = 2,
    /// Client: I take it; or: may I keep it?
    Request = 3,
    /// Client: somebody else has that address. Never sent by us.
    Decline = 4,
    /// Server: it is yours.
    Ack = 5,
    /// Server: no.
    Nak = 6,
    /// Client: I am done. Never sent by us.
    Release = 7,
    /// Client: tell me about the network only. Never sent by us.
    Inform = 8,
}

impl Kind {
    const fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            1 => Self::Discover,
            2 => Self::Offer,
            3 => Self::Request,
            4 => Self::Decline,
            5 => Self::Ack,
            6 => Self::Nak,
            7 => Self::Release,
            8 => Self::Inform,
            _ => return None,
        })
    }
}

/// A message, with its options in the order of their first occurrence and each code once (RFC 3396: parts are joined).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// 1 from a client, 2 from a server.
    pub op: u8,
    /// The transaction.
    pub xid: u32,
    /// Seconds since the client began.
    pub secs: u16,
    /// The client asks for answers by broadcast, as it has no address yet.
    pub broadcast: bool,
    /// The address the client has.
    pub ciaddr: Ipv4Addr,
    /// The address the client is given.
    pub yiaddr: Ipv4Addr,
    /// The next server to boot from; not used.
    pub siaddr: Ipv4Addr,
    /// The relay.
    pub giaddr: Ipv4Addr,
    /// The client's Ethernet address.
    pub chaddr: Mac,
    /// What the message is for.
    pub kind: Kind,
    /// The other options.
    pub options: Vec<(u8, Vec<u8>)>,
}

/// Why bytes are not a DHCP message for an Ethernet client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BadMessage {
    /// Shorter than the fixed part and the cookie.
    Short(usize),
    /// Longer than [`MAX_LEN`].
    Long(usize),
    /// Hardware type and address length are not Ethernet's.
    Hardware(u8, u8),
    /// BOOTP without the DHCP cookie.
    Cookie,
    /// An option ends behind the end of its area.
    OptionLength(u8),
    /// No option 53, or one of an unknown value.
    Kind,
}

impl fmt::Display for BadMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Short(n) => write!(f, "{n} bytes are too few"),
            Self::Long(n) => write!(f, "{n} bytes are more than the {MAX_LEN} that are read"),
            Self::Hardware(kind, len) => write!(f, "hardware type {kind} with addresses of {len} bytes is not Ethernet"),
            Self::Cookie => write!(f, "the DHCP cookie is missing"),
            Self::OptionLength(code) => write!(f, "option {code} is longer than what is left of the message"),
            Self::Kind => write!(f, "the message type is missing or unknown"),
        }
    }
}

impl std::error::Error for BadMessage {}

impl Message {
    /// Reads a message, the payload of a UDP datagram.
    pub fn parse(bytes: &[u8]) -> Result<Self, BadMessage> {
        let short = || BadMessage::Short(bytes.len());
        if bytes.len() > MAX_LEN {
            return Err(BadMessage::Long(bytes.len()));
        }
        let (fixed, rest) = bytes.split_first_chunk::<FIXED_LEN>().ok_or_else(short)?;
        let (cookie, area) = rest.split_first_chunk::<4>().ok_or_else(short)?;
        if (fixed[1], fixed[2]) != (1, 6) {
            return Err(BadMessage::Hardware(fixed[1], fixed[2]));
        }
        if *cookie != COOKIE {
            return Err(BadMessage::Cookie);
        }
        let mut options = Vec::new();
        read_options(area, &mut options)?;
        // RFC 2132 §9.3: the fields for the boot file and the server's name may hold options, in this order.
        let overload = find(&options, code::OVERLOAD).and_then(|v| v.first().copied()).unwrap_or(0);
        if overload & 1 != 0 {
            read_options(&fixed[108..236], &mut options)?;
        }
        if overload & 2 != 0 {
            read_options(&fixed[44..108], &mut options)?;
        }
        let kind = match find(&options, code::MESSAGE_TYPE) {
            Some([kind]) => Kind::from_code(*kind),
            Some(_) | None => None,
        };
        options.retain(|(c, _)| !matches!(*c, code::MESSAGE_TYPE | code::OVERLOAD));
        let address = |at: usize| Ipv4Addr::new(fixed[at], fixed[at + 1], fixed[at + 2], fixed[at + 3]);
        Ok(Self {
            op: fixed[0],
            xid: u32::from_be_bytes([fixed[4], fixed[5], fixed[6], fixed[7]]),
            secs: u16::from_be_bytes([fixed[8], fixed[9]]),
            broadcast: u16::from_be_bytes([fixed[10], fixed[11]]) & BROADCAST_FLAG != 0,
            ciaddr: address(12),
            yiaddr: address(16),
            siaddr: address(20),
            giaddr: address(24),
            chaddr: Mac::new([fixed[28], fixed[29], fixed[30], fixed[31], fixed[32], fixed[33]]),
            kind: kind.ok_or(BadMessage::Kind)?,
            options,
        })
    }

    /// Writes the message. Values beyond 255 bytes are split as RFC 3396 says.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![self.op, 1, 6, 0];
        out.extend(self.xid.to_be_bytes());
        out.extend(self.secs.to_be_bytes());
        out.extend(if self.broadcast { BROADCAST_FLAG } else { 0 }.to_be_bytes());
        for address in [self.ciaddr, self.yiaddr, self.siaddr, self.giaddr] {
            out.extend(address.octets());
        }
        out.extend(self.chaddr.bytes());
        out.resize(FIXED_LEN, 0);
        out.extend(COOKIE);
        out.extend([code::MESSAGE_TYPE, 1, self.kind as u8]);
        for (code, value) in &self.options {
            if value.is_empty() {
                out.extend([*code, 0]);
            }
            for part in value.chunks(255) {
                out.push(*code);
                out.push(u8::try_from(part.len()).unwrap_or(u8::MAX));
                out.extend(part);
            }
        }
        out.push(code::END);
        if out.len() < MIN_LEN {
            out.resize(MIN_LEN, code::PAD);
        }
        out
    }

    /// The value of an option.
    pub fn option(&self, code: u8) -> Option<&[u8]> {
        find(&self.options, code)
    }

    /// An option that is one address.
    pub fn address(&self, code: u8) -> Option<Ipv4Addr> {
        self.option(code).and_then(|v| <[u8; 4]>::try_from(v).ok()).map(Ipv4Addr::from)
    }

    /// An option that is a list of addresses; what is left over is ignored.
    pub fn addresses(&self, code: u8) -> Vec<Ipv4Addr> {
        self.option(code)
            .unwrap_or_default()
            .as_chunks::<4>()
            .0
            .iter()
            .map(|c| Ipv4Addr::from(*c))
            .collect()
    }

    /// An option that is a number of seconds.
    pub fn seconds(&self, code: u8) -> Option<u32> {
        self.option(code).and_then(|v| <[u8; 4]>::try_from(v).ok()).map(u32::from_be_bytes)
    }

    /// An option that is text: ASCII, trailing zeros (which some servers send) cut.
    pub fn text(&self, code: u8) -> Option<&str> {
        let text = std::str::from_utf8(self.option(code)?).ok()?.trim_end_matches('\0');
        text.is_ascii().then_some(text)
    }
}

fn find(options: &[(u8, Vec<u8>)], code: u8) -> Option<&[u8]> {
    options.iter().find(|(c, _)| *c == code).map(|(_, v)| v.as_slice())
}

fn read_options(mut area: &[u8], options: &mut Vec<(u8, Vec<u8>)>) -> Result<(), BadMessage> {
    while let [code, rest @ ..] = area {
        area = rest;
        match *code {
            code::PAD => continue,
            code::END => break,
            _ => {}
        }
        let [length, rest @ ..] = area else {
            return Err(BadMessage::OptionLength(*code));
        };
        let (value, rest) = rest.split_at_checked(usize::from(*length)).ok_or(BadMessage::OptionLength(*code))?;
        area = rest;
        match options.iter_mut().find(|(c, _)| c == code) {
            Some((_, parts)) => parts.extend(value),
            None => options.push((*code, value.to_vec())),
        }
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use proptest::prelude::*;

    /// A message from a server, for the tests of the modules above.
    pub(crate) fn answer(kind: Kind, xid: u32, chaddr: Mac, yiaddr: Ipv4Addr, options: Vec<(u8, Vec<u8>)>) -> Message {
        Message {
            op: 2,
            xid,
            secs: 0,
            broadcast: true,
            ciaddr: Ipv4Addr::UNSPECIFIED,
            yiaddr,
            siaddr: Ipv4Addr::UNSPECIFIED,
            giaddr: Ipv4Addr::UNSPECIFIED,
            chaddr,
            kind,
            options,
        }
    }

    fn example() -> Message {
        let routes = vec![7; 300];
        answer(
            Kind::Ack,
            0x0102_0304,
            Mac::new([2, 0, 0, 0, 0, 1]),
            Ipv4Addr::new(192, 0, 2, 9),
            vec![(code::DNS, vec![192, 0, 2, 1, 192, 0, 2, 2]), (code::CLASSLESS_ROUTES, routes)],
        )
    }

    #[test]
    fn a_message_survives_being_written_and_read_even_with_a_long_option() {
        assert_eq!(Message::parse(&example().encode()).unwrap(), example());
    }

    #[test]
    fn a_short_message_is_padded_for_bootp_relays() {
        let bytes = Message {
            options: Vec::new(),
            ..example()
        }
        .encode();
        assert_eq!(bytes.len(), MIN_LEN);
    }

    #[test]
    fn options_in_the_file_and_server_name_fields_are_read() {
        let mut bytes = Message {
            options: vec![(code::OVERLOAD, vec![3])],
            ..example()
        }
        .encode();
        bytes[108..115].copy_from_slice(&[code::DOMAIN, 3, b'l', b'a', b'n', code::END, 9]);
        bytes[44..50].copy_from_slice(&[code::ROUTER, 4, 192, 0, 2, 1]);
        bytes[50] = code::END;
        let message = Message::parse(&bytes).unwrap();
        assert_eq!(message.text(code::DOMAIN), Some("lan"));
        assert_eq!(message.addresses(code::ROUTER), vec![Ipv4Addr::new(192, 0, 2, 1)]);
    }

    #[test]
    fn what_is_no_message_is_refused_by_name() {
        let good = example().encode();
        let change = |at: usize, byte: u8| {
            let mut bytes = good.clone();
            bytes[at] = byte;
            Message::parse(&bytes).unwrap_err()
        };
        assert_eq!(Message::parse(&good[..239]), Err(BadMessage::Short(239)));
        assert_eq!(Message::parse(&vec![0; MAX_LEN + 1]), Err(BadMessage::Long(MAX_LEN + 1)));
        assert_eq!(change(2, 16), BadMessage::Hardware(1, 16));
        assert_eq!(change(236, 0), BadMessage::Cookie);
        assert_eq!(change(242, 9), BadMessage::Kind);
        assert_eq!(Message::parse(&good[..250]), Err(BadMessage::OptionLength(code::DNS)));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..700)) {
            let read = Message::parse(&bytes);
            prop_assert!(read.is_err() || bytes.len() >= FIXED_LEN);
        }

        #[test]
        fn any_options_behind_a_good_head_are_read_or_refused(tail in proptest::collection::vec(any::<u8>(), 0..400), overload in 0u8..4) {
            let mut bytes = Message { options: Vec::new(), ..example() }.encode();
            bytes.truncate(243);
            bytes.extend([code::OVERLOAD, 1, overload]);
            bytes.extend(&tail);
            if let Ok(message) = Message::parse(&bytes) {
                for (code, _) in &message.options {
                    let _seen = (message.address(*code), message.addresses(*code), message.seconds(*code), message.text(*code));
                }
                prop_assert!(message.options.iter().map(|(_, v)| v.len()).sum::<usize>() <= bytes.len());
            }
        }
    }
}
