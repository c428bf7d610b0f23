//! A name server of two kinds of answers, which can be late.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::net::Net;

/// How often it looks for answers that are due, and whether it is to end.
const LOOK: Duration = Duration::from_millis(10);
const A: u16 = 1;
const AAAA: u16 = 28;

/// A name server that runs until it is dropped. It answers every name with the same addresses.
#[derive(Debug)]
pub struct NameServer {
    closed: Arc<AtomicBool>,
    asked: Arc<AtomicU64>,
    server: Option<JoinHandle<()>>,
}

impl NameServer {
    /// Answers at `address` in `net`, each question `late` after it came.
    pub fn start(net: &Net, address: IpAddr, a: Ipv4Addr, aaaa: Option<Ipv6Addr>, late: Duration) -> Result<Self> {
        let socket = net.within(|| UdpSocket::bind(SocketAddr::from((address, 53))).context("listening for DNS"))?;
        socket.set_read_timeout(Some(LOOK)).context("limiting a wait")?;
        let (closed, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let theirs = (Arc::clone(&closed), Arc::clone(&asked));
        let server = std::thread::spawn(move || {
            let mut buffer = [0; 512];
            let mut waiting: VecDeque<(Instant, Vec<u8>, SocketAddr)> = VecDeque::new();
            while !theirs.0.load(Ordering::Relaxed) {
                while let Some((due, answer, to)) = waiting.pop_front() {
                    if due > Instant::now() {
                        waiting.push_front((due, answer, to));
                        break;
                    }
                    // Who asked may be gone.
                    drop(socket.send_to(&answer, to));
                }
                let Ok((length, from)) = socket.recv_from(&mut buffer) else {
                    continue;
                };
                theirs.1.fetch_add(1, Ordering::Relaxed);
                if let Some(answer) = answer(buffer.get(..length).unwrap_or_default(), a, aaaa) {
                    waiting.push_back((Instant::now() + late, answer, from));
                }
            }
        });
        Ok(Self {
            closed,
            asked,
            server: Some(server),
        })
    }

    /// How many questions came.
    pub fn asked(&self) -> u64 {
        self.asked.load(Ordering::Relaxed)
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.closed.store(true, Ordering::Relaxed);
        if self.server.take().is_some_and(|server| server.join().is_err()) {
            eprintln!("dns: a thread panicked");
        }
    }
}

/// The answer to the one question of `query` (RFC 1035, 4): its head and question as they came, and an address if there is one of its kind.
fn answer(query: &[u8], a: Ipv4Addr, aaaa: Option<Ipv6Addr>) -> Option<Vec<u8>> {
    let mut end = 12;
    while *query.get(end)? != 0 {
        end += 1 + usize::from(*query.get(end)?);
    }
    let kind = u16::from_be_bytes([*query.get(end + 1)?, *query.get(end + 2)?]);
    let question = query.get(12..end + 5)?;
    let address = match kind {
        A => Some(a.octets().to_vec()),
        AAAA => aaaa.map(|address| address.octets().to_vec()),
        _ => None,
    };
    let mut answer = query.get(..2)?.to_vec();
    // An answer, recursion wanted and available; one question, so many answers.
    answer.extend([0x81, 0x80, 0, 1, 0, u8::from(address.is_some()), 0, 0, 0, 0]);
    answer.extend(question);
    if let Some(address) = address {
        // The name of the question, its kind and class, and a time to live of a minute.
        answer.extend([0xc0, 12]);
        answer.extend(kind.to_be_bytes());
        answer.extend([0, 1, 0, 0, 0, 60]);
        answer.extend((address.len() as u16).to_be_bytes());
        answer.extend(address);
    }
    Some(answer)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    #[test]
    fn a_question_gets_the_address_of_its_kind() {
        let query = |kind: u8| [&[7, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0][..], b"\x01x\x03lan\x00", &[0, kind, 0, 1]].concat();
        let a = Ipv4Addr::new(10, 0, 0, 1);
        let found = answer(&query(1), a, None).unwrap();
        assert!(
            found.starts_with(&[7, 7, 0x81, 0x80, 0, 1, 0, 1]) && found.ends_with(&[0, 4, 10, 0, 0, 1]),
            "{found:?}"
        );
        assert_eq!(answer(&query(28), a, None).unwrap()[7], 0);
        assert!(answer(&query(28), a, Some(Ipv6Addr::LOCALHOST)).unwrap().ends_with(&[0, 0, 1]));
        assert_eq!(answer(b"\x07\x07", a, None), None);
    }
}
