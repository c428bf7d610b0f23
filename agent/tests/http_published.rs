//! Cases that others have published for their own update clients, told by this project's own servers and measured by its own rules: the resumer of Mender's
//! client, and what RAUC's tests let nginx do. `docs/faults.md` has a table of them, with what is expected there and here.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support {
    pub mod bench;
    pub mod record;
    pub mod secure;
    pub mod server;
    #[allow(dead_code, reason = "shared with other tests")]
    pub mod world;
}

use std::sync::Arc;
use std::time::{Duration, Instant};

use freshroot::clock::Clock;
use freshroot::digest::Digest;
use freshroot::fetch::image::FetchError;
use freshroot::fetch::retry::{After, Mirrors};
use freshroot::formats::authorised::Trust;
use freshroot::http::{Client, HttpError, Options, TlsOptions};
use support::bench::{Bench, LIMITS, PATIENT, STALL, files, from, honest, honestly, image_path};
use support::record::each;
use support::secure::{Secure, tls_file};
use support::server::{Ask, Framing, Reply, Server, Then};
use support::world::{CHUNK, SIZE, World, present};

/// As much as is sent of each answer before the connection ends: three chunks, and a part of the next.
const SOME: usize = 3 * CHUNK + 1000;

/// What is sent of an answer, and then the connection ends.
fn some(reply: Reply) -> Reply {
    let length = reply.body.len().min(SOME);
    reply.cut(length, Then::Close)
}

/// The `Content-Range` of an answer, changed.
fn ranged(mut reply: Reply, value: &str) -> Reply {
    reply.headers.retain(|(name, _)| name != "Content-Range");
    reply.header("Content-Range", value)
}

#[test]
fn mender_a_download_that_breaks_off_again_and_again_is_resumed_each_time() {
    let bench = Bench::new(|_, reply| some(reply)).patient();
    bench.fetch().unwrap();
    bench.assert_committed();
    assert_eq!(bench.ranges(), [None, from(3), from(6)]);
    assert!(bench.received() <= SIZE + 2 * 1000, "{}", bench.received());
}

#[test]
fn mender_a_range_that_is_not_the_one_asked_for_is_not_used() {
    // First and last byte asked for, as they were told wrongly; the server sends what it says.
    type Told = fn(usize, usize) -> String;
    let cases: [(&str, Told); 14] = [
        ("starts early", |first, last| format!("bytes {}-{last}/{SIZE}", first - 5)),
        ("starts late", |first, last| format!("bytes {}-{last}/{SIZE}", first + 5)),
        ("total one less", |first, last| format!("bytes {first}-{}/{}", last - 1, SIZE - 1)),
        ("no total", |first, last| format!("bytes {first}-{last}")),
        ("unknown total", |first, last| format!("bytes {first}-{last}/*")),
        ("nothing behind the unit", |_, _| "bytes ".to_owned()),
        ("words for numbers", |_, _| "bytes abc-def/deadbeef".to_owned()),
        ("one number", |_, _| "bytes 5".to_owned()),
        ("no unit", |_, _| "5-6/2".to_owned()),
        ("two ranges", |_, _| "bytes 5-6/20 7-8/20".to_owned()),
        ("three numbers", |_, _| "bytes 100-200-300/400".to_owned()),
        ("of a smaller file", |_, _| "bytes 10000-20000/30000".to_owned()),
        ("backwards", |_, _| format!("bytes 20000-10000/{SIZE}")),
        ("a letter in the end", |_, _| format!("bytes 1000-20o0/{SIZE}")),
    ];
    each(cases, |why, told| {
        let bench = Bench::new(move |ask, reply| match ask.range() {
            Some((first, last)) => ranged(reply, &told(first, last)),
            None if ask.nth == 0 => some(reply),
            None => reply,
        })
        .patient();
        bench.fetch().unwrap_or_else(|error| panic!("{why}: {error}"));
        bench.assert_committed();
        // What was verified of the first answer is there; of the whole that comes then nothing is appended.
        assert_eq!(
            (bench.ranges(), bench.received()),
            (vec![None, from(3), None], SOME + SIZE),
            "{why}"
        );
    });
}

#[test]
fn mender_a_range_with_a_garbled_start_or_unit_or_none_is_not_used() {
    let garbled: [(&str, Option<String>); 3] = [
        ("start", Some(format!("bytes abc-{}/{SIZE}", SIZE - 1))),
        ("unit", Some(format!("abcde {}-{}/{SIZE}", 3 * CHUNK, SIZE - 1))),
        ("an empty header", Some(String::new())),
    ];
    each(garbled.into_iter().chain([("no header", None)]), |why, told| {
        let bench = Bench::new(move |ask, reply| match (ask.range(), &told) {
            (Some(_), Some(told)) => ranged(reply, told),
            (Some(_), None) => Reply {
                headers: Vec::new(),
                ..reply
            },
            (None, _) if ask.nth == 0 => some(reply),
            (None, _) => reply,
        })
        .patient();
        bench.fetch().unwrap_or_else(|error| panic!("{why}: {error}"));
        bench.assert_committed();
        assert_eq!(
            (bench.ranges(), bench.received()),
            (vec![None, from(3), None], SOME + SIZE),
            "{why}"
        );
    });
}

#[test]
fn mender_a_range_that_starts_early_and_ends_before_what_was_wanted_is_not_used() {
    let bench = Bench::new(|ask, reply| match ask.range() {
        Some((first, last)) => ranged(reply, &format!("bytes {}-{last}/{SIZE}", first - 5)).cut(2, Then::Close),
        None if ask.nth == 0 => some(reply),
        None => reply,
    })
    .patient();
    bench.fetch().unwrap();
    bench.assert_committed();
}

#[test]
fn mender_a_server_without_ranges_that_breaks_off_is_read_until_one_answer_is_whole() {
    let files = files(&World::new(2));
    let bench = Bench::with(vec![Server::new(move |ask| {
        let whole = Reply::new(200, &files[&ask.path]);
        if ask.nth < 2 { some(whole) } else { whole }
    })])
    .patient();
    bench.fetch().unwrap();
    bench.assert_committed();
    assert_eq!(bench.received(), 2 * SOME + SIZE);
}

#[test]
fn mender_a_server_that_goes_down_and_comes_up_again_is_gone_on_with() {
    let down = Server::new(honestly(|_, reply| some(reply)));
    let bench = Bench::with(vec![down]).patient();
    let port: u16 = bench.mirrors[0].rsplit_once(':').unwrap().1.parse().unwrap();
    bench.servers[0].end_after(1);
    std::thread::scope(|scope| {
        let fetch = scope.spawn(|| bench.fetch());
        let until = Instant::now() + Duration::from_secs(20);
        // The second was refused when the third begins.
        while bench.client.requests() < 3 {
            assert!(Instant::now() < until && !fetch.is_finished(), "it does not try again");
            std::thread::park_timeout(Duration::from_millis(5));
        }
        let up = Server::on_port(port, honestly(|_, reply| reply));
        fetch.join().unwrap().unwrap();
        assert_eq!(up.served()[0].ask.range(), from(3));
    });
    bench.assert_committed();
    assert_eq!(bench.received(), SOME + SIZE - 3 * CHUNK);
}

#[test]
fn mender_a_server_that_stays_down_ends_with_an_error_and_what_came_stays() {
    let bench = Bench::with(vec![Server::new(honestly(|_, reply| some(reply)))]);
    bench.servers[0].end_after(1);
    let started = Instant::now();
    bench.assert_fails("refused", 3);
    assert!(started.elapsed() < 4 * PATIENT, "{:?}", started.elapsed());
}

#[test]
fn mender_waits_grow_to_a_limit_and_twenty_interruptions_with_progress_do_not_end_a_download() {
    let broken = || HttpError::Retryable("broken".to_owned(), None);
    let pause = |mirrors: &mut Mirrors| match mirrors.failed(broken(), u64::MAX, Instant::now()) {
        After::Pause(pause) => pause,
        After::Enough => panic!("it is given up"),
    };
    let mut mirrors = Mirrors::new(&[0]);
    for _ in 0..20 {
        assert!(
            pause(&mut mirrors) <= Duration::from_secs(1),
            "the first pause is a short one each time"
        );
        mirrors.progressed();
    }
    let pauses: Vec<Duration> = (0..20).map(|_| pause(&mut mirrors)).collect();
    assert!(pauses.windows(2).take(4).all(|pair| pair[0] < pair[1]), "{pauses:?}");
    assert!(pauses.iter().all(|pause| *pause <= Duration::from_secs(30)), "{pauses:?}");
}

#[test]
fn mender_a_whole_answer_is_one_request() {
    let bench = Bench::new(|_, reply| reply);
    bench.fetch().unwrap();
    bench.assert_committed();
    assert_eq!((bench.ranges(), bench.received()), (vec![None], SIZE));
}

#[test]
fn mender_pieces_of_an_odd_length_make_the_same_image() {
    let bench = Bench::new(|_, reply| Reply {
        pace: Some(Duration::from_millis(1)),
        piece: 12_350 + 1,
        ..reply
    });
    bench.fetch().unwrap();
    bench.assert_committed();
}

#[test]
fn mender_a_client_that_has_resumed_once_does_so_again_from_the_start() {
    let client = Arc::new(Client::new(Options::new(LIMITS)));
    for _ in 0..2 {
        let bench = Bench::new(|ask, reply| if ask.nth == 0 { some(reply) } else { reply });
        let bench = Bench {
            client: Arc::clone(&client),
            ..bench
        };
        bench.fetch().unwrap();
        bench.assert_committed();
        assert_eq!(bench.ranges(), [None, from(3)]);
    }
}

#[test]
fn mender_a_resume_that_breaks_off_before_its_first_byte_is_resumed_there() {
    let bench = Bench::new(|ask, reply| match ask.nth {
        0 | 1 => some(reply),
        2 => reply.cut(0, Then::Close),
        _ => reply,
    })
    .patient();
    bench.fetch().unwrap();
    bench.assert_committed();
    assert_eq!(bench.ranges(), [None, from(3), from(6), from(6)]);
}

#[test]
fn mender_no_content_and_an_empty_file_are_no_image() {
    each(
        [
            ("204", (Reply::new(204, b"").framing(Framing::Close), "answers 204")),
            ("empty", (Reply::new(200, b""), "its length is 0 bytes")),
        ],
        |why, (reply, words)| {
            let bench = Bench::new(move |_, _| reply.clone());
            bench.assert_fails(words, 0);
            assert_eq!(bench.servers[0].requests(), 1, "{why}");
        },
    );
}

#[test]
fn mender_a_request_that_nobody_answers_is_made_again_without_a_range() {
    let bench = Bench::new(|ask, reply| if ask.nth == 0 { Reply::none(Then::Stall) } else { reply });
    let started = Instant::now();
    bench.fetch().unwrap();
    bench.assert_committed();
    assert_eq!(bench.ranges(), [None, None]);
    assert!(started.elapsed() >= STALL, "{:?}", started.elapsed());
}

#[test]
fn rauc_a_redirect_is_followed() {
    let bench = Bench::new(|ask, _| match ask.path.strip_prefix("/moved") {
        Some(path) => Reply::new(200, &files(&World::new(2))[path]),
        None => Reply::new(302, b"").header("Location", &format!("/moved{}", ask.path)),
    });
    bench.fetch().unwrap();
    bench.assert_committed();
}

#[test]
fn rauc_statuses_without_an_image_are_named() {
    each([204, 304, 400, 401, 404].map(|status| (status, status)), |why, status| {
        let bench = Bench::new(move |_, _| Reply::new(status, b"").framing(Framing::Close));
        bench.assert_fails(&status.to_string(), 0);
        assert!(bench.ask().unwrap_err().contains(&status.to_string()), "{why}");
        assert_eq!(bench.servers[0].requests(), 2, "{why}: neither is asked for again");
    });
    let bench = Bench::new(|_, _| Reply::new(500, b"")).case("500");
    bench.assert_fails("answers 500", 0);
    assert!(bench.servers[0].requests() > 1, "a server may recover");
}

#[test]
fn rauc_every_second_request_fails_and_all_is_fetched() {
    let count = std::sync::atomic::AtomicUsize::new(0);
    let bench = Bench::new(move |_, reply| match count.fetch_add(1, std::sync::atomic::Ordering::SeqCst) % 2 {
        0 => Reply::new(500, b""),
        _ => reply,
    });
    bench.ask().unwrap();
    bench.fetch_index().unwrap();
    bench.fetch().unwrap();
    bench.assert_committed();
    assert_eq!(bench.servers[0].requests(), 6);
}

/// A server that lets in who has this in `Authorization`.
fn guarded(word: &'static str) -> impl Fn(&Ask) -> Reply + Send + Sync + 'static {
    honestly(move |ask, reply| match ask.headers.get("authorization") {
        Some(told) if told == word => reply,
        Some(_) | None => Reply::new(401, b"").header("WWW-Authenticate", "Basic realm=\"x\""),
    })
}

#[test]
fn rauc_a_user_and_password_in_the_url_open_and_without_them_the_setting_is_named() {
    let bench = Bench::with(vec![Server::new(guarded("Basic bWU6d29yZA=="))]);
    bench.assert_fails("answers 401 (credentials are missing or wrong: http.credentialsFile)", 0);
    let mirrors = vec![bench.mirrors[0].replace("http://", "http://me:word@")];
    let bench = Bench { mirrors, ..bench };
    bench.ask().unwrap();
    bench.fetch().unwrap();
    bench.assert_committed();
}

/// Of a server over TLS in 2030.
fn secure(server: &Secure, tls: TlsOptions, credentials: Option<&str>) -> (Bench, Option<tempfile::NamedTempFile>) {
    let file = credentials.map(|text| {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        file
    });
    let clock = Clock {
        floor: 1_900_000_000,
        machine: || 0,
    };
    let options = Options {
        tls: TlsOptions { clock, ..tls },
        credentials_file: file.as_ref().map(|file| file.path().to_owned()),
        ..Options::new(LIMITS)
    };
    let mirrors = vec![server.url()];
    let bench = Bench {
        mirrors,
        ..Bench::by(vec![], options)
    };
    (bench, file)
}

fn believing() -> TlsOptions {
    TlsOptions {
        ca_file: Some(tls_file("authority.pem")),
        ..TlsOptions::default()
    }
}

#[test]
fn rauc_a_token_that_is_missing_or_wrong_is_refused_and_the_right_one_opens() {
    let server = Secure::new(None, guarded("Bearer secret"));
    for (case, credentials, opens) in [
        ("missing", None, false),
        ("wrong", Some("bearer other\n"), false),
        ("right", Some("bearer secret\n"), true),
    ] {
        let (bench, _file) = secure(&server, believing(), credentials);
        let bench = bench.case(case);
        if opens {
            bench.fetch().unwrap();
            bench.assert_committed();
        } else {
            bench.assert_fails("answers 401", 0);
        }
    }
}

#[test]
fn rauc_https_is_believed_by_its_authority_or_its_key_and_not_otherwise() {
    let server = Secure::new(None, honestly(|_, reply| reply));
    let other = TlsOptions {
        ca_file: Some(tls_file("client-authority.pem")),
        ..TlsOptions::default()
    };
    // In place of «no verification», which there is none of here: the key itself.
    let pinned = TlsOptions {
        pinned_public_keys: vec!["66d6d71c3b543d3d6c3af0d76eb65cf0266d8e21fc4a7f9d0055146c267af8f5".parse().unwrap()],
        ..TlsOptions::default()
    };
    for (case, tls, believed) in [
        ("no authority", TlsOptions::default(), false),
        ("another authority", other, false),
        ("its authority", believing(), true),
        ("its key", pinned, true),
    ] {
        let (bench, _) = secure(&server, tls, None);
        let bench = bench.case(case);
        if believed {
            bench.fetch().unwrap_or_else(|error| panic!("{case}: {error}"));
            bench.assert_committed();
        } else {
            assert!(matches!(bench.fetch(), Err(FetchError::Network(_))), "{case}");
            bench.assert_unchanged();
            assert_eq!((bench.received(), present(&bench.cache, &bench.new)), (0, 0), "{case}");
        }
    }
}

#[test]
fn rauc_a_client_certificate_opens_and_without_one_nothing_comes() {
    let path = image_path(&World::new(2));
    let server = Secure::new(
        Some("client-authority.pem"),
        honestly(move |ask, reply| if ask.path == path { reply } else { Reply::new(404, b"") }),
    );
    let known = TlsOptions {
        client_certificate: Some((tls_file("client.pem"), tls_file("client.key"))),
        ..believing()
    };
    let (bench, _) = secure(&server, known, None);
    assert!(
        bench.ask().unwrap_err().contains("answers 404"),
        "what is not there is not there with a certificate either"
    );
    bench.fetch().unwrap();
    bench.assert_committed();
    let (bench, _) = secure(&server, believing(), None);
    let bench = bench.case("without one");
    assert!(matches!(bench.fetch(), Err(FetchError::Network(_))));
    bench.assert_unchanged();
    assert_eq!(bench.received(), 0);
}

#[test]
fn rauc_what_is_pinned_is_accepted_and_another_manifest_is_not() {
    let digest = Digest::of(World::new(2).manifest.as_bytes());
    for (case, pin, accepted) in [("the pinned one", digest, true), ("another one", Digest::of(b"another"), false)] {
        let bench = Bench::with(vec![honest()]).case(case);
        let trust = Trust {
            pinned: Some(pin),
            ..Trust::default()
        };
        assert_eq!(bench.ask_if(&|_| Ok(()), &trust).is_ok(), accepted, "{case}");
        bench.assert_unchanged();
    }
}

#[test]
fn rauc_an_answer_is_taken_up_to_its_limit_and_not_beyond() {
    let url = |bench: &Bench| format!("{}{}", bench.mirrors[0], image_path(&bench.new));
    let bench = Bench::new(|_, reply| reply);
    let get = |limit: usize| {
        let url = url(&bench);
        let request = freshroot::http::Request {
            url: &url,
            ..Default::default()
        };
        bench.client.get_bytes(&request, limit as u64)
    };
    assert!(get(SIZE).unwrap().is_some_and(|(bytes, _)| bytes == bench.new.bytes));
    let received = bench.received();
    assert!(matches!(get(1024), Err(HttpError::Fatal(what)) if what.contains("longer than 1024 bytes")));
    assert!(bench.received() - received <= 1025, "nothing beyond the limit is read");
}
