//! A served folder on a medium: it answers as a server does, and what it holds is used where it is.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support {
    #[allow(dead_code, reason = "shared with the tests of transfers")]
    pub mod world;
}

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use freshroot::boot::acquire::{Acquire, Acquired};
use freshroot::boot::medium::Medium;
use freshroot::candidates::RunningKernel;
use freshroot::digest::Digest;
use freshroot::formats::answer::Answer;
use freshroot::formats::key::SecretKey;
use freshroot::mode::Mode;
use freshroot::report::{Failure, Report, Source};
use freshroot::select::select;
use freshroot::settings::Settings;
use freshroot::verify::BootImage;
use support::world::{CHUNK, World, key, open, release};

/// Lays a world out as it is served.
fn serve(folder: &Path, world: &World, signed_by: &SecretKey, serial: u64) {
    for name in ["channels", "images", "manifests"] {
        fs::create_dir_all(folder.join(name)).unwrap();
    }
    let answer = Answer::new(release(&world.manifest, serial, signed_by), world.manifest.clone());
    fs::write(folder.join("channels/stable.json"), serde_json::to_vec(&answer).unwrap()).unwrap();
    let manifest = Digest::of(world.manifest.as_bytes());
    fs::write(folder.join(format!("manifests/{manifest}.json")), &world.manifest).unwrap();
    let image = world.image.sha256;
    fs::write(folder.join(format!("images/{image}.squashfs")), &world.bytes).unwrap();
    fs::write(folder.join(format!("images/{image}.chunks")), world.index.to_bytes()).unwrap();
}

fn damage(image: &Path, chunk: usize) {
    let file = fs::OpenOptions::new().write(true).open(image).unwrap();
    file.write_all_at(b"damage", (chunk * CHUNK) as u64 + 7).unwrap();
}

struct Machine {
    cache: tempfile::TempDir,
    medium: tempfile::TempDir,
    /// Of the command line.
    line: String,
}

impl Machine {
    /// It has accepted these serials, and none of their images is damaged.
    fn new(cached: &[u64]) -> Self {
        let machine = Self {
            cache: tempfile::tempdir().unwrap(),
            medium: tempfile::tempdir().unwrap(),
            line: "freshroot.channel=stable".to_owned(),
        };
        let cache = open(machine.cache.path());
        for serial in cached {
            World::new(*serial).install(&cache, *serial);
        }
        machine
    }

    fn boot(&self) -> (Result<Acquired, Failure>, Report) {
        let config = format!(r#"{{"version": 1, "trustedPublicKeys": ["{}"]}}"#, key().public());
        let settings = Settings::from_sources(Some(("config.json", config.as_bytes())), self.line.as_bytes()).unwrap();
        let (wanted, _) = select(&settings, Mode::Standalone).unwrap();
        let kernel = RunningKernel {
            release: "6.6.1".to_owned(),
            store_name: None,
        };
        let mut report = Report::new("test");
        let cache = Some(open(self.cache.path()));
        let mut acquire = Acquire::new(Path::new("/"), &settings, &wanted, kernel, cache, &mut report);
        acquire.add_medium(Medium::in_folder(self.medium.path()), &mut report);
        let acquired = acquire.next(&mut report);
        acquire.close(false).unwrap();
        (acquired, report)
    }

    /// Serial and source of what boots, and the warnings.
    fn boots(&self) -> (u64, Source, Vec<String>) {
        let (acquired, report) = self.boot();
        let acquired = acquired.unwrap_or_else(|failure| panic!("{failure:?} {:?}", report.warnings));
        assert!(matches!(acquired.image, BootImage::Verified(_)));
        let serial = acquired.known.authorised.release().map_or(0, |release| release.serial);
        (serial, acquired.source, report.warnings)
    }

    fn serve(&self, serial: u64) -> World {
        let world = World::new(serial);
        serve(self.medium.path(), &world, &key(), serial);
        world
    }

    fn image(folder: &Path, world: &World) -> std::path::PathBuf {
        folder.join(format!("images/{}.squashfs", world.image.sha256))
    }
}

#[test]
fn a_medium_is_enough_and_nothing_is_copied_from_it() {
    let machine = Machine::new(&[]);
    let world = machine.serve(3);
    assert_eq!(machine.boots(), (3, Source::Medium, vec![]));
    assert!(!Machine::image(machine.cache.path(), &world).exists());
    assert!(fs::read_dir(machine.cache.path().join("generations")).unwrap().next().is_none());
}

#[test]
fn of_medium_and_cache_the_higher_serial_boots() {
    let machine = Machine::new(&[2]);
    machine.serve(3);
    assert_eq!(machine.boots(), (3, Source::Medium, vec![]));
    let machine = Machine::new(&[4]);
    machine.serve(3);
    let (serial, source, warnings) = machine.boots();
    assert_eq!((serial, source), (4, Source::Cache));
    assert!(
        warnings[0].contains("serial 3") && warnings[0].contains("accepted 4"),
        "{warnings:?}"
    );
}

#[test]
fn what_both_hold_comes_from_the_cache_unless_it_is_damaged_there() {
    let machine = Machine::new(&[3]);
    let world = machine.serve(3);
    assert_eq!(machine.boots(), (3, Source::Cache, vec![]));
    damage(&Machine::image(machine.cache.path(), &world), 2);
    let (serial, source, warnings) = machine.boots();
    assert_eq!((serial, source), (3, Source::Medium));
    assert!(warnings[0].contains("of its 9 chunks, number 2 is not"), "{warnings:?}");
}

#[test]
fn a_damaged_medium_is_named_with_its_chunks_and_what_is_cached_boots() {
    let machine = Machine::new(&[2]);
    let world = machine.serve(3);
    for chunk in [1, 8] {
        damage(&Machine::image(machine.medium.path(), &world), chunk);
    }
    let (serial, source, warnings) = machine.boots();
    assert_eq!((serial, source), (2, Source::Cache));
    let place = machine.medium.path().display().to_string();
    assert!(
        warnings[0].contains(&place) && warnings[0].contains("numbers 1, 8 are not"),
        "{warnings:?}"
    );
}

#[test]
fn a_medium_is_believed_as_little_as_a_server() {
    let machine = Machine::new(&[]);
    let world = World::new(3);
    let stranger = SecretKey::from_seed("test-1", &[2; 32]).unwrap();
    serve(machine.medium.path(), &world, &stranger, 3);
    let (acquired, report) = machine.boot();
    assert!(acquired.is_err());
    assert!(
        report.warnings[0].contains("the medium has no valid answer"),
        "{:?}",
        report.warnings
    );
    // The one that is pinned needs no signature, and no other one will do.
    let manifest = Digest::of(world.manifest.as_bytes());
    let pinned = Machine {
        line: format!("freshroot.manifest-sha256={manifest}"),
        ..machine
    };
    assert_eq!(pinned.boots().1, Source::Medium);
    fs::write(pinned.medium.path().join(format!("manifests/{manifest}.json")), "{}").unwrap();
    assert!(pinned.boot().0.is_err());
}

#[test]
fn a_medium_without_an_answer_still_has_the_images_of_what_is_known() {
    let machine = Machine::new(&[3]);
    let world = machine.serve(3);
    fs::remove_dir_all(machine.medium.path().join("channels")).unwrap();
    fs::remove_file(Machine::image(machine.cache.path(), &world)).unwrap();
    let (serial, source, warnings) = machine.boots();
    assert_eq!((serial, source), (3, Source::Medium));
    assert!(warnings[0].contains("channels/stable.json"), "{warnings:?}");
}
