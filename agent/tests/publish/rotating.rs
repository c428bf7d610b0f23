//! Replacing the keys of what is published; and keys that Nix made.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use freshroot::formats::authorised::{Trust, authorise};
use freshroot::formats::key::{PublicKey, SecretKey};
use freshroot::formats::release::Release;
use freshroot::publish::folder::Folder;
use freshroot::publish::rotate::{Rotation, rotate};
use freshroot::publish::sign::answers;
use freshroot::publish::{keys, sign};

use super::publishing::{Lab, fail, snapshot, succeed};

/// A lab that published two releases with its key, and the files of a new one.
fn lab() -> (Lab, String) {
    let lab = Lab::new();
    lab.image(&lab.image, &["--key", &lab.key, "--not-after", "30d"]);
    lab.image(&lab.next(), &["--key", &lab.key]);
    let new = lab.file("new");
    keys::generate("lab-2", Path::new(&new)).unwrap();
    (lab, new)
}

fn secret(file: &str) -> SecretKey {
    keys::read(Path::new(file)).unwrap()
}

/// Which of these keys' machines take each answer of the folder.
fn taken(lab: &Lab, keys: &[&PublicKey]) -> Vec<Vec<bool>> {
    let one = |path: &String| {
        let answer = lab.answer(path);
        let by = |key: &&PublicKey| {
            let trust = Trust {
                keys: vec![(*key).clone()],
                ..Trust::default()
            };
            authorise(Some(answer.release()), answer.manifest(), &trust).is_ok()
        };
        keys.iter().map(by).collect()
    };
    answers(&lab.out).unwrap().iter().map(one).collect()
}

fn releases(lab: &Lab) -> Vec<Release> {
    let paths = answers(&lab.out).unwrap();
    let payloads = paths.iter().map(|path| lab.answer(path).release().payload().unwrap());
    payloads.map(|payload| Release::parse(&payload).unwrap()).collect()
}

#[test]
fn all_that_is_published_is_signed_anew_and_stays_what_it_was() {
    let (lab, new) = lab();
    let (old_public, new_public) = (secret(&lab.key).public(), secret(&new).public());
    let (folder, old_file) = (lab.out.to_str().unwrap(), format!("{}.pub", lab.key));
    let line = ["rotate", folder, "--key", &new, "--old-public"];
    let (before, was) = (releases(&lab), snapshot(&lab.out));
    assert_eq!(taken(&lab, &[&old_public, &new_public]), vec![vec![true, false]; 3]);

    let said = succeed(&[&line[..], &[&old_file, "--dry-run"]].concat());
    assert!(said.contains("channels/lab.json (lab serial 2) would be signed anew\n"), "{said}");
    assert!(
        said.ends_with("3 answers: 3 would be changed, 0 as they should be; signed by lab-2; signatures by lab-1 stay\n"),
        "{said}"
    );
    assert_eq!(snapshot(&lab.out), was, "a dry run changes nothing");

    let said = succeed(&[&line[..], &[&old_file]].concat());
    assert!(said.contains("3 answers: 3 changed, 0 as they should be"), "{said}");
    assert_eq!(taken(&lab, &[&old_public, &new_public]), vec![vec![true, true]; 3]);
    assert_eq!(releases(&lab), before, "serial, date and manifest are those of before");
    let now = snapshot(&lab.out);
    for (path, file) in &was {
        let answer = path.starts_with(lab.out.join("channels")) || path.starts_with(lab.out.join("by-system"));
        assert_eq!(now[path] != *file, answer, "{}", path.display());
    }
    // A second time there is nothing to do; the key as a word does as well as its file.
    let said = succeed(&[&line[..], &[&old_public.to_string()]].concat());
    assert_eq!(said.lines().count(), 1);
    assert!(said.contains("0 changed, 3 as they should be"), "{said}");
    assert_eq!(snapshot(&lab.out), now);

    let said = succeed(&[&line[..], &[&old_file, "--drop-old"]].concat());
    assert!(
        said.contains("channels/lab.json (lab serial 2) freed of the old signature\n") && said.ends_with("lab-1 go\n"),
        "{said}"
    );
    assert_eq!(taken(&lab, &[&old_public, &new_public]), vec![vec![false, true]; 3]);
    assert_eq!(releases(&lab), before);
    let said = succeed(&[&line[..], &[&old_file, "--drop-old"]].concat());
    assert!(said.contains("0 changed"), "{said}");
}

#[test]
fn what_no_old_key_has_signed_is_refused_by_file_and_nothing_is_changed() {
    let (lab, new) = lab();
    let folder = lab.out.to_str().unwrap().to_owned();
    let stranger = lab.file("stranger");
    keys::generate("theirs", Path::new(&stranger)).unwrap();
    let old = format!("{}.pub", lab.key);
    let refused = |more: &[&str], words: &[&str]| {
        let was = snapshot(&lab.out);
        let (code, error) = fail(&[&["rotate", &folder], more].concat());
        assert_eq!(code, 1, "{error}");
        assert!(words.iter().all(|word| error.contains(word)), "{words:?}: {error}");
        assert_eq!(snapshot(&lab.out), was);
    };
    refused(
        &["--key", &new, "--old-public", &format!("{stranger}.pub")],
        &[
            "by-system/",
            "signed by lab-1, which is neither an old key nor a new one",
            "--old-public",
            "nothing was signed",
        ],
    );
    refused(
        &["--key", &lab.key, "--old-public", &old],
        &["lab-1 is given as a new key and as an old one"],
    );
    refused(&["--key", &new, "--old-public", &lab.key], &["64 are a secret key"]);
    refused(&["--key", &new, "--old-public", "lab-1.pub"], &["nor the file of one", "lab-1.pub"]);
    let twin = lab.file("twin");
    keys::generate("lab-1", Path::new(&twin)).unwrap();
    refused(
        &["--key", &twin, "--old-public", &old],
        &["the new key has the old one's name, lab-1"],
    );
    // One answer that was changed after it was signed, one that nobody signed, one that names what is not there.
    let path = lab.out.join("channels/lab.json");
    let whole = fs::read(&path).unwrap();
    let mut answer: serde_json::Value = serde_json::from_slice(&whole).unwrap();
    let others = answers(&lab.out)
        .unwrap()
        .into_iter()
        .map(|path| lab.answer(&path).release().clone());
    let other = others
        .into_iter()
        .find(|other| other != lab.answer("channels/lab.json").release())
        .unwrap();
    answer["release"]["signatures"] = serde_json::to_value(other).unwrap()["signatures"].clone();
    fs::write(&path, answer.to_string()).unwrap();
    refused(
        &["--key", &new, "--old-public", &old],
        &["channels/lab.json", "does not fit the release"],
    );
    answer["release"]["signatures"] = serde_json::json!([]);
    fs::write(&path, answer.to_string()).unwrap();
    refused(
        &["--key", &new, "--old-public", &old],
        &["channels/lab.json", "is not signed by anybody", "freshroot-publish sign"],
    );
    fs::write(&path, &whole).unwrap();
    let index = fs::read_dir(lab.out.join("images")).unwrap().map(|entry| entry.unwrap().path());
    fs::remove_file(
        index
            .filter(|path| path.extension().is_some_and(|end| end == "chunks"))
            .min()
            .unwrap(),
    )
    .unwrap();
    refused(
        &["--key", &new, "--old-public", &old],
        &["is not whole", "bring back what it names"],
    );
}

#[test]
fn a_rotation_that_is_cut_short_is_gone_on_with() {
    let (lab, new) = lab();
    let (old, new) = (secret(&lab.key), secret(&new));
    let (old_public, new_public) = (old.public(), new.public());
    let mut points = 0;
    for drop_old in [false, true] {
        for stop in 0.. {
            let folder = Folder::lock(&lab.out).unwrap();
            // As it was before.
            let first = Rotation {
                new: std::slice::from_ref(&old),
                old: std::slice::from_ref(&new_public),
                drop_old: true,
            };
            rotate(&folder, &first, &mut |_, _| Ok(())).unwrap();
            let rotation = Rotation {
                new: std::slice::from_ref(&new),
                old: std::slice::from_ref(&old_public),
                drop_old,
            };
            let mut seen = 0;
            let done = rotate(&folder, &rotation, &mut |_, path| {
                seen += 1;
                anyhow::ensure!(seen <= stop, "stopped before {path}");
                Ok(())
            });
            points = points.max(stop);
            // Machines that trust both keys take whatever is there.
            assert!(taken(&lab, &[&old_public, &new_public]).iter().all(|by| by.contains(&true)));
            let finished = done.is_ok();
            drop(folder);
            rotate(&Folder::lock(&lab.out).unwrap(), &rotation, &mut |_, _| Ok(())).unwrap();
            assert_eq!(taken(&lab, &[&old_public, &new_public]), vec![vec![!drop_old, true]; 3]);
            if finished {
                break;
            }
        }
    }
    assert_eq!(points, 6, "three answers, two points each");
}

fn nix(home: &Path, program: &str, arguments: &[&str], input: &str) -> String {
    let mut child = Command::new(program)
        .args(arguments)
        .env("HOME", home)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{program}: {error}: is nix-bin of vm-tests/packages.txt installed?"));
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn keys_that_nix_made_are_taken_everywhere_and_ours_are_by_nix() {
    let lab = Lab::new();
    let home = lab.store_folder();
    let command = |words: &[&str], input: &str| {
        nix(
            &home,
            "nix",
            &[&["--extra-experimental-features", "nix-command", "key"], words].concat(),
            input,
        )
    };
    let made = [("nix-new-1", lab.file("nix-new")), ("nix-old-1", lab.file("nix-old"))];
    fs::write(&made[0].1, command(&["generate-secret", "--key-name", "nix-new-1"], "")).unwrap();
    nix(
        &home,
        "nix-store",
        &[
            "--generate-binary-cache-key",
            "nix-old-1",
            &made[1].1,
            &format!("{}.pub", made[1].1),
        ],
        "",
    );
    for (name, file) in &made {
        let key = secret(file);
        assert_eq!(key.public().name(), *name);
        assert_eq!(
            command(&["convert-secret-to-public"], &fs::read_to_string(file).unwrap()).trim(),
            key.public().to_string()
        );
    }
    assert_eq!(keys::public(&format!("{}.pub", made[1].1)).unwrap(), secret(&made[1].1).public());
    // And the other way round.
    let ours = fs::read_to_string(&lab.key).unwrap();
    assert_eq!(
        command(&["convert-secret-to-public"], &ours).trim(),
        secret(&lab.key).public().to_string()
    );

    // Publishing, signing, rotating.
    let [(_, new), (_, old)] = &made;
    lab.image(&lab.image, &["--key", old]);
    let public = [secret(old).public(), secret(new).public()];
    assert_eq!(taken(&lab, &[&public[0], &public[1]]), vec![vec![true, false]; 2]);
    succeed(&[
        "rotate",
        lab.out.to_str().unwrap(),
        "--key",
        new,
        "--old-public",
        &format!("{old}.pub"),
        "--drop-old",
    ]);
    assert_eq!(taken(&lab, &[&public[0], &public[1]]), vec![vec![false, true]; 2]);
    sign::sign(&Folder::lock(&lab.out).unwrap(), &[secret(old)], &mut |_, _| Ok(())).unwrap();
    assert_eq!(taken(&lab, &[&public[0], &public[1]]), vec![vec![true, true]; 2]);
}
