//! What authorises a manifest, and the proof that something did.

use super::Refusal;
use super::envelope::Envelope;
use super::key::PublicKey;
use super::manifest::Manifest;
use super::release::Release;
use crate::digest::Digest;

/// Whom this machine believes. Known only from the initrd, and from the command line where the configuration allows it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Trust {
    /// Keys whose signature authorises a release.
    pub keys: Vec<PublicKey>,
    /// A manifest that is authorised by its digest; then no other is.
    pub pinned: Option<Digest>,
    /// Whether a release without a signature will do.
    pub allow_unsigned: bool,
}

/// What authorised a manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Authority {
    /// A signature by the key of this name.
    Signature(String),
    /// `freshroot.manifest-sha256=`.
    Pin,
    /// Nothing but `allowUnsigned`.
    Unsigned,
}

/// A manifest that may be used. Only [`authorise`] makes one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authorised {
    manifest: Manifest,
    digest: Digest,
    release: Option<Release>,
    authority: Authority,
}

impl Authorised {
    /// The manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The digest of the manifest's bytes.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// The release that named the manifest; none if it came by its pin alone.
    pub fn release(&self) -> Option<&Release> {
        self.release.as_ref()
    }

    /// What authorised it.
    pub fn authority(&self) -> &Authority {
        &self.authority
    }
}

/// Authorises the manifest `text`, with the release that came with it, if any.
///
/// # Errors
/// See [`Refusal`]. A pin that does not match refuses whatever the signatures say.
pub fn authorise(release: Option<&Envelope>, text: &str, trust: &Trust) -> Result<Authorised, Refusal> {
    let digest = Digest::of(text.as_bytes());
    let (release, authority) = match (trust.pinned, release) {
        (Some(pinned), _) if pinned != digest => return Err(Refusal::ManifestMismatch),
        // The pin authorises the manifest; the release then only tells channel and serial, and may be missing, foreign or unsigned.
        (Some(_), Some(envelope)) => (envelope.payload().and_then(|payload| Release::parse(&payload)).ok(), Authority::Pin),
        (Some(_), None) => (None, Authority::Pin),
        (None, None) => return Err(Refusal::Unsigned),
        (None, Some(envelope)) => match envelope.verify(&trust.keys) {
            Ok((payload, key)) => (Some(Release::parse(&payload)?), Authority::Signature(key)),
            Err(Refusal::Malformed(what)) => return Err(Refusal::Malformed(what)),
            Err(_) if trust.allow_unsigned => (Some(Release::parse(&envelope.payload()?)?), Authority::Unsigned),
            Err(refusal) => return Err(refusal),
        },
    };
    let release = match release {
        Some(release) if release.manifest == digest => Some(release),
        // Under a pin, a release that names another manifest is merely useless.
        _ if authority == Authority::Pin => None,
        Some(_) => return Err(Refusal::ManifestMismatch),
        None => return Err(Refusal::Unsigned),
    };
    Ok(Authorised {
        manifest: Manifest::parse(text)?,
        digest,
        release,
        authority,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::super::answer::{Answer, Question, Received};
    use super::super::key::SecretKey;
    use super::*;
    use serde_json::json;

    const SYSTEM: &str = "/nix/store/0c5f2ghhl3xkk1zjyk0pb9a5r4v2mhc1-nixos-system-demo-1";
    const OTHER: &str = "/nix/store/1c5f2ghhl3xkk1zjyk0pb9a5r4v2mhc1-nixos-system-demo-2";

    fn key(name: &str, seed: u8) -> SecretKey {
        SecretKey::from_seed(name, &[seed; 32]).unwrap()
    }

    fn manifest(toplevel: &str, extra: serde_json::Value) -> String {
        let mut value = json!({
            "version": 1,
            "systems": [{"name": "default", "toplevel": toplevel, "initKind": "prepare-root"}],
            "kernel": {"storeName": "2c5f2ghhl3xkk1zjyk0pb9a5r4v2mhc1-linux-6.6", "release": "6.6.1"},
            "kernelParams": [],
            "image": {"sha256": Digest::of(b"image"), "size": 4096, "chunkIndex": {"sha256": Digest::of(b"index"), "size": 60}},
        });
        value.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        value.to_string()
    }

    fn envelope(manifest: &str, channel: &str, extra: serde_json::Value, signers: &[SecretKey]) -> Envelope {
        let mut value = json!({"version": 1, "channel": channel, "serial": 3, "created": 1_700_000_000u64, "manifest": Digest::of(manifest.as_bytes())});
        value.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        let mut envelope = Envelope::unsigned(value.to_string().as_bytes());
        for signer in signers {
            envelope.sign(signer).unwrap();
        }
        envelope
    }

    fn trusting(key: &SecretKey) -> Trust {
        Trust {
            keys: vec![key.public()],
            ..Trust::default()
        }
    }

    fn channel(name: &str) -> Question {
        Question::Channel(name.parse().unwrap())
    }

    #[test]
    fn a_signed_answer_to_what_was_asked_is_authorised() {
        let key = key("k", 1);
        let text = manifest(SYSTEM, json!({}));
        let answer = Answer::new(envelope(&text, "stable", json!({}), std::slice::from_ref(&key)), text.clone());
        let bytes = serde_json::to_vec(&answer).unwrap();
        for question in [channel("stable"), Question::System(SYSTEM.parse().unwrap())] {
            let authorised = Received::parse(&question, &bytes)
                .unwrap()
                .authorise(&question, &trusting(&key))
                .unwrap();
            assert_eq!(authorised.digest(), Digest::of(text.as_bytes()));
            assert_eq!(authorised.authority(), &Authority::Signature("k".to_owned()));
            assert_eq!(authorised.release().unwrap().serial, 3);
        }
        for question in [channel("testing"), Question::System(OTHER.parse().unwrap())] {
            assert!(
                matches!(
                    Received::parse(&question, &bytes).unwrap().authorise(&question, &trusting(&key)),
                    Err(Refusal::NotWhatWasAsked(_))
                ),
                "{question:?}"
            );
        }
    }

    #[test]
    fn a_manifest_of_another_release_is_refused() {
        let key = key("k", 1);
        let (first, second) = (manifest(SYSTEM, json!({})), manifest(OTHER, json!({})));
        let envelope = envelope(&first, "stable", json!({}), std::slice::from_ref(&key));
        assert_eq!(authorise(Some(&envelope), &second, &trusting(&key)), Err(Refusal::ManifestMismatch));
    }

    #[test]
    fn without_a_trusted_signature_only_allow_unsigned_helps() {
        let text = manifest(SYSTEM, json!({}));
        let foreign = envelope(&text, "stable", json!({}), &[key("foreign", 9)]);
        let unsigned = envelope(&text, "stable", json!({}), &[]);
        let trust = trusting(&key("k", 1));
        assert_eq!(
            authorise(Some(&foreign), &text, &trust),
            Err(Refusal::UntrustedKey(vec!["foreign".to_owned()]))
        );
        assert_eq!(authorise(Some(&unsigned), &text, &trust), Err(Refusal::Unsigned));
        assert_eq!(authorise(None, &text, &trust), Err(Refusal::Unsigned));
        let lax = Trust {
            allow_unsigned: true,
            ..trust
        };
        for release in [&foreign, &unsigned] {
            assert_eq!(authorise(Some(release), &text, &lax).unwrap().authority(), &Authority::Unsigned);
        }
        assert_eq!(
            authorise(None, &text, &lax),
            Err(Refusal::Unsigned),
            "no release at all is not an unsigned one"
        );
    }

    #[test]
    fn a_pin_authorises_one_manifest_and_no_other() {
        let key = key("k", 1);
        let text = manifest(SYSTEM, json!({}));
        let pinned = Trust {
            pinned: Some(Digest::of(text.as_bytes())),
            ..Trust::default()
        };
        assert_eq!(authorise(None, &text, &pinned).unwrap().authority(), &Authority::Pin);
        let other = manifest(OTHER, json!({}));
        let signed = envelope(&other, "stable", json!({}), std::slice::from_ref(&key));
        let trust = Trust {
            keys: vec![key.public()],
            ..pinned.clone()
        };
        assert_eq!(authorise(Some(&signed), &other, &trust), Err(Refusal::ManifestMismatch));
        assert!(
            authorise(Some(&signed), &text, &pinned).unwrap().release().is_none(),
            "a release of another manifest tells nothing"
        );
    }

    #[test]
    fn unknown_critical_fields_and_versions_are_refused_and_other_unknown_fields_ignored() {
        let key = key("k", 1);
        let check = |manifest_extra: serde_json::Value, release_extra: serde_json::Value| {
            let text = manifest(SYSTEM, manifest_extra);
            authorise(
                Some(&envelope(&text, "stable", release_extra, std::slice::from_ref(&key))),
                &text,
                &trusting(&key),
            )
        };
        assert!(check(json!({"colour": "blue"}), json!({"colour": "blue"})).is_ok());
        assert!(matches!(
            check(json!({"critical": ["colour"]}), json!({})),
            Err(Refusal::UnknownCritical { what: "manifest", .. })
        ));
        assert!(matches!(
            check(json!({}), json!({"critical": ["colour"]})),
            Err(Refusal::UnknownCritical { what: "release", .. })
        ));
        assert!(matches!(
            check(json!({"version": 2}), json!({})),
            Err(Refusal::UnknownVersion {
                what: "manifest",
                version: 2
            })
        ));
        assert!(matches!(
            check(json!({}), json!({"version": 2})),
            Err(Refusal::UnknownVersion {
                what: "release",
                version: 2
            })
        ));
        assert!(matches!(check(json!({"systems": []}), json!({})), Err(Refusal::Malformed(_))));
        assert!(matches!(check(json!({}), json!({"serial": 0})), Err(Refusal::Malformed(_))));
    }

    #[test]
    fn a_page_of_html_is_named_as_such() {
        let Err(Refusal::Malformed(what)) = Answer::parse(b"\n<!DOCTYPE HTML><title>Log in</title>") else {
            panic!("accepted")
        };
        assert!(what.contains("captive portal"), "{what}");
    }
}
