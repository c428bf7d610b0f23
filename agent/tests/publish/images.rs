//! What is found in an image, and what is refused.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use freshroot::formats::manifest::InitKind;
use freshroot::publish::inspect::{Contents, inspect};

pub fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_freshroot-publish"))
}

pub fn hash(letter: char) -> String {
    String::from(letter).repeat(32)
}

/// A store in a folder, from which images are made.
pub struct Store {
    pub folder: tempfile::TempDir,
}

impl Store {
    /// A store with a kernel `linux-6.1`, its modules and a systemd.
    pub fn new() -> Self {
        let store = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        store.file(&format!("{}-linux-6.1/bzImage", hash('k')), "kernel", 0o444);
        store.file(&format!("{}-linux-6.1-modules/lib/modules/6.1.0/modules.dep", hash('m')), "", 0o444);
        store.file(&format!("{}-systemd/lib/systemd/systemd", hash('s')), "\x7fELF", 0o555);
        store.file("nix-path-registration", "", 0o444);
        store
    }

    pub fn path(&self, path: &str) -> PathBuf {
        self.folder.path().join("store").join(path)
    }

    pub fn file(&self, path: &str, text: &str, mode: u32) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    }

    pub fn link(&self, path: &str, target: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        symlink(target, path).unwrap();
    }

    /// A toplevel with links to kernel and modules, and an `init` script.
    pub fn toplevel(&self, letter: char, name: &str) -> String {
        let toplevel = format!("{}-nixos-system-{name}", hash(letter));
        self.file(&format!("{toplevel}/init"), "#! /bin/sh\n", 0o555);
        self.file(&format!("{toplevel}/nixos-version"), name, 0o444);
        self.link(
            &format!("{toplevel}/kernel"),
            &format!("/nix/store/{}-linux-6.1/bzImage", hash('k')),
        );
        self.link(
            &format!("{toplevel}/kernel-modules"),
            &format!("/nix/store/{}-linux-6.1-modules", hash('m')),
        );
        toplevel
    }

    pub fn image(&self, name: &str) -> PathBuf {
        let image = self.folder.path().join(name);
        let mut command = Command::new("mksquashfs");
        command.arg(self.path("")).arg(&image);
        command.args(["-noappend", "-quiet", "-no-progress", "-all-root", "-b", "1048576", "-comp", "zstd"]);
        let output = command.output().expect("mksquashfs is needed: install squashfs-tools");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        image
    }
}

fn look(image: &Path) -> Result<Contents, String> {
    inspect(program(), image).map_err(|error| format!("{error:#}"))
}

#[test]
fn each_kind_of_toplevel_is_told_with_its_kernel() {
    let store = Store::new();
    store.toplevel('a', "scripted");
    let b = store.toplevel('b', "prepared");
    store.file(&format!("{b}/prepare-root"), "#! /bin/sh\n", 0o555);
    fs::remove_file(store.path(&format!("{b}/init"))).unwrap();
    store.link(
        &format!("{b}/init"),
        &format!("/nix/store/{}-systemd/lib/systemd/systemd", hash('s')),
    );
    let c = store.toplevel('c', "nixos-init");
    fs::remove_file(store.path(&format!("{c}/init"))).unwrap();
    store.link(&format!("{c}/init"), &format!("../{}-systemd/lib/systemd/systemd", hash('s')));
    store.link(&format!("{c}/specialisation/other"), &format!("/nix/store/{b}"));
    let found = look(&store.image("image")).unwrap();
    let kinds: Vec<_> = found.systems.iter().map(|system| system.init_kind).collect();
    assert_eq!(kinds, [InitKind::Scripted, InitKind::PrepareRoot, InitKind::NixosInit]);
    for system in &found.systems {
        assert_eq!(system.kernel_store_name, format!("{}-linux-6.1", hash('k')));
        assert_eq!(system.kernel_release, "6.1.0");
    }
    assert!(found.registration);
    assert_eq!(found.systems[2].specialisations[0].name, "other");
    assert_eq!(found.systems[2].specialisations[0].toplevel, found.systems[1].toplevel);
}

#[test]
fn an_image_without_what_a_boot_needs_is_refused_by_name() {
    type Spoil = fn(&Store, &str);
    let cases: [(&str, Spoil); 9] = [
        ("there is no toplevel", |store, top| fs::remove_dir_all(store.path(top)).unwrap()),
        ("has no init", |store, top| {
            fs::remove_file(store.path(&format!("{top}/init"))).unwrap()
        }),
        ("init is not executable", |store, top| {
            store.file(&format!("{top}/init"), "#!", 0o444)
        }),
        ("has no kernel", |store, top| {
            fs::remove_file(store.path(&format!("{top}/kernel"))).unwrap()
        }),
        ("has no kernel", |store, _| {
            fs::remove_dir_all(store.path(&format!("{}-linux-6.1", hash('k')))).unwrap()
        }),
        ("the kernel's release cannot be told", |store, top| {
            fs::remove_file(store.path(&format!("{top}/kernel-modules"))).unwrap();
        }),
        ("modules of several kernels: 6.1.0, 6.2.0", |store, _| {
            store.file(&format!("{}-linux-6.1-modules/lib/modules/6.2.0/x", hash('m')), "", 0o444);
        }),
        ("which is not in the store and so not in the image", |store, top| {
            fs::remove_file(store.path(&format!("{top}/init"))).unwrap();
            store.link(&format!("{top}/init"), "/usr/lib/systemd/systemd");
        }),
        ("a loop", |store, top| {
            fs::remove_file(store.path(&format!("{top}/init"))).unwrap();
            store.link(&format!("{top}/init"), "init");
        }),
    ];
    for (words, spoil) in cases {
        let store = Store::new();
        let toplevel = store.toplevel('a', "x");
        if words == "init is not executable" {
            fs::remove_file(store.path(&format!("{toplevel}/init"))).unwrap();
        }
        spoil(&store, &toplevel);
        let error = look(&store.image("image")).unwrap_err();
        assert!(error.contains(words), "{words}: {error}");
        if words != "there is no toplevel" {
            assert!(error.contains("nixos-system-x"), "{error}");
        }
    }
}

#[test]
fn a_whole_root_file_system_is_told_from_a_store() {
    let store = Store::new();
    store.file("nix/store/x", "", 0o444);
    let error = look(&store.image("image")).unwrap_err();
    assert!(error.contains("it holds «nix» instead"), "{error}");
}

#[test]
fn what_is_no_squashfs_or_cut_short_is_refused_before_it_is_parsed() {
    let store = Store::new();
    store.toplevel('a', "x");
    let image = store.image("image");
    let bytes = fs::read(&image).unwrap();
    for (bytes, words) in [
        (&b"<html>"[..], "is not a squashfs image"),
        (&[], "is not a squashfs image"),
        (&bytes[..50], "is not a squashfs image"),
        (&bytes[..200], "is cut short: its superblock speaks of"),
    ] {
        fs::write(&image, bytes).unwrap();
        let error = look(&image).unwrap_err();
        assert!(error.contains(words), "{error}");
    }
    assert!(look(store.folder.path()).unwrap_err().contains("not a regular file"));
    assert!(look(Path::new("/nowhere")).unwrap_err().contains("/nowhere"));
}

#[test]
fn a_corrupt_image_is_an_error_and_never_the_end_of_the_publisher() {
    let store = Store::new();
    store.toplevel('a', "x");
    let image = store.image("image");
    let good = fs::read(&image).unwrap();
    let mut refused = 0;
    // Every field of the superblock but magic and bytes used, each with two values.
    for at in (4..0x28).chain(0x30..96) {
        for value in [0x00, 0xff] {
            let mut bytes = good.clone();
            if bytes[at] == value {
                continue;
            }
            bytes[at] = value;
            fs::write(&image, bytes).unwrap();
            if let Err(error) = look(&image) {
                assert!(
                    error.contains(image.to_str().unwrap()) || error.contains("more than"),
                    "byte {at} = {value}: {error}"
                );
                refused += 1;
            }
        }
    }
    assert!(refused > 20, "{refused} refused");
}
