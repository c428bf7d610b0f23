//! Mix and match of every field of validly signed releases and manifests: nothing is authorised that a trusted key did not sign as a whole, and
//! that was not asked for.
//!
//! Each property is told by a model that knows who signed what, and never looks at a signature.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeSet;
use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use freshroot::candidates::supersedes;
use freshroot::digest::Digest;
use freshroot::formats::Refusal;
use freshroot::formats::answer::{Question, Received};
use freshroot::formats::authorised::{Authorised, Authority, Trust, authorise};
use freshroot::formats::envelope::{Envelope, PAYLOAD_TYPE};
use freshroot::formats::generation::Generation;
use freshroot::formats::key::SecretKey;
use freshroot::formats::manifest::Manifest;
use freshroot::formats::release::Release;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use serde_json::{Value, json};

/// The keys: two that are trusted, one that is not, and one that is not and bears the name of one that is.
const KEYS: [(&str, &str); 4] = [("ours-1", "a"), ("ours-2", "b"), ("theirs", "c"), ("ours-1", "d")];
const TRUSTED: usize = 2;

static SECRETS: LazyLock<Vec<SecretKey>> = LazyLock::new(|| {
    let made = |(name, seed): &(&str, &str)| SecretKey::from_seed(name, Digest::of(seed.as_bytes()).as_bytes()).unwrap();
    KEYS.iter().map(made).collect()
});

/// Four publications: two of one channel, one of another, and one with the same manifest as the first.
static MANIFESTS: LazyLock<Vec<String>> = LazyLock::new(|| (0..3).map(|number| manifest(number).to_string()).collect());
static PAYLOADS: LazyLock<Vec<(String, usize)>> = LazyLock::new(|| {
    [("stable", 7, 0), ("stable", 8, 1), ("testing", 9, 2), ("testing", 3, 0)]
        .map(|(channel, serial, manifest)| (release(channel, serial, &MANIFESTS[manifest]).to_string(), manifest))
        .to_vec()
});

fn toplevel(number: usize) -> String {
    format!("/nix/store/{number}c5f2ghhl3xkk1zjyk0pb9a5r4v2mhc1-nixos-system-{number}")
}

fn manifest(number: usize) -> Value {
    json!({
        "version": 1,
        "critical": ["image"],
        "systems": [
            {"name": "default", "toplevel": toplevel(number), "initKind": "prepare-root"},
            {"name": "other", "toplevel": toplevel(number + 5), "initKind": "scripted"},
        ],
        "kernel": {"storeName": format!("{number}d5f2ghhl3xkk1zjyk0pb9a5r4v2mhc1-linux-6.{number}"), "release": format!("6.{number}.1")},
        "kernelParams": ["quiet", format!("n={number}")],
        "image": {
            "sha256": Digest::of(&[number as u8]), "size": 4096 + number,
            "chunkIndex": {"sha256": Digest::of(&[100 + number as u8]), "size": 60 + number},
            "verity": {"rootHash": format!("0{number}"), "salt": "00", "algorithm": "sha256", "dataBlockSize": 4096, "hashBlockSize": 4096, "dataBlocks": 1 + number},
            "zstd": {"version": "1.5.7", "level": number},
        },
        "boot": {
            "kernel": {"sha256": Digest::of(&[50 + number as u8]), "size": 5 + number},
            "initrd": {"sha256": Digest::of(&[60 + number as u8]), "size": 6 + number},
        },
        "deltas": [{"from": Digest::of(&[70 + number as u8]), "sha256": Digest::of(&[80 + number as u8]), "size": 7 + number}],
    })
}

fn release(channel: &str, serial: u64, manifest: &str) -> Value {
    json!({
        "version": 1, "critical": ["serial"], "channel": channel, "serial": serial, "created": serial / 2,
        "notAfter": serial | 1, "manifest": Digest::of(manifest.as_bytes()),
    })
}

/// DSSE's pre-authentication encoding (protocol.md of DSSE 1.0), written here a second time: the tests also sign what our own signer would not.
fn sign(key: usize, payload_type: &str, payload: &[u8]) -> String {
    let mut message = format!("DSSEv1 {} {payload_type} {} ", payload_type.len(), payload.len()).into_bytes();
    message.extend_from_slice(payload);
    STANDARD.encode(SECRETS[key].sign(&message))
}

fn envelope(payload_type: &str, payload: &[u8], signatures: &[Value]) -> Value {
    json!({"payloadType": payload_type, "payload": STANDARD.encode(payload), "signatures": signatures})
}

fn signed_by(key: usize, payload: &str) -> Value {
    envelope(
        PAYLOAD_TYPE,
        payload.as_bytes(),
        &[json!({"keyid": KEYS[key].0, "sig": sign(key, PAYLOAD_TYPE, payload.as_bytes())})],
    )
}

/// The answer of publication `number`, signed by the first key.
fn answer(number: usize) -> Value {
    let (payload, manifest) = &PAYLOADS[number];
    json!({"version": 1, "release": signed_by(0, payload), "manifest": MANIFESTS[*manifest]})
}

fn trusting(keys: &[usize]) -> Trust {
    Trust {
        keys: keys.iter().map(|key| SECRETS[*key].public()).collect(),
        ..Trust::default()
    }
}

fn ours() -> Trust {
    trusting(&[0, 1])
}

fn channel(name: &str) -> Question {
    Question::Channel(name.parse().unwrap())
}

fn ask(question: &Question, bytes: &[u8], trust: &Trust) -> Result<Authorised, Refusal> {
    Received::parse(question, bytes)?.authorise(question, trust)
}

/// Whether what was authorised is a publication, whole: which one.
fn publication(authorised: &Authorised) -> Option<usize> {
    PAYLOADS.iter().position(|(payload, manifest)| {
        let text = &MANIFESTS[*manifest];
        authorised.release() == Some(&Release::parse(payload.as_bytes()).unwrap())
            && authorised.digest() == Digest::of(text.as_bytes())
            && *authorised.manifest() == Manifest::parse(text).unwrap()
    })
}

/// Every place in a document, deepest last: objects' fields and arrays' elements.
fn places(value: &Value, at: &str, all: &mut Vec<String>) {
    if !at.is_empty() {
        all.push(at.to_owned());
    }
    match value {
        Value::Object(fields) => fields.iter().for_each(|(name, value)| places(value, &format!("{at}/{name}"), all)),
        Value::Array(values) => values
            .iter()
            .enumerate()
            .for_each(|(number, value)| places(value, &format!("{at}/{number}"), all)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// What is put into a place: what the same place holds elsewhere, and what no publisher writes.
fn instead(here: &Value, elsewhere: &[&Value], at: &str) -> Vec<Value> {
    let mut all: Vec<Value> = elsewhere.iter().filter_map(|other| other.pointer(at)).cloned().collect();
    all.extend([
        json!(null),
        json!(true),
        json!(0),
        json!(-1),
        json!(1),
        json!(2),
        json!(u64::MAX),
        json!(1.5),
        json!(1e300),
        json!(""),
        json!("stable"),
        json!("testing"),
        json!([]),
        json!({}),
        json!(["x"]),
        json!("x".repeat(3000)),
    ]);
    if let Some(text) = here.pointer(at).and_then(Value::as_str) {
        // Other forms of the same letters: wide, with an accent apart, upper case, with white space, with something invisible.
        let wide = |c: char| char::from_u32(u32::from(c) + 0xfee0).filter(|_| c.is_ascii_graphic()).unwrap_or(c);
        all.extend([
            json!(text.chars().map(wide).collect::<String>()),
            json!(format!("{text}\u{301}")),
            json!(text.to_uppercase()),
            json!(format!(" {text}")),
            json!(format!("{text}\n")),
            json!(format!("{text}\u{200b}")),
            json!(format!("{text}\0")),
        ]);
    }
    all
}

/// Every document that comes of putting something else into one place of `whole`, or of taking the place away.
fn variations(whole: &Value, elsewhere: &[&Value]) -> Vec<(String, Value)> {
    let mut at = Vec::new();
    places(whole, "", &mut at);
    let mut all = Vec::new();
    for place in at {
        for value in instead(whole, elsewhere, &place) {
            let mut varied = whole.clone();
            *varied.pointer_mut(&place).unwrap() = value.clone();
            all.push((format!("{place} = {value:.60}"), varied));
        }
        let (parent, name) = place.rsplit_once('/').unwrap();
        let mut without = whole.clone();
        if without
            .pointer_mut(parent)
            .and_then(Value::as_object_mut)
            .is_some_and(|fields| fields.remove(name).is_some())
        {
            all.push((format!("without {place}"), without));
        }
    }
    all
}

#[test]
fn an_answer_with_one_field_of_another_says_what_was_signed_or_nothing() {
    let answers: Vec<Value> = (0..PAYLOADS.len()).map(answer).collect();
    let elsewhere: Vec<&Value> = answers[1..].iter().collect();
    let (mut authorised, mut refused) = (0, 0);
    for (what, varied) in variations(&answers[0], &elsewhere) {
        match ask(&channel("stable"), varied.to_string().as_bytes(), &ours()) {
            // The key's name is a hint that nobody signed.
            Ok(found) => {
                assert_eq!(publication(&found), Some(0), "{what}");
                authorised += 1;
            }
            Err(_) => refused += 1,
        }
    }
    assert!(authorised > 5 && refused > 100, "{authorised} authorised, {refused} refused");
}

#[test]
fn a_payload_with_one_field_changed_is_nobodys() {
    let payloads: Vec<Value> = PAYLOADS.iter().map(|(payload, _)| serde_json::from_str(payload).unwrap()).collect();
    let elsewhere: Vec<&Value> = payloads[1..].iter().collect();
    let original = answer(0);
    let mut tried = 0;
    for (what, varied) in variations(&payloads[0], &elsewhere)
        .into_iter()
        .filter(|(_, varied)| *varied != payloads[0])
    {
        for (manifest, text) in MANIFESTS.iter().enumerate() {
            let mut mixed = original.clone();
            mixed["release"]["payload"] = STANDARD.encode(varied.to_string()).into();
            mixed["manifest"] = text.as_str().into();
            let found = ask(&channel("stable"), mixed.to_string().as_bytes(), &ours());
            // A payload without its object is malformed in any case; else the signature is what fails.
            assert!(found.is_err(), "{what} with manifest {manifest}: {found:?}");
            tried += 1;
        }
    }
    assert!(tried > 300, "{tried}");
}

#[test]
fn a_manifest_with_one_field_changed_is_not_the_one_that_was_signed() {
    let all: Vec<Value> = (0..3).map(manifest).collect();
    let mut tried = 0;
    for (what, varied) in variations(&all[0], &[&all[1], &all[2]])
        .into_iter()
        .filter(|(_, varied)| *varied != all[0])
    {
        let mut mixed = answer(0);
        mixed["manifest"] = varied.to_string().into();
        for question in [channel("stable"), Question::System(toplevel(0).parse().unwrap())] {
            let found = ask(&question, mixed.to_string().as_bytes(), &ours());
            assert_eq!(found, Err(Refusal::ManifestMismatch), "{what}");
        }
        tried += 1;
    }
    assert!(tried > 800, "{tried}");
}

/// A manifest that says the same in other bytes is another manifest.
#[test]
fn the_bytes_of_a_manifest_are_signed_and_not_what_they_mean() {
    let text = &MANIFESTS[0];
    let pretty = serde_json::to_string_pretty(&manifest(0)).unwrap();
    let escaped = text.replacen("stable", "\\u0073table", 1).replacen("image", "\\u0069mage", 1);
    for same in [pretty, format!("{text} "), format!("\n{text}"), format!("\u{feff}{text}"), escaped] {
        assert_ne!(same, *text);
        let mut mixed = answer(0);
        mixed["manifest"] = same.clone().into();
        let found = ask(&channel("stable"), mixed.to_string().as_bytes(), &ours());
        assert_eq!(found, Err(Refusal::ManifestMismatch), "{same}");
    }
}

#[test]
fn a_field_that_stands_twice_is_refused_wherever_it_stands() {
    // In the document, each field of each object is written twice: with its own value and with that of another publication, in both orders.
    let cases = [
        ("answer", answer(0), answer(1)),
        (
            "payload",
            serde_json::from_str(&PAYLOADS[0].0).unwrap(),
            serde_json::from_str(&PAYLOADS[1].0).unwrap(),
        ),
        ("manifest", manifest(0), manifest(1)),
    ];
    let mut tried = 0;
    for (what, own, other) in cases {
        let mut at = Vec::new();
        places(&own, "", &mut at);
        for place in at {
            let (parent, name) = place.rsplit_once('/').unwrap();
            if !own.pointer(parent).is_some_and(Value::is_object) {
                continue;
            }
            for value in [own.pointer(&place).unwrap(), other.pointer(&place).unwrap()] {
                let twice = with_twice(&own, parent, name, value);
                assert!(serde_json::from_str::<Value>(&twice).is_ok(), "{twice}");
                let found = match what {
                    "answer" => ask(&channel("stable"), twice.as_bytes(), &ours()),
                    // Signed as it stands: it is the reader that must refuse it, or two readers could read it in two ways.
                    "payload" => ask(
                        &channel("stable"),
                        json!({"version": 1, "release": signed_by(0, &twice), "manifest": MANIFESTS[0]})
                            .to_string()
                            .as_bytes(),
                        &ours(),
                    ),
                    _ => {
                        let payload = release("stable", 7, &twice).to_string();
                        let answer = json!({"version": 1, "release": signed_by(0, &payload), "manifest": twice});
                        ask(&channel("stable"), answer.to_string().as_bytes(), &ours())
                    }
                };
                assert!(matches!(found, Err(Refusal::Malformed(_))), "{what}: {place} twice: {found:?}");
                tried += 1;
            }
        }
    }
    assert!(tried > 80, "{tried}");
}

/// The document with the field `name` of the object at `parent` a second time, behind the others.
fn with_twice(whole: &Value, parent: &str, name: &str, value: &Value) -> String {
    const MARK: &str = "the-second-one";
    let mut marked = whole.clone();
    let object = marked.pointer_mut(parent).unwrap().as_object_mut().unwrap();
    object.insert(MARK.to_owned(), value.clone());
    marked.to_string().replacen(&format!("\"{MARK}\""), &format!("\"{name}\""), 1)
}

#[test]
fn what_trails_a_document_is_refused_and_white_space_is_not() {
    let question = channel("stable");
    let whole = answer(0).to_string();
    for (trailing, fits) in [
        ("", true),
        (" \r\n\t", true),
        ("{}", false),
        ("\0", false),
        (",", false),
        ("}", false),
        ("\u{feff}", false),
        (whole.as_str(), false),
    ] {
        let found = ask(&question, format!("{whole}{trailing}").as_bytes(), &ours());
        assert_eq!(
            found.as_ref().ok().and_then(publication),
            fits.then_some(0),
            "an answer with {trailing:.20?}"
        );
        // Behind the payload and the manifest, signed as they stand.
        let payload = format!("{}{trailing}", PAYLOADS[0].0);
        let answer = json!({"version": 1, "release": signed_by(0, &payload), "manifest": MANIFESTS[0]});
        let found = ask(&question, answer.to_string().as_bytes(), &ours());
        assert_eq!(found.is_ok(), fits, "a payload with {trailing:.20?}");
        let manifest = format!("{}{trailing}", MANIFESTS[0]);
        let answer = json!({"version": 1, "release": signed_by(0, &release("stable", 7, &manifest).to_string()), "manifest": manifest});
        let found = ask(&question, answer.to_string().as_bytes(), &ours());
        assert_eq!(found.is_ok(), fits, "a manifest with {trailing:.20?}");
    }
}

#[test]
fn a_number_is_a_whole_one_in_its_range_or_the_document_is_refused() {
    // Signed as they stand: what a key signs is not read as something else.
    const NUMBERS: [(&str, Option<u64>); 17] = [
        ("0", Some(0)),
        ("1", Some(1)),
        ("95", Some(95)),
        ("96", Some(96)),
        ("67108864", Some(64 << 20)),
        ("67108865", Some((64 << 20) + 1)),
        ("18446744073709551615", Some(u64::MAX)),
        ("18446744073709551616", None),
        ("-0", None),
        ("-1", None),
        ("1.0", None),
        ("1e3", None),
        ("1e400", None),
        ("\"3\"", None),
        ("null", None),
        ("01", None),
        ("0x10", None),
    ];
    type Fits = fn(u64) -> bool;
    let of_release: [(&str, Fits); 4] = [
        ("version", |n| n == 1),
        ("serial", |n| n > 0),
        ("created", |_| true),
        ("notAfter", |_| true),
    ];
    let of_manifest: [(&str, Fits); 4] = [
        ("\"version\"", |n| n == 1),
        ("\"size\"", |n| n >= 96),
        ("\"chunkIndex\":{\"size\"", |n| n <= 64 << 20),
        ("\"dataBlocks\"", |_| true),
    ];
    let authorised = |payload: &str, manifest: &str| {
        let answer = json!({"version": 1, "release": signed_by(0, payload), "manifest": manifest});
        ask(&channel("stable"), answer.to_string().as_bytes(), &ours())
    };
    for (text, number) in NUMBERS {
        for (field, fits) in of_release {
            let mut payload = release("stable", 7, &MANIFESTS[0]);
            payload[field] = json!("here");
            let found = authorised(&payload.to_string().replace("\"here\"", text), &MANIFESTS[0]);
            // `null` is how Nix writes what is not set, and `notAfter` may be.
            let fits = number.is_some_and(fits) || (field == "notAfter" && text == "null");
            assert_eq!(found.is_ok(), fits, "{field}: {text}: {found:?}");
            if let (Ok(found), "serial", Some(number)) = (found, field, number) {
                assert_eq!(found.release().unwrap().serial, number);
            }
        }
        for (field, fits) in of_manifest {
            let mut whole = manifest(0);
            *match field {
                "\"version\"" => &mut whole["version"],
                "\"size\"" => &mut whole["image"]["size"],
                "\"dataBlocks\"" => &mut whole["image"]["verity"]["dataBlocks"],
                _ => &mut whole["image"]["chunkIndex"]["size"],
            } = json!("here");
            let manifest = whole.to_string().replace("\"here\"", text);
            let found = authorised(&release("stable", 7, &manifest).to_string(), &manifest);
            assert_eq!(found.is_ok(), number.is_some_and(fits), "{field}: {text}: {found:?}");
        }
    }
}

#[test]
fn a_critical_field_is_known_by_its_exact_name_or_refuses_the_document() {
    let of_release: BTreeSet<&str> = ["version", "critical", "channel", "serial", "created", "notAfter", "manifest"].into();
    let of_manifest: BTreeSet<&str> = [
        "version",
        "critical",
        "systems",
        "kernel",
        "kernelParams",
        "image",
        "boot",
        "deltas",
    ]
    .into();
    let strange = [
        "",
        " ",
        "Serial",
        "serial ",
        "notafter",
        "image.size",
        "ｉmage",
        "im\u{200b}age",
        "policy",
        "\0",
        "*",
    ];
    for name in of_release.iter().chain(&of_manifest).copied().chain(strange) {
        for others in [&["version"][..], &[]] {
            let list: Vec<&str> = others.iter().copied().chain([name]).collect();
            let mut payload = release("stable", 7, &MANIFESTS[0]);
            payload["critical"] = json!(list);
            let answer = json!({"version": 1, "release": signed_by(0, &payload.to_string()), "manifest": MANIFESTS[0]});
            let found = ask(&channel("stable"), answer.to_string().as_bytes(), &ours());
            assert_eq!(found.is_ok(), of_release.contains(name), "release: {list:?}: {found:?}");
            let mut whole = manifest(0);
            whole["critical"] = json!(list);
            let manifest = whole.to_string();
            let answer = json!({"version": 1, "release": signed_by(0, &release("stable", 7, &manifest).to_string()), "manifest": manifest});
            let found = ask(&channel("stable"), answer.to_string().as_bytes(), &ours());
            assert_eq!(found.is_ok(), of_manifest.contains(name), "manifest: {list:?}: {found:?}");
        }
    }
}

/// A signature in an envelope: over which payload, for which type, by which key, under which name, and how it is written down.
#[derive(Debug, Clone)]
struct Entry {
    payload: usize,
    other_type: bool,
    key: usize,
    named: &'static str,
    bent: Option<(Index, u8)>,
}

impl Entry {
    fn write(&self) -> Value {
        let (payload, _) = &PAYLOADS[self.payload];
        let mut sig = sign(
            self.key,
            if self.other_type { "text/plain" } else { PAYLOAD_TYPE },
            payload.as_bytes(),
        )
        .into_bytes();
        if let Some((at, byte)) = self.bent {
            let at = at.index(sig.len());
            sig[at] = byte;
        }
        json!({"keyid": self.named, "sig": String::from_utf8_lossy(&sig)})
    }

    /// Whether a bent text is still the signature: the byte may be the one that stood there.
    fn is_whole(&self) -> bool {
        let whole = Self {
            bent: None,
            ..self.clone()
        };
        self.write()["sig"] == whole.write()["sig"]
    }
}

fn an_entry() -> impl Strategy<Value = Entry> {
    let bent = proptest::option::weighted(0.2, (any::<Index>(), any::<u8>()));
    let names = select(vec!["ours-1", "ours-2", "theirs", "", "ours-1\u{301}", "öurs"]);
    (0..PAYLOADS.len(), proptest::bool::weighted(0.2), 0..KEYS.len(), names, bent).prop_map(|(payload, other_type, key, named, bent)| {
        Entry {
            payload,
            other_type,
            key,
            named,
            bent,
        }
    })
}

/// What is asked for: a channel, a system, a manifest.
fn a_question() -> impl Strategy<Value = (Question, usize)> {
    (0..3usize, 0..4usize).prop_map(|(kind, number)| {
        let question = match kind {
            0 => channel(["stable", "testing", "unstable", "stable2"][number]),
            1 => Question::System(toplevel([0, 1, 6, 9][number]).parse().unwrap()),
            _ => Question::Manifest(Digest::of(MANIFESTS.get(number).map_or(b"none".as_slice(), String::as_bytes))),
        };
        (question, number)
    })
}

/// The keys that are trusted, what is pinned, and whether the unsigned will do.
fn a_trust() -> impl Strategy<Value = (Vec<usize>, Option<usize>, bool)> {
    (
        select(vec![vec![], vec![0], vec![1], vec![0, 1], vec![1, 0, 1]]),
        proptest::option::weighted(0.3, 0..4usize),
        proptest::bool::weighted(0.2),
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Payload, type, signatures, manifest, question, keys, pin: each from anywhere.
    #[test]
    fn an_answer_is_authorised_if_and_only_if_it_was_signed_as_a_whole_and_asked_for(
        payload in 0..PAYLOADS.len(), other_type in proptest::bool::weighted(0.1), entries in vec(an_entry(), 0..4), manifest in 0..MANIFESTS.len(),
        (question, _) in a_question(), (keys, pin, allow_unsigned) in a_trust(),
    ) {
        let (text, of_payload) = &PAYLOADS[payload];
        let payload_type = if other_type { "text/plain" } else { PAYLOAD_TYPE };
        let release = envelope(payload_type, text.as_bytes(), &entries.iter().map(Entry::write).collect::<Vec<_>>());
        let received = Received {
            release: Some(serde_json::from_value(release).unwrap()),
            manifest: MANIFESTS[manifest].clone(),
        };
        let pinned = pin.map(|pin| Digest::of(MANIFESTS.get(pin).map_or(b"none".as_slice(), String::as_bytes)));
        let trust = Trust { pinned, allow_unsigned, ..trusting(&keys) };

        // The model.
        let fits_each_other = *of_payload == manifest && !other_type;
        let signed = entries.iter().any(|entry| entry.payload == payload && !entry.other_type && keys.contains(&entry.key) && entry.is_whole());
        let may = match pin {
            Some(pin) => pin == manifest,
            None => fits_each_other && (signed || allow_unsigned),
        };
        let release = Release::parse(text.as_bytes()).unwrap();
        let asked = match &question {
            Question::Channel(name) => fits_each_other && release.channel == *name,
            Question::System(system) => [toplevel(manifest), toplevel(manifest + 5)].contains(&system.to_string()),
            Question::Manifest(digest) => *digest == Digest::of(MANIFESTS[manifest].as_bytes()),
        };
        let found = received.authorise(&question, &trust);
        prop_assert_eq!(found.is_ok(), may && asked, "{:?}", found);
        if let Ok(found) = found {
            prop_assert_eq!(found.digest(), Digest::of(MANIFESTS[manifest].as_bytes()));
            prop_assert_eq!(found.release(), fits_each_other.then_some(&release));
            match found.authority() {
                Authority::Pin => prop_assert!(pin.is_some()),
                Authority::Unsigned => prop_assert!(pin.is_none() && allow_unsigned && !signed),
                // The name is that of the key, and never what the envelope says.
                Authority::Signature(name) => prop_assert!(pin.is_none() && signed && keys.iter().any(|key| KEYS[*key].0 == name)),
            }
        }
    }

    /// The same for what stands on the cache disk, where nobody asks: a file of any mixture under any name.
    #[test]
    fn a_cached_generation_is_authorised_if_and_only_if_it_was_signed_as_a_whole(
        payload in 0..PAYLOADS.len(), entries in vec(an_entry(), 0..4), manifest in 0..MANIFESTS.len(), named in 0..MANIFESTS.len(),
        (keys, pin, allow_unsigned) in a_trust(), without in proptest::bool::weighted(0.1),
    ) {
        let (text, of_payload) = &PAYLOADS[payload];
        let release = (!without).then(|| envelope(PAYLOAD_TYPE, text.as_bytes(), &entries.iter().map(Entry::write).collect::<Vec<_>>()));
        let file = json!({
            "version": 1, "release": release, "manifest": MANIFESTS[manifest], "sequence": u64::MAX, "accepted": 0, "source": "http://a", "etag": "\"stable\"",
        });
        let name = Digest::of(MANIFESTS[named].as_bytes());
        let pinned = pin.map(|pin| Digest::of(MANIFESTS.get(pin).map_or(b"none".as_slice(), String::as_bytes)));
        let trust = Trust { pinned, allow_unsigned, ..trusting(&keys) };
        let found = Generation::parse(&file.to_string(), name).and_then(|generation| generation.authorise(&trust));
        let signed = entries.iter().any(|entry| entry.payload == payload && !entry.other_type && keys.contains(&entry.key) && entry.is_whole());
        let may = match pin {
            Some(pin) => pin == manifest,
            None => !without && *of_payload == manifest && (signed || allow_unsigned),
        };
        prop_assert_eq!(found.is_ok(), may && named == manifest, "{:?}", found);
    }

    /// What takes the place of a generation of the same manifest never lowers the floor of its channel.
    #[test]
    fn an_older_release_of_a_channel_supersedes_none(new in (0..3usize, a_number()), old in (0..3usize, a_number())) {
        let made = |(channel, serial): (usize, u64)| {
            let payload = release(["stable", "testing", "stable2"][channel], serial.max(1), &MANIFESTS[0]);
            let envelope: Envelope = serde_json::from_value(signed_by(0, &payload.to_string())).unwrap();
            authorise(Some(&envelope), &MANIFESTS[0], &ours()).unwrap()
        };
        prop_assert_eq!(supersedes(&made(new), &made(old)), new.0 != old.0 || new.1.max(1) >= old.1.max(1));
    }
}

/// Numbers at the borders, and any.
fn a_number() -> impl Strategy<Value = u64> {
    prop_oneof![
        select(vec![0, 1, 2, u64::MAX - 1, u64::MAX, 1 << 63, (1 << 53) + 1]),
        0..20u64,
        any::<u64>()
    ]
}

#[test]
fn the_model_knows_as_many_trusted_keys_as_there_are() {
    let names: BTreeSet<&str> = KEYS[..TRUSTED].iter().map(|(name, _)| *name).collect();
    assert_eq!(names.len(), TRUSTED);
    assert!(SECRETS[0].public() != SECRETS[3].public() && KEYS[0].0 == KEYS[3].0);
}
