//! The server: `freshroot-publish serve` on loopback, with the log of its requests.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, bail};

const START_LIMIT: Duration = Duration::from_secs(20);

/// One line of the server's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The method.
    pub method: String,
    /// The path.
    pub path: String,
    /// Status of the answer.
    pub status: u16,
    /// Bytes of its body that the kernel took.
    pub bytes: u64,
}

/// A server that runs. Dropping it stops it.
#[derive(Debug)]
pub struct Server {
    child: Child,
    address: SocketAddr,
    requests: Arc<Mutex<Vec<Request>>>,
    readers: Vec<JoinHandle<()>>,
}

impl Server {
    /// Serves `folder` on a free port of `address` (127.0.0.1 or ::1), with `program`. What it logs also goes to `log`.
    pub fn start(program: &Path, folder: &Path, address: &str, log: &Path) -> Result<Self> {
        Self::start_in(None, program, folder, address, log)
    }

    /// The same in a network namespace.
    pub fn start_in(namespace: Option<&Path>, program: &Path, folder: &Path, address: &str, log: &Path) -> Result<Self> {
        let mut child = crate::lan::command(namespace, program)
            .arg("serve")
            .arg(folder)
            .args(["--listen", address])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {}", program.display()))?;
        let output = child.stdout.take().context("the server has no output")?;
        let errors = child.stderr.take().context("the server has no log")?;
        let (sender, receiver) = mpsc::channel();
        let announcing = std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                // Only the first line is waited for; later ones have no receiver.
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        let requests = Arc::new(Mutex::new(Vec::new()));
        let theirs = Arc::clone(&requests);
        let mut file = std::fs::File::create(log).with_context(|| format!("making {}", log.display()))?;
        let logging = std::thread::spawn(move || {
            for line in BufReader::new(errors).lines().map_while(Result::ok) {
                if let Err(error) = std::io::Write::write_all(&mut file, format!("{line}\n").as_bytes()) {
                    eprintln!("server: keeping its log: {error}");
                }
                if let Some(request) = parse(&line) {
                    theirs.lock().unwrap_or_else(PoisonError::into_inner).push(request);
                }
            }
        });
        let mut server = Self {
            child,
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            requests,
            readers: vec![announcing, logging],
        };
        let Ok(line) = receiver.recv_timeout(START_LIMIT) else {
            bail!("the server did not say where it listens; see {}", log.display());
        };
        drop(receiver);
        server.address = line
            .strip_prefix("listening on http://")
            .and_then(|address| address.parse().ok())
            .with_context(|| format!("the server said «{line}» instead of where it listens"))?;
        Ok(server)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The requests that it has answered so far.
    pub fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Stops it; afterwards its port refuses connections, and the log is complete.
    pub fn stop(&mut self) -> Result<()> {
        if let Ok(Some(_)) = self.child.try_wait() {
            return Ok(());
        }
        self.child.kill().context("stopping the server")?;
        self.child.wait().context("waiting for the server")?;
        for reader in self.readers.drain(..) {
            if reader.join().is_err() {
                bail!("a thread that reads the server's output panicked");
            }
        }
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            eprintln!("server: {error:#}");
        }
    }
}

/// `client method path status bytes range milliseconds`; other lines are for people.
fn parse(line: &str) -> Option<Request> {
    let fields: Vec<&str> = line.split(' ').collect();
    let [_, method, path, status, bytes, _, _] = fields.as_slice() else {
        return None;
    };
    Some(Request {
        method: (*method).to_owned(),
        path: (*path).to_owned(),
        status: status.parse().ok()?,
        bytes: bytes.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    #[test]
    fn a_line_of_the_log_is_a_request() {
        let request = parse("127.0.0.1:4242 GET /channels/demo.json 206 1234 bytes=0-9 17").unwrap();
        assert_eq!(
            (request.path.as_str(), request.status, request.bytes),
            ("/channels/demo.json", 206, 1234)
        );
        assert_eq!(parse("accepting a connection: too many open files"), None);
    }
}
