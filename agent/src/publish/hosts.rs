//! Many machines on one server: `hosts.json`, the scripts in `netboot/by-mac/`, and the channel of machines that stand in neither.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use anyhow::{Context as _, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::folder::{Content, Folder, Hook, Put};
use super::netboot::ipxe::{by_mac, default_of, entry, is_ours};
use super::netboot::{BY_MAC, ENTRY, PIXIECORE, script_path};
use crate::formats::answer::Question;
use crate::formats::release::ChannelName;

/// Where the table stands in the served folder.
pub const HOSTS: &str = "hosts.json";

/// What tells a machine from others, in the one spelling that files have.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum HostId {
    /// Address of a network card: `00:1f:29:12:34:56`.
    Mac([u8; 6]),
    /// UUID of the mainboard, lower case.
    Uuid(String),
    /// Serial number, lower case.
    Serial(String),
}

impl fmt::Display for HostId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mac(bytes) => f.write_str(&hexadecimal(bytes, ":")),
            Self::Uuid(text) | Self::Serial(text) => f.write_str(text),
        }
    }
}

fn hexadecimal(bytes: &[u8], separator: &str) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(separator)
}

impl FromStr for HostId {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let lower = text.to_ascii_lowercase();
        if let Some(bytes) = mac(&lower) {
            ensure!(
                bytes != [0; 6] && bytes[0] & 1 == 0,
                "«{text}» is no machine's MAC address: it is zero, or one of a group"
            );
            return Ok(Self::Mac(bytes));
        }
        let groups: Vec<usize> = lower.split('-').map(str::len).collect();
        if groups == [8, 4, 4, 4, 12] && lower.bytes().all(|byte| byte == b'-' || byte.is_ascii_hexdigit()) {
            return Ok(Self::Uuid(lower));
        }
        // Whoever writes colons means a MAC address; a serial number with one is not worth the typing errors that would pass for it.
        let plain = |character: char| character.is_ascii_alphanumeric() || "._/+-".contains(character);
        ensure!(
            (1..=64).contains(&lower.len()) && lower.chars().all(plain),
            "«{text}» is neither a MAC address (00:1f:29:12:34:56), nor a UUID, nor a serial number (1 to 64 of A-Z a-z 0-9 . _ / + -)"
        );
        Ok(Self::Serial(lower))
    }
}

/// Six bytes with colons or hyphens in between, lower case.
fn mac(text: &str) -> Option<[u8; 6]> {
    let separator = if text.contains(':') { ':' } else { '-' };
    let mut bytes = [0; 6];
    let mut parts = text.split(separator);
    for byte in &mut bytes {
        let part = parts
            .next()
            .filter(|part| part.len() == 2 && part.bytes().all(|digit| digit.is_ascii_hexdigit()))?;
        *byte = u8::from_str_radix(part, 16).ok()?;
    }
    parts.next().is_none().then_some(bytes)
}

/// What is said of one machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Host {
    channel: String,
    #[serde(flatten)]
    others: Map<String, Value>,
}

/// `hosts.json`. Fields that this version does not know stay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hosts {
    version: u64,
    hosts: BTreeMap<String, Host>,
    #[serde(flatten)]
    others: Map<String, Value>,
}

impl Default for Hosts {
    fn default() -> Self {
        Self {
            version: 1,
            hosts: BTreeMap::new(),
            others: Map::new(),
        }
    }
}

impl Hosts {
    /// Reads the table.
    ///
    /// # Errors
    /// Malformed, or of another version; a machine or a channel that is none, or one that stands there twice in two spellings.
    pub fn parse(text: &str) -> Result<Self> {
        let mut read: Self = serde_json::from_str(text).context("reading hosts.json")?;
        ensure!(
            read.version == 1,
            "hosts.json has version {}, this program knows version 1",
            read.version
        );
        for (name, host) in std::mem::take(&mut read.hosts) {
            let id: HostId = name.parse().context("reading hosts.json")?;
            host.channel
                .parse::<ChannelName>()
                .map_err(|error| anyhow::anyhow!("hosts.json, {name}: {error}"))?;
            ensure!(
                read.hosts.insert(id.to_string(), host).is_none(),
                "{id} stands in hosts.json twice, in two spellings"
            );
        }
        Ok(read)
    }

    /// The channel of a machine, if it is known.
    pub fn channel(&self, id: &HostId) -> Option<&str> {
        self.hosts.get(&id.to_string()).map(|host| host.channel.as_str())
    }

    fn set(&mut self, id: &HostId, channel: &ChannelName) {
        let others = self.hosts.remove(&id.to_string()).map(|host| host.others).unwrap_or_default();
        let channel = channel.to_string();
        self.hosts.insert(id.to_string(), Host { channel, others });
    }

    fn remove(&mut self, id: &HostId) -> Result<()> {
        match self.hosts.remove(&id.to_string()) {
            Some(_) => Ok(()),
            None => bail!("{id} does not stand in hosts.json"),
        }
    }

    fn to_bytes(&self) -> Result<Vec<u8>> {
        let mut bytes = serde_json::to_vec_pretty(self).context("writing hosts.json")?;
        bytes.push(b'\n');
        Ok(bytes)
    }
}

/// What is to change.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// Machines and the channels that they follow from now on.
    pub set: Vec<(HostId, ChannelName)>,
    /// Machines that are to be forgotten.
    pub remove: Vec<HostId>,
    /// The channel of machines that are not named.
    pub default: Option<ChannelName>,
    /// Where the folder will be served, for `netboot.ipxe`; none: it finds its files beside itself.
    pub url: Option<String>,
}

/// Changes the table and what comes of it, and says what holds now: lines «machine channel», and one for the default.
///
/// # Errors
/// A machine that is not there to be removed, or a channel that cannot be booted; nothing is changed then.
pub fn keep(folder: &Folder, changes: &Changes, hook: &mut Hook<'_>) -> Result<String> {
    let before = folder.read_text(HOSTS)?;
    let mut hosts = before.as_deref().map_or_else(|| Ok(Hosts::default()), Hosts::parse)?;
    for id in &changes.remove {
        hosts.remove(id)?;
    }
    for (id, channel) in &changes.set {
        hosts.set(id, channel);
    }
    let mut puts = Vec::new();
    let mut names = Vec::new();
    for (name, host) in &hosts.hosts {
        let channel: ChannelName = host.channel.parse().map_err(|error| anyhow::anyhow!("{error}"))?;
        bootable(folder, &channel)?;
        if let HostId::Mac(bytes) = name.parse()? {
            let file = format!("{}.ipxe", hexadecimal(&bytes, "-"));
            let path = format!("{BY_MAC}/{file}");
            let by_hand = folder.read_text(&path)?.is_some_and(|script| !is_ours(&script));
            ensure!(!by_hand, "{path} was written by hand: remove it, or leave {name} out of hosts.json");
            puts.push(Put {
                path,
                content: Content::Bytes(by_mac(&channel).into_bytes()),
            });
            names.push(file);
        }
    }
    if let Some(default) = &changes.default {
        bootable(folder, default)?;
        puts.extend(of_default(folder, default, changes.url.as_deref())?);
    }
    // Last: whoever reads the table finds what it leads to.
    if before.is_some() || !hosts.hosts.is_empty() {
        puts.push(Put {
            path: HOSTS.to_owned(),
            content: Content::Bytes(hosts.to_bytes()?),
        });
    }
    folder.put(&puts, hook)?;
    forget(folder, &names)?;
    let mut told: String = hosts
        .hosts
        .iter()
        .map(|(name, host)| format!("{name} {}\n", host.channel))
        .collect();
    if let Some(default) = folder.read_text(ENTRY)?.as_deref().and_then(default_of) {
        told += &format!("default {default}\n");
    }
    Ok(told)
}

/// What stands in the folder without a name, for one channel.
fn of_default(folder: &Folder, channel: &ChannelName, url: Option<&str>) -> Result<Vec<Put>> {
    let copy = |from: &str| {
        let path = script_path(channel.as_str(), from);
        let text = folder.read_text(&path)?;
        text.with_context(|| format!("{path} is not there: publish the channel {channel} anew"))
    };
    Ok(vec![
        Put {
            path: "kexec-boot".to_owned(),
            content: Content::Script(copy("kexec-boot")?.into_bytes()),
        },
        Put {
            path: PIXIECORE.to_owned(),
            content: Content::Bytes(copy("pixiecore.json")?.into_bytes()),
        },
        Put {
            path: ENTRY.to_owned(),
            content: Content::Bytes(entry(channel, url).into_bytes()),
        },
    ])
}

/// Refuses a channel that no machine could boot, and names those that can be.
fn bootable(folder: &Folder, channel: &ChannelName) -> Result<()> {
    let there = |channel: &ChannelName| {
        let script = folder.root().join(script_path(channel.as_str(), "ipxe"));
        folder.root().join(Question::Channel(channel.clone()).path()).is_file() && script.is_file()
    };
    if there(channel) {
        return Ok(());
    }
    let mut others = Vec::new();
    if let Ok(entries) = folder.root().join("channels").read_dir() {
        let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        others.extend(names.filter_map(|name| name.strip_suffix(".json")?.parse().ok()).filter(there));
    }
    others.sort_by_key(ToString::to_string);
    let others = match others.as_slice() {
        [] => "no channel can: publish with --kernel and --initrd first".to_owned(),
        [..] => format!(
            "those that can: {}",
            others.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
        ),
    };
    bail!("the channel {channel} cannot be booted from {}; {others}", folder.root().display())
}

/// Removes the scripts of machines that are not in the table any more. One that was written by hand stays.
fn forget(folder: &Folder, names: &[String]) -> Result<()> {
    let place = folder.root().join(BY_MAC);
    if !place.is_dir() {
        return Ok(());
    }
    for found in place.read_dir().with_context(|| format!("reading {}", place.display()))? {
        let name = found.with_context(|| format!("reading {}", place.display()))?.file_name();
        let Some(name) = name
            .to_str()
            .filter(|name| name.ends_with(".ipxe") && !names.iter().any(|kept| kept == name))
        else {
            continue;
        };
        let path = format!("{BY_MAC}/{name}");
        match folder.read_text(&path)? {
            Some(script) if is_ours(&script) => folder.remove(&path)?,
            Some(_) => log::warn!(
                "{} stays: it was written by hand, and its machine is not in hosts.json",
                place.join(name).display()
            ),
            None => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_machine_has_one_spelling() {
        for (text, expected) in [
            ("00:1F:29:12:34:56", "Mac 00:1f:29:12:34:56"),
            ("00-1f-29-12-34-56", "Mac 00:1f:29:12:34:56"),
            ("4C4C4544-0042-3510-8052-B4C04F4E3532", "Uuid 4c4c4544-0042-3510-8052-b4c04f4e3532"),
            ("4C4C4544-0042", "Serial 4c4c4544-0042"),
            ("/7KQP5X2/CN12/", "Serial /7kqp5x2/cn12/"),
            ("00:1f:29:12:34", "refused"),
            ("00:1f:29:12:34:5g", "refused"),
            ("00:00:00:00:00:00", "refused"),
            ("01:00:5e:00:00:01", "refused"),
            ("ff-ff-ff-ff-ff-ff", "refused"),
            ("", "refused"),
            ("a b", "refused"),
            ("a\"b", "refused"),
        ] {
            let read = match text.parse::<HostId>() {
                Ok(id @ HostId::Mac(_)) => format!("Mac {id}"),
                Ok(id @ HostId::Uuid(_)) => format!("Uuid {id}"),
                Ok(id @ HostId::Serial(_)) => format!("Serial {id}"),
                Err(error) => {
                    assert!(error.to_string().contains(text), "{error}");
                    "refused".to_owned()
                }
            };
            assert_eq!(read, expected, "{text}");
        }
    }

    #[test]
    fn the_table_is_that_of_the_nixos_module_and_keeps_what_it_does_not_know() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../initrd-module/tests/golden/hosts.json");
        let golden = Hosts::parse(&std::fs::read_to_string(path).unwrap()).unwrap();
        let mut made = Hosts::default();
        for (id, channel) in [("00:1F:29:12:34:56", "lab"), ("4C4C4544-0042", "prod")] {
            made.set(&id.parse().unwrap(), &channel.parse().unwrap());
        }
        assert_eq!(made, golden);
        assert_eq!(made.channel(&"00-1f-29-12-34-56".parse().unwrap()), Some("lab"));
        let text = r#"{"version":1,"owner":"x","hosts":{"a1":{"channel":"lab","rack":7}}}"#;
        let mut read = Hosts::parse(text).unwrap();
        read.set(&"a1".parse().unwrap(), &"prod".parse().unwrap());
        let written: Value = serde_json::from_slice(&read.to_bytes().unwrap()).unwrap();
        let expected = r#"{"version":1,"owner":"x","hosts":{"a1":{"channel":"prod","rack":7}}}"#;
        assert_eq!(written, serde_json::from_str::<Value>(expected).unwrap());
    }

    #[test]
    fn a_table_that_is_wrong_is_refused_by_name() {
        for (text, words) in [
            ("{", "hosts.json"),
            (r#"{"version":2,"hosts":{}}"#, "version 2"),
            (r#"{"version":1,"hosts":{"00:1f":{"channel":"lab"}}}"#, "«00:1f»"),
            (r#"{"version":1,"hosts":{"a":{"channel":".lab"}}}"#, "a: "),
            (r#"{"version":1,"hosts":{"a":{"channel":"x"},"A":{"channel":"y"}}}"#, "twice"),
        ] {
            let error = format!("{:#}", Hosts::parse(text).unwrap_err());
            assert!(error.contains(words), "{text}: {error}");
        }
    }
}
