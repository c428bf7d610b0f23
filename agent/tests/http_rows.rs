//! Rows of the fault matrix that need more than a script of one answer: what servers, proxies, clocks and command lines do besides.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support {
    pub mod bench;
    pub mod proxy;
    pub mod record;
    pub mod secure;
    pub mod server;
    #[allow(dead_code, reason = "shared with other tests")]
    pub mod world;
}

use std::net::{Ipv6Addr, TcpListener};
use std::time::{Duration, Instant};

use freshroot::boot::ram::RamStore;
use freshroot::cache::room::make_room;
use freshroot::clock::Clock;
use freshroot::fetch::image::FetchError;
use freshroot::floors::Floors;
use freshroot::formats::authorised::Authorised;
use freshroot::formats::manifest::Image;
use freshroot::http::proxy::{Proxy as Route, Routes};
use freshroot::http::{Options, TlsOptions};
use freshroot::settings::Settings;
use support::bench::{Bench, LIMITS, PATIENT, STALL, files, from, honest, honestly, image_path};
use support::proxy::{Manner, Proxy};
use support::record::each;
use support::secure::{Secure, tls_file};
use support::server::{Ask, Framing, Reply, Server, Then};
use support::world::{CHUNK, SIZE, World, present, trust};

/// What a server says that does not know ranges.
fn whole(ask: &Ask) -> Reply {
    Reply::new(200, &files(&World::new(2))[&ask.path])
}

#[test]
fn row_06_a_server_without_ranges_that_breaks_off_is_read_from_the_start_again() {
    let bench = Bench::with(vec![Server::new(|ask| match ask.nth {
        0 => whole(ask).cut(SIZE / 2, Then::Close),
        _ => whole(ask),
    })]);
    bench.fetch().unwrap();
    bench.assert_committed();
    assert_eq!((bench.ranges(), bench.received()), (vec![None, from(4)], SIZE / 2 + SIZE));
}

#[test]
fn row_07_of_several_parts_none_is_taken() {
    let (first, last) = from(3).unwrap();
    let right = format!("bytes {first}-{last}/{SIZE}");
    each(
        [
            ("two that differ", vec![format!("bytes 0-{last}/{SIZE}"), right.clone()]),
            ("a list", vec![format!("{right}, bytes 0-1/{SIZE}")]),
            ("a list of parts", vec![format!("bytes {first}-{last}, 0-1/{SIZE}")]),
            ("an empty one", vec![String::new()]),
            ("an empty one beside it", vec![right.clone(), String::new()]),
            ("a body of several parts", vec![]),
        ],
        |why, headers| {
            let bench = Bench::new(move |ask, mut reply| {
                if ask.range().is_some() {
                    reply.headers = headers.iter().map(|value| ("Content-Range".to_owned(), value.clone())).collect();
                    return reply.header("Content-Type", "multipart/byteranges; boundary=b");
                }
                reply
            })
            .begun(&[0, 1, 2]);
            bench.fetch().unwrap_or_else(|error| panic!("{why}: {error}"));
            bench.assert_committed();
            assert_eq!((bench.ranges(), bench.received()), (vec![from(3), None], SIZE), "{why}");
        },
    );
}

#[test]
fn row_08_a_file_whose_size_changes_is_left_and_what_was_verified_goes_on_elsewhere() {
    each([("grown", SIZE + 1), ("cut to a part", 6 * CHUNK), ("emptied", 0)], |why, size| {
        let bench = Bench::new(move |ask, reply| {
            if ask.nth == 0 {
                return reply.cut(4 * CHUNK, Then::Close);
            }
            // From now on another file is there.
            let other = vec![7; size];
            match ask.range() {
                Some((first, _)) if first >= size => Reply::new(416, b"").header("Content-Range", &format!("bytes */{size}")),
                Some((first, last)) => {
                    let last = last.min(size - 1);
                    let range = format!("bytes {first}-{last}/{size}");
                    Reply::new(206, &other[first..=last]).header("Content-Range", &range)
                }
                None => Reply::new(200, &other),
            }
        })
        .patient();
        bench.assert_fails(&format!("its length is {size} bytes"), 4);
        assert_eq!(bench.ranges(), [None, from(4), None], "{why}");
        let other = honest();
        let bench = Bench {
            mirrors: vec![other.url()],
            ..bench
        };
        bench.fetch().unwrap();
        bench.assert_committed();
        assert!(bench.received() <= SIZE + 64, "{why}: {}", bench.received());
    });
}

#[test]
fn row_09_a_length_that_is_not_that_of_an_answer_or_an_index_is_refused() {
    type Lengths = fn(usize) -> Vec<String>;
    let cases: [(&str, Lengths); 7] = [
        ("short", |length| vec![(length - 1).to_string()]),
        ("long", |length| vec![(length + 1).to_string()]),
        ("zero", |_| vec!["0".to_owned()]),
        ("negative", |_| vec!["-1".to_owned()]),
        ("beyond 64 bits", |_| vec!["99999999999999999999999".to_owned()]),
        ("garbage", |_| vec!["many".to_owned()]),
        ("two that differ", |length| vec![length.to_string(), "3".to_owned()]),
    ];
    each(cases, |why, lengths| {
        let bench = Bench::new(move |_, reply| {
            let lengths = lengths(reply.body.len());
            reply.framing(Framing::Claims(lengths))
        });
        assert!(bench.ask().is_err(), "{why}: the answer is taken");
        assert!(bench.fetch_index().is_err(), "{why}: the index is taken");
        bench.assert_unchanged();
        assert!(bench.received() < 16 << 10, "{why}: {}", bench.received());
    });
}

#[test]
fn row_09_an_image_with_lengths_that_contradict_each_other_is_refused() {
    each(
        [
            ("two that differ", vec![SIZE.to_string(), (SIZE - 1).to_string()]),
            (
                "two that differ, the right one last",
                vec![(SIZE + 1).to_string(), SIZE.to_string()],
            ),
            ("a list", vec![format!("{SIZE}, {}", SIZE + 1)]),
        ],
        |why, lengths| {
            let bench = Bench::new(move |_, reply| reply.framing(Framing::Claims(lengths.clone())));
            assert!(matches!(bench.fetch(), Err(FetchError::Network(_))), "{why}: it is taken");
            bench.assert_unchanged();
            assert_eq!(present(&bench.cache, &bench.new), 0, "{why}");
        },
    );
}

#[test]
fn row_10_whatever_the_encoding_it_is_refused_in_a_resume_too() {
    each(
        ["gzip", "x-gzip", "br", "deflate", "zstd", "identity, gzip"].map(|encoding| (encoding, encoding)),
        |why, encoding| {
            let encoding = encoding.to_owned();
            let bench = Bench::new(move |_, reply| reply.header("Content-Encoding", &encoding)).begun(&[0, 1, 2]);
            bench.assert_fails("the answer is encoded", 3);
            assert_eq!((bench.ranges(), bench.received()), (vec![from(3)], 0), "{why}");
        },
    );
    let bench = Bench::new(|_, reply| reply.header("Content-Encoding", "identity"));
    bench.fetch().unwrap();
    bench.assert_committed();
}

#[test]
fn row_11_a_handshake_that_stalls_costs_the_time_of_a_connection_and_the_next_mirror_is_asked() {
    // It takes connections and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let bench = Bench::with(vec![honest()]);
    let mut mirrors = bench.mirrors.clone();
    mirrors.insert(0, format!("https://{}", silent.local_addr().unwrap()));
    let bench = Bench { mirrors, ..bench };
    let started = Instant::now();
    bench.ask().unwrap();
    bench.fetch().unwrap();
    bench.assert_committed();
    // Once: it is asked last from then on.
    assert!(started.elapsed() < LIMITS.connect + STALL, "{:?}", started.elapsed());
}

#[test]
fn row_13_what_has_no_end_before_the_body_ends_at_a_limit() {
    let endless = |head: &str, piece: &str| Reply {
        head: Some(head.as_bytes().to_vec()),
        framing: Framing::Close,
        ..Reply::new(0, piece.repeat(4096).as_bytes()).cut(4096 * piece.len(), Then::Endless)
    };
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    each(
        [
            ("one header", endless("HTTP/1.1 200 OK\r\nX: ", "y")),
            ("the status", endless("HTTP/1.1 ", "2")),
            ("hints", endless("", "HTTP/1.1 103 Early Hints\r\n\r\n")),
            ("the length of a piece", endless(chunked, "0")),
            ("what follows it", endless(&format!("{chunked}5;"), "x")),
            ("a redirect", endless("HTTP/1.1 302 Found\r\nLocation: /x\r\n\r\n", "x")),
            (
                "a redirect in pieces",
                endless(
                    "HTTP/1.1 302 Found\r\nLocation: /x\r\nTransfer-Encoding: chunked\r\n\r\n",
                    "1\r\nx\r\n",
                ),
            ),
            ("trailers", endless(&format!("{chunked}0\r\n"), "X: y\r\n")),
            ("a piece of 16 EiB", endless(&format!("{chunked}ffffffffffffffff\r\n"), "x")),
        ],
        |why, reply| {
            let bench = Bench::new(move |_, _| reply.clone());
            let started = Instant::now();
            let failed = bench.fetch();
            assert!(matches!(failed, Err(FetchError::Network(_))), "{why}: {failed:?}");
            assert!(bench.fetch_index().is_err() && bench.ask().is_err(), "{why}");
            assert!(started.elapsed() < 4 * PATIENT, "{why}: {:?}", started.elapsed());
            bench.assert_unchanged();
        },
    );
}

#[test]
fn row_15_eight_hops_are_followed_and_nine_are_not() {
    each([("8 hops", 8), ("9 hops", 9)], |why, hops| {
        let files = files(&World::new(2));
        let server = Server::new(
            move |ask| match ask.path.strip_prefix("/hop/").and_then(|rest| rest.split_once('/')) {
                Some(("1", rest)) => Reply::new(200, &files[&format!("/{rest}")]),
                Some((left, rest)) => {
                    let left = left.parse::<u32>().unwrap() - 1;
                    Reply::new(302, b"").header("Location", &format!("/hop/{left}/{rest}"))
                }
                None => Reply::new(302, b"").header("Location", &format!("/hop/{hops}{}", ask.path)),
            },
        );
        let bench = Bench::with(vec![server]);
        if hops == 8 {
            bench.fetch().unwrap();
            bench.assert_committed();
        } else {
            bench.assert_fails("redirect", 0);
        }
        assert_eq!(bench.servers[0].requests(), 9, "{why}");
    });
}

#[test]
fn row_15_a_redirect_to_another_server_is_followed() {
    let other = honest();
    let (place, path) = (other.url(), image_path(&World::new(2)));
    let bench = Bench::new(move |_, _| Reply::new(301, b"").header("Location", &format!("{place}{path}"))).begun(&[0]);
    bench.fetch().unwrap();
    bench.assert_committed();
    assert_eq!(other.served()[0].ask.range(), from(1));
}

#[test]
fn row_15_a_redirect_to_nowhere_is_refused_at_once() {
    each([300, 301, 302, 303, 305, 307, 308].map(|status| (status, status)), |why, status| {
        let bench = Bench::new(move |_, _| Reply::new(status, b""));
        bench.assert_fails("it redirects to nowhere", 0);
        assert_eq!(bench.servers[0].requests(), 1, "{why}: it is not asked again");
    });
}

#[test]
fn row_16_statuses_that_are_rare_have_a_class_too() {
    each(
        [203, 205, 226, 402, 406, 418, 421, 451].map(|status| (status, status)),
        |why, status| {
            let bench = Bench::new(move |_, _| Reply::new(status, b"").framing(Framing::Claims(vec!["0".to_owned()])));
            bench.assert_fails(&format!("answers {status}"), 0);
            assert_eq!(bench.servers[0].requests(), 1, "{why}: it is not asked again");
        },
    );
    each([425, 504, 507, 511].map(|status| (status, status)), |why, status| {
        let bench = Bench::new(move |ask, reply| if ask.nth == 0 { Reply::new(status, b"") } else { reply });
        bench.fetch().unwrap();
        bench.assert_committed();
        assert_eq!(bench.servers[0].requests(), 2, "{why}: it is asked again");
    });
}

#[test]
fn row_16_too_many_requests_are_slowed_down_as_the_server_says_and_the_rest_is_resumed() {
    let bench = Bench::new(|ask, reply| match ask.nth {
        0 => reply.cut(4 * CHUNK, Then::Close),
        1 => Reply::new(429, b"").header("Retry-After", "1"),
        _ => reply,
    })
    .patient();
    let started = Instant::now();
    bench.fetch().unwrap();
    bench.assert_committed();
    assert!(started.elapsed() >= Duration::from_secs(1), "{:?}", started.elapsed());
    assert_eq!((bench.ranges(), bench.received()), (vec![None, from(4), from(4)], SIZE));
}

/// 2000 and 2099.
const CLOCKS: [u64; 2] = [946_684_800, 4_070_908_800];
/// 2030, when the server's certificate is valid.
const VALID: u64 = 1_900_000_000;

/// A machine whose only server is spoken to by TLS, with this clock.
fn by_tls(server: &Secure, clock: Clock) -> Bench {
    let options = Options {
        tls: TlsOptions {
            ca_file: Some(tls_file("authority.pem")),
            clock,
            ..TlsOptions::default()
        },
        ..Options::new(LIMITS)
    };
    Bench {
        mirrors: vec![server.url()],
        ..Bench::by(vec![], options)
    }
}

#[test]
fn row_19_tls_takes_the_floor_of_what_was_signed_where_the_clock_is_behind() {
    let server = Secure::new(None, honestly(|_, reply| reply));
    let at = |machine: fn() -> u64, floor| Clock { floor, machine };
    each(
        [
            ("1970, floor 2030", (at(|| 0, VALID), None)),
            ("2000, floor 2030", (at(|| CLOCKS[0], VALID), None)),
            ("2099", (at(|| CLOCKS[1], 0), None)),
            ("1970, no floor", (at(|| 0, 0), Some("clock says 1970-01-01"))),
            ("2000, no floor", (at(|| CLOCKS[0], 0), Some("clock says 2000-01-01"))),
        ],
        |why, (clock, words)| {
            let bench = by_tls(&server, clock);
            match words {
                None => {
                    bench.ask().unwrap_or_else(|error| panic!("{why}: {error}"));
                    bench.fetch().unwrap_or_else(|error| panic!("{why}: {error}"));
                    bench.assert_committed();
                }
                Some(words) => {
                    let told = bench.ask().unwrap_err();
                    assert!(told.contains(words), "{why}: {told}");
                    bench.assert_fails(words, 0);
                }
            }
        },
    );
}

#[test]
fn row_19_a_signed_answer_is_taken_whatever_the_clock_says_unless_only_what_is_fresh_may_boot() {
    // The clock, whether the policy is require-fresh, whether the answer is taken, and whether the clock is named.
    for (now, strict, taken, named) in [
        (0, false, true, false),
        (CLOCKS[0], true, true, false),
        (VALID, true, true, false),
        (CLOCKS[1], false, true, true),
        (CLOCKS[1], true, false, true),
    ] {
        let bench = Bench::new(|_, reply| reply).case(&format!("{now} s since 1970, strict {strict}"));
        let floors = Floors::default().under(None, strict);
        let told = std::cell::RefCell::new(String::new());
        let accepted = |answer: &Authorised| {
            let sentence = floors.accept(answer, now)?;
            *told.borrow_mut() = sentence.unwrap_or_default();
            Ok(())
        };
        let told = match bench.ask_if(&accepted, &trust()) {
            Ok(_) => {
                assert!(taken, "{now}");
                told.take()
            }
            Err(refused) => {
                assert!(!taken, "{now}: {refused}");
                refused
            }
        };
        assert_eq!(told.contains("clock"), named, "{now}: {told}");
        bench.assert_unchanged();
    }
}

#[test]
fn row_26_an_image_that_memory_or_the_cache_has_no_room_for_is_refused_with_both_figures_before_a_request() {
    let bench = Bench::new(|_, reply| reply);
    let root = tempfile::tempdir().unwrap();
    std::fs::create_dir(root.path().join("proc")).unwrap();
    std::fs::write(
        root.path().join("proc/meminfo"),
        "MemTotal: 700000 kB\nMemAvailable:    600000 kB\n",
    )
    .unwrap();
    for (size, megabytes) in [(400 << 20, "423 MB"), (5 << 30, "5372 MB"), (u64::MAX, "18446744073709 MB")] {
        let image = Image {
            size,
            ..bench.new.image.clone()
        };
        let told = RamStore::make(root.path(), &root.path().join("ram"), &image)
            .unwrap_err()
            .to_string();
        bench.witness.saw("", Err(&told));
        assert!(told.contains(megabytes) && told.contains("614 MB are available"), "{told}");
    }
    assert!(!root.path().join("ram").exists());
    // More than any disk holds.
    let image = Image {
        size: 1 << 62,
        ..bench.new.image.clone()
    };
    let told = make_room(&bench.cache, &[], &image, &[], 1).unwrap_err().to_string();
    assert!(
        told.contains("4611686022 MB are needed") || told.contains("MB are needed"),
        "{told}"
    );
    bench.assert_unchanged();
    assert_eq!(bench.servers[0].requests(), 0);
}

/// A machine that reaches its server through this proxy, and knows it by a name that is the proxy's alone.
fn through(proxy: &Proxy, user: &str) -> Bench {
    let options = Options {
        routes: Routes {
            proxy: Some(Route::parse(&format!("http://{user}{}", proxy.address())).unwrap()),
            exceptions: Vec::new(),
        },
        ..Options::new(LIMITS)
    };
    let bench = Bench::by(vec![honest()], options);
    let mirrors = vec![bench.mirrors[0].replace("127.0.0.1", "images.test")];
    Bench { mirrors, ..bench }
}

#[test]
fn row_29_behind_a_proxy_that_strips_range_the_whole_comes_once_and_nothing_is_appended() {
    let proxy = Proxy::new(Manner::WithoutRanges);
    let bench = through(&proxy, "").begun(&[0, 1, 2]);
    bench.fetch().unwrap();
    bench.assert_committed();
    assert_eq!((proxy.asked().len(), bench.ranges(), bench.received()), (1, vec![None], SIZE));
    // One that does not: the rest comes.
    let proxy = Proxy::new(Manner::Open);
    let bench = through(&proxy, "").begun(&[0, 1, 2]);
    bench.fetch().unwrap();
    bench.assert_committed();
    assert_eq!((bench.ranges(), bench.received()), (vec![from(3)], SIZE - 3 * CHUNK));
}

#[test]
fn row_29_a_proxy_that_refuses_or_wants_credentials_is_named_and_what_is_cached_stays() {
    each(
        [
            ("refuses", (Manner::Refusing, "", "answers 403")),
            (
                "wants credentials",
                (Manner::Closed, "", "(a proxy wants other credentials: http.proxy)"),
            ),
            (
                "wants others",
                (Manner::Closed, "me:words@", "(a proxy wants other credentials: http.proxy)"),
            ),
        ],
        |_, (manner, user, words)| {
            let proxy = Proxy::new(manner);
            let bench = through(&proxy, user).begun(&[0, 1]);
            bench.assert_fails(words, 2);
            assert!(bench.ask().unwrap_err().contains(words));
            assert_eq!((bench.received(), bench.servers[0].requests()), (0, 0));
        },
    );
    let proxy = Proxy::new(Manner::Closed);
    let bench = through(&proxy, "me:word@");
    bench.ask().unwrap();
    bench.fetch().unwrap();
    bench.assert_committed();
}

/// What a machine with this command line believes its settings to be.
fn settings(line: &[u8]) -> Result<Settings, String> {
    let config = br#"{"version": 1, "channel": "stable"}"#;
    Settings::from_sources(Some(("config.json", config)), line).map_err(|error| error.to_string())
}

#[test]
fn row_31_urls_of_a_command_line_reach_the_server_as_they_were_written() {
    let path = "/a=b%20c/%7Bx%7D;v=1,2/~'()*!$&+@:";
    let served = move |prefix: &'static str| {
        let files = files(&World::new(2));
        move |ask: &Ask| match ask.path.strip_prefix(prefix) {
            Some(rest) => Reply::honest(
                &files,
                &Ask {
                    path: rest.to_owned(),
                    ..ask.clone()
                },
            ),
            None => Reply::new(404, ask.path.as_bytes()),
        }
    };
    let (v4, v6) = (Server::new(served(path)), Server::on(Ipv6Addr::LOCALHOST.into(), served(path)));
    for (case, line) in [
        ("with signs", format!("quiet freshroot.url={}{path} ro", v4.url())),
        ("quoted", format!("quiet \"freshroot.url={}{path}\" ro", v4.url())),
        ("quoted value", format!("freshroot.url=\"{}{path}/\" x=\"a b\"", v4.url())),
        ("IPv6", format!("freshroot.url={}{path}", v6.url())),
        (
            "the last counts",
            format!("freshroot.url=http://192.0.2.1 freshroot.url={}{path}", v6.url()),
        ),
    ] {
        let mirrors = settings(line.as_bytes()).unwrap_or_else(|error| panic!("{case}: {error}")).urls;
        let bench = Bench {
            mirrors,
            ..Bench::by(vec![], Options::new(LIMITS)).case(case)
        };
        bench.ask().unwrap_or_else(|error| panic!("{case}: {error}"));
        bench.fetch().unwrap_or_else(|error| panic!("{case}: {error}"));
        bench.assert_committed();
    }
    assert!(v6.url().starts_with("http://[::1]:"));
}

#[test]
fn row_31_a_hostile_command_line_is_refused_by_name_and_nobody_is_asked() {
    let long = format!("freshroot.url=http://127.0.0.1/{}", "a".repeat(200_000));
    for (case, line, words) in [
        ("no scheme", "freshroot.url=//127.0.0.1/x", ""),
        ("file", "freshroot.url=file:///etc/passwd", "freshroot.url"),
        ("empty", "freshroot.url=", ""),
        ("no bracket", "freshroot.url=http://[::1", "freshroot.url"),
        ("not an address", "freshroot.url=http://[::g]:80/", "freshroot.url"),
        ("port", "freshroot.url=http://127.0.0.1:99999/", "freshroot.url"),
        ("half an escape", "freshroot.url=http://127.0.0.1/%zz", ""),
        ("huge", long.as_str(), ""),
        (
            "huge time",
            "freshroot.transfer.stall=99999999999999999999s",
            "freshroot.transfer.stall",
        ),
        ("negative time", "freshroot.transfer.stall=-1s", "freshroot.transfer.stall"),
        (
            "huge number",
            "freshroot.transfer.parallel=18446744073709551616",
            "freshroot.transfer.parallel",
        ),
        ("open quote", "freshroot.url=\"http://127.0.0.1/", ""),
        ("control", "freshroot.url=http://127.0.0.1/\u{1b}[2J", "freshroot.url"),
    ] {
        let (mirrors, told) = match settings(line.as_bytes()) {
            Ok(settings) => (settings.urls, settings.warnings.join("; ")),
            Err(told) => (Vec::new(), told),
        };
        assert!(told.contains(words), "{case}: «{words}» is expected: {told}");
        assert!(told.len() < 4096 && !told.chars().any(char::is_control), "{case}: {told:?}");
        assert!(words.is_empty() || mirrors.is_empty(), "{case}: it is taken: {mirrors:?}");
        // What is taken can be asked for, without a panic.
        let bench = Bench {
            mirrors,
            ..Bench::by(vec![], Options::new(LIMITS)).case(case)
        };
        assert!(bench.ask().is_err(), "{case}");
        bench.assert_unchanged();
    }
    let line = b"freshroot.url=http://\xff\xfe/ freshroot.channel=other";
    let told = settings(line).map_or_else(|told| told, |settings| settings.warnings.join("; "));
    assert!(told.contains("byte 21"), "{told}");
}
