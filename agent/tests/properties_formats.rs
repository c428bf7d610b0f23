//! What holds for every answer, however it was bent on its way: no panic, and nothing that was not signed is ever authorised.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::sync::LazyLock;

use freshroot::digest::Digest;
use freshroot::formats::Refusal;
use freshroot::formats::answer::{Answer, Question, Received};
use freshroot::formats::authorised::{Authorised, Trust};
use freshroot::formats::envelope::Envelope;
use freshroot::formats::generation::Generation;
use freshroot::formats::key::SecretKey;
use freshroot::formats::manifest::Manifest;
use freshroot::formats::release::Release;
use freshroot::formats::state::{STATE_LIMIT, State};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use serde_json::{Value, json};

/// An answer as it was signed.
struct Signed {
    release: Release,
    manifest: String,
    answer: Value,
}

fn key(name: &str) -> SecretKey {
    SecretKey::from_seed(name, Digest::of(name.as_bytes()).as_bytes()).unwrap()
}

fn signed(serial: u64, signer: Option<&str>) -> Signed {
    let manifest = json!({
        "version": 1,
        "systems": [{
            "name": "default",
            "toplevel": format!("/nix/store/0c5f2ghhl3xkk1zjyk0pb9a5r4v2mhc1-nixos-system-{serial}"),
            "initKind": "prepare-root",
        }],
        "kernel": {"storeName": "2c5f2ghhl3xkk1zjyk0pb9a5r4v2mhc1-linux-6.6", "release": "6.6.1"},
        "kernelParams": ["quiet", "a=\"b c\""],
        "image": {"sha256": Digest::of(&[serial as u8]), "size": 4096, "chunkIndex": {"sha256": Digest::of(b"index"), "size": 60}},
    })
    .to_string();
    let payload = json!({
        "version": 1, "channel": "stable", "serial": serial, "created": 1_700_000_000u64, "notAfter": 1_800_000_000u64,
        "manifest": Digest::of(manifest.as_bytes()),
    })
    .to_string();
    let mut envelope = Envelope::unsigned(payload.as_bytes());
    if let Some(name) = signer {
        envelope.sign(&key(name)).unwrap();
    }
    Signed {
        release: Release::parse(payload.as_bytes()).unwrap(),
        answer: serde_json::to_value(Answer::new(envelope, manifest.clone())).unwrap(),
        manifest,
    }
}

/// Two answers by a trusted key, one by a foreign key, one that nobody signed.
static ANSWERS: LazyLock<[Signed; 4]> = LazyLock::new(|| {
    [
        signed(1, Some("ours")),
        signed(2, Some("ours")),
        signed(3, Some("theirs")),
        signed(4, None),
    ]
});
const TRUSTED: usize = 2;

fn trust() -> Trust {
    Trust {
        keys: vec![key("ours").public()],
        ..Trust::default()
    }
}

fn channel() -> Question {
    Question::Channel("stable".parse().unwrap())
}

fn authorise(bytes: &[u8]) -> Result<(Received, Authorised), Refusal> {
    let received = Received::parse(&channel(), bytes)?;
    let authorised = received.authorise(&channel(), &trust())?;
    Ok((received, authorised))
}

/// Whether `bytes` are refused, or say exactly what one of the trusted answers says; which one.
fn verdict(bytes: &[u8]) -> Option<usize> {
    let (received, authorised) = authorise(bytes).ok()?;
    let same = |signed: &Signed| {
        received.manifest == signed.manifest
            && authorised.digest() == Digest::of(signed.manifest.as_bytes())
            && *authorised.manifest() == Manifest::parse(&signed.manifest).unwrap()
            && authorised.release() == Some(&signed.release)
    };
    let found = ANSWERS[..TRUSTED].iter().position(same);
    assert!(found.is_some(), "authorised, and never signed: {}", String::from_utf8_lossy(bytes));
    found
}

/// Every parser of what comes from outside: that it comes back, with a bounded sentence if it refuses, is the property.
fn parse_as_everything(bytes: &[u8]) {
    let mut refusals: Vec<Option<Refusal>> = Vec::new();
    let system = Question::System("/nix/store/0c5f2ghhl3xkk1zjyk0pb9a5r4v2mhc1-a".parse().unwrap());
    for question in [channel(), system, Question::Manifest(Digest::of(bytes))] {
        let pinned = Trust {
            pinned: Some(Digest::of(bytes)),
            ..trust()
        };
        let lax = Trust {
            allow_unsigned: true,
            ..trust()
        };
        for trust in [trust(), pinned, lax] {
            let authorised = Received::parse(&question, bytes).and_then(|received| received.authorise(&question, &trust));
            refusals.push(authorised.err());
        }
    }
    let text = String::from_utf8_lossy(bytes);
    refusals.push(Answer::parse(bytes).err());
    refusals.push(Release::parse(bytes).err());
    refusals.push(Manifest::parse(&text).err());
    refusals.push(Generation::parse(&text, Digest::of(bytes)).err());
    for refusal in refusals.into_iter().flatten() {
        let told = refusal.to_string();
        assert!(!told.is_empty() && told.len() < 4096, "{told}");
    }
}

/// Documents that are right, to be bent.
fn documents() -> Vec<Vec<u8>> {
    let signed = &ANSWERS[0];
    let generation = json!({
        "version": 1, "release": signed.answer["release"], "manifest": signed.manifest, "sequence": 1, "accepted": 1, "source": "http://a",
    });
    vec![
        signed.answer.to_string().into_bytes(),
        signed.manifest.clone().into_bytes(),
        serde_json::to_vec(&signed.release).unwrap(),
        generation.to_string().into_bytes(),
    ]
}

/// Pieces of JSON in any order: garbage that reaches further than bytes do.
fn almost_json() -> impl Strategy<Value = Vec<u8>> {
    let words = [
        "{",
        "}",
        "[",
        "]",
        ":",
        ",",
        "\"",
        "\"version\":1",
        "\"version\":18446744073709551616",
        "\"release\":",
        "\"manifest\":",
        "\"systems\":",
        "\"image\":",
        "\"size\":-1",
        "\"serial\":1e400",
        "\"\\ud800\"",
        "null",
        "true",
        "\"critical\":[\"x\"]",
        "\"payload\":\"====\"",
        "\u{0}",
    ];
    vec(select(words.to_vec()), 0..24).prop_map(|words| words.concat().into_bytes())
}

#[test]
fn what_was_signed_is_authorised_and_nothing_else() {
    for (number, signed) in ANSWERS.iter().enumerate() {
        let expected = (number < TRUSTED).then_some(number);
        assert_eq!(verdict(signed.answer.to_string().as_bytes()), expected, "answer {number}");
    }
}

#[test]
fn no_flipped_bit_changes_what_is_authorised() {
    let whole = ANSWERS[0].answer.to_string().into_bytes();
    let mut still_authorised = 0;
    for at in 0..whole.len() {
        for bit in 0..8 {
            let mut bent = whole.clone();
            bent[at] ^= 1 << bit;
            match verdict(&bent) {
                None => {}
                Some(0) => still_authorised += 1,
                Some(other) => panic!("byte {at}, bit {bit} turns it into answer {other}"),
            }
        }
    }
    // The key's name in the envelope is a hint: it may be bent, and then some.
    assert!(
        still_authorised > 0 && still_authorised < whole.len(),
        "{still_authorised} of {}",
        whole.len()
    );
}

#[test]
fn every_mixture_of_fields_is_refused_unless_it_was_signed_so() {
    let field = |number: usize, pointer: &str| ANSWERS[number].answer.pointer(pointer).unwrap().clone();
    for payload in 0..ANSWERS.len() {
        for signatures in 0..ANSWERS.len() {
            for manifest in 0..ANSWERS.len() {
                let mixed = json!({"version": 1, "manifest": field(manifest, "/manifest"), "release": {
                    "payloadType": field(payload, "/release/payloadType"),
                    "payload": field(payload, "/release/payload"),
                    "signatures": field(signatures, "/release/signatures"),
                }});
                let as_signed = payload == manifest && payload == signatures && payload < TRUSTED;
                let expected = as_signed.then_some(payload);
                assert_eq!(
                    verdict(mixed.to_string().as_bytes()),
                    expected,
                    "payload {payload}, signatures {signatures}, manifest {manifest}"
                );
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_bytes_make_a_parser_panic(bytes in prop_oneof![vec(any::<u8>(), 0..300), almost_json()]) {
        parse_as_everything(&bytes);
    }

    #[test]
    fn no_bent_document_makes_a_parser_panic(which in 0..4usize, bends in vec((any::<Index>(), any::<u8>()), 0..4), end in any::<Index>(), cut: bool) {
        let mut bytes = documents().swap_remove(which);
        for (at, byte) in bends {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if cut {
            bytes.truncate(end.index(bytes.len()));
        }
        parse_as_everything(&bytes);
    }

    #[test]
    fn no_changed_byte_changes_what_is_authorised(which in 0..ANSWERS.len(), at in any::<Index>(), byte: u8) {
        let mut bytes = ANSWERS[which].answer.to_string().into_bytes();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        let found = verdict(&bytes);
        prop_assert!(found.is_none() || found == Some(which));
    }

    #[test]
    fn no_beginning_of_one_answer_goes_with_the_end_of_another(first in 0..ANSWERS.len(), second in 0..ANSWERS.len(), at in any::<Index>(), shift in -3isize..=3) {
        let (first, second) = (ANSWERS[first].answer.to_string().into_bytes(), ANSWERS[second].answer.to_string().into_bytes());
        let at = at.index(first.len().min(second.len()));
        let from = at.saturating_add_signed(shift).min(second.len());
        verdict(&[&first[..at], &second[from..]].concat());
    }

    #[test]
    fn no_pile_of_signatures_authorises_what_they_do_not_sign(
        payload in 0..ANSWERS.len(), manifest in 0..ANSWERS.len(), pile in vec((0..ANSWERS.len(), "(ours|theirs|)"), 0..20),
    ) {
        let mut mixed = ANSWERS[payload].answer.clone();
        mixed["manifest"] = ANSWERS[manifest].manifest.clone().into();
        let signatures = pile.iter().filter_map(|(of, name)| {
            let mut signature = ANSWERS[*of].answer.pointer("/release/signatures/0")?.clone();
            signature["keyid"] = name.clone().into();
            Some(signature)
        });
        let signatures: Vec<Value> = signatures.collect();
        let in_it = payload < TRUSTED && pile.iter().any(|(of, _)| *of == payload);
        let expected = (in_it && payload == manifest && signatures.len() <= 16).then_some(payload);
        mixed["release"]["signatures"] = signatures.into();
        prop_assert_eq!(verdict(mixed.to_string().as_bytes()), expected);
    }
}

/// A state that says something in every field.
fn full_state() -> State {
    let mut state = State::default();
    for (channel, serial) in [("stable", 7), ("testing", 12)] {
        state.confirm(&channel.parse().unwrap(), serial, 1_800_000_000);
    }
    state.see_time(1_799_999_000);
    state.add_received(20_833, 1_000_000);
    state.see_rate("https://images.example:443", 750_000);
    state
}

#[test]
fn a_state_that_was_cut_short_anywhere_is_as_if_absent() {
    let bytes = full_state().to_bytes().unwrap();
    // The last byte is the line's end.
    for length in 0..bytes.len() - 1 {
        assert!(State::parse(&bytes[..length]).is_err(), "{length}");
    }
    assert_eq!(State::parse(&bytes[..bytes.len() - 1]), Ok(full_state()));
}

proptest! {
    #[test]
    fn a_state_with_bytes_changed_is_read_whole_or_not_at_all(changes in vec((any::<Index>(), any::<u8>()), 1..5)) {
        let mut bytes = full_state().to_bytes().unwrap();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Ok(state) = State::parse(&bytes) {
            let written = state.to_bytes().unwrap();
            prop_assert!(written.len() as u64 <= STATE_LIMIT);
            prop_assert_eq!(State::parse(&written), Ok(state));
        }
    }

    #[test]
    fn no_bytes_make_a_state_panic(bytes in vec(any::<u8>(), 0..300)) {
        if let Err(refusal) = State::parse(&bytes) {
            prop_assert!(!refusal.to_string().is_empty());
        }
    }
}
