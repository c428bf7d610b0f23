//! Ed25519 keys, written as Nix writes them: `name:base64`.

use std::fmt;
use std::str::FromStr;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use ring::signature::{ED25519, Ed25519KeyPair, UnparsedPublicKey};

/// A public key that may authorise releases.
#[derive(Clone, PartialEq, Eq)]
pub struct PublicKey {
    name: String,
    bytes: [u8; 32],
}

/// A secret key: signs releases, on the publishing side only.
pub struct SecretKey {
    name: String,
    pair: Ed25519KeyPair,
    public: [u8; 32],
}

/// Why a text is not a key. Never holds the text: it may be a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotAKey(&'static str);

impl fmt::Display for NotAKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "not a key in Nix's form «name:base64»: {}", self.0)
    }
}

impl std::error::Error for NotAKey {}

fn split(text: &str) -> Result<(&str, Vec<u8>), NotAKey> {
    let (name, key) = text.trim().split_once(':').ok_or(NotAKey("the colon is missing"))?;
    if name.is_empty() || name.len() > 128 || !name.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(NotAKey("the name before the colon has to be 1 to 128 printable characters"));
    }
    Ok((
        name,
        STANDARD.decode(key).map_err(|_| NotAKey("what follows the colon is not base64"))?,
    ))
}

impl PublicKey {
    /// The key's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether `signature` is this key's over `message`.
    pub fn verify(&self, message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ED25519, &self.bytes).verify(message, signature).is_ok()
    }
}

impl FromStr for PublicKey {
    type Err = NotAKey;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, bytes) = split(text)?;
        let bytes = bytes
            .try_into()
            .map_err(|_| NotAKey("a public key has 32 bytes (64 are a secret key, which has no place here)"))?;
        Ok(Self {
            name: name.to_owned(),
            bytes,
        })
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.name, STANDARD.encode(self.bytes))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl SecretKey {
    /// A key from 32 random bytes.
    pub fn from_seed(name: &str, seed: &[u8; 32]) -> Result<Self, NotAKey> {
        let pair = Ed25519KeyPair::from_seed_unchecked(seed).map_err(|_| NotAKey("the seed is refused"))?;
        let public = public_half(&pair)?;
        Ok(Self {
            name: name.to_owned(),
            pair,
            public,
        })
    }

    /// The key's public half.
    pub fn public(&self) -> PublicKey {
        PublicKey {
            name: self.name.clone(),
            bytes: self.public,
        }
    }

    /// The signature over `message`, 64 bytes.
    pub fn sign(&self, message: &[u8]) -> Vec<u8> {
        self.pair.sign(message).as_ref().to_vec()
    }
}

fn public_half(pair: &Ed25519KeyPair) -> Result<[u8; 32], NotAKey> {
    use ring::signature::KeyPair as _;
    pair.public_key()
        .as_ref()
        .try_into()
        .map_err(|_| NotAKey("a public key has 32 bytes"))
}

impl FromStr for SecretKey {
    type Err = NotAKey;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, bytes) = split(text)?;
        if bytes.len() != 64 {
            return Err(NotAKey("a secret key has 64 bytes: the seed and the public key"));
        }
        let (seed, public) = bytes.split_at(32);
        let pair = Ed25519KeyPair::from_seed_and_public_key(seed, public).map_err(|_| NotAKey("its two halves do not belong together"))?;
        Ok(Self {
            name: name.to_owned(),
            public: public_half(&pair)?,
            pair,
        })
    }
}

/// The secret key's text, `name:base64(seed ‖ public)`, from its seed.
pub fn secret_text(name: &str, seed: &[u8; 32]) -> Result<String, NotAKey> {
    let key = SecretKey::from_seed(name, seed)?;
    Ok(format!("{name}:{}", STANDARD.encode([seed.as_slice(), &key.public].concat())))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_key_signs_and_its_public_half_verifies() {
        let text = secret_text("cache.example-1", &[7; 32]).unwrap();
        let secret: SecretKey = text.parse().unwrap();
        let public: PublicKey = secret.public().to_string().parse().unwrap();
        let signature = secret.sign(b"message");
        assert!(public.verify(b"message", &signature));
        assert!(!public.verify(b"massage", &signature));
        assert!(!public.verify(b"message", &signature[1..]));
    }

    // RFC 8032, 7.1, test 1.
    #[test]
    fn the_first_test_of_rfc_8032_holds() {
        let seed = [
            0x9d, 0x61, 0xb1, 0x9d, 0xef, 0xfd, 0x5a, 0x60, 0xba, 0x84, 0x4a, 0xf4, 0x92, 0xec, 0x2c, 0xc4, 0x44, 0x49, 0xc5, 0x69, 0x7b,
            0x32, 0x69, 0x19, 0x70, 0x3b, 0xac, 0x03, 0x1c, 0xae, 0x7f, 0x60,
        ];
        let key = SecretKey::from_seed("rfc", &seed).unwrap();
        assert_eq!(key.public().bytes[..4], [0xd7, 0x5a, 0x98, 0x01]);
        assert_eq!(key.sign(b"")[..4], [0xe5, 0x56, 0x43, 0x00]);
    }

    #[test]
    fn what_is_not_a_key_is_refused_without_being_repeated() {
        let secret = secret_text("k", &[7; 32]).unwrap();
        for bad in ["", "k", ":AAAA", "k:AAAA", "k:é", secret.as_str()] {
            let error = bad.parse::<PublicKey>().unwrap_err().to_string();
            assert!(!error.contains("AAAA") && !error.contains(&secret), "{error}");
        }
        assert!("k:AAAA".parse::<SecretKey>().is_err());
    }
}
