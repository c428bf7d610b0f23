//! The client with its sockets, on one interface.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

use super::client::{Action, Client, Config, Event, Gone, Way};
use super::lease::Lease;
use super::message::Message;
use super::socket::{AddressSocket, FrameSocket};

/// What comes of a turn, for the owner of the interface.
#[derive(Debug)]
pub enum Outcome {
    /// The lease is ours, new or renewed, and counts from this moment.
    Leased(Lease, Instant),
    /// The lease is gone: remove the address.
    Gone(Gone),
    /// Something went wrong; the client goes on by its timers.
    Trouble(String),
}

/// A DHCP client at work.
#[derive(Debug)]
pub struct Session {
    name: String,
    index: u32,
    client: Client,
    frames: Option<FrameSocket>,
    udp: Option<AddressSocket>,
}

impl Session {
    /// Begins on the interface `name`, which has the number `index`. The first message leaves with the first [`Session::turn`].
    pub fn new(name: &str, index: u32, config: Config, seed: u64, now: Instant) -> Self {
        Self {
            name: name.to_owned(),
            index,
            client: Client::new(config, seed, now),
            frames: None,
            udp: None,
        }
    }

    /// See [`Client::hurry`].
    pub const fn hurry(&mut self, now: Instant) {
        self.client.hurry(now);
    }

    /// When something is to be done without anybody sending anything.
    pub const fn next_timer(&self) -> Option<Instant> {
        self.client.next_timer()
    }

    /// How often a server was asked for.
    pub const fn asked(&self) -> u32 {
        self.client.discovers()
    }

    /// The sockets to wait for.
    pub fn sockets(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.frames.iter().map(AsFd::as_fd).chain(self.udp.iter().map(AsFd::as_fd))
    }

    /// Reads what has come in, and does what is due. Cheap if nothing has and nothing is.
    pub fn turn(&mut self, now: Instant) -> Vec<Outcome> {
        let mut outcomes = Vec::new();
        // The kernel reports an error once (the interface went down, say); the next message that is sent opens a new socket.
        let received = match (&self.frames, &self.udp) {
            (Some(frames), _) => frames.receive(),
            (None, Some(udp)) => udp.receive(),
            (None, None) => Ok(Vec::new()),
        };
        match received {
            Ok(messages) => messages.iter().for_each(|m| self.advance(now, Event::Received(m), &mut outcomes)),
            Err(err) => {
                outcomes.push(Outcome::Trouble(format!("listening to DHCP servers on {}: {err}", self.name)));
                self.frames = None;
                self.udp = None;
            }
        }
        self.advance(now, Event::Timer, &mut outcomes);
        outcomes
    }

    fn advance(&mut self, now: Instant, event: Event<'_>, outcomes: &mut Vec<Outcome>) {
        for action in self.client.handle(now, event) {
            match action {
                Action::Send(way, message) => {
                    if let Err(err) = self.send(way, &message) {
                        outcomes.push(Outcome::Trouble(format!("asking a DHCP server on {}: {err}", self.name)));
                    }
                }
                Action::Configure { lease, since } => outcomes.push(Outcome::Leased(*lease, since)),
                Action::Deconfigure(gone) => outcomes.push(Outcome::Gone(gone)),
            }
        }
        // Never both at once: either there is an address to receive by, or there is not.
        if self.client.needs_frames() {
            self.udp = None;
        } else {
            self.frames = None;
        }
    }

    fn send(&mut self, way: Way, message: &Message) -> io::Result<()> {
        let to = match way {
            Way::Frame => {
                let frames = match self.frames.take() {
                    Some(frames) => frames,
                    None => FrameSocket::open(&self.name, self.index, message.chaddr)?,
                };
                return self.frames.insert(frames).send(message);
            }
            Way::Unicast(server) => server,
            Way::Broadcast => Ipv4Addr::BROADCAST,
        };
        let udp = match self.udp.take() {
            Some(udp) => udp,
            None => AddressSocket::open(&self.name)?,
        };
        self.udp.insert(udp).send(to, message)
    }
}
