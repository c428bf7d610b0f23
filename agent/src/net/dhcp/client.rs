//! The protocol as a function: state and event in, actions out (RFC 2131 §4.4). Time and chance are arguments; nothing here waits or sends.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use super::lease::Lease;
use super::message::{Kind, MAX_SIZE_ASKED, Message, code};
use crate::net::mac::Mac;

/// RFC 2131 §4.1: every delay is spread by up to a second either way, so that a rack that was switched on at once does not ask at once.
const JITTER_MS: u64 = 1000;
/// How often an offer is asked for before one starts over: the server may have gone or given the address away.
const REQUEST_TRIES: u32 = 4;
/// RFC 2131 §4.4.5: renewals are repeated at half of what is left, and not more often than this.
const MIN_RENEWAL_GAP: Duration = Duration::from_secs(60);
/// After a refusal one waits this long, so that a broken server is not asked in a tight loop.
const AFTER_NAK: Duration = Duration::from_secs(2);

const ASKED_FOR: [u8; 9] = [
    code::SUBNET_MASK,
    code::CLASSLESS_ROUTES, // RFC 3442 wants it before the routers
    code::ROUTER,
    code::DNS,
    code::DOMAIN,
    code::MTU,
    code::LEASE_TIME,
    code::T1,
    code::T2,
];

/// What the client says about itself and how patient it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The interface's address; also the client identifier.
    pub mac: Mac,
    /// A host name to tell the server.
    pub hostname: Option<String>,
    /// An address to ask for.
    pub requested: Option<Ipv4Addr>,
    /// The first delay before a message is repeated; each further one is twice as long.
    pub first_retry: Duration,
    /// The longest delay.
    pub longest_retry: Duration,
}

/// Where in the protocol the client is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    /// Waiting before a DISCOVER.
    Init,
    /// DISCOVER sent `tries` times.
    Selecting { tries: u32 },
    /// REQUEST for an offer sent `tries` times.
    Requesting { offer: Lease, tries: u32, asked_at: Instant },
    /// Holding a lease, asked for at `since`.
    Bound { lease: Lease, since: Instant },
    /// As bound, and asking our server for more time; the last request went out at `asked_at`.
    Renewing { lease: Lease, since: Instant, asked_at: Instant },
    /// As bound, and asking any server for more time.
    Rebinding { lease: Lease, since: Instant, asked_at: Instant },
}

/// How a message leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// As a frame of our own to everybody: there is no address.
    Frame,
    /// By UDP from our address to this server.
    Unicast(Ipv4Addr),
    /// By UDP from our address to everybody.
    Broadcast,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Send this.
    Send(Way, Box<Message>),
    /// The lease is ours, new or renewed; it counts from `since`.
    Configure {
        /// The lease.
        lease: Box<Lease>,
        /// When it was asked for.
        since: Instant,
    },
    /// The lease is gone: remove the address.
    Deconfigure(Gone),
}

/// Why a lease is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gone {
    /// The server refused to renew it.
    Refused,
    /// Nobody renewed it in time.
    Expired,
}

/// What happened.
#[derive(Debug, Clone, Copy)]
pub enum Event<'a> {
    /// [`Client::next_timer`] has passed.
    Timer,
    /// A message came in, by either socket.
    Received(&'a Message),
}

/// A DHCP client for one interface.
#[derive(Debug, Clone)]
pub struct Client {
    config: Config,
    state: State,
    timer: Option<Instant>,
    xid: u32,
    began: Instant,
    chance: u64,
    discovers: u32,
}

impl Client {
    /// A client that wants to send its first DISCOVER at once. `seed` makes transaction numbers and jitter; two machines should differ in it.
    pub fn new(config: Config, seed: u64, now: Instant) -> Self {
        let mut client = Self {
            config,
            state: State::Init,
            timer: Some(now),
            xid: 0,
            began: now,
            // xorshift stays at zero for ever if it begins there.
            chance: seed | 1,
            discovers: 0,
        };
        client.new_transaction();
        client
    }

    /// When [`Event::Timer`] is due.
    pub const fn next_timer(&self) -> Option<Instant> {
        self.timer
    }

    /// What was sent so far may have been lost: if nobody has answered, ask again at once.
    pub const fn hurry(&mut self, now: Instant) {
        if matches!(self.state, State::Selecting { .. }) {
            self.timer = Some(now);
        }
    }

    /// How many DISCOVERs went out.
    pub const fn discovers(&self) -> u32 {
        self.discovers
    }

    /// Whether the answers come to a frame socket (there is no address to receive them by).
    pub const fn needs_frames(&self) -> bool {
        match self.state {
            State::Init | State::Selecting { .. } | State::Requesting { .. } => true,
            State::Bound { .. } | State::Renewing { .. } | State::Rebinding { .. } => false,
        }
    }

    /// Takes an event in and says what to do.
    pub fn handle(&mut self, now: Instant, event: Event<'_>) -> Vec<Action> {
        match event {
            Event::Timer if self.timer.is_some_and(|t| t <= now) => self.on_timer(now),
            Event::Timer => Vec::new(),
            Event::Received(m) if m.op == 2 && m.xid == self.xid && m.chaddr == self.config.mac => self.on_message(now, m),
            Event::Received(_) => Vec::new(),
        }
    }

    fn on_timer(&mut self, now: Instant) -> Vec<Action> {
        match self.state.clone() {
            State::Init => self.discover(now, 1),
            State::Selecting { tries } => self.discover(now, tries.saturating_add(1)),
            State::Requesting { tries, .. } if tries >= REQUEST_TRIES => {
                self.new_transaction();
                self.discover(now, 1)
            }
            State::Requesting { offer, tries, .. } => self.request(now, offer, tries + 1),
            // Also the first time: whoever slept through the lease wakes up without it.
            State::Bound { lease, since } | State::Renewing { lease, since, .. } | State::Rebinding { lease, since, .. } => {
                match lease.time {
                    Some(time) if now >= since + time.valid => self.lose(now, Gone::Expired, Duration::ZERO),
                    Some(_) | None => self.renew(now, lease, since),
                }
            }
        }
    }

    fn on_message(&mut self, now: Instant, message: &Message) -> Vec<Action> {
        match (self.state.clone(), message.kind) {
            (State::Selecting { .. }, Kind::Offer) => match Lease::from_message(message) {
                Ok(offer) => self.request(now, offer, 1),
                Err(why) => {
                    log::warn!("dhcp: an offer for {} is passed over: {why}", self.config.mac);
                    Vec::new()
                }
            },
            (State::Requesting { offer, asked_at, .. }, Kind::Ack) => {
                self.acknowledged(message, asked_at, |new| new.server == offer.server)
            }
            (State::Renewing { lease, asked_at, .. } | State::Rebinding { lease, asked_at, .. }, Kind::Ack) => {
                self.acknowledged(message, asked_at, |new| new.address == lease.address)
            }
            (State::Requesting { offer, .. }, Kind::Nak) if message.address(code::SERVER_ID).is_none_or(|s| s == offer.server) => {
                self.say_refusal(message);
                self.start_over(now + AFTER_NAK);
                Vec::new()
            }
            (State::Renewing { .. } | State::Rebinding { .. }, Kind::Nak) => {
                self.say_refusal(message);
                self.lose(now, Gone::Refused, AFTER_NAK)
            }
            // Late, doubled or foreign messages.
            (
                State::Init
                | State::Selecting { .. }
                | State::Requesting { .. }
                | State::Bound { .. }
                | State::Renewing { .. }
                | State::Rebinding { .. },
                Kind::Discover | Kind::Offer | Kind::Request | Kind::Decline | Kind::Ack | Kind::Nak | Kind::Release | Kind::Inform,
            ) => Vec::new(),
        }
    }

    fn say_refusal(&self, message: &Message) {
        let words = message
            .text(code::MESSAGE)
            .map(|t| t.escape_default().to_string())
            .unwrap_or_default();
        log::warn!("dhcp: the server refuses the address for {} ({words})", self.config.mac);
    }

    fn acknowledged(&mut self, message: &Message, since: Instant, fits: impl Fn(&Lease) -> bool) -> Vec<Action> {
        match Lease::from_message(message) {
            Ok(lease) if fits(&lease) => {
                self.timer = lease.time.map(|t| since + t.t1);
                self.state = State::Bound {
                    lease: lease.clone(),
                    since,
                };
                vec![Action::Configure {
                    lease: Box::new(lease),
                    since,
                }]
            }
            Ok(_) => Vec::new(),
            Err(why) => {
                log::warn!("dhcp: an acknowledgement for {} is passed over: {why}", self.config.mac);
                Vec::new()
            }
        }
    }

    fn lose(&mut self, now: Instant, gone: Gone, wait: Duration) -> Vec<Action> {
        self.start_over(now + wait);
        vec![Action::Deconfigure(gone)]
    }

    fn start_over(&mut self, at: Instant) {
        self.new_transaction();
        self.state = State::Init;
        self.timer = Some(at);
        self.began = at;
    }

    fn discover(&mut self, now: Instant, tries: u32) -> Vec<Action> {
        self.state = State::Selecting { tries };
        self.timer = Some(now + self.back_off(tries));
        self.discovers = self.discovers.saturating_add(1);
        let wish = self.config.requested.map(|a| (code::REQUESTED_ADDRESS, a.octets().to_vec()));
        vec![self.send(now, Way::Frame, Kind::Discover, Ipv4Addr::UNSPECIFIED, wish.into_iter().collect())]
    }

    fn request(&mut self, now: Instant, offer: Lease, tries: u32) -> Vec<Action> {
        let options = vec![
            (code::REQUESTED_ADDRESS, offer.address.octets().to_vec()),
            (code::SERVER_ID, offer.server.octets().to_vec()),
        ];
        // The lease counts from the first request: a late answer may be to that one.
        let asked_at = match &self.state {
            State::Requesting { asked_at, .. } => *asked_at,
            State::Init | State::Selecting { .. } | State::Bound { .. } | State::Renewing { .. } | State::Rebinding { .. } => now,
        };
        self.state = State::Requesting { offer, tries, asked_at };
        self.timer = Some(now + self.back_off(tries));
        vec![self.send(now, Way::Frame, Kind::Request, Ipv4Addr::UNSPECIFIED, options)]
    }

    fn renew(&mut self, now: Instant, lease: Lease, since: Instant) -> Vec<Action> {
        let Some(time) = lease.time else {
            self.timer = None;
            return Vec::new();
        };
        if matches!(self.state, State::Bound { .. }) {
            self.new_transaction();
            self.began = now;
        }
        let (rebind_at, end) = (since + time.t2, since + time.valid);
        let address = lease.address;
        let (way, limit) = if now < rebind_at {
            (Way::Unicast(lease.server), rebind_at)
        } else {
            (Way::Broadcast, end)
        };
        let left = limit.saturating_duration_since(now);
        self.timer = Some(now + (left / 2).max(MIN_RENEWAL_GAP).min(left));
        self.state = match way {
            Way::Unicast(_) | Way::Frame => State::Renewing {
                lease,
                since,
                asked_at: now,
            },
            Way::Broadcast => State::Rebinding {
                lease,
                since,
                asked_at: now,
            },
        };
        vec![self.send(now, way, Kind::Request, address, Vec::new())]
    }

    fn send(&self, now: Instant, way: Way, kind: Kind, ciaddr: Ipv4Addr, mut options: Vec<(u8, Vec<u8>)>) -> Action {
        let mut id = vec![1];
        id.extend(self.config.mac.bytes());
        options.push((code::CLIENT_ID, id));
        options.push((code::VENDOR_CLASS, b"freshroot".to_vec()));
        options.push((code::MAX_MESSAGE_SIZE, MAX_SIZE_ASKED.to_be_bytes().to_vec()));
        options.push((code::PARAMETER_LIST, ASKED_FOR.to_vec()));
        if let Some(name) = &self.config.hostname {
            options.push((code::HOST_NAME, name.clone().into_bytes()));
        }
        let message = Message {
            op: 1,
            xid: self.xid,
            secs: u16::try_from(now.saturating_duration_since(self.began).as_secs()).unwrap_or(u16::MAX),
            broadcast: matches!(way, Way::Frame),
            ciaddr,
            yiaddr: Ipv4Addr::UNSPECIFIED,
            siaddr: Ipv4Addr::UNSPECIFIED,
            giaddr: Ipv4Addr::UNSPECIFIED,
            chaddr: self.config.mac,
            kind,
            options,
        };
        Action::Send(way, Box::new(message))
    }

    fn back_off(&mut self, tries: u32) -> Duration {
        let doubled = self.config.first_retry.saturating_mul(1 << tries.saturating_sub(1).min(16));
        let jitter = Duration::from_millis(self.random() % (2 * JITTER_MS + 1));
        let base = doubled.min(self.config.longest_retry);
        // Around the base, and never below half of it, however small the base was chosen.
        (base + jitter).saturating_sub(Duration::from_millis(JITTER_MS)).max(base / 2)
    }

    fn new_transaction(&mut self) {
        let bytes = self.random().to_le_bytes();
        self.xid = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    }

    /// xorshift64*: nobody's secret hangs on it.
    fn random(&mut self) -> u64 {
        self.chance ^= self.chance >> 12;
        self.chance ^= self.chance << 25;
        self.chance ^= self.chance >> 27;
        self.chance.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 8
    }
}

#[cfg(test)]
mod tests;
