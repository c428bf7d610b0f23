//! `resolv.conf` and `hosts`: what the C library's resolver reads.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::path::Path;

use serde::{Serialize, Serializer};

use super::prefix::is_link_local;

/// glibc reads three servers and ignores the rest (resolv.conf(5), MAXNS).
const MAX_SERVERS: usize = 3;
/// resolv.conf(5): older C libraries read six domains.
const MAX_DOMAINS: usize = 6;

/// A DNS server; a link-local one needs the interface that it is reached through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    address: IpAddr,
    scope: Option<String>,
}

impl Server {
    /// A server that is reached through `interface`.
    pub fn new(address: IpAddr, interface: &str) -> Self {
        Self {
            address,
            scope: is_link_local(address).then(|| interface.to_owned()),
        }
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.scope {
            Some(scope) => write!(f, "{}%{scope}", self.address),
            None => write!(f, "{}", self.address),
        }
    }
}

impl Serialize for Server {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The servers and domains that count, best first, each once, no more than are read.
pub fn choose(servers: impl IntoIterator<Item = Server>, domains: impl IntoIterator<Item = String>) -> (Vec<Server>, Vec<String>) {
    let mut chosen = (Vec::new(), Vec::new());
    for server in servers {
        if !chosen.0.contains(&server) && chosen.0.len() < MAX_SERVERS {
            chosen.0.push(server);
        }
    }
    for domain in domains {
        if !chosen.1.contains(&domain) && chosen.1.len() < MAX_DOMAINS {
            chosen.1.push(domain);
        }
    }
    chosen
}

/// The text of `resolv.conf`. Two seconds for an answer instead of five: a first server that is dead costs every name that much.
pub fn render(servers: &[Server], domains: &[String]) -> String {
    let mut text = String::from("# written by freshroot\n");
    for server in servers {
        text.push_str(&format!("nameserver {server}\n"));
    }
    if !domains.is_empty() {
        text.push_str(&format!("search {}\n", domains.join(" ")));
    }
    text.push_str("options timeout:2 attempts:3\n");
    text
}

/// Replaces a file in one step; its folder is made if it is missing.
pub fn write(path: &Path, text: &str) -> io::Result<()> {
    let named = |err: io::Error| io::Error::new(err.kind(), format!("{}: {err}", path.display()));
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(named)?;
    }
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let mut file = File::create(&temporary).map_err(named)?;
    file.write_all(text.as_bytes()).map_err(named)?;
    fs::rename(&temporary, path).map_err(named)
}

/// Writes a `hosts` file that knows `localhost`, unless there is one. Without it `localhost` is asked of a DNS server.
pub fn write_hosts_if_absent(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(_) => Ok(()),
        Err(err) if err.kind() == io::ErrorKind::NotFound => write(path, "127.0.0.1 localhost\n::1 localhost\n"),
        Err(err) => Err(io::Error::new(err.kind(), format!("{}: {err}", path.display()))),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    fn server(text: &str) -> Server {
        Server::new(text.parse().unwrap(), "eth0")
    }

    #[test]
    fn three_servers_in_order_each_once_and_link_local_ones_with_their_interface() {
        let all = ["192.0.2.1", "fe80::1", "192.0.2.1", "2001:db8::1", "192.0.2.2"].map(server);
        let (servers, domains) = choose(all, ["lan", "lan", "example"].map(str::to_owned));
        assert_eq!(
            render(&servers, &domains),
            "# written by freshroot\nnameserver 192.0.2.1\nnameserver fe80::1%eth0\nnameserver 2001:db8::1\nsearch lan example\n\
             options timeout:2 attempts:3\n"
        );
    }

    #[test]
    fn a_file_is_replaced_and_nothing_else_stays() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("etc/resolv.conf");
        write(&path, "one\n").unwrap();
        write(&path, "two\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "two\n");
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn a_hosts_file_that_is_there_stays() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("etc/hosts");
        write_hosts_if_absent(&path).unwrap();
        assert!(fs::read_to_string(&path).unwrap().contains("127.0.0.1 localhost"));
        fs::write(&path, "mine\n").unwrap();
        write_hosts_if_absent(&path).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "mine\n");
    }
}
