//! Uevents, as netlink delivers them.
//!
//! The kernel multicasts every event to the group 1 of `NETLINK_KOBJECT_UEVENT`, in the network namespaces that belong to the initial user
//! namespace (Linux `lib/kobject_uevent.c`). Where udev runs, it tells the group 2 of a device once its rules are done with it: only then are there the
//! links that it makes.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Instant;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recvfrom, setsockopt, socket, sockopt::RcvBufForce,
};

/// The kernel's group.
const KERNEL: u32 = 1;
/// udev's group.
const UDEV: u32 = 2;
/// How a message of udev begins (systemd's `src/libsystemd/sd-device/device-monitor.c`, `monitor_netlink_header`): this, a magic number in network order, then the
/// sizes of the header and the place and length of the properties in the machine's own order.
const UDEV_PREFIX: &[u8] = b"libudev\0\xfe\xed\xca\xfe";

/// More than the kernel puts into one message: `UEVENT_BUFFER_SIZE` (2048) and a path.
const MESSAGE: usize = 8192;

/// Room for the events of a coldplug with hundreds of devices, at some 700 bytes each as the kernel counts them. What does not fit is
/// reported as [`Received::Overrun`].
const BUFFER: usize = 1024 * 1024;

/// An event of one device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uevent {
    /// What happened: `add`, `change`, `remove`, `bind`, …
    pub action: String,
    /// The device's folder below `/sys`, e.g. `/devices/virtual/block/loop0`.
    pub devpath: String,
    properties: Vec<(String, String)>,
}

impl Uevent {
    /// The value of a property, such as `SUBSYSTEM`, `DEVNAME` or `MODALIAS`.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.properties
            .iter()
            .find(|(name, _)| name == key)
            .map(|(_, value)| value.as_str())
    }

    /// Whether a block device has come or changed; its name in sysfs is the last part of `devpath`.
    pub fn is_block_news(&self) -> bool {
        self.get("SUBSYSTEM") == Some("block") && matches!(self.action.as_str(), "add" | "change")
    }

    /// The alias by which a driver is found, if the device is new.
    pub fn new_modalias(&self) -> Option<&str> {
        if self.action == "add" { self.get("MODALIAS") } else { None }
    }

    /// The device's name in its class.
    pub fn device(&self) -> &str {
        self.devpath.rsplit('/').next().unwrap_or_default()
    }
}

/// Parses a message of the kernel, `ACTION@DEVPATH\0KEY=VALUE\0…`. Anything else, such as udev's messages (`libudev\0…`), is `None`.
pub fn parse(message: &[u8]) -> Option<Uevent> {
    let mut fields = message.split(|byte| *byte == 0).map(String::from_utf8_lossy);
    let head = fields.next()?;
    let (action, devpath) = head.split_once('@')?;
    if action.is_empty() || !devpath.starts_with('/') {
        return None;
    }
    Some(Uevent {
        action: action.to_owned(),
        devpath: devpath.to_owned(),
        properties: properties(fields),
    })
}

/// Parses a message of udev. Anything else is `None`.
pub fn parse_udev(message: &[u8]) -> Option<Uevent> {
    let header = message.strip_prefix(UDEV_PREFIX)?;
    let number = |at: usize| Some(u32::from_ne_bytes(header.get(at..at + 4)?.try_into().ok()?) as usize);
    let (start, length) = (number(4)?, number(8)?);
    let fields = message.get(start..start.checked_add(length)?)?.split(|byte| *byte == 0);
    let properties = properties(fields.map(String::from_utf8_lossy));
    let value = |wanted: &str| {
        let mut found = properties.iter().filter(|(key, _)| key == wanted);
        found.next().map(|(_, value)| value.clone()).filter(|value| !value.is_empty())
    };
    Some(Uevent {
        action: value("ACTION")?,
        devpath: value("DEVPATH").filter(|path| path.starts_with('/'))?,
        properties,
    })
}

fn properties<'a>(fields: impl Iterator<Item = std::borrow::Cow<'a, str>>) -> Vec<(String, String)> {
    fields
        .filter_map(|field| field.split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned())))
        .collect()
}

/// What came of waiting for an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Received {
    /// An event.
    Event(Uevent),
    /// The kernel dropped events because they were not read in time: look at everything again.
    Overrun,
    /// The deadline has passed, and nothing is waiting.
    Deadline,
}

/// A source of events: the kernel's socket, or a script in a test.
pub trait Source {
    /// The next event, waiting for it until `deadline`. A deadline that has passed asks for what is there already.
    ///
    /// # Errors
    /// Those of polling and receiving; none of them passes by waiting.
    fn next(&mut self, deadline: Instant) -> io::Result<Received>;
}

/// The events of the kernel, and of udev where asked for, from the moment of opening on.
#[derive(Debug)]
pub struct Socket(OwnedFd);

impl Socket {
    /// Subscribes to the kernel's events. Do it before the first look at `/sys`, so that nothing falls in between.
    ///
    /// # Errors
    /// Those of `socket` and `bind`.
    pub fn open() -> io::Result<Self> {
        Self::of(KERNEL)
    }

    /// As [`Socket::open`], and subscribes to udev's, too.
    ///
    /// # Errors
    /// Those of `socket` and `bind`.
    pub fn open_with_udev() -> io::Result<Self> {
        Self::of(KERNEL | UDEV)
    }

    fn of(groups: u32) -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Datagram,
            flags,
            SockProtocol::NetlinkKObjectUEvent,
        )?;
        if let Err(error) = setsockopt(&socket, RcvBufForce, &BUFFER) {
            // Only without CAP_NET_ADMIN. The usual buffer holds some 200 events, and an overrun is noticed.
            log::debug!("keeping the usual buffer for uevents: {error}");
        }
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
        Ok(Self(socket))
    }

    /// A message that is there already; `None` if there is none.
    fn receive(&self) -> Result<Option<Received>, Errno> {
        let mut message = [0; MESSAGE];
        loop {
            let (length, sender) = match recvfrom::<NetlinkAddr>(self.0.as_raw_fd(), &mut message) {
                Ok(received) => received,
                Err(Errno::EAGAIN) => return Ok(None),
                Err(Errno::ENOBUFS) => return Ok(Some(Received::Overrun)),
                Err(Errno::EINTR) => continue,
                Err(error) => return Err(error),
            };
            // Any process with CAP_SYS_ADMIN can send to a group; only the kernel has the port 0.
            let from_kernel = sender.is_some_and(|sender| sender.pid() == 0);
            let parse = if from_kernel { parse } else { parse_udev };
            if let Some(event) = message.get(..length).and_then(parse) {
                return Ok(Some(Received::Event(event)));
            }
        }
    }
}

impl Source for Socket {
    fn next(&mut self, deadline: Instant) -> io::Result<Received> {
        loop {
            if let Some(received) = self.receive()? {
                return Ok(received);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(Received::Deadline);
            }
            // Rounded up, so that the last millisecond is not spent turning.
            let timeout = i32::try_from(left.as_millis().saturating_add(1)).unwrap_or(i32::MAX);
            let mut ready = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
            match poll(&mut ready, PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX)) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    #[test]
    fn a_message_of_the_kernel_is_an_event() {
        let event = parse(
            b"add@/devices/pci0000:00/0000:00:04.0/virtio1/block/vda/vda1\0ACTION=add\0SUBSYSTEM=block\0DEVNAME=vda1\0PARTNAME=a=b\0SEQNUM=820\0",
        )
        .unwrap();
        assert_eq!((event.action.as_str(), event.device()), ("add", "vda1"));
        assert_eq!(event.get("PARTNAME"), Some("a=b"));
        assert_eq!(event.get("ABSENT"), None);
        assert!(event.is_block_news());
    }

    #[test]
    fn only_a_new_device_asks_for_a_driver() {
        let message = |action: &str| parse(format!("{action}@/devices/x\0SUBSYSTEM=virtio\0MODALIAS=virtio:d1v1af4\0").as_bytes()).unwrap();
        assert_eq!(message("add").new_modalias(), Some("virtio:d1v1af4"));
        assert_eq!(message("bind").new_modalias(), None);
        assert!(!message("add").is_block_news());
    }

    #[test]
    fn a_message_of_udev_is_an_event_once_its_rules_are_done() {
        let properties = b"UDEV_DATABASE_VERSION=1\0ACTION=change\0DEVPATH=/devices/virtual/block/dm-0\0SUBSYSTEM=block\0";
        let message = |start: u32, length: usize| {
            let numbers = [40, start, length as u32, 1, 2, 3, 4].map(u32::to_ne_bytes).concat();
            [UDEV_PREFIX, &numbers, properties].concat()
        };
        let event = parse_udev(&message(40, properties.len())).unwrap();
        assert_eq!(
            (event.action.as_str(), event.device(), event.is_block_news()),
            ("change", "dm-0", true)
        );
        for (start, length) in [(40, properties.len() + 1), (41, properties.len()), (u32::MAX, 1), (40, 0), (40, 24)] {
            assert_eq!(parse_udev(&message(start, length)), None, "{start} {length}");
        }
        assert_eq!(parse(&message(40, properties.len())), None);
        for other in [&b"libudev\0"[..], b"add@/devices/x\0", UDEV_PREFIX] {
            assert_eq!(parse_udev(other), None);
        }
    }

    #[test]
    fn messages_of_udev_and_garbage_are_ignored() {
        for message in [
            &b"libudev\0\xfe\xed\xca\xfe"[..],
            b"",
            b"add",
            b"@/devices/x",
            b"add@",
            b"add@devices",
            b"\0add@/x",
        ] {
            assert_eq!(parse(message), None, "{message:?}");
        }
    }

    #[test]
    fn waiting_ends_at_the_deadline_and_not_before() {
        let mut socket = Socket::open().unwrap();
        let begin = Instant::now();
        let deadline = begin + Duration::from_millis(60);
        // Events of other devices may come in between.
        while socket.next(deadline).unwrap() != Received::Deadline {}
        assert!(begin.elapsed() >= Duration::from_millis(60));
    }

    proptest! {
        #[test]
        fn any_message_is_parsed_without_panic(message in prop::collection::vec(any::<u8>(), 0..200)) {
            parse(&message);
            parse_udev(&[UDEV_PREFIX, &message].concat());
        }
    }
}
