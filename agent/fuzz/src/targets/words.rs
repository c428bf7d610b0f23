//! Small parsers of single values: addresses, names, keys, durations.

use std::fmt::{Debug, Display};
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

use freshroot::device::DeviceName;
use freshroot::digest::Digest;
use freshroot::formats::key::{PublicKey, SecretKey};
use freshroot::formats::release::ChannelName;
use freshroot::http::without_credentials;
use freshroot::mount::options::parse_time_span;
use freshroot::mount::size::TmpfsSize;
use freshroot::net::Prefix;
use freshroot::net::ip_param::{self, IpParam, Method};
use freshroot::net::mac::Mac;
use freshroot::settings::value::{LONGEST, count, duration, show_duration, size, switch};
use freshroot::store_path::StorePath;

use crate::Target;
use crate::input::told;

/// A word, read by every parser of single values.
pub const WORDS: Target = Target {
    name: "words",
    longest: 512,
    memory: 512,
    check: words,
};

fn words(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let text = text.as_ref();
    reads_back::<Mac>(text);
    reads_back::<Prefix>(text);
    reads_back::<Digest>(text);
    reads_back::<StorePath>(text);
    reads_back::<ChannelName>(text);
    reads_back::<PublicKey>(text);
    device_name(text);
    addresses(text);
    values(text);
    url(text);
    match text.parse::<SecretKey>() {
        Ok(key) => assert!(key.public().verify(b"message", &key.sign(b"message"))),
        Err(why) => told(why),
    }
}

/// What parses is written in one way, and that is read back.
fn reads_back<T: FromStr<Err: Display> + Display + PartialEq + Debug>(text: &str) {
    match text.parse::<T>() {
        Ok(value) => {
            let written = value.to_string();
            let again = written.parse::<T>().unwrap_or_else(|why| panic!("{why}"));
            assert_eq!(again, value);
            assert_eq!(again.to_string(), written);
        }
        Err(why) => told(why),
    }
}

fn device_name(text: &str) {
    match text.parse::<DeviceName>() {
        Ok(name) => {
            let (value, can_be_written) = match &name {
                DeviceName::Label(value) | DeviceName::Uuid(value) | DeviceName::PartLabel(value) | DeviceName::PartUuid(value) => {
                    (value.clone(), !value.starts_with(['"', '\'']))
                }
                DeviceName::Path(path) => {
                    let path = path.to_str().unwrap();
                    assert!(
                        path.starts_with("/dev/") && !path.split('/').any(|part| part == ".." || part == "."),
                        "{path}"
                    );
                    (path.to_owned(), true)
                }
            };
            assert!(!value.is_empty() && !value.contains(char::is_control));
            if can_be_written {
                assert_eq!(name.to_string().parse(), Ok(name));
            }
        }
        Err(why) => told(why),
    }
}

fn addresses(text: &str) {
    if let Ok(mac) = Mac::parse_bootif(text) {
        let dashed = format!("01-{}", mac.to_string().replace(':', "-"));
        assert_eq!(Mac::parse_bootif(&dashed), Ok(mac));
    }
    if let Ok(prefix) = text.parse::<Prefix>() {
        assert!(prefix.contains(prefix.address) && prefix.length <= if prefix.address.is_ipv4() { 32 } else { 128 });
    }
    match ip_param::parse(text) {
        Ok(param) => {
            assert!(param.dns.len() <= 2 && param.mtu.is_none_or(|mtu| mtu >= 576));
            if let Some(client) = param.client {
                assert!((1..=if client.address.is_ipv4() { 32 } else { 128 }).contains(&client.length));
                assert!(!client.address.is_multicast() && !client.address.is_unspecified());
            }
            assert!(param.method != Method::Static || param.client.is_some());
            // A mask that is written out is the one of that length.
            if let (Some(client), Some(Ok(mask))) = (param.client, text.split(':').nth(3).map(str::parse::<Ipv4Addr>))
                && !text.contains('[')
            {
                assert_eq!(
                    u64::from(u32::from(mask)),
                    (u64::from(u32::MAX) << (32 - client.length)) & u64::from(u32::MAX)
                );
            }
            let written = write_ip(&param);
            assert_eq!(ip_param::parse(&written), Ok(param), "{written}");
        }
        Err(why) => {
            assert!(why.position <= text.len());
            told(why);
        }
    }
}

/// An `ip=` value that says this, in its long form where it can.
fn write_ip(param: &IpParam) -> String {
    let method = match param.method {
        Method::Dhcp => "dhcp",
        Method::RouterAdvertisement => "auto6",
        Method::Both => "either6",
        Method::Static | Method::Off => "off",
    };
    let address = |address: &IpAddr| match address {
        IpAddr::V4(v4) => v4.to_string(),
        IpAddr::V6(v6) => format!("[{v6}]"),
    };
    let maybe = |one: Option<&IpAddr>| one.map(address).unwrap_or_default();
    // An MTU stands in the place of the first DNS server; then there is only the second.
    let (first, second) = match (param.mtu, &param.dns[..]) {
        (Some(mtu), dns) => (mtu.to_string(), maybe(dns.first())),
        (None, dns) => (maybe(dns.first()), maybe(dns.get(1))),
    };
    [
        maybe(param.client.as_ref().map(|client| &client.address)),
        maybe(param.server.as_ref()),
        maybe(param.gateway.as_ref()),
        param.client.map(|client| client.length.to_string()).unwrap_or_default(),
        param.hostname.clone().unwrap_or_default(),
        param.device.clone().unwrap_or_default(),
        method.to_owned(),
        first,
        second,
        maybe(param.ntp.as_ref()),
    ]
    .join(":")
}

fn values(text: &str) {
    match duration(text) {
        Ok(value) => {
            assert!(value <= LONGEST);
            assert_eq!(duration(&show_duration(value)), Ok(value));
        }
        Err(why) => told(why),
    }
    if let Ok(span) = parse_time_span(text) {
        assert!(!span.is_zero());
        // Both read the common forms alike: a slip between the two would make a limit a thousand times as long.
        if let Ok(value) = duration(text.trim()) {
            assert_eq!(value, span, "{text}");
        }
    }
    match size(text) {
        Ok(value) => {
            assert_eq!(size(&value.to_string()), Ok(value));
            assert!(
                value.to_string().parse::<TmpfsSize>().is_ok(),
                "{text} passes as a setting and makes no tmpfs"
            );
        }
        Err(why) => told(why),
    }
    match count(text, 2, 1000) {
        Ok(value) => assert!((2..=1000).contains(&value)),
        Err(why) => told(why),
    }
    if let Err(why) = switch(text) {
        told(why);
    }
}

/// What is printed of a URL holds neither its credentials nor its query.
fn url(text: &str) {
    let shown = without_credentials(text);
    let scheme = text.split_once("://").map_or("", |(scheme, _)| scheme);
    assert!(!shown.contains('?') || scheme.contains('?'), "{shown}");
    assert!(shown.len() <= text.len() + 3);
    let secret = "hush";
    for url in [
        format!("https://user:{secret}@host/{text}"),
        format!("https://{text}:{secret}@host/path"),
    ] {
        let shown = without_credentials(&url);
        let authority = url.split_once("://").and_then(|(_, rest)| rest.split(['/', '?', '#']).next());
        if authority.is_some_and(|authority| authority.contains(secret)) && !text.contains(secret) {
            assert!(!shown.contains(secret), "{url} is shown as {shown}");
        }
    }
}
