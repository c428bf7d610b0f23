//! The kernel at the other end: requests with an answer, and notifications.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::sys::socket::{AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recvfrom, sendto, socket};

use super::codec::{Builder, frames};
use super::message::{Note, dump, read};
use crate::net::wait;

/// The kernel never fills a datagram beyond 32 KiB for a list, and a message about a link with many virtual functions can reach that too.
const BUFFER: usize = 64 * 1024;
/// The kernel answers as it is asked; only a driver that takes its time (setting a link up loads firmware) makes one wait.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// Notifications read in one go; the rest is read in the next round, so that a flood of them cannot hold up timers.
const MAX_DATAGRAMS: usize = 64;

// Groups, as bits: RTMGRP_LINK, RTMGRP_IPV4_IFADDR, RTMGRP_IPV4_ROUTE, RTMGRP_IPV6_IFADDR, RTMGRP_IPV6_ROUTE, RTNLGRP_ND_USEROPT (the 20th).
const GROUPS: u32 = 0x1 | 0x10 | 0x40 | 0x100 | 0x400 | (1 << 19);

fn open(groups: u32) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)?;
    bind(fd.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
    Ok(fd)
}

/// One datagram from the kernel; others who send to us are passed over. None if there is nothing to read.
fn receive(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Option<usize>> {
    loop {
        match recvfrom::<NetlinkAddr>(fd.as_raw_fd(), buffer) {
            Ok((n, Some(from))) if from.pid() == 0 => return Ok(Some(n)),
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(nix::Error::EAGAIN) => return Ok(None),
            Err(err) => return Err(err.into()),
        }
    }
}

/// A socket for requests.
#[derive(Debug)]
pub struct Requests {
    fd: OwnedFd,
    seq: u32,
    buffer: Vec<u8>,
}

impl Requests {
    /// Opens the socket.
    pub fn open() -> io::Result<Self> {
        Ok(Self {
            fd: open(0)?,
            seq: 0,
            buffer: vec![0; BUFFER],
        })
    }

    /// Makes a request that is answered by 0 or an errno.
    pub fn change(&mut self, request: Builder) -> io::Result<()> {
        self.ask(request, |_| ())
    }

    /// Asks for a list (`RTM_GET…`).
    pub fn list(&mut self, kind: u16) -> io::Result<Vec<Note>> {
        let mut notes = Vec::new();
        self.ask(dump(kind), |note| notes.push(note))?;
        Ok(notes)
    }

    fn ask(&mut self, request: Builder, mut each: impl FnMut(Note)) -> io::Result<()> {
        self.seq = self.seq.wrapping_add(1).max(1);
        sendto(
            self.fd.as_raw_fd(),
            &request.finish(self.seq),
            &NetlinkAddr::new(0, 0),
            MsgFlags::empty(),
        )?;
        let deadline = Instant::now() + ANSWER_LIMIT;
        loop {
            let Some(length) = receive(self.fd.as_fd(), &mut self.buffer)? else {
                if wait::readable(&[self.fd.as_fd()], Some(deadline))?.is_empty() {
                    return Err(io::Error::new(
                        io::ErrorKind::TimedOut,
                        format!("the kernel gave no answer within {} s", ANSWER_LIMIT.as_secs()),
                    ));
                }
                continue;
            };
            for frame in frames(&self.buffer[..length]).filter(|f| f.seq == self.seq) {
                match read(&frame) {
                    Some(Note::Answer(0) | Note::Done) => return Ok(()),
                    Some(Note::Answer(errno)) => return Err(io::Error::from_raw_os_error(errno)),
                    Some(note) => each(note),
                    None => {}
                }
            }
        }
    }
}

/// A socket for notifications about links, addresses, routes and router advertisements.
#[derive(Debug)]
pub struct Notifications {
    fd: OwnedFd,
    buffer: Vec<u8>,
}

impl Notifications {
    /// Opens the socket; what happens from now on is told.
    pub fn open() -> io::Result<Self> {
        Ok(Self {
            fd: open(GROUPS)?,
            buffer: vec![0; BUFFER],
        })
    }

    /// What has been told since. `Err` of ENOBUFS means that some of it was lost: list again.
    pub fn read(&mut self) -> io::Result<Vec<Note>> {
        let mut notes = Vec::new();
        for _ in 0..MAX_DATAGRAMS {
            let Some(length) = receive(self.fd.as_fd(), &mut self.buffer)? else {
                break;
            };
            notes.extend(frames(&self.buffer[..length]).filter_map(|f| read(&f)));
        }
        Ok(notes)
    }
}

impl AsFd for Notifications {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
