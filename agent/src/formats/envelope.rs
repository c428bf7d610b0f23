//! DSSE envelopes: <https://github.com/secure-systems-lab/dsse/blob/master/protocol.md>.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};

use super::Refusal;
use super::key::{PublicKey, SecretKey};
use crate::foreign;

/// The only payload type that is accepted.
pub const PAYLOAD_TYPE: &str = "application/vnd.freshroot.release+json";
/// Bounds the work that an unauthenticated answer can cause.
const SIGNATURE_LIMIT: usize = 16;
/// A release is a few hundred bytes.
const PAYLOAD_LIMIT: usize = 64 << 10;

/// An envelope as it came: nothing in it is verified.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Envelope {
    payload_type: String,
    payload: String,
    signatures: Vec<Signature>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Signature {
    #[serde(default)]
    keyid: String,
    sig: String,
}

impl Signature {
    fn is_by(&self, key: &PublicKey, message: &[u8]) -> bool {
        STANDARD.decode(&self.sig).is_ok_and(|bytes| key.verify(message, &bytes))
    }
}

/// DSSE's pre-authentication encoding: what is signed.
fn pre_authentication_encoding(payload_type: &str, payload: &[u8]) -> Vec<u8> {
    let mut bytes = format!("DSSEv1 {} {payload_type} {} ", payload_type.len(), payload.len()).into_bytes();
    bytes.extend_from_slice(payload);
    bytes
}

impl Envelope {
    /// Wraps a release's bytes without a signature.
    pub fn unsigned(payload: &[u8]) -> Self {
        Self {
            payload_type: PAYLOAD_TYPE.to_owned(),
            payload: STANDARD.encode(payload),
            signatures: Vec::new(),
        }
    }

    /// Adds `key`'s signature; one of the same name is replaced.
    ///
    /// # Errors
    /// If the payload is not what an envelope may hold, or there are too many signatures.
    pub fn sign(&mut self, key: &SecretKey) -> Result<(), Refusal> {
        let message = pre_authentication_encoding(&self.payload_type, &self.payload()?);
        let name = key.public().name().to_owned();
        self.signatures.retain(|signature| signature.keyid != name);
        if self.signatures.len() >= SIGNATURE_LIMIT {
            return Err(Refusal::Malformed(format!(
                "the envelope holds {SIGNATURE_LIMIT} signatures already, which is the limit"
            )));
        }
        self.signatures.push(Signature {
            keyid: name,
            sig: STANDARD.encode(key.sign(&message)),
        });
        Ok(())
    }

    /// Adds the signatures that `earlier`, an envelope of the same release, has and this one has not, as far as there is room. They may be of a key that is
    /// trusted only later; what does not fit is of no use to anybody.
    pub fn keep_signatures(&mut self, earlier: &Self) {
        if (&self.payload_type, &self.payload) != (&earlier.payload_type, &earlier.payload) {
            return;
        }
        for signature in &earlier.signatures {
            // A key's signature over the same bytes is always the same (RFC 8032, 5.1.6).
            let there = self.signatures.iter().any(|other| other.sig == signature.sig);
            if !there && self.signatures.len() < SIGNATURE_LIMIT {
                self.signatures.push(signature.clone());
            }
        }
    }

    /// Whether a key has signed it, under whatever name.
    pub fn is_signed_by(&self, key: &PublicKey) -> bool {
        self.payload().is_ok_and(|payload| {
            let message = pre_authentication_encoding(&self.payload_type, &payload);
            self.signatures.iter().any(|signature| signature.is_by(key, &message))
        })
    }

    /// Removes the signatures of a key, and those that bear its name.
    ///
    /// # Errors
    /// If the payload is not what an envelope may hold.
    pub fn drop_signatures_of(&mut self, key: &PublicKey) -> Result<(), Refusal> {
        let message = pre_authentication_encoding(&self.payload_type, &self.payload()?);
        self.signatures
            .retain(|signature| signature.keyid != key.name() && !signature.is_by(key, &message));
        Ok(())
    }

    /// The payload, whoever signed it.
    ///
    /// # Errors
    /// If type, size or encoding are not what they should be.
    pub fn payload(&self) -> Result<Vec<u8>, Refusal> {
        if self.payload_type != PAYLOAD_TYPE {
            let found = foreign::word(&self.payload_type);
            return Err(Refusal::Malformed(format!(
                "the envelope's payload type is «{found}», «{PAYLOAD_TYPE}» is expected"
            )));
        }
        if self.payload.len() > PAYLOAD_LIMIT {
            return Err(Refusal::Malformed(format!(
                "the envelope's payload is longer than {PAYLOAD_LIMIT} bytes"
            )));
        }
        STANDARD
            .decode(&self.payload)
            .map_err(|error| Refusal::Malformed(format!("the envelope's payload is not base64: {error}")))
    }

    /// The payload and the name of the trusted key that signed it.
    ///
    /// # Errors
    /// Malformed, unsigned, signed by others only, or with a signature that does not fit.
    pub fn verify(&self, trusted: &[PublicKey]) -> Result<(Vec<u8>, String), Refusal> {
        let payload = self.payload()?;
        if self.signatures.is_empty() {
            return Err(Refusal::Unsigned);
        }
        if self.signatures.len() > SIGNATURE_LIMIT {
            return Err(Refusal::Malformed(format!(
                "the envelope holds more than {SIGNATURE_LIMIT} signatures"
            )));
        }
        let message = pre_authentication_encoding(&self.payload_type, &payload);
        let mut named = None;
        for signature in &self.signatures {
            let Ok(bytes) = STANDARD.decode(&signature.sig) else { continue };
            // The key id is a hint that nobody signed: it chooses the words of the refusal, never whether a key is tried.
            for key in trusted {
                if key.verify(&message, &bytes) {
                    return Ok((payload, key.name().to_owned()));
                }
            }
        }
        for signature in &self.signatures {
            if trusted.iter().any(|key| key.name() == signature.keyid) {
                named = Some(signature.keyid.clone());
            }
        }
        Err(match named {
            Some(name) => Refusal::BadSignature(name),
            None => Refusal::UntrustedKey(self.signatures.iter().map(|signature| printable(&signature.keyid)).collect()),
        })
    }
}

fn printable(name: &str) -> String {
    if name.is_empty() {
        "a key without a name".to_owned()
    } else {
        foreign::word(name)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn key(name: &str, seed: u8) -> SecretKey {
        SecretKey::from_seed(name, &[seed; 32]).unwrap()
    }

    #[test]
    fn the_encoding_is_that_of_dsse() {
        assert_eq!(
            pre_authentication_encoding("http://example.com/HelloWorld", b"hello world"),
            b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
        );
    }

    #[test]
    fn any_trusted_key_is_enough() {
        let mut envelope = Envelope::unsigned(b"{}");
        envelope.sign(&key("a", 1)).unwrap();
        envelope.sign(&key("b", 2)).unwrap();
        let (payload, by) = envelope.verify(&[key("c", 3).public(), key("b", 2).public()]).unwrap();
        assert_eq!((payload.as_slice(), by.as_str()), (b"{}".as_slice(), "b"));
    }

    #[test]
    fn each_refusal_says_why() {
        let mut envelope = Envelope::unsigned(b"{}");
        assert_eq!(envelope.verify(&[key("a", 1).public()]), Err(Refusal::Unsigned));
        envelope.sign(&key("a", 1)).unwrap();
        assert_eq!(envelope.verify(&[]), Err(Refusal::UntrustedKey(vec!["a".to_owned()])));
        assert_eq!(envelope.verify(&[key("a", 2).public()]), Err(Refusal::BadSignature("a".to_owned())));
        let changed = Envelope {
            payload: STANDARD.encode(b"[]"),
            ..envelope.clone()
        };
        assert_eq!(changed.verify(&[key("a", 1).public()]), Err(Refusal::BadSignature("a".to_owned())));
        let other = Envelope {
            payload_type: "text/plain".to_owned(),
            ..envelope
        };
        assert!(matches!(other.verify(&[key("a", 1).public()]), Err(Refusal::Malformed(_))));
    }

    #[test]
    fn signatures_are_not_lost_to_another_copy_of_the_same_release() {
        let signed = |payload: &[u8], keys: &[SecretKey]| {
            let mut envelope = Envelope::unsigned(payload);
            keys.iter().for_each(|key| envelope.sign(key).unwrap());
            envelope
        };
        let earlier = signed(b"{}", &[key("old", 1), key("other", 3)]);
        let merged = |mut copy: Envelope| {
            copy.keep_signatures(&earlier);
            (
                [("old", 1), ("new", 2), ("other", 3)].map(|(name, seed)| copy.is_signed_by(&key(name, seed).public())),
                copy.signatures.len(),
            )
        };
        assert_eq!(merged(signed(b"{}", &[key("new", 2)])), ([true; 3], 3));
        assert_eq!(merged(earlier.clone()), ([true, false, true], 2), "nothing stands there twice");
        assert_eq!(
            merged(signed(b"[]", &[key("new", 2)])),
            ([false, true, false], 1),
            "of another release"
        );
        // A name proves nothing, and what came last has its place for sure.
        assert_eq!(merged(signed(b"{}", &[key("old", 9)])), ([true, false, true], 3));
        let many: Vec<SecretKey> = (10..26).map(|seed| key(&format!("k{seed}"), seed)).collect();
        assert_eq!(merged(signed(b"{}", &many)), ([false; 3], SIGNATURE_LIMIT));
        let mut full = signed(b"{}", &many);
        full.keep_signatures(&earlier);
        assert!(full.verify(&[many[15].public()]).is_ok());
    }

    #[test]
    fn a_keys_signatures_are_dropped_by_what_they_are_and_by_name() {
        let mut envelope = Envelope::unsigned(b"{}");
        for key in [key("a", 1), key("b", 2), key("c", 3)] {
            envelope.sign(&key).unwrap();
        }
        envelope.signatures[1].keyid = "d".to_owned();
        envelope.drop_signatures_of(&key("b", 2).public()).unwrap();
        envelope.drop_signatures_of(&key("c", 9).public()).unwrap();
        let names: Vec<&str> = envelope.signatures.iter().map(|signature| signature.keyid.as_str()).collect();
        assert_eq!(names, ["a"]);
    }

    #[test]
    fn signing_again_replaces() {
        let mut envelope = Envelope::unsigned(b"{}");
        envelope.sign(&key("a", 1)).unwrap();
        envelope.sign(&key("a", 1)).unwrap();
        assert_eq!(envelope.signatures.len(), 1);
    }
}
