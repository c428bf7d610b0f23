//! Servers that misbehave, row by row of the fault matrix: what comes of it, what went over the wire, and what the cache holds afterwards.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support {
    pub mod bench;
    pub mod record;
    pub mod secure;
    pub mod server;
    pub mod strace;
    pub mod world;
}

use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use freshroot::cache::part::Part;
use freshroot::digest::Digest;
use freshroot::fetch::Progress;
use freshroot::fetch::answer::{Asked, Earlier, ask};
use freshroot::fetch::image::{FetchError, Patience, fetch_image};
use freshroot::formats::answer::{Answer, Question};
use freshroot::formats::authorised::{Authorised, Trust};
use freshroot::formats::envelope::Envelope;
use freshroot::formats::key::SecretKey;
use freshroot::http::{Client, HttpError, Limits, Options, Request, TlsOptions};
use freshroot::verify::verify_image;
use support::bench::{Bench, LIMITS, PATIENT, SLOWEST, STALL, files, from, honest, honestly, image_path, index_path};
use support::record::each;
use support::secure::{Secure, tls_file};
use support::server::{Ask, Framing, Reply, Server, Then};
use support::strace::{Ended, FOLDER, run};
use support::world::{CHUNK, SIZE, World, present, release, trust};

/// A captive portal's page.
const PORTAL: &[u8] = b"\r\n<!DOCTYPE html><html><title>Log in</title></html>";

/// Where a body may be cut: nothing, one byte, 1 %, inside a chunk, on a border, 99 %, one byte before the end.
const CUTS: &[usize] = &[0, 1, SIZE / 100, SIZE / 2, 4 * CHUNK, SIZE * 99 / 100, SIZE - 1];

fn row_05(then: Then) {
    // Each is a download of its own; the pauses between the tries go on side by side.
    each(CUTS.iter().map(|cut| (format!("after {cut} bytes"), *cut)), |_, cut| {
        let bench = Bench::new(move |ask, reply| if ask.nth == 0 { reply.cut(cut, then) } else { reply });
        bench.fetch().unwrap();
        bench.assert_committed();
        let again = (cut / CHUNK > 0).then(|| from(cut / CHUNK)).flatten();
        assert_eq!(bench.ranges(), [None, again], "cut after {cut} bytes");
        assert!(
            bench.received() < SIZE + CHUNK,
            "more than a chunk was fetched twice: cut after {cut} bytes"
        );
        assert_eq!(bench.servers[0].sent(), cut + SIZE - cut / CHUNK * CHUNK, "cut after {cut} bytes");
    });
}

#[test]
fn row_05_a_body_that_is_cut_short_is_resumed_at_the_chunk() {
    row_05(Then::Close);
}

#[test]
fn row_05_a_body_that_is_reset_is_resumed_at_the_chunk() {
    row_05(Then::Reset);
}

#[test]
fn row_05_a_reset_after_the_last_byte_is_no_failure() {
    let bench = Bench::new(|_, reply| reply.cut(SIZE, Then::Reset));
    bench.fetch().unwrap();
    bench.assert_committed();
    assert_eq!((bench.ranges(), bench.received()), (vec![None], SIZE));
}

#[test]
fn row_05_a_connection_that_is_closed_without_a_head_is_tried_again() {
    let bench = Bench::new(|ask, reply| if ask.nth == 0 { Reply::none(Then::Close) } else { reply });
    bench.fetch().unwrap();
    bench.assert_committed();
    assert_eq!((bench.ranges(), bench.received()), (vec![None, None], SIZE));
}

#[test]
fn row_05_a_server_that_cuts_for_ever_is_left_and_the_next_run_goes_on_where_it_ended() {
    let bench = Bench::new(|ask, reply| match ask.range() {
        None => reply.cut(3 * CHUNK + 7, Then::Close),
        Some(_) => reply.cut(7, Then::Close),
    });
    bench.assert_fails("the transfer broke", 3);
    let cut = bench.received();
    // This server is gone again at once: one that is down is another failure in the network.
    let gone = honest().url();
    let bench = Bench {
        mirrors: vec![gone],
        ..bench
    };
    bench.assert_fails("refused", 3);
    let server = honest();
    let bench = Bench {
        mirrors: vec![server.url()],
        ..bench
    };
    bench.fetch().unwrap();
    bench.assert_committed();
    assert_eq!(bench.received() - cut, SIZE - 3 * CHUNK);
    assert_eq!(server.served()[0].ask.range(), from(3));
}

#[test]
fn row_06_a_server_that_ignores_range_is_read_from_the_start_and_nothing_is_appended() {
    let files = files(&World::new(2));
    let bench = Bench::with(vec![Server::new(move |ask| Reply::new(200, &files[&ask.path]))]).begun(&[0, 1, 2]);
    bench.fetch().unwrap();
    bench.assert_committed();
    assert_eq!((bench.ranges(), bench.received()), (vec![from(3)], SIZE));
}

#[test]
fn row_06_a_server_that_ignores_range_sends_the_whole_once_however_many_holes_there_are() {
    let files = files(&World::new(2));
    let bench = Bench::with(vec![Server::new(move |ask| Reply::new(200, &files[&ask.path]))]).begun(&[0, 2, 4, 6, 8]);
    bench.fetch().unwrap();
    bench.assert_committed();
    assert_eq!(
        (bench.servers[0].requests(), bench.received()),
        (1, 8 * CHUNK),
        "up to the last hole"
    );
}

#[test]
fn row_06_of_a_server_with_ranges_only_the_holes_are_asked_for() {
    let bench = Bench::new(|_, reply| reply).begun(&[0, 2, 3, 8]);
    bench.fetch().unwrap();
    bench.assert_committed();
    assert_eq!(bench.ranges(), [Some((CHUNK, 2 * CHUNK - 1)), Some((4 * CHUNK, 8 * CHUNK - 1))]);
    assert_eq!(bench.received(), 5 * CHUNK);
}

#[test]
fn row_07_a_partial_answer_that_is_not_the_part_asked_for_is_refused_and_the_whole_is_asked_for() {
    let (first, last) = from(3).unwrap();
    let right = format!("bytes {first}-{last}/{SIZE}");
    let cases: Vec<(&str, Vec<String>)> = vec![
        ("no header", vec![]),
        ("two headers", vec![right.clone(), right.clone()]),
        ("start", vec![format!("bytes {}-{last}/{SIZE}", first - CHUNK)]),
        ("end", vec![format!("bytes {first}-{}/{SIZE}", last - 1)]),
        ("total", vec![format!("bytes {first}-{last}/{}", SIZE + 1)]),
        ("unknown total", vec![format!("bytes {first}-{last}/*")]),
        ("unsatisfied", vec![format!("bytes */{SIZE}")]),
        ("unit", vec![format!("lines {first}-{last}/{SIZE}")]),
        ("garbage", vec!["bytes, all of them".to_owned()]),
        ("end before start", vec![format!("bytes {last}-{first}/{SIZE}")]),
        ("huge", vec![format!("bytes {first}-99999999999999999999999/{SIZE}")]),
    ];
    each(cases, |why, headers| {
        let bench = Bench::new(move |ask, mut reply| {
            if ask.range().is_some() {
                reply.headers = headers.iter().map(|value| ("Content-Range".to_owned(), value.clone())).collect();
            }
            reply
        })
        .begun(&[0, 1, 2]);
        bench.fetch().unwrap_or_else(|error| panic!("{why}: {error}"));
        bench.assert_committed();
        assert_eq!(bench.ranges(), [from(3), None], "{why}");
        assert_eq!(bench.received(), SIZE, "{why}: nothing of the refused body was read");
    });
}

#[test]
fn row_07_a_partial_answer_of_another_length_is_refused() {
    let bench = Bench::new(|ask, reply| match ask.range() {
        Some(_) => reply.framing(Framing::Claims(vec![(SIZE - 4 * CHUNK).to_string()])),
        None => reply,
    })
    .begun(&[0, 1, 2]);
    bench.fetch().unwrap();
    bench.assert_committed();
    assert_eq!(bench.ranges(), [from(3), None]);
}

#[test]
fn row_07_a_server_that_answers_with_a_part_nobody_asked_for_is_left() {
    let bench = Bench::new(|_, mut reply| {
        reply.status = 206;
        reply.headers = vec![("Content-Range".to_owned(), format!("bytes 0-{}/{SIZE}", SIZE - 1))];
        reply
    })
    .begun(&[4]);
    bench.assert_fails("though the whole was asked for", 1);
    assert_eq!(bench.ranges().len(), 2);
}

#[test]
fn row_07_a_body_that_does_not_keep_what_its_header_says_is_never_written() {
    let bench = Bench::new(|ask, mut reply| {
        if ask.range().is_some() {
            reply.body.rotate_left(CHUNK);
        }
        reply
    })
    .begun(&[0, 1, 2]);
    bench.assert_fails("not what the signed index says", 3);
    assert_eq!(bench.ranges(), [from(3), from(3)], "once may be an accident, twice is the server");
}

#[test]
fn row_08_an_image_that_changes_in_the_middle_of_a_download_is_never_mixed_in() {
    let other = World::new(3).bytes;
    let bench = Bench::new(move |ask, mut reply| {
        if ask.nth == 0 {
            return reply.cut(4 * CHUNK, Then::Close).header("ETag", "\"one\"");
        }
        if let Some((first, last)) = ask.range() {
            reply.body = other[first..=last].to_vec();
        }
        reply.header("ETag", "\"two\"")
    });
    bench.assert_fails("not what the signed index says", 4);
}

#[test]
fn row_09_a_length_that_is_not_the_images_is_refused_before_the_body() {
    let cases = [
        ("short", vec![(SIZE - 1).to_string()]),
        ("long", vec![(SIZE + 1).to_string()]),
        ("zero", vec!["0".to_owned()]),
        ("negative", vec!["-1".to_owned()]),
        ("huge", vec![u64::MAX.to_string()]),
        ("beyond 64 bits", vec!["99999999999999999999999".to_owned()]),
        ("garbage", vec!["many".to_owned()]),
        ("signed", vec![format!("+{SIZE}")]),
    ];
    each(cases, |why, lengths| {
        let bench = Bench::new(move |_, reply| reply.framing(Framing::Claims(lengths.clone())));
        let Err(FetchError::Network(what)) = bench.fetch() else {
            panic!("{why}: it is taken")
        };
        bench.assert_unchanged();
        assert_eq!(present(&bench.cache, &bench.new), 0, "{why}: {what}");
        assert!(bench.received() <= 64, "{why}: enough to tell a page from an image, no more");
    });
}

#[test]
fn row_09_a_length_that_is_missing_is_no_harm() {
    for framing in [Framing::Close, Framing::Chunked] {
        let bench = Bench::new(move |_, reply| reply.framing(framing.clone()));
        bench.fetch().unwrap();
        bench.assert_committed();
        assert_eq!((bench.ranges(), bench.received()), (vec![None], SIZE));
    }
}

#[test]
fn row_09_a_body_without_a_length_that_ends_early_is_not_taken_for_whole() {
    for framing in [Framing::Close, Framing::Chunked] {
        let bench = Bench::new(move |ask, mut reply| {
            if ask.nth == 0 {
                // Properly ended, for all that the client can see.
                reply.body.truncate(5 * CHUNK + 1);
                reply.send = reply.body.len();
            }
            reply.framing(framing.clone())
        });
        bench.fetch().unwrap();
        bench.assert_committed();
        assert_eq!(bench.ranges(), [None, from(5)]);
    }
}

#[test]
fn row_10_identity_is_asked_for_and_what_is_encoded_all_the_same_is_refused() {
    let bench = Bench::new(|_, reply| reply.header("Content-Encoding", "gzip"));
    bench.assert_fails("encoded (gzip)", 0);
    assert!(bench.ask().unwrap_err().contains("encoded (gzip)"));
    let error = bench.fetch_index().unwrap_err();
    assert!(error.to_string().contains("encoded (gzip)"), "{error}");
    assert_eq!((bench.servers[0].requests(), bench.received()), (3, 0));
    for served in bench.servers[0].served() {
        assert_eq!(served.ask.headers["accept-encoding"], "identity");
    }
}

type Fault = fn(Reply) -> Reply;

/// Servers that hold a client up: with nothing, with a head, in the middle of the body, one byte at a time.
fn slow() -> Vec<(&'static str, Fault)> {
    vec![
        ("no head", |_| Reply::none(Then::Stall)),
        ("half a head", |reply| Reply {
            head: Some(b"HTTP/1.1 200 OK\r\nContent-Len".to_vec()),
            ..reply.cut(0, Then::Stall)
        }),
        ("a head byte by byte", |reply| Reply {
            pace: Some(Duration::from_millis(20)),
            slow_head: true,
            ..reply
        }),
        ("no body", |reply| reply.cut(0, Then::Stall)),
        ("half a body", |reply| {
            let half = reply.body.len() / 2;
            reply.cut(half, Then::Stall)
        }),
        ("one byte now and then", |mut reply| {
            reply.pace = Some(Duration::from_millis(20));
            reply
        }),
    ]
}

#[test]
fn row_11_a_server_that_holds_the_client_up_is_left_within_the_limit() {
    each(slow(), |why, fault| {
        let bench = Bench::new(move |_, reply| fault(reply));
        let started = Instant::now();
        assert!(matches!(bench.fetch(), Err(FetchError::Network(_))), "{why}");
        // Each half of what is left counts as progress: the clock begins again after it.
        assert!(started.elapsed() < 4 * PATIENT, "{why}: {:?}", started.elapsed());
        bench.assert_unchanged();
        let started = Instant::now();
        bench.ask().unwrap_err();
        assert!(started.elapsed() < 2 * PATIENT, "{why}: {:?}", started.elapsed());
        assert!(bench.fetch_index().is_err(), "{why}");
        bench.assert_unchanged();
    });
}

#[test]
fn row_11_the_next_mirror_is_asked_when_one_holds_the_client_up() {
    each(slow(), |why, fault| {
        let bench = Bench::with(vec![Server::new(honestly(move |_, reply| fault(reply))), honest()]);
        bench.ask().unwrap_or_else(|error| panic!("{why}: {error}"));
        bench.fetch_index().unwrap_or_else(|error| panic!("{why}: {error}"));
        bench.fetch().unwrap_or_else(|error| panic!("{why}: {error}"));
        bench.assert_committed();
        assert!(
            bench.received() <= SIZE + SIZE / 4,
            "{why}: what came from the first mirror is not fetched again"
        );
    });
}

#[test]
fn row_11_a_deadline_ends_a_transfer_that_stalls_and_keeps_what_came() {
    let bench = Bench::new(|_, reply| reply.cut(2 * CHUNK, Then::Stall));
    let client = Client::new(Options::new(Limits {
        connect: Duration::from_secs(1),
        stall: Duration::from_secs(8),
    }));
    let bench = Bench {
        client: Arc::new(client),
        patience: Patience {
            deadline: Some(Instant::now() + Duration::from_millis(500)),
            hurry: None,
            without_progress: Duration::from_secs(8),
            slowest: SLOWEST,
            parallel: 1,
        },
        ..bench
    };
    let started = Instant::now();
    bench.assert_fails("", 2);
    assert!(
        started.elapsed() < Duration::from_secs(4),
        "the deadline is over: {:?}",
        started.elapsed()
    );
}

#[test]
fn row_13_a_body_without_an_end_is_read_up_to_the_signed_size() {
    for framing in [Framing::Close, Framing::Chunked] {
        let script = framing.clone();
        let bench = Bench::new(move |_, reply| reply.cut(SIZE, Then::Endless).framing(script.clone()));
        bench.fetch().unwrap();
        bench.assert_committed();
        assert_eq!(bench.received(), SIZE);
        let bench = Bench::new(move |ask, reply| match ask.path.ends_with(".chunks") {
            true => Reply::new(200, b"0123456789abcdef").framing(framing.clone()).cut(16, Then::Endless),
            false => Reply::new(200, &[b' '; 4096])
                .framing(framing.clone())
                .cut(4096, Then::Endless)
                .header("X", &reply.status.to_string()),
        });
        assert!(bench.ask().unwrap_err().contains("longer than"));
        let answer = bench.received();
        assert!(answer <= (1 << 20) + 1, "{answer}");
        let error = bench.fetch_index().unwrap_err();
        assert!(error.to_string().contains("longer than"), "{error}");
        assert!(bench.received() - answer <= bench.new.image.chunk_index.size as usize + 1);
        bench.assert_unchanged();
    }
}

#[test]
fn row_13_endless_headers_are_refused() {
    let bench = Bench::new(|_, mut reply| {
        reply.headers = (0..4000).map(|number| (format!("X-{number}"), "y".repeat(100))).collect();
        reply
    });
    let started = Instant::now();
    assert!(bench.fetch().is_err());
    assert!(started.elapsed() < 2 * PATIENT);
    assert_eq!(bench.received(), 0);
    bench.assert_unchanged();
}

#[test]
fn row_14_a_captive_portal_is_named_as_such_with_any_framing_and_by_way_of_a_redirect() {
    let cases: Vec<(&str, Framing, bool)> = vec![
        ("with a length", Framing::Length, false),
        ("chunked", Framing::Chunked, false),
        ("until it closes", Framing::Close, false),
        ("behind a redirect", Framing::Length, true),
    ];
    each(cases.into_iter().map(|(why, a, b)| (why, (a, b))), |why, (framing, redirect)| {
        let bench = Bench::new(move |ask, _| {
            if redirect && ask.path != "/login" {
                return Reply::new(302, b"").header("Location", "/login");
            }
            Reply::new(200, PORTAL).header("Content-Type", "text/html").framing(framing.clone())
        });
        for begun in [false, true] {
            if begun {
                bench.new.begin(&bench.cache, &[0, 1]);
            }
            match bench.fetch() {
                Err(FetchError::Network(what)) => assert!(what.contains("captive portal"), "{why}, {begun}: {what}"),
                other => panic!("{why}: {other:?}"),
            }
            bench.assert_unchanged();
        }
        let images = if redirect { 4 } else { 2 };
        assert_eq!(bench.servers[0].requests(), images, "{why}: it is not asked again");
        assert_eq!(present(&bench.cache, &bench.new), 2, "{why}");
        let what = bench.ask().unwrap_err();
        assert!(what.contains("captive portal"), "{why}: {what}");
        let what = bench.fetch_index().unwrap_err().to_string();
        assert!(what.contains("captive portal"), "{why}: {what}");
    });
}

#[test]
fn row_14_a_page_as_long_as_a_chunk_is_named_on_the_first_chunk() {
    let bench = Bench::new(|_, mut reply| {
        reply.body = PORTAL.iter().copied().cycle().take(SIZE).collect();
        reply
    });
    bench.assert_fails("captive portal", 0);
    assert!(bench.received() <= 4 * CHUNK, "{}", bench.received());
}

#[test]
fn row_15_a_redirect_is_followed_and_keeps_the_range() {
    let bench = Bench::new(|ask, reply| {
        if ask.path.starts_with("/moved") {
            return Reply::honest(
                &files(&World::new(2)),
                &Ask {
                    path: ask.path["/moved".len()..].to_owned(),
                    ..ask.clone()
                },
            );
        }
        let place = format!("/moved{}", ask.path);
        drop(reply);
        Reply::new(307, b"").header("Location", &place)
    })
    .begun(&[0, 1, 2]);
    bench.fetch().unwrap();
    bench.assert_committed();
    assert_eq!(bench.ranges(), [from(3), from(3)]);
}

#[test]
fn row_15_redirects_without_an_end_and_to_other_schemes_are_refused_at_once() {
    for (why, place, requests) in [
        ("to itself", None, 9..=9),
        ("file", Some("file:///etc/passwd"), 1..=9),
        ("ftp", Some("ftp://127.0.0.1/x"), 1..=1),
        ("nowhere", Some(""), 1..=9),
        ("garbage", Some("http://[::"), 1..=9),
    ] {
        let bench = Bench::new(move |ask, _| Reply::new(302, b"").header("Location", place.unwrap_or(&ask.path)));
        let started = Instant::now();
        assert!(matches!(bench.fetch(), Err(FetchError::Network(_))), "{why}");
        assert!(started.elapsed() < STALL, "{why}: it is not tried again");
        assert!(
            requests.contains(&bench.servers[0].requests()),
            "{why}: {}",
            bench.servers[0].requests()
        );
        bench.assert_unchanged();
    }
}

/// Trusts the authority of the tests, whatever this machine trusts.
fn trusting() -> Options {
    Options {
        tls: TlsOptions {
            ca_file: Some(tls_file("authority.pem")),
            ..TlsOptions::default()
        },
        ..Options::new(LIMITS)
    }
}

#[test]
fn row_15_a_redirect_from_https_to_plain_http_is_refused_by_name() {
    let plain = honest();
    let place = format!("{}/channels/stable.json", plain.url());
    let secure = Secure::new(None, move |_| Reply::new(302, b"").header("Location", &place));
    let bench = Bench {
        mirrors: vec![secure.url()],
        ..Bench::by(vec![], trusting())
    };
    bench.assert_fails("from https to plain http", 0);
    assert!(bench.ask().unwrap_err().contains("from https to plain http"));
    assert_eq!((secure.asked().len(), plain.requests()), (2, 0), "nothing is said in plain text");
}

#[test]
fn row_15_a_plain_server_that_redirects_to_https_is_an_error_and_no_panic() {
    // It takes connections and says nothing: what matters is what the client does before the handshake.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let place = format!("https://{}/", silent.local_addr().unwrap());
    let server = Server::new(move |_| Reply::new(302, b"").header("Location", &place));
    let bench = Bench::by(vec![server], trusting());
    let url = format!("{}/x", bench.mirrors[0]);
    let request = Request {
        url: &url,
        total: Some(STALL),
        ..Request::default()
    };
    let refused = bench.client.get_bytes(&request, 100).unwrap_err();
    bench.witness.saw("", Err(&refused));
    assert!(matches!(refused, HttpError::Retryable(..)));
}

#[test]
fn row_16_each_status_has_its_class_and_its_words() {
    for (status, again) in [
        (400, false),
        (401, false),
        (403, false),
        (404, false),
        (407, false),
        (410, false),
        (416, false),
        (204, false),
        (408, true),
        (429, true),
        (500, true),
        (502, true),
        (503, true),
    ] {
        let bench = Bench::new(move |_, _| Reply::new(status, b""));
        let url = bench.mirrors[0].clone();
        let error = bench
            .client
            .get(&Request {
                url: &url,
                ..Request::default()
            })
            .err()
            .unwrap();
        assert_eq!(matches!(error, HttpError::Retryable(..)), again, "{status}");
        assert_eq!(matches!(error, HttpError::NotFound(_)), matches!(status, 404 | 410), "{status}");
        assert!(error.to_string().contains(&format!("answers {status}")), "{error}");
        if !again {
            bench.assert_fails(&format!("answers {status}"), 0);
            assert_eq!(bench.servers[0].requests(), 2, "{status}: it is not asked again");
        }
    }
}

#[test]
fn row_16_a_busy_server_is_asked_again_when_it_said_and_not_before() {
    let bench = Bench::new(|ask, reply| match ask.nth {
        0 => Reply::new(503, b"").header("Retry-After", "2"),
        _ => reply,
    });
    let started = Instant::now();
    bench.fetch().unwrap();
    bench.assert_committed();
    assert!(started.elapsed() >= Duration::from_secs(2), "{:?}", started.elapsed());
    assert_eq!(bench.ranges(), [None, None]);
}

#[test]
fn row_16_a_server_that_wants_to_be_left_alone_for_ever_holds_nobody_up() {
    for after in [u64::MAX.to_string(), "4000000000".to_owned(), "3600".to_owned()] {
        let bench = Bench::new(move |_, _| Reply::new(503, b"").header("Retry-After", &after));
        let started = Instant::now();
        bench.assert_fails("answers 503", 0);
        bench.ask().unwrap_err();
        assert!(started.elapsed() < PATIENT);
    }
}

#[test]
fn row_16_that_one_mirror_wants_to_be_left_alone_does_not_keep_another_waiting() {
    // The second is not ready at once, so that the first is tried before it is asked again.
    let busy = Server::new(|_| Reply::new(503, b"").header("Retry-After", "3600"));
    let hesitant = Server::new(honestly(|ask, reply| if ask.nth == 0 { Reply::new(500, b"") } else { reply }));
    let bench = Bench::with(vec![hesitant, busy]);
    bench.fetch().unwrap();
    bench.assert_committed();
}

#[test]
fn row_16_the_next_mirror_is_asked_at_once() {
    for status in [403, 404, 410, 500, 503] {
        let bench = Bench::with(vec![
            Server::new(move |_| Reply::new(status, b"").header("Retry-After", "60")),
            honest(),
        ]);
        let started = Instant::now();
        bench.ask().unwrap();
        bench.fetch().unwrap();
        bench.assert_committed();
        assert!(started.elapsed() < Duration::from_secs(2), "{status}");
        // That one file is not there says nothing about the next; a server that is in trouble is asked last from then on.
        let first = if status < 500 { 2 } else { 1 };
        assert_eq!((bench.servers[0].requests(), bench.servers[1].requests()), (first, 2), "{status}");
        assert_eq!(bench.servers[1].sent(), SIZE + bench.servers[1].served()[0].sent);
    }
}

#[test]
fn not_modified_is_no_answer_to_who_did_not_ask_for_it() {
    let bench = Bench::new(|_, _| Reply::new(304, b"").framing(Framing::Close));
    let what = bench.ask().unwrap_err();
    assert!(what.contains("304"), "{what}");
    bench.assert_fails("304", 0);
}

#[test]
fn not_modified_is_an_answer_to_who_asks_with_a_tag() {
    let bench = Bench::new(|ask, reply| match ask.headers.get("if-none-match").map(String::as_str) {
        Some("\"one\"") => Reply::new(304, b"").framing(Framing::Close),
        _ => reply,
    });
    let question = Question::Channel("stable".parse().unwrap());
    let earlier = Earlier {
        source: format!("{}/channels/stable.json", bench.mirrors[0]),
        etag: "\"one\"".to_owned(),
    };
    let asked = ask(
        &bench.source(),
        &question,
        &trust(),
        Some(&earlier),
        &|_| Ok(()),
        Instant::now() + PATIENT,
    );
    assert!(matches!(asked, Ok(Asked::NotModified)), "{asked:?}");
    assert_eq!(bench.received(), 0);
    // A cache on the way is not to answer for the server; one that keeps images may.
    bench.fetch().unwrap();
    let served = bench.servers[0].served();
    let said: Vec<_> = served
        .iter()
        .map(|served| served.ask.headers.get("cache-control").map(String::as_str))
        .collect();
    assert_eq!(said, [Some("max-age=0"), None]);
}

/// A server of one answer.
fn answering(release: &Envelope, manifest: &str) -> Server {
    let answer = serde_json::to_vec(&Answer::new(release.clone(), manifest.to_owned())).unwrap();
    Server::new(move |_| Reply::new(200, &answer))
}

#[test]
fn row_20_what_is_not_authorised_is_refused_by_name_and_the_next_mirror_is_asked() {
    let (new, other) = (World::new(2), World::new(3));
    let foreign = SecretKey::from_seed("foreign-1", &[7; 32]).unwrap();
    let impostor = SecretKey::from_seed("test-1", &[7; 32]).unwrap();
    let changed = new.manifest.replace("-linux-6.6", "-linux-6.7");
    for (why, release, manifest, words) in [
        (
            "bad signature",
            release(&new.manifest, 2, &impostor),
            &new.manifest,
            "does not fit the release",
        ),
        (
            "unknown key",
            release(&new.manifest, 2, &foreign),
            &new.manifest,
            "signed by foreign-1",
        ),
        ("changed manifest", new.release.clone(), &changed, "not the one that was signed"),
        ("fields of two", other.release.clone(), &new.manifest, "not the one that was signed"),
        ("no signature", Envelope::unsigned(b"{}"), &new.manifest, "not signed"),
    ] {
        let bench = Bench::with(vec![answering(&release, manifest)]);
        let what = bench.ask().unwrap_err();
        assert!(what.contains(words), "{why}: {what}");
        assert_eq!(bench.servers[0].requests(), 1, "{why}: it is not asked again");
        bench.assert_unchanged();
        let bench = Bench::with(vec![answering(&release, manifest), honest()]);
        let valid = bench.ask().unwrap();
        assert_eq!(valid.authorised.digest(), Digest::of(new.manifest.as_bytes()), "{why}");
        assert!(valid.source.starts_with(&bench.mirrors[1]), "{why}");
        bench.assert_unchanged();
    }
}

#[test]
fn row_20_during_a_rotation_either_key_authorises() {
    let (new, next) = (World::new(2), SecretKey::from_seed("test-2", &[2; 32]).unwrap());
    let bench = Bench::with(vec![answering(&release(&new.manifest, 2, &next), &new.manifest)]);
    assert!(bench.ask().unwrap_err().contains("signed by test-2"));
    let both = Trust {
        keys: vec![support::world::key().public(), next.public()],
        ..Trust::default()
    };
    bench.ask_if(&|_| Ok(()), &both).unwrap();
    // What was accepted under the old key is not authorised under the new one alone, and stays where it is.
    let only_new = Trust {
        keys: vec![next.public()],
        ..Trust::default()
    };
    let (known, left_out) = bench.cache.generations(&only_new).unwrap();
    assert_eq!((known.len(), left_out.len()), (0, 1));
    bench.assert_unchanged();
}

#[test]
fn row_20_an_older_serial_and_an_expired_release_are_refused_with_the_reason_and_the_next_mirror_is_asked() {
    let old = World::new(1);
    let floor = |authorised: &Authorised| match authorised.release() {
        Some(release) if release.serial >= 2 => Ok(()),
        _ => Err("its serial is below the floor".to_owned()),
    };
    let expired = |authorised: &Authorised| match authorised.release().and_then(|release| release.not_after) {
        Some(not_after) if not_after < 5_000_000_000 => Err("it expired".to_owned()),
        _ => Ok(()),
    };
    let bench = Bench::with(vec![answering(&old.release, &old.manifest), honest()]);
    let valid = bench.ask_if(&floor, &trust()).unwrap();
    assert!(valid.source.starts_with(&bench.mirrors[1]));
    assert_eq!(bench.servers[0].requests(), 1);
    let what = bench.ask_if(&expired, &trust()).unwrap_err();
    assert_eq!(what.matches("it expired").count(), 2, "{what}");
    bench.assert_unchanged();
}

#[test]
fn row_20_an_index_that_the_manifest_does_not_name_is_refused_and_the_next_mirror_is_asked() {
    let other = World::new(3).index.to_bytes();
    let bench = Bench::with(vec![Server::new(move |_| Reply::new(200, &other)), honest()]);
    let (index, bytes) = bench.fetch_index().unwrap();
    assert_eq!((index == bench.new.index, bytes == bench.new.index.to_bytes()), (true, true));
    assert_eq!((bench.servers[0].requests(), bench.servers[1].requests()), (1, 1));
}

#[test]
fn row_20_a_whole_that_its_chunks_contradict_is_never_handed_out() {
    let mut bench = Bench::new(|_, reply| reply);
    let liar = Digest::of(b"another image");
    let index = index_path(&bench.new);
    let path = image_path(&bench.new);
    let files = files(&bench.new);
    bench.servers[0] = Server::new(move |ask| {
        assert_ne!(ask.path, index);
        Reply::new(200, &files[&path])
    });
    bench.mirrors = vec![bench.servers[0].url()];
    bench.new.image.sha256 = liar;
    let part = Part::open(&bench.cache, &bench.new.image, &bench.new.index, &|_| {}).unwrap();
    let fetched = fetch_image(
        &bench.source(),
        &bench.new.image,
        &bench.new.index,
        &part,
        bench.patience,
        &Progress::new(SIZE as u64),
    );
    bench.witness.watch(&bench.client);
    bench.witness.saw("", Err(fetched.as_ref().unwrap_err()));
    assert!(matches!(fetched, Err(FetchError::Contradiction(_))), "{fetched:?}");
    part.discard().unwrap();
    bench.assert_unchanged();
}

#[test]
fn row_21_a_corrupt_image_costs_its_bad_chunks_and_no_more() {
    let mut bench = Bench::new(|_, reply| reply);
    let mut bytes = bench.new.bytes.clone();
    for at in [0, 4 * CHUNK + 5, SIZE - 1] {
        bytes[at] ^= 1;
    }
    fs::write(bench.cache.image_path(bench.new.image.sha256), &bytes).unwrap();
    let file = bench.cache.open_image(bench.new.image.sha256).unwrap();
    let damage = verify_image(file, &bench.new.index, &|_| {}).unwrap_err();
    assert_eq!(damage.chunks, [0, 4, 8]);
    Part::from_corrupt(&bench.cache, &bench.new.image, &bench.new.index, &damage.chunks).unwrap();
    bench.assert_unchanged();
    bench.witness.begin();
    bench.fetch().unwrap();
    bench.assert_committed();
    assert_eq!(bench.received(), 2 * CHUNK + 1234);
}

#[test]
fn row_22_what_is_corrupt_foreign_or_newer_in_the_cache_counts_as_absent_and_is_fetched() {
    let digest = Digest::of(b"newer");
    let foreign: [(&str, String, Vec<u8>); 4] = [
        (
            "newer generation",
            format!("generations/{digest}.json"),
            br#"{"version":2,"colour":"blue"}"#.to_vec(),
        ),
        ("foreign file", "generations/notes".to_owned(), b"mine".to_vec()),
        ("not UTF-8", format!("generations/{}.json", Digest::of(b"bytes")), vec![0xff; 100]),
        ("too long", format!("generations/{}.json", Digest::of(b"long")), vec![b' '; 3 << 20]),
    ];
    let mut bench = Bench::new(|_, reply| reply);
    for (_, name, bytes) in &foreign {
        fs::write(bench.cache.folder().join(name), bytes).unwrap();
    }
    // A generation of another one's name.
    let text = serde_json::to_vec(&bench.new.generation(9)).unwrap();
    fs::write(bench.cache.folder().join(format!("generations/{}.json", Digest::of(b"name"))), text).unwrap();
    bench.witness.begin();
    let (known, left_out) = bench.cache.generations(&trust()).unwrap();
    assert_eq!((known.len(), left_out.len()), (1, 4), "{left_out:?}");
    bench.assert_unchanged();
    // A corrupt index is not used; the part's map of a newer version is thrown away with the part.
    let index = bench.cache.folder().join(format!("partial/{}.chunks", bench.new.image.sha256));
    let good = fs::read(&index).unwrap();
    fs::write(&index, b"FRCHUNKS").unwrap();
    assert!(bench.cache.chunk_index(&bench.new.image).is_none());
    fs::write(&index, good).unwrap();
    bench.new.begin(&bench.cache, &[0, 1, 2]);
    let map = bench.cache.folder().join(format!("partial/{}.map", bench.new.image.sha256));
    let mut newer = fs::read(&map).unwrap();
    newer[8] = 2;
    fs::write(&map, newer).unwrap();
    bench.witness.begin();
    bench.fetch().unwrap();
    bench.assert_committed();
    assert_eq!(bench.received(), SIZE);
}

#[test]
fn row_29_a_proxy_of_the_environment_is_not_used() {
    const CHILD: &str = "FRESHROOT_TEST_PROXY_CHILD";
    if std::env::var_os(CHILD).is_some() {
        let bench = Bench::new(|_, reply| reply);
        bench.fetch().unwrap();
        bench.assert_committed();
        return;
    }
    let name = "row_29_a_proxy_of_the_environment_is_not_used";
    let mut child = std::process::Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", name, "--nocapture"]).env(CHILD, "1");
    for variable in ["http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"] {
        child.env(variable, "http://127.0.0.1:9");
    }
    let output = child.env_remove("no_proxy").env_remove("NO_PROXY").output().unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && told.contains("1 passed"), "{told}");
}

#[test]
fn row_23_a_disk_that_makes_nothing_last_ends_the_fetch_before_it_has_cost_the_whole() {
    let name = "row_23_a_disk_that_makes_nothing_last_ends_the_fetch_before_it_has_cost_the_whole";
    if std::env::var_os(FOLDER).is_none() {
        let folder = tempfile::tempdir().unwrap();
        // Only the thread that records chunks calls fdatasync.
        let options = ["-o/dev/null", "-etrace=fdatasync", "-einject=fdatasync:error=EIO:when=1+"].map(str::to_owned);
        let (ended, told) = run(name, folder.path(), &options);
        assert_eq!(ended, Ended::Passed, "{told}");
        return;
    }
    // A chunk for each request: the disk's refusal is known long before the second one.
    let bench = Bench::new(|_, reply| reply.cut(CHUNK, Then::Close));
    match bench.fetch() {
        Err(FetchError::Disk(error)) => assert!(format!("{error:#}").contains("synchronising"), "{error:#}"),
        other => panic!("{other:?}"),
    }
    bench.assert_unchanged();
    assert_eq!(bench.servers[0].requests(), 2);
}

#[test]
fn two_mirrors_share_one_download_and_fetch_nothing_twice() {
    let first = Server::new(honestly(|_, reply| reply.cut(SIZE / 2, Then::Close)));
    let bench = Bench::with(vec![first, honest()]);
    bench.fetch().unwrap();
    bench.assert_committed();
    let second = bench.servers[1].served();
    assert_eq!(second.len(), 1);
    assert_eq!(second[0].ask.range(), from(SIZE / 2 / CHUNK));
    assert!(bench.received() <= SIZE + CHUNK);
}

#[test]
fn two_mirrors_of_which_the_first_sends_damaged_chunks_give_the_right_image() {
    let first = Server::new(honestly(|_, mut reply| {
        for chunk in reply.body.chunks_mut(CHUNK).skip(2) {
            chunk[0] ^= 1;
        }
        reply
    }));
    let bench = Bench::with(vec![first, honest()]);
    bench.fetch().unwrap();
    bench.assert_committed();
    assert_eq!(bench.servers[1].served()[0].ask.range(), from(2));
    assert_eq!(bench.servers[0].requests(), 1);
}

#[test]
fn all_mirrors_are_named_when_none_helps() {
    let bench = Bench::with(vec![
        Server::new(|_| Reply::new(403, b"")),
        Server::new(|_| Reply::new(200, PORTAL)),
        Server::new(|_| Reply::new(404, b"")),
    ]);
    let Err(FetchError::Network(what)) = bench.fetch() else {
        panic!("it is fetched")
    };
    for (mirror, words) in bench.mirrors.iter().zip(["answers 403", "captive portal", "answers 404"]) {
        assert!(what.contains(mirror) && what.contains(words), "{what}");
    }
    assert_eq!(bench.servers.iter().map(Server::requests).collect::<Vec<_>>(), [1, 1, 1]);
    bench.assert_unchanged();
}
