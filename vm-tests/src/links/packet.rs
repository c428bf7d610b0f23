//! Heads of HTTP in the packets of a link: which requests were made, whatever the server writes into its log.

/// The head of a request or an answer, and where it was seen: a packet that is sent twice is one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// `GET /path HTTP/1.1`, or `HTTP/1.1 200 OK`.
    pub line: String,
    /// `Range`.
    pub range: Option<String>,
    /// Whether it asks only for what has changed.
    pub conditional: bool,
    ports: (u16, u16),
    sequence: u32,
}

impl Head {
    /// The path or URL that is asked for; none of an answer.
    pub fn asks(&self) -> Option<&str> {
        self.line.strip_prefix("GET ")?.split(' ').next()
    }

    /// The status; none of a request.
    pub fn status(&self) -> Option<u16> {
        self.line.strip_prefix("HTTP/1.")?.split(' ').nth(1)?.parse().ok()
    }
}

/// The head that the packet begins with, if it does.
pub fn head(packet: &[u8]) -> Option<Head> {
    let tcp = match packet.first()? >> 4 {
        4 if packet.get(9) == Some(&6) => packet.get(usize::from(packet.first()? & 0xf) * 4..)?,
        // Without extension headers: our kernels send none.
        6 if packet.get(6) == Some(&6) => packet.get(40..)?,
        _ => return None,
    };
    let payload = tcp.get(usize::from(tcp.get(12)? >> 4) * 4..)?;
    if !(payload.starts_with(b"GET ") || payload.starts_with(b"HTTP/1.")) {
        return None;
    }
    let two = |at: usize| Some(u16::from_be_bytes([*tcp.get(at)?, *tcp.get(at + 1)?]));
    let end = payload.windows(4).position(|four| four == b"\r\n\r\n").unwrap_or(payload.len());
    let text = String::from_utf8_lossy(payload.get(..end)?).into_owned();
    let field = |name: &str| {
        text.lines().skip(1).find_map(|line| {
            let (field, value) = line.split_once(':')?;
            field.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
        })
    };
    Some(Head {
        line: text.lines().next()?.to_owned(),
        range: field("range"),
        conditional: field("if-none-match").is_some() || field("if-modified-since").is_some(),
        ports: (two(0)?, two(2)?),
        sequence: u32::from(two(4)?) << 16 | u32::from(two(6)?),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    /// A packet without check sums, which nobody here looks at.
    fn packet(version: u8, payload: &[u8]) -> Vec<u8> {
        let mut packet = if version == 4 { vec![0x45; 1] } else { vec![0x60; 1] };
        packet.resize(if version == 4 { 20 } else { 40 }, 0);
        packet[if version == 4 { 9 } else { 6 }] = 6;
        let mut tcp = vec![0; 32];
        (tcp[1], tcp[3], tcp[7], tcp[12]) = (7, 80, 9, 0x80);
        [packet, tcp, payload.to_vec()].concat()
    }

    #[test]
    fn requests_and_answers_are_seen_in_both_families() {
        let request = b"GET /images/x.squashfs HTTP/1.1\r\nhost: a\r\nRange: bytes=1-2\r\nIf-None-Match: \"x\"\r\n\r\n";
        for version in [4, 6] {
            let seen = head(&packet(version, request)).unwrap();
            assert_eq!((seen.asks(), seen.status()), (Some("/images/x.squashfs"), None));
            assert_eq!((seen.range.as_deref(), seen.conditional), (Some("bytes=1-2"), true));
            assert_eq!((seen.ports, seen.sequence), ((7, 80), 9));
        }
        let answer = head(&packet(4, b"HTTP/1.1 206 Partial Content\r\n\r\nbody")).unwrap();
        assert_eq!((answer.status(), answer.asks(), answer.conditional), (Some(206), None, false));
        assert_eq!(head(&packet(4, b"body")), None);
        assert_eq!(head(&[0x45, 0]), None);
        assert_eq!(head(b""), None);
    }
}
