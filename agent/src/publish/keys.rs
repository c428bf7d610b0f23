//! Keys on the publisher's disk, in Nix's format.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

use crate::formats::key::{PublicKey, SecretKey, secret_text};

/// A secret key with a long name is under 200 bytes.
const KEY_FILE_LIMIT: u64 = 4 << 10;

/// Makes a key pair named `name`. `out` is a folder, which gets `<name>.secret` and `<name>.pub`, or the secret key's file, beside which stands `<file>.pub`.
///
/// # Errors
/// A name that cannot be one, or a file that is there already: keys are never overwritten.
pub fn generate(name: &str, out: &Path) -> Result<PublicKey> {
    // The name becomes a part of the files' names.
    ensure!(!name.contains('/'), "the key name «{name}» holds a slash");
    let mut seed = [0; 32];
    let mut filled = 0;
    while filled < seed.len() {
        filled += rustix::rand::getrandom(&mut seed[filled..], rustix::rand::GetRandomFlags::empty()).context("reading random bytes")?;
    }
    let text = secret_text(name, &seed).with_context(|| format!("making a key named «{name}»"))?;
    let public = text.parse::<SecretKey>().context("reading the key that was made")?.public();
    let (secret_path, public_path) = paths(name, out);
    for path in [&secret_path, &public_path] {
        let there = path.try_exists().with_context(|| format!("looking for {}", path.display()))?;
        ensure!(!there, "{} is there already: keys are never overwritten", path.display());
    }
    create(&secret_path, 0o600, &text)?;
    create(&public_path, 0o644, &format!("{public}\n"))?;
    Ok(public)
}

fn paths(name: &str, out: &Path) -> (PathBuf, PathBuf) {
    if out.is_dir() {
        return (out.join(format!("{name}.secret")), out.join(format!("{name}.pub")));
    }
    let mut public = out.as_os_str().to_owned();
    public.push(".pub");
    (out.to_owned(), public.into())
}

fn create(path: &Path, mode: u32, text: &str) -> Result<()> {
    let write = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    };
    write().with_context(|| format!("writing {}", path.display()))
}

/// Reads a secret key's file, as [`generate`], `nix key generate-secret` or `nix-store --generate-binary-cache-key` wrote it.
pub fn read(path: &Path) -> Result<SecretKey> {
    read_text(path)?
        .parse()
        .with_context(|| format!("reading the key {}", path.display()))
}

/// A public key, as it is written or from its file.
pub fn public(word: &str) -> Result<PublicKey> {
    if let Ok(key) = word.parse() {
        return Ok(key);
    }
    let text = read_text(Path::new(word)).context("neither a public key, name:base64, nor the file of one")?;
    text.parse().with_context(|| format!("reading the public key {word}"))
}

fn read_text(path: &Path) -> Result<String> {
    let mut text = String::new();
    let file = File::open(path).with_context(|| format!("opening the key {}", path.display()))?;
    file.take(KEY_FILE_LIMIT)
        .read_to_string(&mut text)
        .with_context(|| format!("reading the key {}", path.display()))?;
    Ok(text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn a_key_is_written_once_for_its_owner_only() {
        let folder = tempfile::tempdir().unwrap();
        let public = generate("k-1", folder.path()).unwrap();
        let secret = folder.path().join("k-1.secret");
        assert_eq!(secret.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        let text = std::fs::read_to_string(&secret).unwrap();
        assert!(text.starts_with("k-1:") && text.len() == "k-1:".len() + 88, "{text}");
        assert_eq!(read(&secret).unwrap().public(), public);
        assert_eq!(
            std::fs::read_to_string(folder.path().join("k-1.pub")).unwrap(),
            format!("{public}\n")
        );
        assert!(
            generate("k-1", folder.path())
                .unwrap_err()
                .to_string()
                .contains("never overwritten")
        );
        assert_eq!(std::fs::read_to_string(&secret).unwrap(), text);
    }

    #[test]
    fn the_secret_key_of_a_file_name_stands_there() {
        let folder = tempfile::tempdir().unwrap();
        generate("k-1", &folder.path().join("key")).unwrap();
        assert!(read(&folder.path().join("key")).is_ok());
        assert!(folder.path().join("key.pub").exists());
    }

    #[test]
    fn a_public_key_is_given_as_it_is_or_by_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let key = generate("k-1", folder.path()).unwrap();
        let file = folder.path().join("k-1.pub");
        assert_eq!(public(&key.to_string()).unwrap(), key);
        assert_eq!(public(file.to_str().unwrap()).unwrap(), key);
        let secret = format!("{:#}", public(folder.path().join("k-1.secret").to_str().unwrap()).unwrap_err());
        assert!(secret.contains("64 are a secret key"), "{secret}");
        let nothing = format!("{:#}", public("k-1").unwrap_err());
        assert!(nothing.contains("nor the file of one"), "{nothing}");
    }

    #[test]
    fn a_name_that_cannot_be_one_is_refused_and_nothing_is_written() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["", "a:b", "../a"] {
            assert!(generate(name, folder.path()).is_err(), "{name}");
        }
        assert_eq!(folder.path().read_dir().unwrap().count(), 0);
    }
}
