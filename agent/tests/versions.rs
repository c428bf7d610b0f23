//! Agents of different ages on one cache: what the first one wrote is read, and what a later one wrote is passed over.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support {
    #[allow(dead_code, reason = "shared with the tests of transfers")]
    pub mod world;
}

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use freshroot::boot::acquire::Acquire;
use freshroot::boot::cache_disk::open_cache;
use freshroot::candidates::RunningKernel;
use freshroot::digest::Digest;
use freshroot::mode::Mode;
use freshroot::report::{Report, Source};
use freshroot::select::select;
use freshroot::settings::Settings;
use freshroot::verify::BootImage;
use serde_json::{Value, json};
use support::world::{World, key, open, present};

/// Files of version 1 as they were when this test was written. They stay as they are, whatever later agents write.
const GENERATION: &str = include_str!("version-1/generation.json");
const STATE: &str = include_str!("version-1/state.json");
const CHUNKS: &str = include_str!("version-1/chunks.hex");

/// Serial and source of what boots from the cache in `folder` alone, with what the report says.
fn boot(folder: &Path) -> (u64, Report) {
    let config = format!(
        r#"{{"version": 1, "channel": "stable", "policy": {{"mode": "offline", "tries": 2}}, "trustedPublicKeys": ["{}"]}}"#,
        key().public()
    );
    let settings = Settings::from_sources(Some(("config.json", config.as_bytes())), b"").unwrap();
    let (wanted, _) = select(&settings, Mode::Standalone).unwrap();
    let kernel = RunningKernel {
        release: "6.6.1".to_owned(),
        store_name: None,
    };
    let mut report = Report::new("test");
    let mut acquire = Acquire::new(
        Path::new("/"),
        &settings,
        &wanted,
        kernel,
        Some(open_cache(folder).unwrap()),
        &mut report,
    );
    let acquired = acquire.next(&mut report).unwrap();
    assert!(matches!(acquired.image, BootImage::Verified(_)));
    assert_eq!(acquired.source, Source::Cache);
    let serial = acquired.known.authorised.release().map_or(0, |release| release.serial);
    acquire.close(false).unwrap();
    (serial, report)
}

fn bytes_of(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.bytes().filter(u8::is_ascii_hexdigit).collect();
    digits
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

#[test]
fn row_32_a_cache_that_the_first_agent_wrote_boots() {
    let world = World::new(1);
    let folder = tempfile::tempdir().unwrap();
    drop(open(folder.path()));
    let write = |name: String, bytes: &[u8]| fs::write(folder.path().join(name), bytes).unwrap();
    let manifest = serde_json::from_str::<Value>(GENERATION).unwrap()["manifest"]
        .as_str()
        .unwrap()
        .to_owned();
    write(
        format!("generations/{}.json", Digest::of(manifest.as_bytes())),
        GENERATION.trim_end().as_bytes(),
    );
    write("state.json".to_owned(), STATE.as_bytes());
    write(format!("images/{}.squashfs", world.image.sha256), &world.bytes);
    write(format!("images/{}.chunks", world.image.sha256), &bytes_of(CHUNKS));
    let (serial, report) = boot(folder.path());
    assert_eq!(serial, 1);
    assert!(report.warnings.is_empty(), "{:?}", report.warnings);
    // What it remembered is still known.
    let state: Value = serde_json::from_slice(&fs::read(folder.path().join("state.json")).unwrap()).unwrap();
    assert_eq!(state["channels"]["stable"]["serial"], 1, "{state}");
}

#[test]
fn row_32_what_a_later_agent_left_in_the_cache_is_a_clean_miss() {
    let folder = tempfile::tempdir().unwrap();
    let (world, later) = (World::new(1), World::new(2));
    let cache = open(folder.path());
    world.install(&cache, 1);
    later.begin(&cache, &[0, 1, 2]);
    drop(cache);
    let path = |name: String| folder.path().join(name);
    // A field more changes nothing.
    let own = path(format!("generations/{}.json", Digest::of(world.manifest.as_bytes())));
    let mut generation: Value = serde_json::from_slice(&fs::read(&own).unwrap()).unwrap();
    generation["colour"] = json!("blue");
    fs::write(&own, generation.to_string()).unwrap();
    // Files of version 2, and folders that only a later agent knows.
    let manifest = Digest::of(later.manifest.as_bytes());
    let map = path(format!("partial/{}.map", later.image.sha256));
    let mut newer = fs::read(&map).unwrap();
    newer[8] = 2;
    fs::write(&map, newer).unwrap();
    let newer: BTreeMap<String, Value> = BTreeMap::from([
        (
            format!("generations/{manifest}.json"),
            json!({"version": 2, "manifests": [], "sequence": 9}),
        ),
        (format!("blessed/{manifest}.json"), json!({"version": 2, "by": "someone"})),
        ("state.json".to_owned(), json!({"version": 2, "channels": []})),
        ("reports/later.json".to_owned(), json!({"version": 2})),
        ("deltas/later.json".to_owned(), json!({"version": 1})),
    ]);
    for (name, value) in &newer {
        let file = path(name.clone());
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, value.to_string()).unwrap();
    }
    let (serial, report) = boot(folder.path());
    assert_eq!(serial, 1, "{:?}", report.warnings);
    // The state is begun anew; what the later agent has for itself is there for it.
    let there = |name: &str| fs::read_to_string(path(name.to_owned())).unwrap();
    for name in [&format!("generations/{manifest}.json"), "deltas/later.json"] {
        assert_eq!(there(name), newer[name].to_string(), "{name}");
    }
    // The part of an image whose map is not understood is begun anew, and never taken for verified.
    assert_eq!(present(&open(folder.path()), &later), 0);
}
