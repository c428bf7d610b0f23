//! From an image to a served folder.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use freshroot::formats::Refusal;
use freshroot::formats::answer::{Answer, Question, Received};
use freshroot::formats::authorised::{Authorised, Authority, Trust};
use freshroot::publish::folder::{Folder, Point};
use freshroot::publish::generation::{Publication, publish};
use freshroot::publish::inspect::inspect;
use freshroot::publish::sign::{answers, check};
use freshroot::publish::{keys, sign};

use super::images::{Store, hash, program};

fn run(arguments: &[&str]) -> Output {
    Command::new(program())
        .args(arguments)
        .env_remove("SOURCE_DATE_EPOCH")
        .output()
        .unwrap()
}

pub fn succeed(arguments: &[&str]) -> String {
    let output = run(arguments);
    assert!(
        output.status.success(),
        "{arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

pub fn fail(arguments: &[&str]) -> (i32, String) {
    let output = run(arguments);
    (output.status.code().unwrap(), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// Paths, inodes, times and bytes of all files of a folder, hidden ones left out.
pub fn snapshot(root: &Path) -> BTreeMap<PathBuf, (u64, i64, i64, Vec<u8>)> {
    let mut found = BTreeMap::new();
    let mut todo = vec![root.to_owned()];
    while let Some(folder) = todo.pop() {
        for entry in folder.read_dir().unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                todo.push(path);
            } else if !path.file_name().unwrap().to_str().unwrap().starts_with('.') {
                let metadata = path.metadata().unwrap();
                let bytes = fs::read(&path).unwrap();
                found.insert(path, (metadata.ino(), metadata.mtime(), metadata.mtime_nsec(), bytes));
            }
        }
    }
    found
}

pub struct Lab {
    store: Store,
    pub image: String,
    pub out: PathBuf,
    pub key: String,
}

impl Lab {
    pub fn new() -> Self {
        let store = Store::new();
        store.toplevel('a', "demo");
        let image = store.image("one.squashfs").to_str().unwrap().to_owned();
        let out = store.folder.path().join("served");
        let key = store.folder.path().join("k.secret");
        keys::generate("lab-1", &key).unwrap();
        fs::write(store.folder.path().join("kernel"), "kernel").unwrap();
        fs::write(store.folder.path().join("initrd"), "initrd").unwrap();
        Self {
            image,
            out,
            key: key.to_str().unwrap().to_owned(),
            store,
        }
    }

    pub fn store_folder(&self) -> PathBuf {
        self.store.folder.path().to_owned()
    }

    pub fn next(&self) -> String {
        self.store.toplevel('b', "demo");
        fs::remove_dir_all(self.store.path(&format!("{}-nixos-system-demo", hash('a')))).unwrap();
        self.store.image("two.squashfs").to_str().unwrap().to_owned()
    }

    pub fn file(&self, name: &str) -> String {
        self.store.folder.path().join(name).to_str().unwrap().to_owned()
    }

    pub fn image(&self, image: &str, more: &[&str]) -> String {
        let (kernel, initrd) = (self.file("kernel"), self.file("initrd"));
        let mut line = vec!["image", image, "--out", self.out.to_str().unwrap(), "--channel", "lab"];
        line.extend(["--kernel", &kernel, "--initrd", &initrd]);
        line.extend(more);
        succeed(&line)
    }

    pub fn answer(&self, path: &str) -> Answer {
        Answer::parse(&fs::read(self.out.join(path)).unwrap()).unwrap()
    }

    /// What a client that trusts the lab's key makes of the answer in `out`.
    fn ask(&self, out: &Path, question: &Question) -> Result<Authorised, Refusal> {
        let bytes = fs::read(out.join(question.path())).unwrap();
        Received::parse(question, &bytes).unwrap().authorise(question, &self.trust())
    }

    fn trust(&self) -> Trust {
        Trust {
            keys: vec![keys::read(Path::new(&self.key)).unwrap().public()],
            ..Trust::default()
        }
    }
}

#[test]
fn a_publication_is_what_a_client_that_trusts_the_key_accepts() {
    let lab = Lab::new();
    let before = fs::read(&lab.image).unwrap();
    let said = lab.image(
        &lab.image,
        &["--key", &lab.key, "--kernel-params", "quiet panic=30", "--not-after", "30d"],
    );
    assert!(said.starts_with("published channel lab serial 1\n"), "{said}");
    let channel = Question::Channel("lab".parse().unwrap());
    let authorised = lab.ask(&lab.out, &channel).unwrap();
    assert_eq!(*authorised.authority(), Authority::Signature("lab-1".to_owned()));
    let manifest = authorised.manifest();
    assert_eq!((manifest.systems.len(), manifest.systems[0].name.as_str()), (1, "demo"));
    assert_eq!(manifest.kernel_params, ["quiet", "panic=30"]);
    assert!(authorised.release().unwrap().not_after.is_some());
    let system = Question::System(manifest.systems[0].toplevel.clone());
    lab.ask(&lab.out, &system).unwrap();
    assert_eq!(
        fs::read(lab.out.join(format!("images/{}.squashfs", manifest.image.sha256))).unwrap(),
        before
    );
    for path in answers(&lab.out).unwrap() {
        check(&lab.out, &path).unwrap();
    }
    let script = fs::read_to_string(lab.out.join("netboot/lab.ipxe")).unwrap();
    assert!(
        script.contains(&format!("freshroot.system={} quiet panic=30 ||", manifest.systems[0].toplevel)),
        "{script}"
    );
    assert!(lab.out.join("netboot/demo.ipxe").exists() && lab.out.join("kexec-boot").exists());
    assert_eq!(fs::read(&lab.image).unwrap(), before);
}

#[test]
fn publishing_the_same_again_touches_nothing() {
    let lab = Lab::new();
    lab.image(&lab.image, &["--key", &lab.key]);
    let before = snapshot(&lab.out);
    let said = lab.image(&lab.image, &["--key", &lab.key]);
    assert!(said.starts_with("unchanged channel lab serial 1\n"), "{said}");
    assert_eq!(snapshot(&lab.out), before);
}

#[test]
fn the_serial_grows_and_what_was_published_before_stays_whole() {
    let lab = Lab::new();
    lab.image(&lab.image, &["--key", &lab.key]);
    let before = snapshot(&lab.out);
    let next = lab.next();
    assert!(
        lab.image(&next, &["--key", &lab.key])
            .starts_with("published channel lab serial 2\n")
    );
    let (code, error) = fail(&[
        "image",
        &lab.image,
        "--out",
        lab.out.to_str().unwrap(),
        "--channel",
        "lab",
        "--unsigned",
        "--serial",
        "2",
    ]);
    assert_eq!(code, 1);
    assert!(error.contains("the serial must grow: the channel lab is at 2"), "{error}");
    assert!(
        lab.image(&next, &["--key", &lab.key, "--serial", "10"])
            .starts_with("published channel lab serial 10\n")
    );
    let after = snapshot(&lab.out);
    let mutable = ["channels", "netboot", "kexec-boot", "netboot.ipxe", "pixiecore.json"];
    for (path, content) in before {
        let relative = path.strip_prefix(&lab.out).unwrap();
        if !mutable.iter().any(|folder| relative.starts_with(folder)) {
            assert_eq!(after.get(&path), Some(&content), "{}", path.display());
        }
    }
    assert_eq!(answers(&lab.out).unwrap().len(), 3);
}

#[test]
fn at_every_moment_each_answer_names_only_what_is_there() {
    let lab = Lab::new();
    let images = [PathBuf::from(&lab.image), PathBuf::from(lab.next())];
    let contents: Vec<_> = images.iter().map(|image| inspect(program(), image).unwrap()).collect();
    let key = [keys::read(Path::new(&lab.key)).unwrap()];
    let mut points = 0;
    for stop in 0.. {
        assert!(stop < 200, "a publication has more than 200 points");
        // The first generation is there as a whole; the second one stops at point `stop`.
        let out = lab.store.folder.path().join(format!("served-{stop}"));
        let mut seen = 0;
        let mut finished = true;
        for (generation, (image, contents)) in images.iter().zip(&contents).enumerate() {
            let publication = Publication {
                image,
                contents,
                boot: Some((lab.file("kernel").into(), lab.file("initrd").into())),
                channel: "lab".parse().unwrap(),
                serial: None,
                not_after: None,
                systems: Vec::new(),
                kernel_params: vec![format!("generation={generation}")],
                url: None,
                channel_mode: false,
                now: 1000,
            };
            let folder = Folder::lock(&out).unwrap();
            let mut hook = |_: Point, path: &str| {
                for answer in answers(&out).unwrap() {
                    check(&out, &answer).unwrap_or_else(|error| panic!("around {path}: {error:#}"));
                }
                whole_scripts(&out);
                if generation == 1 {
                    seen += 1;
                    anyhow::ensure!(seen <= stop, "stopped before {path}");
                }
                Ok(())
            };
            finished = publish(&folder, &publication, &key, &mut hook).is_ok();
        }
        points = stop;
        for answer in answers(&out).unwrap() {
            check(&out, &answer).unwrap();
        }
        let channel = Question::Channel("lab".parse().unwrap());
        let serial = lab.ask(&out, &channel).unwrap().release().unwrap().serial;
        if finished {
            assert_eq!(serial, 2);
            break;
        }
        // Whatever the crash left, the next publication is complete.
        let folder = Folder::lock(&out).unwrap();
        sign::sign(&folder, &key, &mut |_, _| Ok(())).unwrap();
        fs::remove_dir_all(&out).unwrap();
    }
    // Image, index, manifest, by-system, seven things that boot it, channel; kernel, initrd and netboot.ipxe are there already. Two points each.
    assert_eq!(points, 24);
}

/// Every file that a boot script names is there.
fn whole_scripts(out: &Path) {
    let Ok(folder) = out.join("netboot").read_dir() else { return };
    for script in folder
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|end| end == "ipxe"))
    {
        let text = fs::read_to_string(script).unwrap();
        for word in text.split_whitespace() {
            if let Some(path) = word.strip_prefix("../") {
                assert!(out.join(path).exists(), "{path}");
            }
            if let Some(system) = word.strip_prefix("freshroot.system=") {
                let path = Question::System(system.parse().unwrap()).path();
                assert!(out.join(&path).exists(), "{path}");
            }
        }
    }
}

#[test]
fn what_was_published_unsigned_is_signed_later_by_several_keys() {
    let lab = Lab::new();
    lab.image(&lab.image, &["--unsigned"]);
    let channel = Question::Channel("lab".parse().unwrap());
    assert!(lab.ask(&lab.out, &channel).is_err());
    let second = lab.file("second");
    keys::generate("lab-2", Path::new(&second)).unwrap();
    let said = succeed(&["sign", lab.out.to_str().unwrap(), "--key", &lab.key, "--key", &second]);
    assert_eq!(said.lines().last(), Some("signed channels/lab.json"));
    for key in [&lab.key, &second] {
        let trust = Trust {
            keys: vec![keys::read(Path::new(key)).unwrap().public()],
            ..Trust::default()
        };
        for path in answers(&lab.out).unwrap() {
            let answer = lab.answer(&path);
            freshroot::formats::authorised::authorise(Some(answer.release()), answer.manifest(), &trust).unwrap();
        }
    }
}

#[test]
fn an_answer_that_names_what_is_not_there_is_not_signed() {
    let lab = Lab::new();
    lab.image(&lab.image, &["--unsigned"]);
    let before = snapshot(&lab.out.join("channels"));
    let kernel = lab.out.join("kernels").read_dir().unwrap().next().unwrap().unwrap().path();
    fs::remove_file(&kernel).unwrap();
    let (code, error) = fail(&["sign", lab.out.to_str().unwrap(), "--key", &lab.key]);
    assert_eq!(code, 1);
    assert!(error.contains("names kernels/"), "{error}");
    assert_eq!(snapshot(&lab.out.join("channels")), before);
}

#[test]
fn channel_mode_and_a_url_reach_the_scripts() {
    let lab = Lab::new();
    lab.image(
        &lab.image,
        &["--unsigned", "--channel-mode", "--url", "http://boot.example:8080/x/"],
    );
    let script = fs::read_to_string(lab.out.join("netboot/lab.ipxe")).unwrap();
    assert!(script.contains(" http://boot.example:8080/x/kernels/"), "{script}");
    assert!(script.contains("init=/nix/.freshroot/init freshroot.channel=lab ||"), "{script}");
    let system = fs::read_to_string(lab.out.join("netboot/demo.ipxe")).unwrap();
    assert!(system.contains("freshroot.system=/nix/store/"), "{system}");
}

#[test]
fn wrong_arguments_end_with_2_and_a_failure_with_1() {
    let (code, error) = fail(&["imgae"]);
    assert_eq!(code, 2);
    assert!(error.contains("did you mean image?"), "{error}");
    let (code, error) = fail(&[
        "image",
        "/nowhere",
        "--out",
        "/tmp/never-made-by-freshroot",
        "--key",
        "/nowhere/key",
    ]);
    assert_eq!(code, 1);
    assert!(error.contains("opening the key /nowhere/key"), "{error}");
    assert!(!Path::new("/tmp/never-made-by-freshroot").exists());
}

fn registration(names: &[&str]) -> String {
    names.iter().map(|name| format!("/nix/store/{name}\nabc\n1\n\n0\n")).collect()
}

/// Bytes that no compressor shrinks, so that they can be found in an image.
fn noise(seed: u64) -> Vec<u8> {
    let mut state = seed;
    let step = move || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as u8
    };
    std::iter::repeat_with(step).take(1 << 20).collect()
}

#[test]
fn a_closure_is_packed_with_its_data_in_the_order_of_names_without_hashes() {
    let lab = Lab::new();
    let top = format!("{}-nixos-system-demo", hash('a'));
    let mut names = vec![top.clone()];
    names.extend(
        [('k', "linux-6.1"), ('m', "linux-6.1-modules"), ('s', "systemd")].map(|(letter, name)| format!("{}-{name}", hash(letter))),
    );
    let packages = [('9', "alpha", 1), ('1', "omega", 2), ('5', "beta", 3)];
    for (letter, name, seed) in packages {
        let path = format!("{}-{name}", hash(letter));
        fs::create_dir_all(lab.store.path(&path)).unwrap();
        fs::write(lab.store.path(&path).join("data"), noise(seed)).unwrap();
        names.push(path);
    }
    let list = lab.file("registration");
    fs::write(&list, registration(&names.iter().map(String::as_str).collect::<Vec<_>>())).unwrap();
    let store = lab.store.path("").to_str().unwrap().to_owned();
    let mut digests = Vec::new();
    for out in ["first", "second"] {
        let out = lab.file(out);
        let line = [
            "closure",
            &top,
            "--store",
            &store,
            "--registration",
            &list,
            "--level",
            "3",
            "--out",
            &out,
            "--unsigned",
        ];
        let said = succeed(&line);
        digests.push(said.lines().find(|line| line.starts_with("image ")).unwrap().to_owned());
        assert!(!Path::new(&out).join(".closure").exists());
    }
    assert_eq!(digests[0], digests[1], "the same closure gives the same bytes");
    let digest = digests[0].split(' ').nth(1).unwrap();
    let image = fs::read(Path::new(&lab.file("first")).join(format!("images/{digest}.squashfs"))).unwrap();
    let place = |seed| {
        let start = noise(seed);
        image.windows(64).position(|window| window == &start[..64]).unwrap()
    };
    assert!(
        place(1) < place(3) && place(3) < place(2),
        "alpha, beta, omega: {} {} {}",
        place(1),
        place(3),
        place(2)
    );
    let listed = Command::new("unsquashfs")
        .args(["-lls"])
        .arg(Path::new(&lab.file("first")).join(format!("images/{digest}.squashfs")))
        .output()
        .unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    assert!(
        listed.contains(&format!("squashfs-root/{top}/init")) && listed.contains("squashfs-root/nix-path-registration"),
        "{listed}"
    );
}

#[test]
fn a_closure_without_registration_or_nix_says_what_to_do() {
    let lab = Lab::new();
    let top = format!("{}-nixos-system-demo", hash('a'));
    let out = lab.file("out");
    let line = ["closure", &top, "--out", &out, "--unsigned"];
    let output = Command::new(program()).args(line).env("PATH", "/nowhere").output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1));
    assert!(error.contains("--registration FILE"), "{error}");
    let list = lab.file("registration");
    fs::write(&list, registration(&[&format!("{}-systemd", hash('s'))])).unwrap();
    let store = lab.store.path("").to_str().unwrap().to_owned();
    let (_, error) = fail(&[
        "closure",
        &top,
        "--store",
        &store,
        "--registration",
        &list,
        "--out",
        &out,
        "--unsigned",
    ]);
    assert!(error.contains("is not in the registration"), "{error}");
}

/// Each channel with scripts of its own; without a name, those of the first one, until another is made the default.
#[test]
fn what_machines_boot_without_being_named_is_the_first_channel_until_it_is_said_otherwise() {
    let lab = Lab::new();
    lab.image(&lab.image, &["--unsigned"]);
    let out = lab.out.to_str().unwrap();
    let read = |name: &str| fs::read_to_string(lab.out.join(name)).unwrap();
    let first = read("kexec-boot");
    let next = lab.next();
    lab.image(&next, &["--unsigned", "--channel", "prod", "--url", "http://s"]);
    assert_eq!((read("kexec-boot"), read("netboot/lab.kexec-boot")), (first.clone(), first.clone()));
    assert!(read("netboot.ipxe").contains(" netboot/lab.ipxe "), "{}", read("netboot.ipxe"));
    assert_eq!(read("pixiecore.json"), read("netboot/lab.pixiecore.json"));
    assert!(read("netboot/prod.pixiecore.json").contains("\"http://s/kernels/"));
    assert_eq!(succeed(&["hosts", out, "--default", "prod", "--url", "http://s"]), "default prod\n");
    assert_ne!(read("kexec-boot"), first);
    assert_eq!(read("kexec-boot"), read("netboot/prod.kexec-boot"));
    assert_eq!(read("pixiecore.json"), read("netboot/prod.pixiecore.json"));
    assert!(read("netboot.ipxe").contains(" http://s/netboot/prod.ipxe "));
    // Whoever writes this script himself keeps it.
    fs::write(lab.out.join("netboot.ipxe"), "#!ipxe\nshell\n").unwrap();
    lab.image(&lab.image, &["--unsigned", "--channel", "third"]);
    assert_eq!(read("netboot.ipxe"), "#!ipxe\nshell\n");
    assert_eq!(read("kexec-boot"), read("netboot/prod.kexec-boot"));
}

#[test]
fn the_table_of_machines_is_kept_with_what_comes_of_it() {
    let lab = Lab::new();
    lab.image(&lab.image, &["--unsigned"]);
    let out = lab.out.to_str().unwrap();
    let script = |mac: &str| lab.out.join(format!("netboot/by-mac/{mac}.ipxe"));
    let (a, b) = ("00-1f-29-12-34-56", "00-1f-29-12-34-57");
    let said = succeed(&["hosts", out, "00:1F:29:12:34:56=lab", &format!("{b}=lab"), "4C4C4544-0042=lab"]);
    let expected = "00:1f:29:12:34:56 lab\n00:1f:29:12:34:57 lab\n4c4c4544-0042 lab\ndefault lab\n";
    assert_eq!(said, expected);
    assert!(fs::read_to_string(script(a)).unwrap().contains("chain --autofree ../lab.ipxe ||"));
    let before = snapshot(&lab.out);
    assert_eq!(succeed(&["hosts", out]), expected);
    assert_eq!(snapshot(&lab.out), before);
    // A channel that is not there, or has no kernel, is refused, and nothing changes.
    lab.image(&lab.image, &["--unsigned"]);
    succeed(&["image", &lab.image, "--out", out, "--channel", "bare", "--unsigned"]);
    let before = snapshot(&lab.out);
    for arguments in [
        &["hosts", out, "00:1f:29:12:34:58=bare", "--remove", "00:1f:29:12:34:56"][..],
        &["hosts", out, "00:1f:29:12:34:58=lap"],
        &["hosts", out, "--default", "bare"],
    ] {
        let (code, error) = fail(arguments);
        assert!(code == 1 && error.contains("those that can: lab"), "{error}");
    }
    let (code, error) = fail(&["hosts", out, "--remove", "00:1f:29:12:34:58"]);
    assert!(
        code == 1 && error.contains("00:1f:29:12:34:58 does not stand in hosts.json"),
        "{error}"
    );
    assert_eq!(snapshot(&lab.out), before);
    // What was written by hand is neither removed nor replaced.
    fs::write(script("00-1f-29-12-34-99"), "#!ipxe\nshell\n").unwrap();
    let said = succeed(&["hosts", out, "--remove", "00:1f:29:12:34:56"]);
    assert_eq!(said, "00:1f:29:12:34:57 lab\n4c4c4544-0042 lab\ndefault lab\n");
    assert!(!script(a).exists() && script(b).exists() && script("00-1f-29-12-34-99").exists());
    let (code, error) = fail(&["hosts", out, "00:1f:29:12:34:99=lab"]);
    assert!(code == 1 && error.contains("was written by hand"), "{error}");
    assert!(!fail(&["hosts", "/nowhere/at/all"]).1.is_empty() && !Path::new("/nowhere/at/all").exists());
}
