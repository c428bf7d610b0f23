//! Ethernet, IPv4 and UDP around a DHCP message, for the time when there is no address yet and the kernel would not send for us.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::net::Ipv4Addr;

use super::{CLIENT_PORT, SERVER_PORT};
use crate::net::mac::Mac;

const ETHERTYPE_IPV4: [u8; 2] = [0x08, 0x00];
const PROTOCOL_UDP: u8 = 17;
const IP_HEADER: usize = 20;
const UDP_HEADER: usize = 8;

/// A broadcast frame from a client without an address to all servers.
pub fn encode(from: Mac, payload: &[u8]) -> Vec<u8> {
    let (source, target) = (Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST);
    // A message of ours is some 300 bytes; one that did not fit 16 bits could not have been built.
    let udp_len = u16::try_from(UDP_HEADER + payload.len()).unwrap_or(u16::MAX);
    let ip_len = udp_len.saturating_add(IP_HEADER as u16);
    let mut udp = Vec::with_capacity(usize::from(udp_len));
    udp.extend(CLIENT_PORT.to_be_bytes());
    udp.extend(SERVER_PORT.to_be_bytes());
    udp.extend(udp_len.to_be_bytes());
    udp.extend([0, 0]);
    udp.extend(payload);
    let udp_sum = match !fold(sum(&udp) + pseudo_header(source, target, udp_len)) {
        0 => 0xffff, // a sum of zero would mean «none»
        other => other,
    };
    udp[6..8].copy_from_slice(&udp_sum.to_be_bytes());

    // Version 4 with five words, low delay, don't fragment, 64 hops.
    let mut ip = vec![0x45, 0x10];
    ip.extend(ip_len.to_be_bytes());
    ip.extend([0, 0, 0x40, 0, 64, PROTOCOL_UDP, 0, 0]);
    ip.extend(source.octets());
    ip.extend(target.octets());
    let ip_sum = !fold(sum(&ip));
    ip[10..12].copy_from_slice(&ip_sum.to_be_bytes());

    let mut frame = vec![0xff; 6];
    frame.extend(from.bytes());
    frame.extend(ETHERTYPE_IPV4);
    frame.extend(ip);
    frame.extend(udp);
    frame
}

/// The DHCP payload of a frame from a server, if it is one and its sums are right. Everything else on the wire is none of our business.
pub fn payload(frame: &[u8]) -> Option<&[u8]> {
    let (ethernet, ip) = frame.split_at_checked(14)?;
    let (first, total) = (*ip.first()?, u16::from_be_bytes([*ip.get(2)?, *ip.get(3)?]));
    let header_len = usize::from(first & 0xf) * 4;
    if ethernet[12..14] != ETHERTYPE_IPV4 || first >> 4 != 4 || header_len < IP_HEADER {
        return None;
    }
    // Short frames are padded to 60 bytes, so the IP header's length counts.
    let ip = ip.get(..usize::from(total))?;
    let (header, udp) = ip.split_at_checked(header_len)?;
    let fragment = u16::from_be_bytes([header[6], header[7]]) & 0x3fff;
    if header[9] != PROTOCOL_UDP || fragment != 0 || fold(sum(header)) != 0xffff {
        return None;
    }
    let udp_len = u16::from_be_bytes([*udp.get(4)?, *udp.get(5)?]);
    let udp = udp.get(..usize::from(udp_len))?;
    if udp.len() < UDP_HEADER || udp[..2] != SERVER_PORT.to_be_bytes() || udp[2..4] != CLIENT_PORT.to_be_bytes() {
        return None;
    }
    let source = Ipv4Addr::new(header[12], header[13], header[14], header[15]);
    let target = Ipv4Addr::new(header[16], header[17], header[18], header[19]);
    let pseudo = pseudo_header(source, target, udp_len);
    let stored = u16::from_be_bytes([udp[6], udp[7]]);
    // A server on the same host (virtual machines, containers) leaves the sum to a network card that does not exist: what then stands in the
    // field is the sum over the pseudo-header alone, which the card would have completed.
    let right = stored == 0 || fold(sum(udp) + pseudo) == 0xffff || stored == fold(pseudo);
    right.then(|| &udp[UDP_HEADER..])
}

fn pseudo_header(source: Ipv4Addr, target: Ipv4Addr, udp_len: u16) -> u32 {
    sum(&source.octets()) + sum(&target.octets()) + u32::from(PROTOCOL_UDP) + u32::from(udp_len)
}

/// The sum of the big-endian words; at most 64 KiB come in, so 32 bits are enough.
fn sum(bytes: &[u8]) -> u32 {
    bytes
        .chunks(2)
        .map(|w| u32::from(w[0]) << 8 | w.get(1).copied().map_or(0, u32::from))
        .fold(0, u32::wrapping_add)
}

fn fold(sum: u32) -> u16 {
    let once = (sum >> 16) + (sum & 0xffff);
    let twice = (once >> 16) + (once & 0xffff);
    u16::try_from(twice).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use proptest::prelude::*;

    /// A frame as a server would send it: ours with the ports swapped, which leaves the sums as they are.
    fn from_server(payload: &[u8]) -> Vec<u8> {
        let mut frame = encode(Mac::new([2, 0, 0, 0, 0, 1]), payload);
        frame[34..38].copy_from_slice(&[0, 67, 0, 68]);
        frame
    }

    #[test]
    fn the_payload_of_a_servers_frame_is_found_behind_padding() {
        let mut frame = from_server(b"odd");
        frame.resize(60, 0);
        assert_eq!(payload(&frame), Some(&b"odd"[..]));
    }

    #[test]
    fn a_client_does_not_read_what_clients_send() {
        assert_eq!(payload(&encode(Mac::new([2; 6]), b"abcd")), None);
    }

    #[test]
    fn a_sum_left_to_the_network_card_is_accepted_and_a_wrong_one_is_not() {
        let mut frame = from_server(b"abcd");
        let pseudo = fold(pseudo_header(Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST, 12));
        frame[40..42].copy_from_slice(&pseudo.to_be_bytes());
        assert_eq!(payload(&frame), Some(&b"abcd"[..]));
        frame[40..42].copy_from_slice(&(pseudo ^ 0x101).to_be_bytes());
        assert_eq!(payload(&frame), None);
        frame[40..42].copy_from_slice(&[0, 0]);
        assert_eq!(payload(&frame), Some(&b"abcd"[..]));
    }

    #[test]
    fn the_ip_header_sum_of_a_known_header_is_right() {
        // RFC 1071's way on a header whose sum is written in many textbooks.
        let header = [
            0x45, 0, 0, 0x73, 0, 0, 0x40, 0, 0x40, 0x11, 0, 0, 0xc0, 0xa8, 0, 1, 0xc0, 0xa8, 0, 0xc7,
        ];
        assert_eq!(!fold(sum(&header)), 0xb861);
    }

    proptest! {
        #[test]
        fn any_frame_is_read_or_passed_over(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(payload(&bytes).is_none_or(|p| p.len() < bytes.len()));
        }

        #[test]
        fn a_flipped_byte_never_adds_to_the_payload(data in proptest::collection::vec(any::<u8>(), 1..50), at in 0usize..42, to: u8) {
            let mut frame = from_server(&data);
            frame[at] = to;
            prop_assert!(payload(&frame).is_none_or(|p| p.len() <= data.len()));
        }
    }
}
