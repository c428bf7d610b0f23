//! The two ways of a DHCP client onto the wire: frames while it has no address, UDP from its address when it renews.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, bind, recvfrom, send, setsockopt, socket, sockopt,
};

use super::message::{MAX_LEN, Message};
use super::{CLIENT_PORT, SERVER_PORT, frame};
use crate::net::mac::Mac;

/// A jumbo frame; what does not fit is cut and then refused by its sums.
const FRAME_BUFFER: usize = 9216;
/// Packets read in one go, so that a busy network cannot hold up timers.
const MAX_PACKETS: usize = 64;

/// Raw Ethernet frames on one interface.
#[derive(Debug)]
pub struct FrameSocket {
    fd: OwnedFd,
    index: u32,
    mac: Mac,
}

impl FrameSocket {
    /// Opens a packet socket on the interface `name`, which has the number `index`.
    pub fn open(name: &str, index: u32, mac: Mac) -> io::Result<Self> {
        // No crate makes a `sockaddr_ll` without `unsafe`, but getifaddrs(3) hands out one for each interface, and that is what bind(2) wants.
        // It names no protocol, so the socket's own stays (packet(7)).
        let target = nix::ifaddrs::getifaddrs()?
            .filter(|entry| entry.interface_name == name)
            .find_map(|entry| entry.address?.as_link_addr().copied())
            .filter(|addr| u32::try_from(addr.ifindex()).is_ok_and(|i| i == index))
            .ok_or_else(|| {
                io::Error::new(
                    io::ErrorKind::NotFound,
                    format!("the kernel lists no interface {name} with number {index} any more"),
                )
            })?;
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthIp)?;
        bind(fd.as_raw_fd(), &target)?;
        Ok(Self { fd, index, mac })
    }

    /// Sends a message to all servers.
    pub fn send(&self, message: &Message) -> io::Result<()> {
        send(self.fd.as_raw_fd(), &frame::encode(self.mac, &message.encode()), MsgFlags::empty())?;
        Ok(())
    }

    /// The messages from servers that have come in.
    pub fn receive(&self) -> io::Result<Vec<Message>> {
        let mut messages = Vec::new();
        let mut buffer = [0; FRAME_BUFFER];
        for _ in 0..MAX_PACKETS {
            match recvfrom::<LinkAddr>(self.fd.as_raw_fd(), &mut buffer) {
                // Between socket() and bind() frames of other interfaces can have been queued.
                Ok((length, from)) if from.is_none_or(|f| u32::try_from(f.ifindex()).is_ok_and(|i| i == self.index)) => {
                    messages.extend(frame::payload(&buffer[..length]).and_then(understood));
                }
                Ok(_) | Err(nix::Error::EINTR) => {}
                Err(nix::Error::EAGAIN) => break,
                Err(err) => return Err(err.into()),
            }
        }
        Ok(messages)
    }
}

impl AsFd for FrameSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// UDP on an interface that has its address.
#[derive(Debug)]
pub struct AddressSocket(UdpSocket);

impl AddressSocket {
    /// Opens the socket on the interface `name`.
    pub fn open(name: &str) -> io::Result<Self> {
        // Not bound to the leased address: a refusal (DHCPNAK) comes by broadcast, RFC 2131 §4.3.2. The kernel sends from the interface's address.
        let udp = UdpSocket::bind(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, CLIENT_PORT))?;
        setsockopt(&udp, sockopt::BindToDevice, &name.into())?;
        udp.set_broadcast(true)?;
        udp.set_nonblocking(true)?;
        Ok(Self(udp))
    }

    /// Sends a message to a server, or to all with [`Ipv4Addr::BROADCAST`].
    pub fn send(&self, to: Ipv4Addr, message: &Message) -> io::Result<()> {
        self.0.send_to(&message.encode(), SocketAddrV4::new(to, SERVER_PORT))?;
        Ok(())
    }

    /// The messages from servers that have come in.
    pub fn receive(&self) -> io::Result<Vec<Message>> {
        let mut messages = Vec::new();
        let mut buffer = [0; MAX_LEN + 1];
        for _ in 0..MAX_PACKETS {
            match self.0.recv_from(&mut buffer) {
                Ok((length, from)) if from.port() == SERVER_PORT => messages.extend(understood(&buffer[..length])),
                Ok(_) => {}
                Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => break,
                Err(err) => return Err(err),
            }
        }
        Ok(messages)
    }
}

impl AsFd for AddressSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn understood(bytes: &[u8]) -> Option<Message> {
    Message::parse(bytes)
        .inspect_err(|why| log::debug!("dhcp: a message is passed over: {why}"))
        .ok()
}
