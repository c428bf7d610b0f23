//! Replacing keys: what is published is signed by the new ones too, and not by the old ones any more at last. Releases stay what they are, serial and date
//! with them: machines take the answer for what it was. The order stands in `docs/publishing.md`, «Replacing a key».

use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};

use super::folder::{Content, Folder, Hook, Put};
use super::generation::answer_bytes;
use super::sign::{answers, check};
use crate::formats::Refusal;
use crate::formats::key::{PublicKey, SecretKey};
use crate::formats::release::Release;

/// What is to be replaced by what.
pub struct Rotation<'a> {
    /// The keys that machines are to trust from now on.
    pub new: &'a [SecretKey],
    /// Those that they trust today.
    pub old: &'a [PublicKey],
    /// Whether the signatures of the old ones go.
    pub drop_old: bool,
}

/// One answer, and what becomes of it.
#[derive(Debug)]
pub struct Rotated {
    /// Its path below the served folder.
    pub path: String,
    /// Its release.
    pub release: Release,
    /// Whether a signature is added.
    pub signed: bool,
    /// Whether a signature goes.
    pub dropped: bool,
    bytes: Vec<u8>,
}

impl Rotated {
    /// Whether there is anything to do.
    pub const fn changes(&self) -> bool {
        self.signed || self.dropped
    }
}

/// What there is to do in the served folder `root`; changes nothing.
///
/// # Errors
/// Keys that cannot be told apart; an answer that is not whole, or that none of the keys has signed, by name: then none is signed anew.
pub fn plan(root: &Path, rotation: &Rotation<'_>) -> Result<Vec<Rotated>> {
    let new: Vec<PublicKey> = rotation.new.iter().map(SecretKey::public).collect();
    for old in rotation.old {
        ensure!(
            !new.contains(old),
            "{} is given as a new key and as an old one: give the public key that it takes the place of",
            old.name()
        );
        ensure!(
            new.iter().all(|new| new.name() != old.name()),
            "the new key has the old one's name, {}, and nobody could tell their signatures apart: make one of another name, such as {}-2",
            old.name(),
            old.name()
        );
    }
    let trusted: Vec<PublicKey> = rotation.old.iter().chain(&new).cloned().collect();
    let rotated: Vec<Rotated> = answers(root)?
        .into_iter()
        .map(|path| one(root, path, rotation, &new, &trusted))
        .collect::<Result<_>>()?;
    ensure!(
        !rotated.is_empty(),
        "there is nothing to sign in {}: neither channels/*.json nor by-system/*.json",
        root.display()
    );
    Ok(rotated)
}

fn one(root: &Path, path: String, rotation: &Rotation<'_>, new: &[PublicKey], trusted: &[PublicKey]) -> Result<Rotated> {
    let (mut answer, _) = check(root, &path).with_context(|| {
        format!("{path} is not whole: bring back what it names, or remove it if no machine is to boot by it; nothing was signed")
    })?;
    let at = root.join(&path);
    let payload = match answer.release().verify(trusted) {
        Ok((payload, _)) => payload,
        Err(Refusal::Unsigned) => bail!(
            "{} is not signed by anybody: look where it comes from, then sign it with «freshroot-publish sign»; nothing was signed",
            at.display()
        ),
        Err(refusal) => bail!(
            "{}: {}; give the key that signed it with --old-public, or publish it anew; nothing was signed",
            at.display(),
            in_words(&refusal)
        ),
    };
    let release = Release::parse(&payload).with_context(|| format!("reading the release in {path}"))?;
    let before = answer.release().clone();
    let envelope = answer.release_mut();
    for (secret, public) in rotation.new.iter().zip(new) {
        if !before.is_signed_by(public) {
            envelope.sign(secret).with_context(|| format!("signing {path}"))?;
        }
    }
    let signed = *envelope != before;
    let complete = envelope.clone();
    for key in rotation.old.iter().filter(|_| rotation.drop_old) {
        envelope
            .drop_signatures_of(key)
            .with_context(|| format!("removing a signature from {path}"))?;
    }
    let dropped = *envelope != complete;
    Ok(Rotated {
        bytes: answer_bytes(&answer)?,
        path,
        release,
        signed,
        dropped,
    })
}

/// What an agent would say, in the publisher's words.
fn in_words(refusal: &Refusal) -> String {
    match refusal {
        Refusal::UntrustedKey(names) => format!("it is signed by {}, which is neither an old key nor a new one", names.join(", ")),
        Refusal::Malformed(_)
        | Refusal::UnknownVersion { .. }
        | Refusal::UnknownCritical { .. }
        | Refusal::BadSignature(_)
        | Refusal::Unsigned
        | Refusal::ManifestMismatch
        | Refusal::NotWhatWasAsked(_) => refusal.to_string(),
    }
}

/// Replaces the answers that change, each at once, those of channels last.
///
/// # Errors
/// As [`plan`]; or the folder cannot be written. Run again, it goes on where it ended.
pub fn rotate(folder: &Folder, rotation: &Rotation<'_>, hook: &mut Hook<'_>) -> Result<Vec<Rotated>> {
    let rotated = plan(folder.root(), rotation)?;
    let puts: Vec<Put> = rotated
        .iter()
        .filter(|one| one.changes())
        .map(|one| Put {
            path: one.path.clone(),
            content: Content::Bytes(one.bytes.clone()),
        })
        .collect();
    folder.put(&puts, hook)?;
    Ok(rotated)
}

/// What was done, or would be: a line for each answer that changes, and one about all.
pub fn report(rotated: &[Rotated], rotation: &Rotation<'_>, dry_run: bool) -> String {
    let would = if dry_run { "would be " } else { "" };
    let mut text = String::new();
    for one in rotated.iter().filter(|one| one.changes()) {
        let what = match (one.signed, one.dropped) {
            (true, true) => "signed anew, without the old signature",
            (true, false) => "signed anew",
            (false, _) => "freed of the old signature",
        };
        text += &format!(
            "{} ({} serial {}) {would}{what}\n",
            one.path, one.release.channel, one.release.serial
        );
    }
    let names = |names: Vec<&str>| names.join(", ");
    let new: Vec<PublicKey> = rotation.new.iter().map(SecretKey::public).collect();
    let changed = rotated.iter().filter(|one| one.changes()).count();
    text += &format!(
        "{} answers: {changed} {would}changed, {} as they should be; signed by {}; signatures by {} {}\n",
        rotated.len(),
        rotated.len() - changed,
        names(new.iter().map(PublicKey::name).collect()),
        names(rotation.old.iter().map(PublicKey::name).collect()),
        if rotation.drop_old { "go" } else { "stay" }
    );
    text
}
