//! The loop of decisions against a real server: what is asked, what is waited for, what is remembered.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support {
    pub mod server;
    #[allow(dead_code, reason = "shared with the tests of transfers")]
    pub mod world;
}

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use freshroot::boot::Stage;
use freshroot::boot::acquire::Acquire;
use freshroot::cache::Cache;
use freshroot::candidates::RunningKernel;
use freshroot::digest::Digest;
use freshroot::formats::answer::Answer;
use freshroot::formats::envelope::Envelope;
use freshroot::http::mirror_of;
use freshroot::keyboard::Keys;
use freshroot::mode::Mode;
use freshroot::report::{Failure, Report, Source};
use freshroot::select::select;
use freshroot::settings::Settings;
use nix::sched::{CloneFlags, unshare};
use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_change, unmount};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use serde_json::json;
use support::server::{Ask, Reply, Server};
use support::world::{CHUNK, SIZE, World, key, open, present};

/// A network of this test alone: an interface with an address and a route, and loopback for the server.
fn network() {
    if let Err(errno) = unshare(CloneFlags::CLONE_NEWNET) {
        panic!("this test needs root, for a network of its own: {errno}");
    }
    for arguments in [
        "link set lo up",
        "link add card type veth peer name port",
        "addr add 192.0.2.1/24 dev card",
        "link set port up",
        "link set card up",
        "route add default via 192.0.2.254",
    ] {
        let status = std::process::Command::new("ip").args(arguments.split(' ')).status();
        assert!(status.expect("iproute2 is needed").success(), "ip {arguments}");
    }
}

/// A server of the second generation; `script` is given what an honest one would answer.
fn serve(script: impl Fn(&Ask, Reply) -> Reply + Send + Sync + 'static) -> Server {
    let new = World::new(2);
    let answer = Answer::new(new.release.clone(), new.manifest.clone());
    let files = BTreeMap::from([
        ("/channels/stable.json".to_owned(), serde_json::to_vec(&answer).unwrap()),
        (image_path(), new.bytes.clone()),
        (format!("/images/{}.chunks", new.image.sha256), new.index.to_bytes()),
    ]);
    Server::new(move |ask| script(ask, Reply::honest(&files, ask)))
}

fn image_path() -> String {
    format!("/images/{}.squashfs", World::new(2).image.sha256)
}

/// Half a megabyte in so many seconds.
fn within(mut reply: Reply, seconds: usize) -> Reply {
    reply.pace = Some(Duration::from_millis(50));
    reply.piece = SIZE / seconds / 20;
    reply
}

/// Bytes of images that were sent.
fn image_bytes(server: &Server) -> usize {
    let images = server.served().into_iter().filter(|served| served.ask.path == image_path());
    images.map(|served| served.sent).sum()
}

fn questions(server: &Server) -> usize {
    server
        .served()
        .iter()
        .filter(|served| served.ask.path.starts_with("/channels"))
        .count()
}

struct Machine {
    root: tempfile::TempDir,
    cache: Option<PathBuf>,
    config: String,
    keys: Keys,
}

impl Machine {
    /// With these generations in its cache, and these settings besides those that say whom to ask.
    fn new(server: &Server, cached: &[u64], settings: &str) -> Self {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("cache");
        let cache = open_new(&folder);
        for serial in cached {
            World::new(*serial).install(&cache, *serial);
        }
        drop(cache);
        fs::create_dir(root.path().join("proc")).unwrap();
        fs::write(root.path().join("proc/consoles"), "").unwrap();
        fs::copy("/proc/meminfo", root.path().join("proc/meminfo")).unwrap();
        let config = format!(
            r#"{{"version": 1, "url": "{}", "channel": "stable", "trustedPublicKeys": ["{}"], "network": {{"by": "system", "interface": "card"}}, {settings}}}"#,
            server.url(),
            key().public()
        );
        Self {
            root,
            cache: Some(folder),
            config,
            keys: Keys::Nowhere,
        }
    }

    fn settings(&self, line: &str) -> Settings {
        Settings::from_sources(Some(("config.json", self.config.as_bytes())), line.as_bytes()).unwrap()
    }

    fn folder(&self) -> &Path {
        self.cache.as_deref().unwrap()
    }

    /// Serial and source of what boots.
    fn boot(&self, line: &str) -> (Result<(u64, Source), Failure>, Report) {
        self.boot_in(line, None)
    }

    fn boot_in(&self, line: &str, stage: Option<&Stage>) -> (Result<(u64, Source), Failure>, Report) {
        let settings = self.settings(line);
        let (wanted, _) = select(&settings, Mode::Standalone).unwrap();
        let kernel = RunningKernel {
            release: "6.6.1".to_owned(),
            store_name: None,
        };
        let mut report = Report::new("test");
        let cache = self.cache.as_deref().map(open);
        let mut acquire = Acquire::new(self.root.path(), &settings, &wanted, kernel, cache, &mut report);
        acquire = match stage {
            Some(stage) => acquire.within(stage),
            None => acquire.on(self.keys, self.root.path().join("ram")),
        };
        let acquired = acquire.next(&mut report);
        let booted = acquired.map(|acquired| {
            let serial = acquired.known.authorised.release().map_or(0, |release| release.serial);
            (serial, acquired.source)
        });
        acquire.close(false).unwrap();
        (booted, report)
    }

    fn state(&self) -> serde_json::Value {
        serde_json::from_slice(&fs::read(self.folder().join("state.json")).unwrap()).unwrap()
    }

    /// A mirror of which it is known how slow it is.
    fn knows_rate(&self, server: &Server, rate: u64) {
        let mut rates = serde_json::Map::new();
        rates.insert(mirror_of(&server.url()), rate.into());
        let state = serde_json::json!({"version": 1, "rates": rates});
        fs::write(self.folder().join("state.json"), state.to_string()).unwrap();
    }

    /// Somebody sits at its console, and has the other end of it.
    fn console(&mut self) -> (File, File) {
        let person = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&person).unwrap();
        unlockpt(&person).unwrap();
        let terminal = PathBuf::from(ptsname(&person, Vec::new()).unwrap().into_string().unwrap());
        fs::create_dir(self.root.path().join("dev")).unwrap();
        symlink(&terminal, self.root.path().join("dev/tty0")).unwrap();
        fs::write(self.root.path().join("proc/consoles"), "tty0 -WU (EC p ) 4:1\n").unwrap();
        self.keys = Keys::Everywhere;
        let kept = fs::OpenOptions::new().read(true).write(true).open(terminal).unwrap();
        (File::from(person), kept)
    }
}

fn open_new(folder: &Path) -> Cache {
    fs::create_dir_all(folder).unwrap();
    open(folder)
}

/// Reads what the machine shows until these words stand there.
fn read_until(person: &File, words: &str) -> String {
    use std::io::Read as _;
    let (mut shown, mut bytes, mut person) = (String::new(), [0; 512], person);
    while !shown.contains(words) {
        let length = person.read(&mut bytes).unwrap();
        shown += &String::from_utf8_lossy(&bytes[..length]);
    }
    shown
}

#[test]
fn what_is_too_slow_gives_way_to_what_is_cached_and_comes_in_the_end() {
    network();
    let server = serve(|ask, reply| if ask.path == image_path() { within(reply, 5) } else { reply });
    let machine = Machine::new(&server, &[1], r#""policy": {"fetchWait": "2s"}"#);
    let mut boots = 0;
    loop {
        boots += 1;
        let started = Instant::now();
        let (booted, report) = machine.boot("");
        if booted.as_ref().unwrap() == &(2, Source::Network) {
            break;
        }
        assert_eq!(booted.unwrap(), (1, Source::Cache));
        assert_eq!(report.decision.rule, "too-slow", "{:?}", report.decision);
        assert!(started.elapsed() < Duration::from_secs(6), "{:?}", started.elapsed());
        assert!(boots < 8, "each boot gets further");
        let there = present(&open(machine.folder()), &World::new(2));
        assert!(there >= boots, "{there} chunks after {boots} boots");
    }
    assert!(boots > 1, "it was too slow");
    assert!(
        image_bytes(&server) < SIZE + boots * (CHUNK + SIZE / 8),
        "what came is not fetched again"
    );
}

#[test]
fn what_was_too_slow_is_waited_for_when_what_is_cached_is_damaged() {
    network();
    let server = serve(|ask, reply| if ask.path == image_path() { within(reply, 4) } else { reply });
    let machine = Machine::new(&server, &[1], r#""policy": {"fetchWait": "1s"}"#);
    let image = machine.folder().join(format!("images/{}.squashfs", World::new(1).image.sha256));
    let file = fs::OpenOptions::new().write(true).open(image).unwrap();
    file.write_all_at(b"damage", 3 * CHUNK as u64).unwrap();
    let (booted, report) = machine.boot("");
    assert_eq!(booted.unwrap(), (2, Source::Network), "{:?}", report.warnings);
    assert!(
        report.steps.iter().filter(|step| step.step == "fetch").count() == 2,
        "{:?}",
        report.steps
    );
    assert!(image_bytes(&server) < SIZE + 2 * CHUNK + SIZE / 4, "what came is not fetched again");
}

#[test]
fn a_fresh_answer_is_not_asked_for_again_and_one_of_unknown_age_is() {
    network();
    let server = serve(|_, reply| reply);
    let machine = Machine::new(&server, &[1], r#""policy": {"maxAge": "1h"}"#);
    let boots = |expected: u64, rule: &str| {
        let (booted, report) = machine.boot("");
        assert_eq!(booted.unwrap().0, expected);
        assert_eq!(report.decision.rule, rule, "{:?}", report.decision);
        questions(&server)
    };
    assert_eq!(boots(2, "fresh"), 1);
    let confirmed = machine.state()["channels"]["stable"]["confirmed"].as_u64().unwrap();
    assert_eq!(boots(2, "max-age"), 1, "it is fresh");
    // Older, and from a time that is not yet.
    for (confirmed, asked) in [(confirmed - 3601, 2), (confirmed + 3600, 3)] {
        let mut state = machine.state();
        state["channels"]["stable"]["confirmed"] = confirmed.into();
        fs::write(machine.folder().join("state.json"), state.to_string()).unwrap();
        assert_eq!(boots(2, "fresh"), asked);
        assert_eq!(boots(2, "max-age"), asked, "it was confirmed");
    }
    fs::remove_file(machine.folder().join("state.json")).unwrap();
    assert_eq!(boots(2, "fresh"), 4);
    // With nobody there, what is old boots all the same.
    drop(server);
    fs::remove_file(machine.folder().join("state.json")).unwrap();
    let (booted, report) = machine.boot("freshroot.policy.wait=1s");
    assert_eq!((booted.unwrap().0, report.decision.rule.as_str()), (2, "stale-if-error"));
}

#[test]
fn an_answer_whose_image_has_not_come_is_not_fresh() {
    network();
    let server = serve(|ask, reply| {
        if ask.path == image_path() && ask.nth == 0 {
            Reply::new(404, b"")
        } else {
            reply
        }
    });
    let machine = Machine::new(
        &server,
        &[1],
        r#""policy": {"mode": "cache-first", "maxAge": "1h", "fetchWait": "1s"}, "transfer": {"stall": "1s"}"#,
    );
    let (first, _) = machine.boot("");
    let (second, report) = machine.boot("");
    assert_eq!((first.unwrap().0, second.unwrap().0), (1, 2), "{:?}", report.decision);
    assert_eq!(questions(&server), 2);
}

#[test]
fn a_budget_of_the_day_is_counted_over_boots_and_says_how_to_go_on() {
    network();
    let server = serve(|_, reply| reply);
    let machine = Machine::new(&server, &[], r#""transfer": {"budgetPerDay": "300K"}"#);
    let (booted, report) = machine.boot("");
    let failure = booted.unwrap_err();
    assert!(
        failure.what.contains("transfer.budgetPerDay") && failure.what.contains("wait for tomorrow, or raise it"),
        "{failure:?}"
    );
    let told = "transfer.budgetPerDay leaves";
    assert!(
        report.warnings.iter().any(|warning| warning.contains(told)),
        "{:?}",
        report.warnings
    );
    assert_eq!(machine.state()["received"]["bytes"], 300 << 10);
    let there = present(&open(machine.folder()), &World::new(2));
    assert!(there >= 3, "{there} chunks are kept");
    // The same day.
    let requests = server.requests();
    let (booted, _) = machine.boot("");
    let failure = booted.unwrap_err();
    assert!(
        failure
            .what
            .contains("nothing is left of what may be fetched today (transfer.budgetPerDay)"),
        "{failure:?}"
    );
    assert_eq!(server.requests(), requests, "nobody is asked");
    // As the words say.
    let (booted, report) = machine.boot("freshroot.transfer.budget-per-day=0");
    assert_eq!(booted.unwrap(), (2, Source::Network));
    let most = SIZE - there * CHUNK + CHUNK / 2;
    assert!(
        report.bytes.received < most as u64,
        "{:?}: what came is not fetched again",
        report.bytes
    );
    // Another day.
    let machine = Machine::new(&server, &[], r#""transfer": {"budgetPerDay": "300K"}"#);
    let yesterday = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_secs()
        / 86_400
        - 1;
    let state = serde_json::json!({"version": 1, "received": {"day": yesterday, "bytes": 300 << 10}});
    fs::write(machine.folder().join("state.json"), state.to_string()).unwrap();
    let (booted, _) = machine.boot("");
    assert!(booted.unwrap_err().what.contains("that were left of what may be fetched today"));
}

#[test]
fn a_key_before_a_long_download_chooses_what_is_cached_or_the_download() {
    network();
    for (typed, line, expected, rule) in [
        (&b"c"[..], "", (1, Source::Cache), "key-pressed"),
        // Longer than fetchWait: who has chosen it waits for it.
        (b"d", "", (2, Source::Network), "fresh"),
        (b"", "freshroot.policy.countdown=1s", (1, Source::Cache), "too-slow"),
    ] {
        let server = serve(|ask, reply| if ask.path == image_path() { within(reply, 4) } else { reply });
        let settings = r#""policy": {"fetchWait": "2s", "countdown": "20s"}"#;
        let mut machine = Machine::new(&server, &[1], settings);
        machine.knows_rate(&server, 1000);
        let (mut person, _kept) = machine.console();
        let (booted, report) = std::thread::scope(|scope| {
            let machine = &machine;
            let boot = scope.spawn(move || machine.boot(line));
            let shown = read_until(&person, "press c for the cached system, d for the download");
            assert!(!shown.contains("THE BOOT FAILED"));
            person.write_all(typed).unwrap();
            // The master is read on, so that nothing the machine shows is waited for.
            boot.join().unwrap()
        });
        assert_eq!(booted.unwrap(), expected);
        assert_eq!(report.decision.rule, rule, "{:?}", report.decision);
        if typed == b"c" {
            assert_eq!(image_bytes(&server), 0);
        }
    }
}

#[test]
fn how_fast_a_mirror_was_is_remembered_without_its_credentials() {
    network();
    let server = serve(|ask, reply| if ask.path == image_path() { within(reply, 1) } else { reply });
    let machine = Machine::new(&server, &[1], r#""policy": {"tries": 0}"#);
    let url = server.url().replace("http://", "http://user:secret@");
    let (booted, _) = machine.boot(&format!("freshroot.url={url}"));
    assert_eq!(booted.unwrap().0, 2);
    let state = machine.state();
    let rate = state["rates"][mirror_of(&server.url())].as_u64().unwrap();
    assert!((SIZE as u64 / 3..SIZE as u64 * 2).contains(&rate), "{state}");
    assert!(!state.to_string().contains("secret"), "{state}");
}

#[test]
fn row_23_an_image_that_the_disk_refuses_goes_to_ram_where_nothing_else_boots() {
    network();
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
    let server = serve(|_, reply| reply);
    for (cached, expected) in [(&[][..], (2, Source::Ram)), (&[1], (1, Source::Cache))] {
        let machine = Machine::new(&server, cached, r#""policy": {"fetchWait": "5s"}"#);
        // A folder in the way of the partial image: opening it fails as on a disk that is broken.
        let partial = machine.folder().join(format!("partial/{}.part", World::new(2).image.sha256));
        fs::create_dir_all(partial.join("x")).unwrap();
        let (booted, report) = machine.boot("");
        assert_eq!(booted.unwrap(), expected, "{:?}", report.warnings);
        let told = report.warnings.join("\n");
        assert!(
            told.contains(".part") && told.contains("goes to RAM") == cached.is_empty(),
            "{told}"
        );
    }
}

#[test]
fn an_image_that_is_whole_in_ram_is_not_fetched_again_by_the_next_attempt() {
    network();
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
    let server = serve(|ask, reply| match ask.nth {
        // The first download breaks off, and so do its retries within the time.
        nth if ask.path == image_path() && nth == 0 => reply.cut(5 * CHUNK, support::server::Then::Close),
        nth if ask.path == image_path() && nth < 3 => Reply::new(404, b""),
        _ => reply,
    });
    let machine = Machine {
        cache: None,
        ..Machine::new(&server, &[], r#""policy": {"fetchWait": "2s"}"#)
    };
    let sysroot = tempfile::tempdir().unwrap();
    let stage = Stage::new(Mode::Systemd, sysroot.path().to_owned());
    let (first, _) = machine.boot_in("", Some(&stage));
    assert!(first.is_err(), "{first:?}");
    let mut attempts = 1;
    while machine.boot_in("", Some(&stage)).0.is_err() {
        attempts += 1;
        assert!(attempts < 5);
    }
    let bytes = image_bytes(&server);
    assert!(
        bytes < SIZE + CHUNK,
        "{bytes}: what came before the first attempt failed is not fetched again"
    );
    // Its system turned out not to start: the next attempt has the whole.
    let (third, report) = machine.boot_in("", Some(&stage));
    assert_eq!(third.unwrap(), (2, Source::Ram), "{:?}", report.warnings);
    assert_eq!(image_bytes(&server), bytes);
    // And without a server too.
    drop(server);
    let (fourth, report) = machine.boot_in("freshroot.policy.wait=1s", Some(&stage));
    assert_eq!(fourth.unwrap(), (2, Source::Ram), "{:?}", report.warnings);
    assert_eq!(Digest::of(&World::new(2).bytes), World::new(2).image.sha256);
    unmount(stage.ram(), UnmountFlags::DETACH).unwrap();
}

#[test]
fn row_32_an_old_agent_keeps_to_its_cache_where_the_server_has_moved_on_and_takes_what_only_says_more() {
    network();
    // What the server's publisher adds to manifest and release, and what comes of it.
    let cases = [
        (
            "a manifest of version 2",
            json!({"version": 2}),
            json!({}),
            Some("the manifest has version 2"),
        ),
        (
            "a release of version 2",
            json!({}),
            json!({"version": 2}),
            Some("the release has version 2"),
        ),
        (
            "a critical field of the manifest",
            json!({"critical": ["layers"], "layers": []}),
            json!({}),
            Some("«layers»"),
        ),
        (
            "a critical field of the release",
            json!({}),
            json!({"critical": ["quorum"], "quorum": 2}),
            Some("«quorum»"),
        ),
        (
            "fields that may be passed over",
            json!({"colour": "blue"}),
            json!({"colour": "blue"}),
            None,
        ),
    ];
    for (what, more_manifest, more_release, refusal) in cases {
        let new = World::new(2);
        let manifest = with(&new.manifest, &more_manifest);
        let payload = String::from_utf8(new.release.payload().unwrap()).unwrap();
        let payload = with(&payload, &json!({"manifest": Digest::of(manifest.as_bytes())}));
        let mut release = Envelope::unsigned(with(&payload, &more_release).as_bytes());
        release.sign(&key()).unwrap();
        let answer = serde_json::to_vec(&Answer::new(release, manifest)).unwrap();
        let server = serve(move |ask, reply| match ask.path.starts_with("/channels") {
            true => Reply::new(200, &answer),
            false => reply,
        });
        let machine = Machine::new(&server, &[1], r#""policy": {"wait": "2s"}"#);
        let (booted, report) = machine.boot("");
        let report = serde_json::to_string(&report).unwrap();
        match refusal {
            Some(words) => {
                assert_eq!(booted.unwrap(), (1, Source::Cache), "{what}");
                assert!(report.contains(words) && report.contains("update the agent"), "{what}: {report}");
                assert_eq!(image_bytes(&server), 0, "{what}");
            }
            None => assert_eq!(booted.unwrap(), (2, Source::Network), "{what}: {report}"),
        }
    }
}

/// The JSON object in `text` with `more` fields.
fn with(text: &str, more: &serde_json::Value) -> String {
    let mut value: serde_json::Value = serde_json::from_str(text).unwrap();
    for (name, field) in more.as_object().unwrap() {
        value[name] = field.clone();
    }
    value.to_string()
}
