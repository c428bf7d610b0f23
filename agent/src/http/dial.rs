//! Connecting to a server of several addresses, as RFC 8305 says («happy eyeballs»): one attempt after the other, without waiting for the one before to
//! fail. An address that nobody answers at, such as that of a router without a way to IPv6, costs a quarter of a second.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, socket_with, sockopt};

/// RFC 8305, 5, «Connection Attempt Delay»: the value that is recommended.
const DELAY: Duration = Duration::from_millis(250);

/// An attempt under way.
struct Attempt {
    address: SocketAddr,
    socket: OwnedFd,
}

/// Connects to whichever address answers first.
///
/// # Errors
/// What became of each attempt; or that none had answered at the deadline.
pub fn dial(addresses: &[SocketAddr], deadline: Option<Instant>) -> io::Result<TcpStream> {
    let order = in_turn(addresses);
    let mut waiting = order.iter().copied().peekable();
    let mut attempts: Vec<Attempt> = Vec::new();
    let mut failures: Vec<(SocketAddr, io::Error)> = Vec::new();
    let mut next_start = Instant::now();
    loop {
        let now = Instant::now();
        if deadline.is_some_and(|deadline| now >= deadline) {
            failures.extend(attempts.into_iter().map(|one| (one.address, io::ErrorKind::TimedOut.into())));
            return Err(told(failures));
        }
        if (attempts.is_empty() || now >= next_start)
            && let Some(address) = waiting.next()
        {
            next_start = now + DELAY;
            match start(address) {
                Ok((socket, true)) => return finish(socket),
                Ok((socket, false)) => attempts.push(Attempt { address, socket }),
                Err(error) => {
                    failures.push((address, error.into()));
                    next_start = now;
                    continue;
                }
            }
        }
        if attempts.is_empty() && waiting.peek().is_none() {
            return Err(told(failures));
        }
        let until = [waiting.peek().map(|_| next_start), deadline].into_iter().flatten().min();
        for number in writable(&attempts, until)?.into_iter().rev() {
            let Attempt { address, socket } = attempts.remove(number);
            match sockopt::socket_error(&socket)? {
                Ok(()) => return finish(socket),
                Err(error) => {
                    failures.push((address, error.into()));
                    // The next need not wait for what is over.
                    next_start = now;
                }
            }
        }
    }
}

/// The addresses in their order, but families by turns, so that one that leads nowhere does not hold up the other (RFC 8305, 4).
fn in_turn(addresses: &[SocketAddr]) -> Vec<SocketAddr> {
    let Some(first) = addresses.first() else {
        return Vec::new();
    };
    let (mut one, mut other): (Vec<SocketAddr>, Vec<SocketAddr>) = addresses.iter().partition(|a| a.is_ipv4() == first.is_ipv4());
    one.reverse();
    other.reverse();
    let mut order = Vec::new();
    while !one.is_empty() || !other.is_empty() {
        order.extend(one.pop());
        order.extend(other.pop());
    }
    order
}

/// Begins to connect; true if that is done already.
fn start(address: SocketAddr) -> Result<(OwnedFd, bool), Errno> {
    let family = if address.is_ipv4() {
        AddressFamily::INET
    } else {
        AddressFamily::INET6
    };
    let socket = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
    match connect(&socket, &address) {
        Ok(()) => Ok((socket, true)),
        Err(Errno::INPROGRESS | Errno::INTR) => Ok((socket, false)),
        Err(error) => Err(error),
    }
}

fn finish(socket: OwnedFd) -> io::Result<TcpStream> {
    let stream = TcpStream::from(socket);
    stream.set_nonblocking(false)?;
    // A request is one small packet, and its answer is waited for.
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Which attempts have come to an end, by number; none if `until` came first.
fn writable(attempts: &[Attempt], until: Option<Instant>) -> io::Result<Vec<usize>> {
    let mut polled: Vec<PollFd<'_>> = attempts.iter().map(|one| PollFd::new(&one.socket, PollFlags::OUT)).collect();
    let timeout = until.and_then(|until| Timespec::try_from(until.saturating_duration_since(Instant::now())).ok());
    match poll(&mut polled, timeout.as_ref()) {
        Ok(_) | Err(Errno::INTR) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(polled
        .iter()
        .enumerate()
        .filter(|(_, one)| !one.revents().is_empty())
        .map(|(number, _)| number)
        .collect())
}

/// All failures in one sentence, with the kind of the last.
fn told(failures: Vec<(SocketAddr, io::Error)>) -> io::Error {
    let kind = failures.last().map_or(io::ErrorKind::TimedOut, |(_, error)| error.kind());
    let each: Vec<String> = failures
        .iter()
        .map(|(address, error)| {
            if error.kind() == io::ErrorKind::TimedOut {
                format!("{address} does not answer")
            } else {
                format!("{address}: {error}")
            }
        })
        .collect();
    let each = if each.is_empty() {
        "there was no time left".to_owned()
    } else {
        each.join(", ")
    };
    io::Error::new(kind, format!("connecting: {each}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::net::TcpListener;

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn families_take_turns_and_the_first_address_stays_the_first() {
        for (given, order) in [
            (
                &["[::1]:1", "[::2]:1", "1.1.1.1:1", "2.2.2.2:1"][..],
                &["[::1]:1", "1.1.1.1:1", "[::2]:1", "2.2.2.2:1"][..],
            ),
            (
                &["1.1.1.1:1", "[::1]:1", "[::2]:1", "[::3]:1"],
                &["1.1.1.1:1", "[::1]:1", "[::2]:1", "[::3]:1"],
            ),
            (&["1.1.1.1:1", "2.2.2.2:1"], &["1.1.1.1:1", "2.2.2.2:1"]),
            (&[], &[]),
        ] {
            let texts = |texts: &[&str]| texts.iter().map(|text| address(text)).collect::<Vec<_>>();
            assert_eq!(in_turn(&texts(given)), texts(order));
        }
    }

    #[test]
    fn an_address_that_refuses_costs_nothing_and_all_refusals_are_told() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let started = Instant::now();
        let stream = dial(&[gone, listener.local_addr().unwrap()], None).unwrap();
        assert_eq!(stream.peer_addr().unwrap(), listener.local_addr().unwrap());
        assert!(started.elapsed() < DELAY);
        let error = dial(&[gone, address("[::1]:1")], None).unwrap_err().to_string();
        assert!(error.contains(&gone.to_string()) && error.contains("[::1]:1"), "{error}");
        assert!(dial(&[], None).is_err());
    }

    #[test]
    fn a_deadline_that_is_over_ends_it() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let error = dial(&[listener.local_addr().unwrap()], Some(Instant::now())).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
