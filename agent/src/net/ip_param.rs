//! The kernel's `ip=` parameter, and the short forms that dracut added to it.
//!
//! Sources: the kernel's `Documentation/admin-guide/nfs/nfsroot.rst`; dracut.cmdline(7). Read here:
//! - `ip=<method>`, and an empty value, which means off
//! - `ip=<interface>:<method>[:<mtu>]`
//! - `ip=<client>:<server>:<gateway>:<netmask>:<hostname>:<device>:<method>:<dns0>:<dns1>:<ntp0>`, everything after the client may be missing;
//!   IPv6 addresses stand in brackets and their netmask is a prefix length; a number in the place of `dns0` is an MTU, as in dracut.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::Prefix;
use crate::foreign;

/// How long a value may be: the kernel's own limit for a whole command line is 2048 on x86 and 4096 elsewhere.
const MAX_LEN: usize = 4096;

/// How an interface gets its addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// By asking: DHCP for IPv4 (`dhcp`, `on`, `any`, `both`).
    Dhcp,
    /// By router advertisement only (`auto6`).
    RouterAdvertisement,
    /// By asking in both families (`either6`, and no `ip=` at all).
    Both,
    /// As written in the parameter (`off`, `none`, or no word, with an address).
    Static,
    /// Not at all (`off`, `none` without an address).
    Off,
}

/// One `ip=` parameter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IpParam {
    /// How addresses are come by.
    pub method: Method,
    /// The address of this machine with its prefix length; a wish with [`Method::Dhcp`], a fact with [`Method::Static`].
    pub client: Option<Prefix>,
    /// The server the kernel would mount its root from; not used.
    pub server: Option<IpAddr>,
    /// The default gateway.
    pub gateway: Option<IpAddr>,
    /// The host name to tell the DHCP server.
    pub hostname: Option<String>,
    /// The interface that is meant; none means any.
    pub device: Option<String>,
    /// DNS servers, at most two.
    pub dns: Vec<IpAddr>,
    /// The time server; not used.
    pub ntp: Option<IpAddr>,
    /// The MTU of the interface.
    pub mtu: Option<u16>,
}

/// Why an `ip=` value is refused: the field by name, its position in the value (bytes from 0) and what is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadIpParam {
    /// The field as the kernel's documentation names it.
    pub field: &'static str,
    /// Where the field begins, in bytes from the start of the value.
    pub position: usize,
    /// What is wrong, with the offending text.
    pub problem: String,
}

impl fmt::Display for BadIpParam {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ip=: {} at position {}: {}", self.field, self.position, self.problem)
    }
}

impl std::error::Error for BadIpParam {}

/// A piece of the value between two colons.
#[derive(Debug, Clone, Copy)]
struct Field<'a> {
    name: &'static str,
    position: usize,
    text: &'a str,
}

const NAMES: [&str; 10] = [
    "client-ip",
    "server-ip",
    "gw-ip",
    "netmask",
    "hostname",
    "device",
    "autoconf",
    "dns0-ip",
    "dns1-ip",
    "ntp0-ip",
];

/// Reads the value of one `ip=` parameter (without `ip=`).
pub fn parse(value: &str) -> Result<IpParam, BadIpParam> {
    if value.len() > MAX_LEN {
        return Err(Field {
            name: "value",
            position: 0,
            text: "",
        }
        .refuse(format!("it is {} bytes long, at most {MAX_LEN} are read", value.len())));
    }
    let fields = split(value)?;
    let first = fields[0];
    if fields.len() == 1 {
        if first.text.is_empty() {
            return Ok(IpParam::of(Method::Off));
        }
        if let Some(method) = method_word(first)? {
            return Ok(IpParam::of(method));
        }
    }
    // <interface>:<method>: no address is an interface name that is followed by a method.
    if let (2..=3, Some(second)) = (fields.len(), fields.get(1))
        && first.address()?.is_none()
        && let Some(method) = method_word(*second)?
    {
        return Ok(IpParam {
            device: Some(Field { name: "device", ..first }.interface()?),
            mtu: fields.get(2).map(|f| Field { name: "mtu", ..*f }.mtu()).transpose()?.flatten(),
            ..IpParam::of(method)
        });
    }
    full(&fields)
}

fn full(fields: &[Field<'_>]) -> Result<IpParam, BadIpParam> {
    let get = |i: usize| fields.get(i).copied().filter(|f| !f.text.is_empty());
    let address = |i: usize| get(i).map(|f| f.required_address()).transpose();
    let client = match get(0) {
        Some(f) => Some(prefix(f, f.required_address()?, get(3))?),
        None => None,
    };
    let word = get(6).map(|f| method_word(f)?.ok_or_else(|| f.refuse_word())).transpose()?;
    let method = match (word, client) {
        (Some(Method::Off) | None, Some(_)) => Method::Static,
        (Some(method), _) => method,
        (None, None) => Method::Dhcp,
    };
    let mtu = match get(7) {
        Some(f) if f.text.bytes().all(|b| b.is_ascii_digit()) => f.mtu()?,
        Some(_) | None => None,
    };
    let mut dns = Vec::new();
    if mtu.is_none() {
        dns.extend(address(7)?);
    }
    dns.extend(address(8)?);
    let gateway = address(2)?;
    if let (Method::Static, Some(f), Some(gateway), Some(client)) = (method, get(2), gateway, client)
        && gateway.is_ipv4() != client.address.is_ipv4()
    {
        return Err(f.refuse(format!(
            "the gateway {gateway} and the client {} are of different families",
            client.address
        )));
    }
    Ok(IpParam {
        method,
        client,
        server: address(1)?,
        gateway,
        hostname: get(4).map(|f| f.hostname()).transpose()?,
        device: get(5).map(|f| f.interface()).transpose()?,
        dns,
        ntp: address(9)?,
        mtu,
    })
}

impl IpParam {
    /// A parameter with a method and nothing else.
    pub const fn of(method: Method) -> Self {
        Self {
            method,
            client: None,
            server: None,
            gateway: None,
            hostname: None,
            device: None,
            dns: Vec::new(),
            ntp: None,
            mtu: None,
        }
    }
}

fn split(value: &str) -> Result<Vec<Field<'_>>, BadIpParam> {
    let mut fields = Vec::new();
    let mut start = 0;
    let mut open = None;
    let name = |n: usize| NAMES.get(n).copied().unwrap_or("a field after ntp0-ip");
    for (i, byte) in value.bytes().enumerate() {
        match byte {
            b'[' if open.is_none() => open = Some(i),
            b']' if open.is_some() => open = None,
            b':' if open.is_none() => {
                fields.push(Field {
                    name: name(fields.len()),
                    position: start,
                    text: &value[start..i],
                });
                start = i + 1;
            }
            _ => {}
        }
    }
    let last = Field {
        name: name(fields.len()),
        position: start,
        text: &value[start..],
    };
    if let Some(position) = open {
        return Err(Field { position, ..last }.refuse("«[» without «]»".to_owned()));
    }
    fields.push(last);
    match fields.get(NAMES.len()..).unwrap_or_default().iter().find(|f| !f.text.is_empty()) {
        Some(extra) => Err(extra.refuse(format!("«{}» follows, and nothing may", extra.text))),
        None => Ok(fields),
    }
}

fn method_word(field: Field<'_>) -> Result<Option<Method>, BadIpParam> {
    Ok(Some(match field.text {
        "dhcp" | "on" | "any" | "both" => Method::Dhcp,
        "auto6" | "link6" | "ra" => Method::RouterAdvertisement,
        "either6" => Method::Both,
        "off" | "none" => Method::Off,
        "dhcp6" | "bootp" | "rarp" | "ibft" => {
            let remedy = "use dhcp for IPv4, auto6 for IPv6 by router advertisement, or write the addresses out";
            return Err(Field { name: "autoconf", ..field }.refuse(format!("«{}» is not supported; {remedy}", field.text)));
        }
        _ => return Ok(None),
    }))
}

fn prefix(client: Field<'_>, address: IpAddr, mask: Option<Field<'_>>) -> Result<Prefix, BadIpParam> {
    if address.is_unspecified() || address.is_multicast() || address.is_loopback() {
        return Err(client.refuse(format!("{address} cannot be the address of an interface")));
    }
    let max = if address.is_ipv4() { 32 } else { 128 };
    let length = match (mask, address) {
        (Some(f), _) if f.text.bytes().all(|b| b.is_ascii_digit()) => match f.text.parse::<u8>() {
            Ok(length) if (1..=max).contains(&length) => length,
            Ok(_) | Err(_) => return Err(f.refuse(format!("«{}» is not a prefix length from 1 to {max}", f.text))),
        },
        (Some(f), IpAddr::V4(_)) => {
            let mask: Ipv4Addr = f
                .text
                .parse()
                .map_err(|_| f.refuse(format!("«{}» is not a netmask such as 255.255.255.0", f.text)))?;
            mask_length(mask)
                .filter(|n| *n > 0)
                .ok_or_else(|| f.refuse(format!("«{mask}» is not a netmask: its ones are not contiguous, or there are none")))?
        }
        (Some(f), IpAddr::V6(_)) => return Err(f.refuse(format!("«{}» is not a prefix length from 1 to 128", f.text))),
        (None, IpAddr::V4(v4)) => class_length(v4),
        (None, IpAddr::V6(_)) => 64,
    };
    Ok(Prefix { address, length })
}

/// The number of leading ones, if all ones lead.
pub(crate) fn mask_length(mask: Ipv4Addr) -> Option<u8> {
    let bits = u32::from(mask);
    let length = bits.leading_ones();
    (bits.count_ones() == length).then(|| u8::try_from(length).ok()).flatten()
}

/// The prefix length by address class, which the kernel falls back on where no netmask is given.
pub(crate) fn class_length(address: Ipv4Addr) -> u8 {
    match address.octets()[0] {
        0..=127 => 8,
        128..=191 => 16,
        192..=255 => 24,
    }
}

/// Whether a text can be a host name or a domain: what is written to resolv.conf or sent to a server must not hold a line break.
pub(crate) fn is_domain(text: &str) -> bool {
    let label = |l: &str| (1..=63).contains(&l.len()) && l.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
    text.len() <= 253 && text.strip_suffix('.').unwrap_or(text).split('.').all(label)
}

impl Field<'_> {
    fn refuse(self, problem: String) -> BadIpParam {
        BadIpParam {
            field: self.name,
            position: self.position,
            problem: foreign::sentence(&problem),
        }
    }

    fn refuse_word(self) -> BadIpParam {
        self.refuse(format!(
            "«{}» is not one of dhcp, on, any, both, off, none, auto6, either6",
            self.text
        ))
    }

    /// An address, none if it is not one at all, an error if brackets say that one was meant.
    fn address(self) -> Result<Option<IpAddr>, BadIpParam> {
        match self.text.strip_prefix('[') {
            Some(rest) => {
                let inner = rest
                    .strip_suffix(']')
                    .ok_or_else(|| self.refuse(format!("«{}» does not end with «]»", self.text)))?;
                let v6: Ipv6Addr = inner
                    .parse()
                    .map_err(|_| self.refuse(format!("«{inner}» is not an IPv6 address")))?;
                Ok(Some(v6.into()))
            }
            None => Ok(self.text.parse::<Ipv4Addr>().ok().map(IpAddr::V4)),
        }
    }

    fn required_address(self) -> Result<IpAddr, BadIpParam> {
        self.address()?.ok_or_else(|| {
            self.refuse(format!(
                "«{}» is neither an IPv4 address nor an IPv6 address in brackets",
                self.text
            ))
        })
    }

    /// An interface name as the kernel takes them (`dev_valid_name`).
    fn interface(self) -> Result<String, BadIpParam> {
        let valid = (1..=15).contains(&self.text.len())
            && !matches!(self.text, "." | "..")
            && self.text.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'/' | b':'));
        if valid {
            Ok(self.text.to_owned())
        } else {
            Err(self.refuse(format!("«{}» is not an interface name (1 to 15 characters)", self.text)))
        }
    }

    fn hostname(self) -> Result<String, BadIpParam> {
        if is_domain(self.text) {
            Ok(self.text.to_owned())
        } else {
            Err(self.refuse(format!("«{}» is not a host name", self.text)))
        }
    }

    fn mtu(self) -> Result<Option<u16>, BadIpParam> {
        match self.text.parse::<u16>() {
            _ if self.text.is_empty() => Ok(None),
            Ok(mtu) if mtu >= 576 => Ok(Some(mtu)),
            Ok(_) | Err(_) => Err(self.refuse(format!("«{}» is not an MTU from 576 to 65535", self.text))),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use proptest::prelude::*;

    fn p(text: &str) -> Option<Prefix> {
        let (a, l) = text.split_once('/').unwrap();
        Some(Prefix {
            address: a.parse().unwrap(),
            length: l.parse().unwrap(),
        })
    }

    fn ip(text: &str) -> Option<IpAddr> {
        Some(text.parse().unwrap())
    }

    #[test]
    fn a_word_alone_is_a_method() {
        for (text, method) in [
            ("dhcp", Method::Dhcp),
            ("on", Method::Dhcp),
            ("any", Method::Dhcp),
            ("off", Method::Off),
            ("none", Method::Off),
            ("", Method::Off),
            ("auto6", Method::RouterAdvertisement),
            ("either6", Method::Both),
            (":::::eth0:off", Method::Off),
            (":::::eth0:dhcp", Method::Dhcp),
            (":::::eth0", Method::Dhcp),
        ] {
            assert_eq!(parse(text).unwrap().method, method, "{text}");
        }
    }

    #[test]
    fn an_interface_with_a_method_is_dracuts_short_form() {
        let expected = IpParam {
            device: Some("enp1s0".to_owned()),
            ..IpParam::of(Method::Dhcp)
        };
        assert_eq!(parse("enp1s0:dhcp").unwrap(), expected);
        assert_eq!(
            parse("enp1s0:dhcp:9000").unwrap(),
            IpParam {
                mtu: Some(9000),
                ..expected
            }
        );
    }

    #[test]
    fn the_full_form_is_read_field_by_field() {
        let full = parse("192.0.2.10:192.0.2.2:192.0.2.1:255.255.255.0:web-1:eth0:off:192.0.2.53:198.51.100.53:192.0.2.123").unwrap();
        let expected = IpParam {
            method: Method::Static,
            client: p("192.0.2.10/24"),
            server: ip("192.0.2.2"),
            gateway: ip("192.0.2.1"),
            hostname: Some("web-1".to_owned()),
            device: Some("eth0".to_owned()),
            dns: vec![ip("192.0.2.53").unwrap(), ip("198.51.100.53").unwrap()],
            ntp: ip("192.0.2.123"),
            mtu: None,
        };
        assert_eq!(full, expected);
    }

    #[test]
    fn an_address_alone_is_static_and_its_class_gives_the_netmask() {
        for (text, client) in [
            ("10.1.2.3", "10.1.2.3/8"),
            ("172.16.0.9::", "172.16.0.9/16"),
            ("192.0.2.1::::h", "192.0.2.1/24"),
        ] {
            let read = parse(text).unwrap();
            assert_eq!((read.method, read.client), (Method::Static, p(client)), "{text}");
        }
    }

    #[test]
    fn ipv6_stands_in_brackets() {
        let read = parse("[2001:db8::2]::[2001:db8::1]:64::eth0:none:[2001:db8::53]").unwrap();
        assert_eq!(read.client, p("2001:db8::2/64"));
        assert_eq!(read.gateway, ip("2001:db8::1"));
        assert_eq!(read.dns, vec![ip("2001:db8::53").unwrap()]);
        assert_eq!(read.method, Method::Static);
    }

    #[test]
    fn a_number_in_the_place_of_dns_is_an_mtu() {
        let read = parse("192.0.2.10::192.0.2.1:24::eth0:none:1400").unwrap();
        assert_eq!((read.mtu, read.dns.len()), (Some(1400), 0));
    }

    #[test]
    fn errors_name_the_field_and_the_position() {
        for (text, field, position) in [
            ("eth0", "client-ip", 0),
            ("192.0.2.300::", "client-ip", 0),
            ("127.0.0.1", "client-ip", 0),
            ("192.0.2.1:x", "server-ip", 10),
            ("192.0.2.1::nope", "gw-ip", 11),
            ("192.0.2.1:::255.0.255.0", "netmask", 12),
            ("192.0.2.1:::33", "netmask", 12),
            ("192.0.2.1:::0.0.0.0", "netmask", 12),
            ("192.0.2.1::::a b", "hostname", 13),
            ("192.0.2.1:::::a-name-of-sixteen", "device", 14),
            ("192.0.2.1:::::eth0:maybe", "autoconf", 19),
            ("eth0:dhcp6", "autoconf", 5),
            ("eth0:dhcp:99", "mtu", 10),
            ("192.0.2.1::::::off:1", "dns0-ip", 19),
            ("192.0.2.1:::::::::::x", "a field after ntp0-ip", 20),
            ("[2001:db8::2", "client-ip", 0),
            ("[2001:db8::g]", "client-ip", 0),
            ("2001:db8::2", "client-ip", 0),
            ("[2001:db8::2]x", "client-ip", 0),
            ("[2001:db8::2]::192.0.2.1", "gw-ip", 15),
        ] {
            let err = parse(text).unwrap_err();
            if (field, text) == ("dns0-ip", "192.0.2.1::::::off:1") {
                assert!(err.problem.contains("MTU"), "{err}");
            }
            assert_eq!((err.field, err.position), (field, position), "{text}: {err}");
        }
    }

    #[test]
    fn a_huge_value_is_refused() {
        assert!(parse(&"a".repeat(MAX_LEN + 1)).unwrap_err().problem.contains("bytes long"));
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused_at_a_position_inside(text in "\\PC{0,80}") {
            if let Err(err) = parse(&text) {
                prop_assert!(err.position <= text.len());
            }
        }

        #[test]
        fn texts_of_the_grammars_own_letters_do_not_panic(text in "(\\[|\\]|:|dhcp|off|eth0|192\\.0\\.2\\.1|2001:db8::1|[0-9]{1,4}|é){0,14}") {
            if let Err(err) = parse(&text) {
                prop_assert!(err.position <= text.len());
            }
        }
    }
}
