//! What a DHCP server and the kernel say, taken from the wire.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use freshroot::net::dhcp::frame;
use freshroot::net::dhcp::message::{Kind, Message, code};
use freshroot::net::dhcp::socket::FrameSocket;
use freshroot::net::mac::Mac;
use freshroot::net::netlink::codec::frames;
use freshroot::net::netlink::message::{dump, uapi};
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};

use super::{Sink, shell};

/// dnsmasq answers at once; it has a second to begin.
const LIMIT: Duration = Duration::from_secs(10);

/// Links, addresses and routes of a namespace with nothing but what we put there, as the kernel lists them.
pub(super) fn netlink(sink: &mut Sink<'_>) -> Result<()> {
    let lists = in_namespace(|| {
        shell(
            "ip link add eth0 type veth peer name port && ip link set port up && ip addr add 192.0.2.9/24 dev eth0 && ip addr add 2001:db8::9/64 dev eth0 nodad && ip link set eth0 up && ip route add default via 192.0.2.1",
        )?;
        let mut lists = Vec::new();
        for (name, kind) in [
            ("links", uapi::RTM_GETLINK),
            ("addresses", uapi::RTM_GETADDR),
            ("routes", uapi::RTM_GETROUTE),
        ] {
            let fd = opened(AddressFamily::Netlink, SockProtocol::NetlinkRoute)?;
            send(fd.as_raw_fd(), &dump(kind).finish(1), MsgFlags::empty())?;
            let bytes = received(&fd)?;
            // The longest one alone, too: a list is cut where it becomes long.
            let longest = frames(&bytes).map(|frame| frame.body.len() + 16).max().unwrap_or(0);
            ensure!(longest > 16, "the kernel lists no {name}");
            lists.push((name, bytes));
        }
        Ok(lists)
    })?;
    for (name, mut bytes) in lists {
        bytes.truncate(2048);
        sink.put("netlink", name, bytes)?;
    }
    // RFC 8106, 5.1 and 5.2: two servers, two domains; alone, and as the kernel hands them on.
    let servers = [
        &[25, 5, 0, 0, 0, 0, 7, 8][..],
        &[0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x53],
        &[0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
    ]
    .concat();
    let domains = [&[31, 4, 0, 0, 0, 0, 7, 8][..], b"\x07example\0\x04home\x04arpa\0\0\0\0\0"].concat();
    for (name, option) in [("servers", servers), ("domains", domains)] {
        sink.put("netlink", name, &option)?;
        let mut fixed = vec![uapi::AF_INET6, 0];
        fixed.extend((option.len() as u16).to_ne_bytes());
        fixed.extend(2_u32.to_ne_bytes());
        fixed.extend([134, 0, 0, 0, 0, 0, 0, 0]);
        fixed.extend(&option);
        let message = freshroot::net::netlink::codec::Builder::new(uapi::RTM_NEWNDUSEROPT, 0, &fixed).finish(0);
        sink.put("netlink", &format!("{name}-handed-on"), message)?;
    }
    Ok(())
}

/// Offer, acknowledgement and refusal of dnsmasq, as frames.
pub(super) fn dhcp(sink: &mut Sink<'_>) -> Result<()> {
    let (offer, ack, nak) = in_namespace(|| {
        shell(
            "ip link add eth0 address 52:54:00:12:34:56 type veth peer name port && ip addr add 192.0.2.1/24 dev port && ip link set port up && ip link set eth0 up",
        )?;
        let folder = tempfile::tempdir()?;
        let pid = shell(&format!(
            "dnsmasq --conf-file=/dev/null --no-resolv --no-hosts --port=0 --interface=port --bind-interfaces --user=root --leasefile-ro --dhcp-authoritative \
             --dhcp-range=192.0.2.50,192.0.2.60,1h --dhcp-option=option:router,192.0.2.1 --dhcp-option=option:dns-server,192.0.2.53,192.0.2.54 \
             --dhcp-option=option:domain-name,example.org --dhcp-option=option:mtu,1400 \
             --dhcp-option=121,198.51.100.0/24,192.0.2.1,0.0.0.0/0,192.0.2.1 --pid-file={0}/pid && cat {0}/pid",
            folder.path().display()
        ))?;
        let asked = ask();
        shell(&format!("kill {pid}"))?;
        asked
    })?;
    let met = |how: u8, frame: &[u8]| [&[how][..], &(frame.len() as u16).to_le_bytes(), frame].concat();
    let payload = |frame: &[u8]| frame::payload(frame).map(<[u8]>::to_vec).context("no frame of a server's");
    sink.put("dhcp", "offer", met(2, &offer))?;
    sink.put("dhcp", "refusal", [met(2, &offer), met(2, &nak)].concat())?;
    sink.put(
        "dhcp",
        "lease",
        [met(2, &offer), met(2, &ack), met(0, b""), met(2, &ack), met(0, b"")].concat(),
    )?;
    sink.put(
        "dhcp",
        "payloads",
        [
            met(3, &payload(&offer)?),
            met(3, &payload(&ack)?),
            met(0, b""),
            met(3, &payload(&nak)?),
        ]
        .concat(),
    )?;
    // As another server could have put it: times that make no sense, a route with host bits, options in the place of names.
    let mut odd = Message::parse(&payload(&ack)?)?;
    odd.options
        .retain(|(code, _)| ![code::T1, code::T2, code::CLASSLESS_ROUTES].contains(code));
    let times = [(code::T1, 3000_u32), (code::T2, 1000)].map(|(code, seconds)| (code, seconds.to_be_bytes().to_vec()));
    odd.options.extend(times);
    odd.options
        .push((code::CLASSLESS_ROUTES, vec![20, 198, 51, 100, 192, 0, 2, 1, 0, 192, 0, 2, 1]));
    sink.put("dhcp", "odd", [met(2, &offer), met(3, &odd.encode())].concat())?;
    // Time passes, and nobody renews it.
    sink.put(
        "dhcp",
        "lost",
        [met(2, &offer), met(2, &ack), met(0, b""), [1, 0xff, 0xff].to_vec(), met(0, b"")].concat(),
    )
}

fn ask() -> Result<(Vec<u8>, Vec<u8>, Vec<u8>)> {
    let mac = Mac::new([0x52, 0x54, 0, 0x12, 0x34, 0x56]);
    let index = shell("cat /sys/class/net/eth0/ifindex || ip -o link show eth0 | cut -d: -f1")?;
    let index = shell("ip -o link show eth0 | cut -d: -f1")
        .or(Ok::<_, anyhow::Error>(index))?
        .parse()?;
    let ours = FrameSocket::open("eth0", index, mac).context("opening a packet socket")?;
    let wire = opened(AddressFamily::Packet, SockProtocol::EthIp)?;
    let message = |kind, options| Message {
        op: 1,
        xid: 0x1234_5678,
        secs: 0,
        broadcast: true,
        ciaddr: Ipv4Addr::UNSPECIFIED,
        yiaddr: Ipv4Addr::UNSPECIFIED,
        siaddr: Ipv4Addr::UNSPECIFIED,
        giaddr: Ipv4Addr::UNSPECIFIED,
        chaddr: mac,
        kind,
        options,
    };
    let wanted = (code::PARAMETER_LIST, vec![1, 121, 3, 6, 15, 26, 51, 58, 59]);
    ours.send(&message(Kind::Discover, vec![wanted.clone()]))?;
    let offer = answer(&wire, Kind::Offer)?;
    let offered = frame::payload(&offer)
        .and_then(|payload| Message::parse(payload).ok())
        .context("an offer that is none")?;
    let server = (code::SERVER_ID, vec![192, 0, 2, 1]);
    let request = |address: Ipv4Addr| {
        let options = vec![(code::REQUESTED_ADDRESS, address.octets().to_vec()), server.clone(), wanted.clone()];
        message(Kind::Request, options)
    };
    ours.send(&request(offered.yiaddr))?;
    let ack = answer(&wire, Kind::Ack)?;
    ours.send(&request(Ipv4Addr::new(203, 0, 113, 7)))?;
    Ok((offer, ack, answer(&wire, Kind::Nak)?))
}

/// The next frame with a message of this kind.
fn answer(wire: &OwnedFd, kind: Kind) -> Result<Vec<u8>> {
    let deadline = Instant::now() + LIMIT;
    while Instant::now() < deadline {
        let bytes = received(wire)?;
        let message = frame::payload(&bytes).and_then(|payload| Message::parse(payload).ok());
        if message.is_some_and(|message| message.kind == kind) {
            return Ok(bytes);
        }
    }
    bail!("dnsmasq sent no {kind:?}")
}

/// A socket that waits [`LIMIT`] at most.
fn opened(family: AddressFamily, protocol: SockProtocol) -> Result<OwnedFd> {
    let fd = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol).context("opening a socket")?;
    let limit = nix::sys::time::TimeVal::new(LIMIT.as_secs().cast_signed(), 0);
    nix::sys::socket::setsockopt(&fd, nix::sys::socket::sockopt::ReceiveTimeout, &limit)?;
    Ok(fd)
}

fn received(fd: &OwnedFd) -> Result<Vec<u8>> {
    let mut buffer = vec![0; 64 << 10];
    let length = recv(fd.as_raw_fd(), &mut buffer, MsgFlags::empty()).context("nothing came")?;
    buffer.truncate(length);
    Ok(buffer)
}

/// Does something in a network namespace of its own, which goes with the thread.
fn in_namespace<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET)
                .map_err(io::Error::from)
                .context("making a network namespace; this needs root")?;
            shell("ip link set lo up")?;
            work()
        });
        thread.join().map_err(|_| anyhow::anyhow!("a thread panicked"))?
    })
}
