//! DHCP, and what the kernel says of links, addresses and routers.

use std::net::Ipv4Addr;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use freshroot::net::NetSettings;
use freshroot::net::dhcp::client::{Action, Client, Config, Event, Way};
use freshroot::net::dhcp::frame;
use freshroot::net::dhcp::lease::Lease;
use freshroot::net::dhcp::message::{Kind, MAX_LEN, Message};
use freshroot::net::dns::{Heard, collect};
use freshroot::net::link::{LinkPlan, V4, V6};
use freshroot::net::mac::Mac;
use freshroot::net::netlink::codec::{Builder, HEADER_LEN, attributes, frames};
use freshroot::net::netlink::message::{Link, Note, read};
use freshroot::net::ra::{RaDns, parse_option};
use freshroot::net::resolv;

use crate::Target;
use crate::input::{Input, told};

/// Frames as a client meets them, one after the other: how it is met (u8), length (u16), so many bytes.
pub const DHCP: Target = Target {
    name: "dhcp",
    longest: 4096,
    memory: 128,
    check: dhcp,
};

/// A datagram of the kernel's.
pub const NETLINK: Target = Target {
    name: "netlink",
    longest: 2048,
    memory: 64,
    check: netlink,
};

const OURS: Mac = Mac::new([0x52, 0x54, 0, 0x12, 0x34, 0x56]);
/// One moment for all inputs: what differs from run to run cannot be searched.
static BEGIN: LazyLock<Instant> = LazyLock::new(Instant::now);

fn dhcp(input: &[u8]) {
    let mut input = Input(input);
    let config = Config {
        mac: OURS,
        hostname: Some("host".to_owned()),
        requested: None,
        first_retry: Duration::from_secs(4),
        longest_retry: Duration::from_secs(16),
    };
    let mut world = World {
        client: Client::new(config, 7, *BEGIN),
        now: *BEGIN,
        xid: 0,
        lease: None,
    };
    world.timer();
    for _ in 0..64 {
        if input.is_empty() {
            break;
        }
        let how = input.u8();
        let length = input.u16();
        match how % 4 {
            0 => world.timer(),
            // Between two frames time passes, up to some eighteen hours.
            1 => world.now += Duration::from_secs(length.into()),
            2 => world.meet(input.bytes(length.into())),
            _ => {
                let payload = input.bytes(length.into());
                world.meet(&datagram(payload));
            }
        }
    }
}

struct World {
    client: Client,
    now: Instant,
    xid: u32,
    lease: Option<Lease>,
}

impl World {
    fn timer(&mut self) {
        let Some(due) = self.client.next_timer() else { return };
        self.now = self.now.max(due);
        let actions = self.client.handle(self.now, Event::Timer);
        self.take(actions);
        // Time passes: what is due again at once must be something else.
        if self.client.next_timer() == Some(self.now) {
            let actions = self.client.handle(self.now, Event::Timer);
            self.take(actions);
            assert_ne!(self.client.next_timer(), Some(self.now), "the client turns in a circle");
        }
    }

    fn meet(&mut self, frame: &[u8]) {
        let Some(payload) = frame::payload(frame) else { return };
        assert!(payload.len() + 14 + 20 + 8 <= frame.len());
        let mut message = match Message::parse(payload) {
            Ok(message) => message,
            Err(why) => return told(why),
        };
        sound(&message, payload);
        let foreign = self.client.handle(self.now, Event::Received(&message));
        if message.xid != self.xid || message.op != 2 || message.chaddr != OURS {
            assert_eq!(foreign, [], "a message for somebody else was taken");
        }
        self.take(foreign);
        // As if it were for us: nobody guesses a transaction's number.
        (message.op, message.xid, message.chaddr) = (2, self.xid, OURS);
        let actions = self.client.handle(self.now, Event::Received(&message));
        self.take(actions);
    }

    fn take(&mut self, actions: Vec<Action>) {
        assert!(actions.len() <= 2);
        for action in actions {
            match action {
                Action::Send(way, message) => {
                    self.xid = message.xid;
                    assert_eq!(Message::parse(&message.encode()).as_ref(), Ok(&*message));
                    assert_eq!(
                        frame::payload(&frame::encode(OURS, &message.encode())),
                        None,
                        "a client's frame is no server's"
                    );
                    assert!(matches!(message.kind, Kind::Discover | Kind::Request) && message.op == 1);
                    // A frame goes out where there is no address, and only there.
                    assert_eq!(way == Way::Frame, self.lease.is_none());
                    assert_eq!(
                        message.ciaddr,
                        self.lease.as_ref().map_or(Ipv4Addr::UNSPECIFIED, |lease| lease.address)
                    );
                }
                Action::Configure { lease, since } => {
                    assert!(since <= self.now);
                    usable(&lease);
                    // A renewal is of the address that is there.
                    assert!(self.lease.as_ref().is_none_or(|old| old.address == lease.address));
                    self.lease = Some(*lease);
                }
                Action::Deconfigure(_) => assert!(self.lease.take().is_some(), "what was not there is taken away"),
            }
        }
        assert_eq!(self.client.needs_frames(), self.lease.is_none());
        assert!(self.client.next_timer().is_some() || self.lease.as_ref().is_some_and(|lease| lease.time.is_none()));
    }
}

/// A message that was read: nothing grew, each option once, and it is read back as it is written.
fn sound(message: &Message, payload: &[u8]) {
    assert!(payload.len() <= MAX_LEN);
    let held: usize = message.options.iter().map(|(_, value)| value.len() + 2).sum();
    assert!(held <= payload.len());
    for (at, (code, _)) in message.options.iter().enumerate() {
        assert!(message.options[..at].iter().all(|(other, _)| other != code), "option {code} twice");
    }
    let written = message.encode();
    if written.len() <= MAX_LEN {
        assert_eq!(Message::parse(&written).as_ref(), Ok(message));
    }
    for code in [15, 56] {
        assert!(message.text(code).is_none_or(str::is_ascii));
    }
    match Lease::from_message(message) {
        Ok(lease) => usable(&lease),
        Err(why) => told(why),
    }
}

/// What is true of each lease.
fn usable(lease: &Lease) {
    assert!(
        !lease.address.is_unspecified() && !lease.address.is_multicast() && !lease.address.is_broadcast() && !lease.address.is_loopback()
    );
    assert!((1..=32).contains(&lease.length) && !lease.server.is_unspecified());
    for address in lease.dns.iter().chain(&lease.routers) {
        assert!(!address.is_unspecified() && !address.is_multicast());
    }
    assert!(lease.routes.len() <= 64 && (lease.routes.is_empty() || lease.routers.is_empty()));
    for route in &lease.routes {
        assert!(route.length <= 32);
        let host_bits = u32::MAX.checked_shr(route.length.into()).unwrap_or(0);
        assert_eq!(u32::from(route.destination) & host_bits, 0, "{route:?} has host bits");
    }
    assert!(lease.mtu.is_none_or(|mtu| mtu >= 576));
    if let Some(time) = lease.time {
        assert!(Duration::ZERO < time.t1 && time.t1 <= time.t2 && time.t2 <= time.valid, "{time:?}");
    }
    if let Some(domain) = &lease.domain {
        one_domain(domain);
    }
}

/// What goes into resolv.conf is one word of few kinds of letters.
fn one_domain(domain: &str) {
    assert!((1..=253).contains(&domain.len()));
    assert!(
        domain.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte)),
        "{domain}"
    );
}

/// Puts Ethernet, IPv4 and UDP around a payload, as a server's; told from RFC 791 and 768, with every sum computed.
fn datagram(payload: &[u8]) -> Vec<u8> {
    let sum = |words: &[u8]| {
        let total: u64 = words
            .chunks(2)
            .map(|word| u64::from(word[0]) << 8 | word.get(1).map_or(0, |low| u64::from(*low)))
            .sum();
        // 2^16 is 1 in this arithmetic, so the remainder is what folding gives.
        !(match total % 0xffff {
            0 if total > 0 => 0xffff,
            rest => rest as u16,
        })
    };
    let udp_length = (8 + payload.len()) as u16;
    let (source, target) = ([192, 0, 2, 1], [192, 0, 2, 9]);
    let mut ip = vec![0x45, 0];
    ip.extend((20 + udp_length).to_be_bytes());
    ip.extend([0, 1, 0, 0, 64, 17, 0, 0]);
    ip.extend([source, target].concat());
    let header_sum = sum(&ip);
    ip[10..12].copy_from_slice(&header_sum.to_be_bytes());
    let mut udp = vec![0, 67, 0, 68];
    udp.extend(udp_length.to_be_bytes());
    udp.extend([0, 0]);
    udp.extend(payload);
    let mut pseudo = [source, target].concat();
    pseudo.extend([0, 17]);
    pseudo.extend(udp_length.to_be_bytes());
    pseudo.extend(&udp);
    let udp_sum = match sum(&pseudo) {
        0 => 0xffff,
        other => other,
    };
    udp[6..8].copy_from_slice(&udp_sum.to_be_bytes());
    let mut frame = vec![0xff; 12];
    frame.extend([8, 0]);
    frame.extend(ip);
    frame.extend(udp);
    assert_eq!(frame::payload(&frame), Some(payload), "a server's frame is read");
    frame
}

fn netlink(input: &[u8]) {
    let mut heard = Heard::default();
    let mut length = 0;
    for frame in frames(input) {
        length += HEADER_LEN + frame.body.len();
        assert!(length <= input.len());
        let held: usize = attributes(frame.body).map(|(_, value)| 4 + value.len()).sum();
        assert!(held <= frame.body.len());
        // Written anew it is read as before, padding aside.
        let written = Builder::new(frame.kind, frame.flags, frame.body).finish(frame.seq);
        let again = frames(&written).next().unwrap();
        assert_eq!((again.kind, again.flags, again.seq), (frame.kind, frame.flags, frame.seq));
        assert!(again.body.starts_with(frame.body) && again.body.len() - frame.body.len() < 4);
        if let Some(Note::Dns(_, dns)) = read(&frame) {
            router_said(&dns);
            heard.hear(dns, *BEGIN);
        }
    }
    // A router's option as such, without the kernel around it.
    if let Some(dns) = parse_option(input) {
        router_said(&dns);
        heard.hear(dns, *BEGIN);
    }
    resolver(&heard);
}

fn router_said(dns: &RaDns) {
    match dns {
        RaDns::Servers(servers, _) => {
            assert!((1..=8).contains(&servers.len()));
            assert!(
                servers
                    .iter()
                    .all(|server| !server.is_multicast() && !server.is_unspecified() && !server.is_loopback())
            );
        }
        RaDns::Domains(domains, _) => {
            assert!((1..=6).contains(&domains.len()));
            domains.iter().for_each(|domain| one_domain(domain));
        }
    }
}

/// Whatever routers say, resolv.conf has lines of the kinds that we write, and no more than are read.
fn resolver(heard: &Heard) {
    let link = Link {
        index: 2,
        name: "eth0".to_owned(),
        mac: Some(OURS),
        kind: None,
        up: true,
        carrier: true,
        settled: true,
        loopback: false,
        mtu: 1500,
    };
    let settings = NetSettings::default();
    let plan = LinkPlan {
        v4: V4::Off,
        v6: V6::Ra,
        mtu: None,
        dns: Vec::new(),
    };
    let (servers, domains) = collect(&settings, &link, &plan, None, heard, *BEGIN);
    assert!(servers.len() <= 3 && domains.len() <= 6);
    let text = resolv::render(&servers, &domains);
    for line in text.lines() {
        let known = ["# written by freshroot", "nameserver ", "search ", "options "]
            .iter()
            .any(|start| line.starts_with(start));
        assert!(known && line.is_ascii() && !line.contains(char::is_control), "{line}");
    }
    assert_eq!(text.lines().count(), 2 + servers.len() + usize::from(!domains.is_empty()));
}
