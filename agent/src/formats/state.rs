//! The state of a cache disk: what is worth remembering beside the generations. See `docs/formats.md`, «State».
//!
//! A convenience. Nothing signs it, so nothing in it authorises anything; without it a machine boots what it booted before.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::release::ChannelName;
use super::{Refusal, parse_version_1};

/// Largest state that is read. What is written has less.
pub const STATE_LIMIT: u64 = 64 << 10;
/// A machine follows one channel, and another one after a change of its configuration.
const CHANNELS: usize = 64;
/// More releases than a cache holds generations.
const WITHDRAWN: usize = 8;
/// A machine has a few mirrors.
const RATES: usize = 16;
/// Longest `scheme://host:port`: a host name has 253 characters at most.
const MIRROR: usize = 300;

/// What a cache disk remembers. All of it is optional; what is empty is not written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    version: u64,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    channels: BTreeMap<ChannelName, Channel>,
    #[serde(default, skip_serializing_if = "is_zero")]
    time: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    received: Option<Received>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    rates: BTreeMap<String, u64>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Channel {
    #[serde(default, skip_serializing_if = "is_zero")]
    serial: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    confirmed: Option<u64>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    withdrawn: Vec<Claim>,
}

/// What a release of a channel says of its age: no two have the same, unless they are signed within one second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Claim {
    /// Its serial.
    pub serial: u64,
    /// When it was signed, as it says.
    pub created: u64,
}

impl Claim {
    /// Whether it claims to be newer than another one, in whichever respect.
    pub const fn is_newer_than(&self, other: &Self) -> bool {
        self.serial > other.serial || self.created > other.created
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Received {
    day: u64,
    bytes: u64,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
const fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl Default for State {
    fn default() -> Self {
        Self {
            version: 1,
            channels: BTreeMap::new(),
            time: 0,
            received: None,
            rates: BTreeMap::new(),
        }
    }
}

impl State {
    /// Reads the file.
    ///
    /// # Errors
    /// Too large, malformed, of another version, or with more in it than is ever written.
    pub fn parse(bytes: &[u8]) -> Result<Self, Refusal> {
        let malformed = |what: &str| Refusal::Malformed(format!("the state {what}"));
        if bytes.len() as u64 > STATE_LIMIT {
            return Err(malformed(&format!("is longer than {STATE_LIMIT} bytes")));
        }
        let text = std::str::from_utf8(bytes).map_err(|_| malformed("is not UTF-8"))?;
        let state: Self = parse_version_1("state", text)?;
        if state.channels.len() > CHANNELS {
            return Err(malformed(&format!("holds more than {CHANNELS} channels")));
        }
        if state.channels.values().any(|known| known.withdrawn.len() > WITHDRAWN) {
            return Err(malformed(&format!("holds more than {WITHDRAWN} withdrawn releases of a channel")));
        }
        if state.rates.len() > RATES || !state.rates.keys().all(|mirror| is_mirror(mirror)) {
            return Err(malformed(&format!("holds more than {RATES} rates, or one of no mirror")));
        }
        Ok(state)
    }

    /// The file.
    ///
    /// # Errors
    /// None that is known.
    pub fn to_bytes(&self) -> serde_json::Result<Vec<u8>> {
        let mut bytes = serde_json::to_vec(self)?;
        bytes.push(b'\n');
        Ok(bytes)
    }

    /// The highest serial of a channel that an accepted answer had; 0 if none is known.
    pub fn serial(&self, channel: &ChannelName) -> u64 {
        self.channels.get(channel).map_or(0, |known| known.serial)
    }

    /// When a valid answer for a channel was last accepted, in seconds since 1970 by the clock of that boot.
    pub fn confirmed(&self, channel: &ChannelName) -> Option<u64> {
        self.channels.get(channel)?.confirmed
    }

    /// A valid answer for a channel was accepted at `now`: «nothing changed» is one too. The serial never goes down.
    pub fn confirm(&mut self, channel: &ChannelName, serial: u64, now: u64) {
        self.raise(channel, serial).confirmed = Some(now);
    }

    /// A release of a channel was accepted without being an answer about the channel: as it was named exactly.
    pub fn see_serial(&mut self, channel: &ChannelName, serial: u64) {
        self.raise(channel, serial);
    }

    /// A release is accepted in spite of what is known: the highest serial goes down to its. What else is known of the channel and claims to be newer
    /// is withdrawn, the highest serials first where there is no room for all. No signed time is known after that.
    pub fn reset(&mut self, channel: &ChannelName, accepted: Claim, known: impl IntoIterator<Item = Claim>) {
        let entry = self.raise(channel, 0);
        entry.serial = entry.serial.min(accepted.serial);
        entry.withdrawn.extend(known);
        entry.withdrawn.retain(|claim| claim.is_newer_than(&accepted));
        entry.withdrawn.sort_unstable_by(|a, b| b.cmp(a));
        entry.withdrawn.dedup();
        entry.withdrawn.truncate(WITHDRAWN);
        self.time = 0;
    }

    /// What another one says about transfers: what came, and how fast.
    pub fn take_transfers(&mut self, other: Self) {
        (self.received, self.rates) = (other.received, other.rates);
    }

    /// Whether a release of a channel was withdrawn.
    pub fn is_withdrawn(&self, channel: &ChannelName, claim: Claim) -> bool {
        self.channels.get(channel).is_some_and(|known| known.withdrawn.contains(&claim))
    }

    fn raise(&mut self, channel: &ChannelName, serial: u64) -> &mut Channel {
        if !self.channels.contains_key(channel) && self.channels.len() >= CHANNELS {
            // The one that was confirmed longest ago is followed by nobody any more.
            let oldest = self
                .channels
                .iter()
                .min_by_key(|(_, known)| known.confirmed)
                .map(|(name, _)| name.clone());
            oldest.and_then(|name| self.channels.remove(&name));
        }
        let known = self.channels.entry(channel.clone()).or_default();
        known.serial = known.serial.max(serial);
        known
    }

    /// The highest signed time that was seen, in seconds since 1970; 0 if none is known.
    pub const fn time(&self) -> u64 {
        self.time
    }

    /// A signed time was seen. It never goes down.
    pub fn see_time(&mut self, signed: u64) {
        self.time = self.time.max(signed);
    }

    /// The day (days since 1970) of which the count is.
    pub fn received_day(&self) -> Option<u64> {
        self.received.map(|received| received.day)
    }

    /// Bytes received on this day. The count of a later day is of this one too: a clock was set back, which must not begin the day anew.
    pub fn received_on(&self, day: u64) -> u64 {
        self.received
            .filter(|received| received.day >= day)
            .map_or(0, |received| received.bytes)
    }

    /// Adds to what was received on this day, of which the count is from now on. That of an earlier day ends; that of a later one comes along, so that it ends at the next midnight.
    pub fn add_received(&mut self, day: u64, bytes: u64) {
        let bytes = self.received_on(day).saturating_add(bytes);
        self.received = Some(Received { day, bytes });
    }

    /// Bytes per second of the last transfer from a mirror, `scheme://host:port`.
    pub fn rate(&self, mirror: &str) -> Option<u64> {
        self.rates.get(mirror).copied()
    }

    /// Keeps the rate of a transfer, of 16 mirrors at most: one that is new takes the place of the first by name. What is no mirror, or holds
    /// credentials, is not kept.
    pub fn see_rate(&mut self, mirror: &str, bytes_per_second: u64) {
        if !is_mirror(mirror) {
            return;
        }
        if !self.rates.contains_key(mirror) && self.rates.len() >= RATES {
            self.rates.pop_first();
        }
        self.rates.insert(mirror.to_owned(), bytes_per_second);
    }
}

/// Whether a text can be `scheme://host:port`, without credentials and without a path.
fn is_mirror(text: &str) -> bool {
    let host = text.split_once("://").map_or("", |(_, host)| host);
    text.len() <= MIRROR && !host.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic()) && !host.contains(['@', '/', '?', '#'])
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn channel(name: &str) -> ChannelName {
        name.parse().unwrap()
    }

    fn claim(serial: u64, created: u64) -> Claim {
        Claim { serial, created }
    }

    #[test]
    fn a_reset_withdraws_what_claims_to_be_newer_and_nothing_else() {
        let (stable, other) = (channel("stable"), channel("testing"));
        let mut state = State::default();
        state.confirm(&stable, 9000, 100);
        state.confirm(&other, 5, 100);
        state.see_time(70);
        let known = [claim(9000, 70), claim(11, 900), claim(13, 40), claim(11, 50), claim(12, 60)];
        state.reset(&stable, claim(12, 60), known);
        assert_eq!((state.serial(&stable), state.serial(&other), state.time()), (12, 5, 0));
        assert_eq!(state.confirmed(&stable), Some(100));
        for (one, withdrawn) in known.into_iter().zip([true, true, true, false, false]) {
            assert_eq!(state.is_withdrawn(&stable, one), withdrawn, "{one:?}");
            assert!(!state.is_withdrawn(&other, one));
        }
        assert!(
            !state.is_withdrawn(&stable, claim(9000, 71)),
            "another release of that serial may come one day"
        );
        // The floor goes up from there, and a second reset can take one of them back.
        state.confirm(&stable, 13, 200);
        assert_eq!(state.serial(&stable), 13);
        state.reset(&stable, claim(9000, 70), []);
        assert!(!state.is_withdrawn(&stable, claim(9000, 70)) && state.is_withdrawn(&stable, claim(11, 900)));
        assert_eq!(state.serial(&stable), 13, "it only goes down");
    }

    #[test]
    fn what_is_written_is_read_back_and_what_is_empty_is_not_written() {
        assert_eq!(State::default().to_bytes().unwrap(), b"{\"version\":1}\n");
        let mut state = State::default();
        state.confirm(&channel("stable"), 7, 1_800_000_000);
        state.see_time(1_799_999_000);
        state.add_received(20_833, 1_000_000);
        state.see_rate("https://images.example:443", 750_000);
        state.see_serial(&channel("b"), 9);
        state.reset(&channel("b"), claim(3, 5), [claim(9, 4)]);
        state.see_time(1_799_999_000);
        let text = String::from_utf8(state.to_bytes().unwrap()).unwrap();
        assert_eq!(
            text,
            concat!(
                r#"{"version":1,"channels":{"b":{"serial":3,"withdrawn":[{"serial":9,"created":4}]},"#,
                r#""stable":{"serial":7,"confirmed":1800000000}},"time":1799999000,"#,
                r#""received":{"day":20833,"bytes":1000000},"rates":{"https://images.example:443":750000}}"#,
                "\n"
            )
        );
        assert_eq!(State::parse(text.as_bytes()), Ok(state));
    }

    #[test]
    fn unknown_fields_are_passed_over_and_what_is_no_state_is_refused_by_name() {
        for (text, word) in [
            (r#"{"version":1,"colour":"blue","channels":{"a":{"serial":1,"colour":3}}}"#, ""),
            (r#"{"version":1,"time":18446744073709551615}"#, ""),
            ("", "malformed"),
            ("null", "malformed"),
            ("{}", "version"),
            (r#"{"version":2,"channels":[]}"#, "has version 2"),
            (r#"{"version":1,"channels":{"../a":{}}}"#, "not a channel's name"),
            (r#"{"version":1,"channels":{"a":{"serial":-1}}}"#, "malformed"),
            (r#"{"version":1,"time":1e400}"#, "malformed"),
            (r#"{"version":1,"received":{"day":1}}"#, "bytes"),
            (r#"{"version":1,"rates":{"https://user:word@host:443":1}}"#, "no mirror"),
            (r#"{"version":1}x"#, "malformed"),
        ] {
            match State::parse(text.as_bytes()) {
                Ok(_) => assert_eq!(word, "", "{text}"),
                Err(refusal) => assert!(!word.is_empty() && refusal.to_string().contains(word), "{text}: {refusal}"),
            }
        }
        assert!(State::parse(b"\xff").is_err());
        let long = format!("{{\"version\":1{}}}", " ".repeat(STATE_LIMIT as usize));
        assert!(State::parse(long.as_bytes()).unwrap_err().to_string().contains("longer"));
    }

    #[test]
    fn serials_and_times_never_go_down() {
        let mut state = State::default();
        let stable = channel("stable");
        assert_eq!((state.serial(&stable), state.confirmed(&stable), state.time()), (0, None, 0));
        for (serial, now, highest) in [(5, 100, 5), (3, 90, 5), (6, 80, 6), (u64::MAX, 0, u64::MAX), (1, 1, u64::MAX)] {
            state.confirm(&stable, serial, now);
            state.see_time(serial);
            assert_eq!(
                (state.serial(&stable), state.confirmed(&stable), state.time()),
                (highest, Some(now), highest)
            );
        }
        assert_eq!(state.serial(&channel("testing")), 0);
    }

    #[test]
    fn what_was_accepted_by_its_name_raises_a_serial_and_confirms_nothing() {
        let mut state = State::default();
        state.see_serial(&channel("stable"), 4);
        assert_eq!((state.serial(&channel("stable")), state.confirmed(&channel("stable"))), (4, None));
    }

    #[test]
    fn a_day_has_one_count() {
        let mut state = State::default();
        for (day, bytes, sum) in [(5, 10, 10), (5, 7, 17), (6, 1, 1), (5, 2, 3), (6, 4, 4), (6, u64::MAX, u64::MAX)] {
            state.add_received(day, bytes);
            assert_eq!(state.received_day(), Some(day));
            assert_eq!((state.received_on(day), state.received_on(day + 1)), (sum, 0));
        }
    }

    #[test]
    fn it_stays_small_whatever_is_put_in() {
        let mut state = State::default();
        let name = |number: u64| channel(&format!("{number:064}"));
        let mirror = |number: u64| format!("https://{}{number:03}:65535", "h".repeat(280));
        for number in 0..200 {
            state.confirm(&name(number), u64::MAX, u64::MAX - 200 + number);
            state.see_rate(&mirror(number), u64::MAX);
            let many = (0..20).map(|number| claim(u64::MAX - number, u64::MAX));
            state.reset(&name(number), claim(1, 1), many.chain([claim(2, 0)]));
            state.confirm(&name(number), u64::MAX, u64::MAX - 200 + number);
            assert!(state.is_withdrawn(&name(number), claim(u64::MAX, u64::MAX)));
        }
        assert_eq!((state.channels.len(), state.rates.len()), (CHANNELS, RATES));
        assert_eq!((state.serial(&name(199)), state.serial(&name(0))), (u64::MAX, 0));
        assert!(state.rate(&mirror(199)).is_some());
        let bytes = state.to_bytes().unwrap();
        assert!((bytes.len() as u64) < STATE_LIMIT, "{}", bytes.len());
        assert_eq!(State::parse(&bytes), Ok(state.clone()));
        for none in [
            "",
            "host",
            "https://",
            "https://user:word@host:443",
            "https://host:443/a",
            "https://h ost",
            &mirror(1).repeat(2),
        ] {
            state.see_rate(none, 1);
            assert_eq!(state.rate(none), None, "{none}");
        }
    }
}
