//! IPv6 by router advertisement. The kernel does it all (RFC 4861, 4862) but for the DNS options, which it hands on (RFC 8106).

use std::net::Ipv6Addr;
use std::path::Path;
use std::time::Duration;
use std::{fs, io};

use super::ip_param::is_domain;

const RDNSS: u8 = 25;
const DNSSL: u8 = 31;
/// glibc reads three servers; a few more are kept for when some of them expire.
const MAX_SERVERS: usize = 8;
/// resolv.conf(5) once allowed six domains.
const MAX_DOMAINS: usize = 6;

/// What a router says about DNS, and for how long; a lifetime of zero takes it back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RaDns {
    /// Servers (RDNSS).
    Servers(Vec<Ipv6Addr>, Duration),
    /// Domains to search (DNSSL).
    Domains(Vec<String>, Duration),
}

/// Reads one neighbour discovery option, as the kernel hands it on in `RTM_NEWNDUSEROPT`. None for other options and broken ones.
pub fn parse_option(bytes: &[u8]) -> Option<RaDns> {
    let [kind, words, _, _, a, b, c, d, ..] = *bytes else { return None };
    let lifetime = Duration::from_secs(u32::from_be_bytes([a, b, c, d]).into());
    let value = bytes.get(8..usize::from(words) * 8)?;
    match kind {
        RDNSS => {
            let servers = value.as_chunks::<16>().0.iter().map(|c| Ipv6Addr::from(*c));
            let servers: Vec<_> = servers
                .filter(|s| !s.is_unspecified() && !s.is_multicast() && !s.is_loopback())
                .take(MAX_SERVERS)
                .collect();
            (!servers.is_empty()).then_some(RaDns::Servers(servers, lifetime))
        }
        DNSSL => {
            let domains = domains(value);
            (!domains.is_empty()).then_some(RaDns::Domains(domains, lifetime))
        }
        _ => None,
    }
}

/// Domain names as DNS writes them (labels with a length each, a zero at the end, no compression), padded with zeros.
fn domains(mut bytes: &[u8]) -> Vec<String> {
    let mut found = Vec::new();
    let mut labels: Vec<String> = Vec::new();
    while let [length, rest @ ..] = bytes {
        if *length == 0 {
            let name = labels.join(".");
            if is_domain(&name) && found.len() < MAX_DOMAINS {
                found.push(name);
            }
            labels.clear();
            bytes = rest;
            continue;
        }
        let Some((label, rest)) = rest.split_at_checked(usize::from(*length)) else {
            break;
        };
        // A dot inside a label would make two of it.
        labels.push(String::from_utf8_lossy(label).replace('.', " "));
        bytes = rest;
    }
    found
}

/// Settings below `/proc/sys/net/ipv6/conf/<interface>/`, with their values.
pub type Sysctls = &'static [(&'static str, &'static str)];

/// The kernel listens to routers.
pub const LISTEN: Sysctls = &[
    ("accept_ra", "2"), // also where something turned forwarding on
    ("accept_ra_defrtr", "1"),
    ("accept_ra_pinfo", "1"),
    ("autoconf", "1"),
    ("use_tempaddr", "0"), // the machine is to be recognised by its address
    ("disable_ipv6", "0"),
];
/// IPv6 works, and routers are not listened to.
pub const FIXED: Sysctls = &[("accept_ra", "0"), ("autoconf", "0"), ("disable_ipv6", "0")];
/// Routers are not listened to.
pub const IGNORE: Sysctls = &[("accept_ra", "0"), ("autoconf", "0")];

/// What was changed in the kernel's settings: file name and former value, in order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Changed(Vec<(&'static str, String)>);

/// Sets how an interface takes part in IPv6, and notes in `changed` what was there before. `proc` is where procfs is mounted.
///
/// # Errors
/// «Not found» in a kernel without IPv6. Single settings that a kernel does not have are passed over.
pub fn configure(proc: &Path, interface: &str, wanted: Sysctls, changed: &mut Changed) -> io::Result<()> {
    let folder = proc.join("sys/net/ipv6/conf").join(interface);
    fs::metadata(&folder).map_err(|err| named(&err, &folder))?;
    for (name, value) in wanted {
        let path = folder.join(name);
        let former = match fs::read_to_string(&path) {
            Ok(text) => text.trim().to_owned(),
            Err(err) if err.kind() == io::ErrorKind::NotFound => continue,
            Err(err) => return Err(named(&err, &path)),
        };
        if former != *value {
            fs::write(&path, value).map_err(|err| named(&err, &path))?;
            changed.0.push((name, former));
        }
    }
    Ok(())
}

/// Puts the settings back as they were.
pub fn restore(proc: &Path, interface: &str, changed: &Changed) -> io::Result<()> {
    for (name, value) in changed.0.iter().rev() {
        let path = proc.join("sys/net/ipv6/conf").join(interface).join(name);
        fs::write(&path, value).map_err(|err| named(&err, &path))?;
    }
    Ok(())
}

fn named(err: &io::Error, path: &Path) -> io::Error {
    io::Error::new(err.kind(), format!("{}: {err}", path.display()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn servers_and_their_lifetime_are_read() {
        let one: Ipv6Addr = "2001:db8::53".parse().unwrap();
        let two: Ipv6Addr = "fe80::1".parse().unwrap();
        let mut option = vec![RDNSS, 5, 0, 0, 0, 0, 2, 88];
        option.extend(one.octets());
        option.extend(two.octets());
        assert_eq!(
            parse_option(&option),
            Some(RaDns::Servers(vec![one, two], Duration::from_secs(600)))
        );
    }

    #[test]
    fn domains_are_read_and_what_could_break_resolv_conf_is_left_out() {
        let mut option = vec![DNSSL, 5, 0, 0, 0, 0, 0, 0];
        option.extend(b"\x03lan\x07example\x00\x04a\nbc\x00\x02ok\x00");
        option.resize(40, 0);
        assert_eq!(
            parse_option(&option),
            Some(RaDns::Domains(vec!["lan.example".to_owned(), "ok".to_owned()], Duration::ZERO))
        );
    }

    #[test]
    fn other_options_and_broken_ones_are_passed_over() {
        for bytes in [
            &[RDNSS, 1, 0, 0, 0, 0, 0, 1][..],
            &[RDNSS, 9, 0, 0, 0, 0, 0, 1],
            &[3, 1, 0, 0, 0, 0, 0, 1],
            &[RDNSS, 0, 0, 0, 0, 0, 0, 1],
            &[],
        ] {
            assert_eq!(parse_option(bytes), None, "{bytes:?}");
        }
    }

    #[test]
    fn settings_are_changed_where_they_differ_and_put_back() {
        let proc = tempfile::tempdir().unwrap();
        let folder = proc.path().join("sys/net/ipv6/conf/eth0");
        fs::create_dir_all(&folder).unwrap();
        // A kernel without privacy extensions has no use_tempaddr.
        for (name, value) in LISTEN.iter().filter(|(name, _)| *name != "use_tempaddr") {
            fs::write(folder.join(name), if *name == "accept_ra" { "0\n" } else { value }).unwrap();
        }
        let mut changed = Changed::default();
        configure(proc.path(), "eth0", LISTEN, &mut changed).unwrap();
        assert_eq!(changed, Changed(vec![("accept_ra", "0".to_owned())]));
        assert_eq!(fs::read_to_string(folder.join("accept_ra")).unwrap(), "2");
        restore(proc.path(), "eth0", &changed).unwrap();
        assert_eq!(fs::read_to_string(folder.join("accept_ra")).unwrap(), "0");
    }

    #[test]
    fn a_kernel_without_ipv6_is_told_by_the_missing_folder() {
        let err = configure(Path::new("/nonexistent"), "eth0", LISTEN, &mut Changed::default()).unwrap_err();
        assert_eq!(err.kind(), io::ErrorKind::NotFound);
        assert!(err.to_string().contains("ipv6/conf/eth0"), "{err}");
    }

    proptest! {
        #[test]
        fn any_option_is_read_or_passed_over(bytes in proptest::collection::vec(any::<u8>(), 0..200), kind in prop_oneof![Just(RDNSS), Just(DNSSL)]) {
            let mut bytes = bytes;
            if let Some(first) = bytes.first_mut() { *first = kind; }
            if let Some(RaDns::Domains(names, _)) = parse_option(&bytes) {
                prop_assert!(names.iter().all(|n| n.bytes().all(|b| b.is_ascii_graphic())));
            }
        }
    }
}
