//! Golden cases: a machine from a folder, the program run on it, and what it says compared with what is written down.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use freshroot::digest::Digest;
use freshroot::formats::envelope::Envelope;
use freshroot::formats::generation::Generation;
use freshroot::formats::key::SecretKey;
use serde::Deserialize;
use serde_json::json;

/// Where `cache.path` lies by default.
const CACHE: &str = "run/freshroot/cache/freshroot";
/// What stands in expected files for the folder that the machine lies in.
const ROOT: &str = "ROOT";
const IMAGE_SIZE: u64 = 4096;

/// One generation in `cache.json`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Cached {
    /// The toplevel is `/nix/store/<always the same hash>-<name>`.
    name: String,
    channel: String,
    serial: u64,
    #[serde(default = "test_key")]
    signed_by: String,
    #[serde(default = "release")]
    kernel: String,
    image: ImageOnDisk,
    #[serde(default)]
    tries: u32,
    #[serde(default)]
    blessed: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
enum ImageOnDisk {
    Absent,
    Partial,
    Whole,
}

fn test_key() -> String {
    "test-1".to_owned()
}

fn release() -> String {
    "6.6.1".to_owned()
}

/// The key of this name: the same at each run.
fn key(name: &str) -> SecretKey {
    SecretKey::from_seed(name, Digest::of(name.as_bytes()).as_bytes()).unwrap()
}

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

/// The names of all cases.
pub fn folders() -> Vec<String> {
    let entries = fs::read_dir(golden()).unwrap();
    let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Runs `command` on the machine of a case, and compares.
pub fn check(command: &str, case: &str) {
    let folder = golden().join(case);
    let machine = tempfile::tempdir().unwrap();
    let root = machine.path();
    let words = fill_cache(&folder, root);
    copy(&folder.join("root"), root, &words);
    let before = files(root);
    let run = |json: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_freshroot"))
            .args(command.split(' '))
            .arg("--root")
            .arg(root)
            .args(json)
            .env_clear()
            .output()
            .unwrap();
        said(&output, root)
    };
    let (text, json) = (run(&[]), run(&["--json"]));
    assert_eq!(before, files(root), "the {command} of {case} changed something");
    let found: BTreeMap<&str, String> = match (text, json) {
        (Ok(text), Ok(json)) => [("expected", text), ("expected.json", json)].into(),
        (Err(text), Err(json)) => {
            assert_eq!(text, json, "--json does not change why something is refused");
            [("expected-error", text)].into()
        }
        (text, json) => panic!("text and JSON do not agree: {text:?} and {json:?}"),
    };
    for name in ["expected", "expected.json", "expected-error"] {
        compare(&folder.join(name), found.get(name).map(String::as_str));
    }
}

/// What was printed; as an error, the exit code and the message.
fn said(output: &Output, root: &Path) -> Result<String, String> {
    let plain = |bytes: &[u8]| std::str::from_utf8(bytes).unwrap().replace(root.to_str().unwrap(), ROOT);
    let (out, error) = (plain(&output.stdout), plain(&output.stderr));
    if output.status.success() {
        assert_eq!(error, "", "a command that succeeds has nothing to complain about");
        Ok(out)
    } else {
        assert_eq!(out, "", "a command that fails prints nothing else");
        Err(format!("exit code {}\n{error}", output.status.code().unwrap()))
    }
}

/// Compares a file with what was found; nothing found means that the file must not be there.
fn compare(path: &Path, found: Option<&str>) {
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        match found {
            Some(text) => fs::write(path, text).unwrap(),
            None if path.exists() => fs::remove_file(path).unwrap(),
            None => {}
        }
    }
    let expected = path.exists().then(|| fs::read_to_string(path).unwrap());
    if expected.as_deref() != found {
        let (expected, found) = (expected.unwrap_or_default(), found.unwrap_or_default());
        panic!(
            "{} differs (- expected, + found); UPDATE_GOLDEN=1 writes it anew\n{}",
            path.display(),
            difference(&expected, found)
        );
    }
}

/// The lines that differ, between those that begin and end alike.
fn difference(expected: &str, found: &str) -> String {
    let (expected, found): (Vec<&str>, Vec<&str>) = (expected.lines().collect(), found.lines().collect());
    let same = |pairs: &mut dyn Iterator<Item = (&&str, &&str)>| pairs.take_while(|(a, b)| a == b).count();
    let head = same(&mut expected.iter().zip(&found));
    let tail = same(&mut expected[head..].iter().rev().zip(found[head..].iter().rev()));
    let lines = |sign: char, lines: &[&str]| -> String {
        let numbered = lines[head..lines.len() - tail].iter().zip(head + 1..);
        numbered.map(|(line, number)| format!("{sign} {number:>3} {line}\n")).collect()
    };
    lines('-', &expected) + &lines('+', &found)
}

/// Makes the cache of `cache.json` below `root`, if the case has one. Gives what stands for `@<name>@`: the digest of the manifest of that name.
fn fill_cache(case: &Path, root: &Path) -> HashMap<String, String> {
    let path = case.join("cache.json");
    if !path.exists() {
        return HashMap::new();
    }
    let cached: Vec<Cached> = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let folder = root.join(CACHE);
    for name in ["generations", "images", "partial"] {
        fs::create_dir_all(folder.join(name)).unwrap();
    }
    let written = cached.iter().zip(1..).map(|(cached, sequence)| {
        let generation = cached.generation(sequence);
        let digest = generation.digest();
        let path = folder.join(format!("generations/{digest}.json"));
        fs::write(path, serde_json::to_vec(&generation).unwrap()).unwrap();
        let image = Digest::of(cached.name.as_bytes());
        let made = match cached.image {
            ImageOnDisk::Absent => None,
            ImageOnDisk::Partial => Some(format!("partial/{image}.part")),
            ImageOnDisk::Whole => Some(format!("images/{image}.squashfs")),
        };
        if let Some(name) = made {
            File::create(folder.join(name)).unwrap().set_len(IMAGE_SIZE).unwrap();
        }
        for number in 1..=cached.tries {
            fs::create_dir_all(folder.join(format!("tries/{digest}"))).unwrap();
            fs::write(folder.join(format!("tries/{digest}/{number}")), "").unwrap();
        }
        if cached.blessed {
            fs::create_dir_all(folder.join("blessed")).unwrap();
            let blessing = json!({"version": 1, "sequence": sequence, "bootId": "earlier", "blessed": 1_700_000_000u64});
            fs::write(folder.join(format!("blessed/{digest}.json")), blessing.to_string()).unwrap();
        }
        (format!("@{}@", cached.name), digest.to_string())
    });
    written.collect()
}

impl Cached {
    fn generation(&self, sequence: u64) -> Generation {
        let manifest = json!({
            "version": 1,
            "systems": [{
                "name": "default",
                "toplevel": format!("/nix/store/0c5f2ghhl3xkk1zjyk0pb9a5r4v2mhc1-{}", self.name),
                "initKind": "prepare-root",
            }],
            "kernel": {"storeName": format!("2c5f2ghhl3xkk1zjyk0pb9a5r4v2mhc1-linux-{}", self.kernel), "release": self.kernel},
            "image": {
                "sha256": Digest::of(self.name.as_bytes()),
                "size": IMAGE_SIZE,
                "chunkIndex": {"sha256": Digest::of(b"index"), "size": 60},
            },
        })
        .to_string();
        let release = json!({
            "version": 1, "channel": self.channel, "serial": self.serial, "created": 1_700_000_000u64,
            "manifest": Digest::of(manifest.as_bytes()),
        });
        let mut release = Envelope::unsigned(release.to_string().as_bytes());
        release.sign(&key(&self.signed_by)).unwrap();
        Generation {
            version: 1,
            release: Some(release),
            manifest,
            sequence,
            accepted: 1_700_000_000,
            source: "http://images.example".to_owned(),
            etag: None,
        }
    }
}

/// Copies a tree of text files, with words that stand for others, and `@key@` for the key that machines trust.
fn copy(from: &Path, to: &Path, words: &HashMap<String, String>) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to, words);
            continue;
        }
        let text = fs::read_to_string(entry.path()).unwrap();
        let text = text.replace("@key@", &key(&test_key()).public().to_string());
        fs::write(to, words.iter().fold(text, |text, (word, meaning)| text.replace(word, meaning))).unwrap();
    }
}

/// Every file below `folder`, with its bytes.
fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries
        .flat_map(|path| {
            if path.is_dir() {
                files(&path)
            } else {
                [(path.clone(), fs::read(&path).unwrap())].into()
            }
        })
        .collect()
}
