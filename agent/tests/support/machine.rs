//! A running system that freshroot has booted, for the refresh of its cache.
#![allow(dead_code, reason = "each test program uses its share")]

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use freshroot::boot::ticker::Teller;
use freshroot::cache::atomic;
use freshroot::digest::Digest;
use freshroot::formats::answer::Answer;
use freshroot::formats::manifest::InitKind;
use freshroot::report::{self, ChosenSystem, Outcome, Report, Source};
use freshroot::stage_2::fetch::fetch;

use super::server::{Ask, Reply, Server};
use super::world::{World, key, open};

/// Of the boot that runs.
pub const BOOT_ID: &str = "0b5e3c56-0000-4000-8000-000000000000";
/// The cache, from the root.
pub const CACHE: &str = "run/freshroot/cache/freshroot";

/// Of the manifest.
pub fn digest(world: &World) -> Digest {
    Digest::of(world.manifest.as_bytes())
}

/// What a server of these worlds serves; the channel's answer is that of the last one.
pub fn served(worlds: &[World]) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for world in worlds {
        let answer = Answer::new(world.release.clone(), world.manifest.clone());
        files.insert("/channels/stable.json".to_owned(), serde_json::to_vec(&answer).unwrap());
        files.insert(format!("/images/{}.squashfs", world.image.sha256), world.bytes.clone());
        files.insert(format!("/images/{}.chunks", world.image.sha256), world.index.to_bytes());
    }
    files
}

/// A server of these worlds.
pub fn honest(worlds: Vec<World>) -> Server {
    let files = served(&worlds);
    Server::new(move |ask: &Ask| Reply::honest(&files, ask))
}

/// A running system that was booted from the generation `running`, with that one in its cache.
pub struct Machine {
    pub root: tempfile::TempDir,
}

impl Machine {
    /// Its configuration names the server at `url`, its boot had this command line.
    pub fn new(url: &str, running: &World, line: &str) -> Self {
        let machine = Self {
            root: tempfile::tempdir().unwrap(),
        };
        machine.write("proc/sys/kernel/random/boot_id", format!("{BOOT_ID}\n").as_bytes());
        machine.write("proc/sys/kernel/osrelease", b"6.6.1\n");
        machine.write("proc/cmdline", line.as_bytes());
        let config = format!(
            r#"{{"version": 1, "url": "{url}", "channel": "stable", "trustedPublicKeys": ["{}"], "cache": {{"device": "LABEL=cache"}},
                "policy": {{"mode": "offline", "fetchWait": "2s"}}, "transfer": {{"stall": "1s", "connect": "1s"}}}}"#,
            key().public()
        );
        machine.write("etc/freshroot/config.json", config.as_bytes());
        let mut report = Report::new(BOOT_ID);
        report.outcome = Outcome::Booted;
        report.source = Some(Source::Cache);
        report.system = Some(ChosenSystem {
            toplevel: "/nix/store/0c5f2ghhl3xkk1zjyk0pb9a5r4v2mhc1-running".parse().unwrap(),
            name: "default".to_owned(),
            init_kind: InitKind::PrepareRoot,
            manifest: digest(running),
            image: running.image.sha256,
            channel: None,
            serial: None,
            verified: true,
            authority: "signature by test-1".to_owned(),
        });
        machine.write(report::PATH, &report.to_json().unwrap());
        running.install(&open(&machine.cache()), 1);
        machine
    }

    pub fn write(&self, path: &str, text: &[u8]) {
        let path = self.root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    pub fn cache(&self) -> PathBuf {
        let folder = self.root.path().join(CACHE);
        fs::create_dir_all(&folder).unwrap();
        folder
    }

    pub fn fetch(&self) -> Result<String, String> {
        fetch(self.root.path(), Teller::Nobody, None).map_err(|error| format!("{error:#}"))
    }

    /// Manifests of the generations in the cache.
    pub fn generations(&self) -> Vec<String> {
        atomic::names(&self.cache().join("generations")).unwrap()
    }
}
