//! Answers, releases, manifests, generations: what must never authorise what nobody signed.

use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use freshroot::digest::Digest;
use freshroot::formats::answer::{Answer, Question, Received};
use freshroot::formats::authorised::{Authorised, Authority, Trust};
use freshroot::formats::envelope::Envelope;
use freshroot::formats::generation::Generation;
use freshroot::formats::key::SecretKey;
use freshroot::formats::manifest::Manifest;
use freshroot::formats::release::{ChannelName, Release};
use freshroot::formats::tries::Blessing;
use freshroot::formats::{ANSWER_LIMIT, Refusal};
use serde_json::Value;

use crate::Target;
use crate::input::{split_at_ff, told};

/// A JSON value takes some 70 bytes for two of text, for a moment twice, and the targets compare a few of them.
const JSON_MEMORY: usize = 2048;

/// The body that a server sends for a question.
pub const ANSWER: Target = Target {
    name: "answer",
    longest: 8192,
    memory: JSON_MEMORY,
    check: answer,
};

/// The payload of an envelope.
pub const RELEASE: Target = Target {
    name: "release",
    longest: 2048,
    memory: JSON_MEMORY,
    check: release,
};

/// The manifest's text.
pub const MANIFEST: Target = Target {
    name: "manifest",
    longest: 4096,
    memory: JSON_MEMORY,
    check: manifest,
};

/// A generation's file in the cache, and once more as the file of a blessing.
pub const GENERATION: Target = Target {
    name: "generation",
    longest: 8192,
    memory: JSON_MEMORY,
    check: generation,
};

/// The key of this name: everybody may know it, it is made of its name.
pub(crate) fn key(name: &str) -> SecretKey {
    SecretKey::from_seed(name, Digest::of(name.as_bytes()).as_bytes()).unwrap()
}

static OURS: LazyLock<SecretKey> = LazyLock::new(|| key("ours"));
static TRUST: LazyLock<Trust> = LazyLock::new(|| Trust {
    keys: vec![OURS.public()],
    ..Trust::default()
});
/// What «ours» signed: the seeds, and nothing else that a fuzzer could come by.
static SIGNED: LazyLock<Vec<(Release, String)>> = LazyLock::new(|| {
    let [folder, _] = ANSWER.folders();
    let seeds = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let answers = seeds.filter_map(|entry| Answer::parse(&std::fs::read(entry.path()).unwrap()).ok());
    answers
        .filter(|answer| answer.release().verify(&TRUST.keys).is_ok())
        .filter_map(|answer| {
            Some((
                Release::parse(&answer.release().payload().ok()?).ok()?,
                answer.manifest().to_owned(),
            ))
        })
        .collect()
});

fn answer(input: &[u8]) {
    // As it came: only what the seeds hold can be authorised.
    let asked: ChannelName = "stable".parse().unwrap();
    let received = match Received::parse(&Question::Channel(asked.clone()), input) {
        Ok(received) => received,
        Err(refusal) => return told(refusal),
    };
    assert!(input.len() as u64 <= ANSWER_LIMIT);
    let question = Question::Channel(asked.clone());
    match received.authorise(&question, &TRUST) {
        Ok(authorised) => {
            let known = SIGNED
                .iter()
                .any(|(release, manifest)| authorised.release() == Some(release) && *manifest == received.manifest);
            assert!(known, "authorised, and nobody signed it: {}", String::from_utf8_lossy(input));
            holds(&authorised, &received.manifest, &question);
        }
        Err(refusal) => told(refusal),
    }

    // What a server cannot do, so that the fuzzer gets behind the signature: the payload is made to name the manifest, and is signed.
    let manifest = received.manifest.as_str();
    let digest = Digest::of(manifest.as_bytes());
    let payload = received.release.as_ref().unwrap().payload().unwrap_or_default();
    let payload = match serde_json::from_slice(&payload) {
        Ok(Value::Object(mut fields)) => {
            fields.insert("manifest".to_owned(), digest.to_string().into());
            serde_json::to_vec(&fields).unwrap()
        }
        Ok(_) | Err(_) => payload,
    };
    let mut envelope = Envelope::unsigned(&payload);
    if envelope.sign(&OURS).is_err() {
        return;
    }
    let signed = Received {
        release: Some(envelope),
        manifest: manifest.to_owned(),
    };
    let (release, parsed) = (Release::parse(&payload), Manifest::parse(manifest));
    let system = parsed
        .as_ref()
        .ok()
        .and_then(Manifest::default_system)
        .map(|system| system.toplevel.clone());
    let absent = "/nix/store/zzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzz-absent".parse().unwrap();
    for (question, fits) in [
        (question, release.as_ref().is_ok_and(|release| release.channel == asked)),
        (Question::System(system.clone().unwrap_or(absent)), system.is_some()),
        (Question::Manifest(digest), true),
        (Question::Manifest(Digest::of(&payload)), false),
    ] {
        let expected = fits && parsed.is_ok() && release.as_ref().is_ok_and(|release| release.manifest == digest);
        let found = signed.authorise(&question, &TRUST);
        assert_eq!(found.is_ok(), expected, "{question:?}: {found:?}");
        match found {
            Ok(authorised) => {
                holds(&authorised, manifest, &question);
                assert_eq!(authorised.authority(), &Authority::Signature("ours".to_owned()));
                assert_eq!(authorised.release(), release.as_ref().ok());
            }
            Err(refusal) => told(refusal),
        }
        // Nobody who does not trust this key is content with it, unless this very manifest is pinned.
        let stranger = Trust {
            keys: vec![key("theirs").public()],
            ..Trust::default()
        };
        assert!(signed.authorise(&question, &stranger).is_err());
        let pinned = Trust {
            pinned: Some(Digest::of(b"another")),
            ..TRUST.clone()
        };
        assert_eq!(signed.authorise(&question, &pinned), Err(Refusal::ManifestMismatch));
    }
}

/// What is true of everything that was authorised as an answer to `question`.
fn holds(authorised: &Authorised, manifest: &str, question: &Question) {
    assert_eq!(authorised.digest(), Digest::of(manifest.as_bytes()));
    assert_eq!(authorised.release().map(|release| release.manifest), Some(authorised.digest()));
    assert_eq!(Some(authorised.manifest()), Manifest::parse(manifest).ok().as_ref());
    match question {
        Question::Channel(channel) => assert_eq!(authorised.release().map(|release| &release.channel), Some(channel)),
        Question::System(toplevel) => assert!(authorised.manifest().system(toplevel).is_some()),
        Question::Manifest(digest) => assert_eq!(*digest, authorised.digest()),
    }
}

fn release(input: &[u8]) {
    let release = match Release::parse(input) {
        Ok(release) => release,
        Err(refusal) => return told(refusal),
    };
    assert!(release.serial > 0);
    assert_eq!(release.version, 1);
    assert_eq!(Release::parse(&serde_json::to_vec(&release).unwrap()), Ok(release.clone()));
    // The channel becomes a part of a path.
    let path = Question::Channel(release.channel.clone()).path();
    assert!(path.is_ascii() && path.matches('/').count() == 1 && !path.contains("/."), "{path}");
    // A reader that knows nothing of ours sees the same. It also reads what we pass over, where half a character may stand.
    let Ok(value) = serde_json::from_slice::<Value>(input) else {
        return;
    };
    assert_eq!(value["serial"].as_u64(), Some(release.serial));
    assert_eq!(value["created"].as_u64(), Some(release.created));
    assert_eq!(value.get("notAfter").and_then(Value::as_u64), release.not_after);
    assert_eq!(value["channel"].as_str(), Some(release.channel.as_str()));
    assert_eq!(value["manifest"].as_str(), Some(release.manifest.to_string().as_str()));
}

fn manifest(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let manifest = match Manifest::parse(&text) {
        Ok(manifest) => manifest,
        Err(refusal) => return told(refusal),
    };
    let written = serde_json::to_string(&manifest).unwrap();
    assert_eq!(Manifest::parse(&written), Ok(manifest.clone()), "{written}");
    assert!((1..=256).contains(&manifest.systems.len()) && manifest.image.size >= 96 && manifest.image.chunk_index.size <= 64 << 20);
    for system in &manifest.systems {
        // The first of several with one toplevel counts, for everybody.
        let first = manifest.systems.iter().find(|other| other.toplevel == system.toplevel);
        assert_eq!(manifest.system(&system.toplevel), first);
        let path = Question::System(system.toplevel.clone()).path();
        assert!(path.is_ascii() && path.len() == "by-system/.json".len() + 32, "{path}");
        assert_eq!(system.toplevel.to_string().parse(), Ok(system.toplevel.clone()));
    }
    // A reader that knows nothing of ours sees the same. It also reads what we pass over, where half a character may stand.
    let Ok(value) = serde_json::from_str::<Value>(&text) else { return };
    for (pointer, ours) in [
        ("/image/sha256", manifest.image.sha256.to_string()),
        ("/image/chunkIndex/sha256", manifest.image.chunk_index.sha256.to_string()),
        ("/kernel/storeName", manifest.kernel.store_name.clone()),
        ("/kernel/release", manifest.kernel.release.clone()),
        ("/systems/0/toplevel", manifest.systems[0].toplevel.to_string()),
    ] {
        assert_eq!(value.pointer(pointer).and_then(Value::as_str), Some(ours.as_str()), "{pointer}");
    }
    assert_eq!(value.pointer("/image/size").and_then(Value::as_u64), Some(manifest.image.size));
}

fn generation(input: &[u8]) {
    let (text, _) = split_at_ff(input);
    let text = String::from_utf8_lossy(text);
    match Blessing::parse(&text) {
        Ok(blessing) => assert_eq!(Blessing::parse(&serde_json::to_string(&blessing).unwrap()), Ok(blessing)),
        Err(refusal) => told(refusal),
    }
    // Under a wrong name it is never taken, whatever it holds.
    match Generation::parse(&text, Digest::of(b"another")) {
        Ok(generation) => panic!("taken under a wrong name: {generation:?}"),
        Err(refusal) => told(refusal),
    }
    let manifest = serde_json::from_str::<Value>(&text)
        .ok()
        .and_then(|value| value["manifest"].as_str().map(str::to_owned));
    let named = Digest::of(manifest.unwrap_or_default().as_bytes());
    let generation = match Generation::parse(&text, named) {
        Ok(generation) => generation,
        Err(refusal) => return told(refusal),
    };
    assert_eq!(generation.digest(), named);
    let written = serde_json::to_string(&generation).unwrap();
    assert_eq!(Generation::parse(&written, named), Ok(generation.clone()));
    match generation.authorise(&TRUST) {
        Ok(authorised) => {
            let known = SIGNED
                .iter()
                .any(|(release, manifest)| authorised.release() == Some(release) && *manifest == generation.manifest);
            assert!(known, "authorised, and nobody signed it: {text}");
        }
        Err(refusal) => told(refusal),
    }
    // A pin authorises the manifest, and the release only counts if it names this manifest.
    let pinned = Trust {
        pinned: Some(named),
        ..Trust::default()
    };
    let found = generation.authorise(&pinned);
    assert_eq!(found.is_ok(), Manifest::parse(&generation.manifest).is_ok());
    if let Ok(authorised) = found {
        assert_eq!(authorised.authority(), &Authority::Pin);
        assert!(authorised.release().is_none_or(|release| release.manifest == named));
    }
}

/// An answer as it is published, for the seeds.
pub(crate) fn signed_answer(payload: &str, manifest: &str, signers: &[&str]) -> Vec<u8> {
    let mut envelope = Envelope::unsigned(payload.as_bytes());
    for signer in signers {
        envelope.sign(&key(signer)).unwrap();
    }
    assert_eq!(
        STANDARD.encode(payload),
        serde_json::to_value(&envelope).unwrap()["payload"].as_str().unwrap()
    );
    serde_json::to_vec(&Answer::new(envelope, manifest.to_owned())).unwrap()
}
