//! Floors and the replacement of keys, through the refresh and against a real server: what is accepted, what is kept of it, and what boots of it with the
//! server off.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support {
    pub mod machine;
    pub mod server;
    #[allow(dead_code, reason = "shared with the tests of transfers")]
    pub mod world;
}

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};

use freshroot::boot::acquire::Acquire;
use freshroot::boot::ticker::Teller;
use freshroot::cache::state::read_state;
use freshroot::candidates::RunningKernel;
use freshroot::digest::Digest;
use freshroot::formats::answer::Answer;
use freshroot::formats::envelope::Envelope;
use freshroot::formats::key::SecretKey;
use freshroot::formats::release::ChannelName;
use freshroot::mode::Mode;
use freshroot::report::Report;
use freshroot::select::select;
use freshroot::settings::Settings;
use freshroot::stage_2::fetch::fetch;
use freshroot::verify::BootImage;
use support::machine::{self, digest};
use support::server::{Ask, Reply, Server};
use support::world::{CHUNK, World, key, open, release};

fn stable() -> ChannelName {
    "stable".parse().unwrap()
}

/// The key that takes the place of the first one.
fn new_key() -> SecretKey {
    SecretKey::from_seed("test-2", &[2; 32]).unwrap()
}

/// The release of a world as these keys sign it.
fn signed(world: &World, serial: u64, keys: &[SecretKey]) -> Envelope {
    let mut envelope = release(&world.manifest, serial, &keys[0]);
    keys[1..].iter().for_each(|key| envelope.sign(key).unwrap());
    envelope
}

/// A server whose channel changes.
struct Channel {
    server: Server,
    files: Arc<Mutex<BTreeMap<String, Vec<u8>>>>,
}

impl Channel {
    fn new() -> Self {
        let files: Arc<Mutex<BTreeMap<String, Vec<u8>>>> = Arc::default();
        let served = Arc::clone(&files);
        Self {
            server: Server::new(move |ask: &Ask| Reply::honest(&served.lock().unwrap(), ask)),
            files,
        }
    }

    fn publish(&self, world: &World, release: Envelope) {
        let answer = serde_json::to_vec(&Answer::new(release, world.manifest.clone())).unwrap();
        self.files.lock().unwrap().extend([
            ("/channels/stable.json".to_owned(), answer),
            (format!("/images/{}.squashfs", world.image.sha256), world.bytes.clone()),
            (format!("/images/{}.chunks", world.image.sha256), world.index.to_bytes()),
        ]);
    }
}

/// A running system whose initrd can be made anew.
struct Machine {
    system: machine::Machine,
    url: String,
}

impl Machine {
    /// It was booted from `running`, which is in its cache.
    fn new(channel: &Channel, running: &World) -> Self {
        let url = channel.server.url();
        Self {
            system: machine::Machine::new(&url, running, "quiet"),
            url,
        }
    }

    /// An initrd that trusts these keys.
    fn trust(&self, keys: &[SecretKey]) {
        let keys: Vec<String> = keys.iter().map(|key| key.public().to_string()).collect();
        let config = format!(
            r#"{{"version": 1, "url": "{}", "channel": "stable", "trustedPublicKeys": {keys:?}, "cache": {{"device": "LABEL=cache"}},
                "policy": {{"mode": "offline", "fetchWait": "2s"}}, "transfer": {{"stall": "1s", "connect": "1s"}}}}"#,
            self.url
        );
        self.system.write("etc/freshroot/config.json", config.as_bytes());
    }

    fn fetch(&self) -> Result<String, String> {
        self.system.fetch()
    }

    fn fetch_anew(&self) -> Result<String, String> {
        fetch(self.system.root.path(), Teller::Nobody, Some(stable())).map_err(|error| format!("{error:#}"))
    }

    /// What boots with the server off.
    fn boots(&self) -> Result<Digest, String> {
        let settings = Settings::read(self.system.root.path()).unwrap();
        let (wanted, _) = select(&settings, Mode::Standalone).unwrap();
        let kernel = RunningKernel {
            release: "6.6.1".to_owned(),
            store_name: None,
        };
        let mut report = Report::new("test");
        let cache = open(&self.system.cache());
        let mut acquire = Acquire::new(Path::new("/"), &settings, &wanted, kernel, Some(cache), &mut report);
        let acquired = acquire.next(&mut report).map_err(|failure| failure.what)?;
        assert!(matches!(acquired.image, BootImage::Verified(_)));
        Ok(acquired.known.authorised.digest())
    }

    fn serial(&self) -> u64 {
        read_state(&self.system.cache()).0.serial(&stable())
    }

    fn forget(&self, world: &World) {
        let cache = open(&self.system.cache());
        cache.remove_generation(digest(world), Some(world.image.sha256)).unwrap();
    }
}

#[test]
fn a_generation_that_is_lost_does_not_lower_the_floor() {
    let channel = Channel::new();
    let (one, two, three) = (World::new(1), World::new(2), World::new(3));
    channel.publish(&three, signed(&three, 3, &[key()]));
    let machine = Machine::new(&channel, &one);
    machine.fetch().unwrap();
    assert_eq!((machine.serial(), machine.boots()), (3, Ok(digest(&three))));
    machine.forget(&three);
    channel.publish(&two, signed(&two, 2, &[key()]));
    let why = machine.fetch().unwrap_err();
    assert!(
        why.contains("has accepted 3 already") && why.contains("reset-floor=stable"),
        "{why}"
    );
    assert_eq!(
        machine.boots(),
        Ok(digest(&one)),
        "what was accepted once boots whatever the floor is"
    );
    // Without the state the envelopes hold the floor, and without both nothing can.
    fs::write(machine.system.cache().join("state.json"), "{\"version\": 1, \"chan").unwrap();
    machine.fetch().unwrap();
    assert_eq!((machine.serial(), machine.boots()), (2, Ok(digest(&two))));
    fs::remove_file(machine.system.cache().join("state.json")).unwrap();
    channel.publish(&one, signed(&one, 1, &[key()]));
    assert!(machine.fetch().unwrap_err().contains("has accepted 2 already"));
}

#[test]
fn a_mistaken_serial_is_recovered_from_and_does_not_come_back() {
    let channel = Channel::new();
    let (one, mistaken, two) = (World::new(1), World::new(9000), World::new(2));
    channel.publish(&mistaken, signed(&mistaken, 9000, &[key()]));
    let machine = Machine::new(&channel, &one);
    machine.fetch().unwrap();
    assert_eq!(machine.boots(), Ok(digest(&mistaken)));
    channel.publish(&two, signed(&two, 2, &[key()]));
    assert!(machine.fetch().unwrap_err().contains("has accepted 9000 already"));
    let other = fetch(machine.system.root.path(), Teller::Nobody, "testing".parse().ok());
    assert!(format!("{:#}", other.unwrap_err()).contains("is stable, not testing"));
    let said = machine.fetch_anew().unwrap();
    assert!(said.ends_with("it boots next"), "{said}");
    assert_eq!((machine.serial(), machine.boots()), (2, Ok(digest(&two))));
    // A mirror that is behind offers it again; the channel goes on from where it is now.
    channel.publish(&mistaken, signed(&mistaken, 9000, &[key()]));
    assert!(machine.fetch().unwrap_err().contains("withdrawn"));
    let three = World::new(3);
    channel.publish(&three, signed(&three, 3, &[key()]));
    machine.fetch().unwrap();
    assert_eq!((machine.serial(), machine.boots()), (3, Ok(digest(&three))));
}

#[test]
fn the_same_image_under_a_lower_serial_takes_the_place_of_the_mistaken_release() {
    let channel = Channel::new();
    let (one, two) = (World::new(1), World::new(2));
    channel.publish(&two, signed(&two, 9000, &[key()]));
    let machine = Machine::new(&channel, &one);
    machine.fetch().unwrap();
    channel.publish(&two, signed(&two, 2, &[key()]));
    let before = channel.server.sent();
    assert!(machine.fetch_anew().unwrap().ends_with("it boots next"));
    assert!(channel.server.sent() - before < CHUNK, "the image is there");
    let (state, _) = read_state(&machine.system.cache());
    assert_eq!((state.serial(&stable()), machine.boots()), (2, Ok(digest(&two))));
    fs::remove_file(machine.system.cache().join("state.json")).unwrap();
    assert!(machine.fetch().is_ok(), "nothing is left that says 9000");
}

#[test]
fn a_release_with_a_new_keys_signature_takes_the_place_of_the_cached_one() {
    let channel = Channel::new();
    let one = World::new(1);
    let machine = Machine::new(&channel, &one);
    channel.publish(&one, signed(&one, 1, &[key()]));
    machine.fetch().unwrap();
    // 1. The publisher signs with both keys, 2. machines refresh, under an initrd that trusts the old key only, or both.
    channel.publish(&one, signed(&one, 1, &[key(), new_key()]));
    let before = channel.server.sent();
    assert!(machine.fetch().unwrap().contains("nothing to do"));
    assert!(channel.server.sent() - before < CHUNK);
    // 3. An initrd that trusts the new key only; 4. the old signature goes, and the server is off.
    machine.trust(&[new_key()]);
    assert_eq!(machine.boots(), Ok(digest(&one)));
    // A mirror that is behind does not take the new signature away, whether the new key is trusted already or not.
    channel.publish(&one, signed(&one, 1, &[key()]));
    for trusted in [&[key(), new_key()][..], &[key()]] {
        machine.trust(trusted);
        machine.fetch().unwrap();
        machine.trust(&[new_key()]);
        assert_eq!(machine.boots(), Ok(digest(&one)));
    }
    assert!(
        machine
            .fetch()
            .unwrap_err()
            .contains("signed by test-1, which trustedPublicKeys does not hold")
    );
}

#[test]
fn a_machine_that_missed_the_refresh_needs_an_answer_and_no_image() {
    let channel = Channel::new();
    let one = World::new(1);
    let machine = Machine::new(&channel, &one);
    assert_eq!(machine.boots(), Ok(digest(&one)));
    machine.trust(&[new_key()]);
    assert!(machine.boots().unwrap_err().contains("nothing"));
    channel.publish(&one, signed(&one, 1, &[new_key()]));
    assert!(machine.fetch().unwrap().ends_with("it boots next"));
    assert!(channel.server.sent() < CHUNK, "no image was fetched");
    assert_eq!(machine.boots(), Ok(digest(&one)), "and the next boot needs nobody");
}
