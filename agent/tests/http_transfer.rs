//! How an image comes: resumed by what the server says of its file, repaired chunk by chunk, not too slow, not too fast, not too much.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support {
    pub mod bench;
    pub mod record;
    pub mod server;
    #[allow(dead_code, reason = "shared with other tests")]
    pub mod world;
}

use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use freshroot::boot::deadline::Deadline;
use freshroot::boot::download::Download;
use freshroot::boot::ticker::Teller;
use freshroot::fetch::Progress;
use freshroot::fetch::hurry::Hurry;
use freshroot::fetch::image::{FetchError, Patience};
use freshroot::fetch::pace::Slowest;
use freshroot::http::{Budget, Limits, Options};
use freshroot::report::Report;
use freshroot::verify::BootImage;
use support::bench::{Bench, LIMITS, PATIENT, STALL, files, from, honest, honestly};
use support::record::each;
use support::server::{Ask, Reply, Server, Then};
use support::world::{CHUNK, CHUNKS, SIZE, World};

const EARLY: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
const LATE: &str = "Sun, 06 Nov 1994 08:49:38 GMT";

/// What each request to the first server said behind `If-Range`.
fn conditions(bench: &Bench) -> Vec<Option<String>> {
    bench.servers[0]
        .served()
        .iter()
        .map(|served| served.ask.headers.get("if-range").cloned())
        .collect()
}

/// A server that knows `If-Range`: the whole file to whoever had another one.
fn conditional(ask: &Ask, etag: &str) -> Reply {
    let mut ask = ask.clone();
    if ask.headers.get("if-range").is_some_and(|condition| condition != etag) {
        ask.headers.remove("range");
    }
    Reply::honest(&files(&World::new(2)), &ask).header("ETag", etag)
}

#[test]
fn row_08_a_resume_names_the_file_that_it_goes_on_with() {
    for (name, value, expected) in [
        ("ETag", "\"one\"", Some("\"one\"")),
        ("ETag", "W/\"one\"", None),
        ("Last-Modified", EARLY, Some(EARLY)),
    ] {
        let bench = Bench::new(move |ask, reply| {
            let reply = reply.header(name, value).header("Date", LATE);
            if ask.nth == 0 { reply.cut(4 * CHUNK, Then::Close) } else { reply }
        });
        bench.fetch().unwrap();
        bench.assert_committed();
        assert_eq!(bench.ranges(), [None, from(4)]);
        assert_eq!(conditions(&bench), [None, expected.map(str::to_owned)], "{value}");
        assert_eq!(bench.received(), SIZE);
    }
}

#[test]
fn row_08_a_file_that_changed_is_begun_anew_and_what_is_verified_is_not_fetched_again() {
    // Another tag, the same bytes: a farm of servers of which each makes up its own.
    let bench = Bench::with(vec![Server::new(|ask| {
        let etag = if ask.nth == 0 { "\"one\"" } else { "\"two\"" };
        let reply = conditional(ask, etag);
        if ask.nth == 0 { reply.cut(4 * CHUNK, Then::Close) } else { reply }
    })]);
    bench.fetch().unwrap();
    bench.assert_committed();
    // The whole is offered to who wanted the rest of another file: nothing of it is read.
    assert_eq!(bench.ranges(), [None, from(4), from(4)]);
    assert_eq!(conditions(&bench), [None, Some("\"one\"".to_owned()), None]);
    assert_eq!(bench.received(), SIZE);
}

#[test]
fn row_08_a_part_of_another_file_is_not_used_though_the_server_sends_it() {
    type Change = fn(Reply) -> Reply;
    let cases: [(&str, Change, Change); 3] = [
        ("tag", |r| r.header("ETag", "\"one\""), |r| r.header("ETag", "\"two\"")),
        ("no tag", |r| r.header("ETag", "\"one\""), |r| r),
        ("date", |r| r.header("Last-Modified", EARLY), |r| r.header("Last-Modified", LATE)),
    ];
    for (why, before, after) in cases {
        // What it sends then is not even of the image.
        let bench = Bench::new(move |ask, mut reply| match ask.nth {
            0 => before(reply).cut(4 * CHUNK, Then::Close),
            1 => {
                reply.body.fill(7);
                after(reply)
            }
            _ => after(reply),
        });
        bench.fetch().unwrap();
        bench.assert_committed();
        assert_eq!(bench.ranges(), [None, from(4), from(4)], "{why}");
        assert_eq!(bench.received(), SIZE, "{why}: nothing of the body was read");
    }
}

#[test]
fn row_08_each_mirror_has_its_own_tags() {
    let cutting = |etag: &'static str| {
        Server::new(honestly(move |ask, reply| {
            let reply = reply.header("ETag", etag);
            let some = (2 * CHUNK).min(reply.body.len());
            if ask.nth < 2 { reply.cut(some, Then::Close) } else { reply }
        }))
    };
    let bench = Bench::with(vec![cutting("\"one\""), cutting("\"two\"")]);
    bench.fetch().unwrap();
    bench.assert_committed();
    assert!(bench.received() <= SIZE);
    for (server, etag) in bench.servers.iter().zip(["\"one\"", "\"two\""]) {
        let mut told = server
            .served()
            .into_iter()
            .map(|served| served.ask.headers.get("if-range").cloned());
        assert_eq!(told.next().unwrap(), None);
        assert!(told.all(|condition| condition.as_deref() == Some(etag)));
    }
}

#[test]
fn a_bad_chunk_is_fetched_again_alone_and_of_the_next_mirror_first() {
    let spoilt = |chunk: usize| {
        Server::new(honestly(move |ask, mut reply| {
            // Once: on the way, or in a cache in between.
            if ask.nth == 0 {
                reply.body[chunk * CHUNK + 5] ^= 1;
            }
            reply
        }))
    };
    let only = Some((3 * CHUNK, 4 * CHUNK - 1));
    let bench = Bench::with(vec![spoilt(3), honest()]);
    bench.fetch().unwrap();
    bench.assert_committed();
    assert_eq!(bench.ranges(), [None]);
    let second: Vec<_> = bench.servers[1].served().iter().map(|served| served.ask.range()).collect();
    assert_eq!(second, [only]);
    assert_eq!(bench.received(), SIZE + CHUNK);
    // Where there is no other, it is asked once more.
    let bench = Bench::with(vec![spoilt(3)]);
    bench.fetch().unwrap();
    bench.assert_committed();
    assert_eq!(bench.ranges(), [None, only]);
    assert_eq!(bench.received(), SIZE + CHUNK);
}

#[test]
fn a_second_bad_chunk_ends_a_transfer_and_a_second_such_transfer_the_mirror() {
    let bench = Bench::new(|_, mut reply| {
        for at in reply.body.iter_mut().step_by(1000) {
            *at ^= 1;
        }
        reply
    });
    bench.assert_fails("not what the signed index says", 0);
    assert_eq!(bench.ranges(), [None, None]);
    assert!(
        bench.received() <= 2 * 6 * CHUNK,
        "{}: two bad ones, and what was under way",
        bench.received()
    );
}

#[test]
fn row_07_a_range_that_the_server_does_not_have_is_asked_for_as_a_whole() {
    let none = |length: usize| {
        move |ask: &Ask, reply: Reply| match ask.range() {
            Some(_) => Reply::new(416, b"").header("Content-Range", &format!("bytes */{length}")),
            None => reply,
        }
    };
    let bench = Bench::new(none(SIZE)).begun(&[0, 1, 2]);
    bench.fetch().unwrap();
    bench.assert_committed();
    assert_eq!(bench.ranges(), [from(3), None]);
    // A file of another length is another file, whole or not.
    let bench = Bench::new(move |ask, reply| match ask.range() {
        Some(_) => none(4 * CHUNK)(ask, reply),
        None => Reply::new(200, &reply.body[..4 * CHUNK]),
    })
    .begun(&[0, 1, 2]);
    bench.assert_fails(&format!("its length is {} bytes", 4 * CHUNK), 3);
    assert!(bench.received() <= 64, "enough to tell a page from an image, no more");
}

/// A date as HTTP writes it, by the C library.
fn http_date(seconds: u64) -> String {
    let output = std::process::Command::new("date")
        .args(["--utc", &format!("--date=@{seconds}"), "+%a, %d %b %Y %H:%M:%S GMT"])
        .env("LC_ALL", "C")
        .output()
        .unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[test]
fn row_16_the_time_to_try_again_may_be_a_date_by_the_servers_clock_or_ours() {
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    for told in [true, false] {
        let bench = Bench::new(move |ask, reply| match ask.nth {
            0 if told => Reply::new(503, b"")
                .header("Date", &http_date(1_000_000_000))
                .header("Retry-After", &http_date(1_000_000_002)),
            // Rounded down: there is more than a second to go.
            0 => Reply::new(503, b"").header("Retry-After", &http_date(now() + 3)),
            _ => reply,
        });
        let bench = Bench {
            patience: Patience {
                without_progress: Duration::from_secs(10),
                ..bench.patience
            },
            ..bench
        };
        let started = Instant::now();
        bench.fetch().unwrap();
        bench.assert_committed();
        assert!(started.elapsed() >= Duration::from_millis(1500), "{:?}", started.elapsed());
    }
}

#[test]
fn a_mirror_in_trouble_is_asked_last_for_whatever_comes_next() {
    let bench = Bench::with(vec![Server::new(|_| Reply::none(Then::Close)), honest()]);
    bench.ask().unwrap();
    bench.fetch_index().unwrap();
    bench.fetch().unwrap();
    bench.assert_committed();
    assert_eq!((bench.servers[0].requests(), bench.servers[1].requests()), (1, 3));
    // Once the other is in trouble too, both have their turn.
    let bench = Bench::with(vec![
        Server::new(honestly(|ask, reply| match ask.path.as_str() {
            "/channels/stable.json" => Reply::new(500, b""),
            _ => reply,
        })),
        Server::new(honestly(|ask, reply| match ask.path.as_str() {
            "/channels/stable.json" => reply,
            _ => Reply::new(502, b""),
        })),
    ]);
    bench.ask().unwrap();
    bench.fetch().unwrap();
    bench.assert_committed();
    assert_eq!((bench.servers[0].requests(), bench.servers[1].requests()), (2, 2));
}

/// Sends this many bytes a second, in tenths of a second.
fn paced(mut reply: Reply, rate: usize) -> Reply {
    reply.pace = Some(Duration::from_millis(100));
    reply.piece = rate / 10;
    reply
}

#[test]
fn row_12_a_chunk_may_take_longer_than_the_time_without_progress_while_bytes_come() {
    // Four seconds for a chunk, where a second and a half without progress are the limit.
    let bench = Bench::with(vec![Server::new(honestly(|_, reply| paced(reply, CHUNK / 4)))]);
    let bench = Bench {
        patience: Patience {
            without_progress: Duration::from_millis(1500),
            ..bench.patience
        },
        ..bench
    }
    .begun(&(1..CHUNKS).collect::<Vec<_>>());
    let (started, progress) = (Instant::now(), Progress::new(SIZE as u64));
    bench.fetch_telling(&progress).unwrap();
    bench.assert_committed();
    assert!(
        progress.moves() > 3,
        "whoever waits for it sees that it goes on: {}",
        progress.moves()
    );
    assert!(started.elapsed() > Duration::from_secs(3), "{:?}", started.elapsed());
    assert_eq!(bench.servers[0].requests(), 1);
}

#[test]
fn row_11_a_mirror_below_the_least_rate_is_left_for_the_next() {
    let slow = Server::new(honestly(|_, reply| paced(reply, 2000)));
    let bench = Bench::with(vec![slow, honest()]);
    let bench = Bench {
        patience: Patience {
            slowest: Slowest {
                rate: 20_000,
                window: Duration::from_secs(1),
            },
            ..bench.patience
        },
        ..bench
    };
    let started = Instant::now();
    bench.fetch().unwrap();
    bench.assert_committed();
    assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
    assert_eq!((bench.servers[0].requests(), bench.servers[1].requests()), (1, 1));
    // With none to go to, the rate is named.
    let bench = Bench::with(vec![Server::new(honestly(|_, reply| paced(reply, 500)))]);
    bench.assert_fails("(transfer.minRate)", 0);
}

#[test]
fn a_deadline_of_the_settings_ends_a_transfer_that_is_fast_enough() {
    let bench = Bench::with(vec![Server::new(honestly(|_, reply| paced(reply, CHUNK)))]);
    let bench = Bench {
        patience: Patience {
            deadline: Some(Instant::now() + Duration::from_secs(3)),
            ..bench.patience
        },
        ..bench
    };
    let started = Instant::now();
    assert!(bench.fetch().is_err());
    bench.assert_unchanged();
    assert!(started.elapsed() < Duration::from_secs(3) + PATIENT, "{:?}", started.elapsed());
    let there = support::world::present(&bench.cache, &bench.new);
    assert!((1..CHUNKS).contains(&there), "{there} chunks are kept");
}

#[test]
fn a_rate_limit_is_kept_and_is_no_reason_to_leave_a_mirror() {
    let rate = 250_000;
    let options = Options {
        rate_limit: Some(rate),
        ..Options::new(LIMITS)
    };
    let bench = Bench::by(vec![honest()], options);
    let bench = Bench {
        patience: Patience {
            slowest: Slowest {
                rate: rate / 2,
                window: STALL,
            },
            ..bench.patience
        },
        ..bench
    };
    let started = Instant::now();
    bench.fetch().unwrap();
    bench.assert_committed();
    let measured = SIZE as f64 / started.elapsed().as_secs_f64();
    assert!(measured < rate as f64 * 1.15, "{measured} bytes a second");
    assert_eq!(bench.servers[0].requests(), 1);
}

#[test]
fn row_23_an_image_that_does_not_get_its_place_boots_all_the_same_and_is_not_fetched_again() {
    let bench = Bench::new(|_, reply| reply);
    let mut report = Report::new("");
    let deadline = Deadline::none();
    let download = || Download {
        teller: Teller::Nobody,
        deadline: &deadline,
        cache: &bench.cache,
        source: bench.source(),
        image: &bench.new.image,
        patience: bench.patience,
        record: &|| {},
    };
    // A name that is taken by a folder cannot be given to a file.
    let place = bench.cache.image_path(bench.new.image.sha256);
    std::fs::create_dir(&place).unwrap();
    let verified = |booted: BootImage| match booted {
        BootImage::Verified(_) => {}
        BootImage::Unverified(_) => panic!("it was verified"),
    };
    verified(download().run(&mut report).unwrap());
    assert_eq!((bench.servers[0].requests(), bench.received()), (1, SIZE));
    assert!(report.warnings[0].contains("did not get its place"), "{:?}", report.warnings);
    std::fs::remove_dir(&place).unwrap();
    verified(download().run(&mut report).unwrap());
    bench.assert_committed();
    bench.witness.watch(&bench.client);
    bench.witness.saw("booted", Ok(()));
    assert_eq!(
        (bench.servers[0].requests(), report.warnings.len()),
        (1, 1),
        "nothing is asked again"
    );
}

#[test]
fn a_budget_ends_a_transfer_at_its_last_byte_and_the_next_boot_goes_on() {
    let budget = (4 * CHUNK + 100) as u64;
    let options = || Options {
        budget: Some(Budget::Boot(budget)),
        ..Options::new(LIMITS)
    };
    let bench = Bench::by(vec![honest(), honest()], options());
    bench.assert_fails("transfer.budget", 4);
    assert_eq!((bench.received() as u64, bench.client.budget_left()), (budget, Some(0)));
    assert_eq!(bench.servers[1].requests(), 0, "no mirror can help");
    // Nothing else is asked either.
    let told = bench.ask().unwrap_err();
    assert!(told.contains("transfer.budget"), "{told}");
    assert_eq!(bench.servers[0].requests(), 1);
    // A new boot has a budget of its own.
    let again = Bench {
        client: Arc::new(freshroot::http::Client::new(options())),
        ..bench
    };
    again.assert_fails("transfer.budget", 8);
    let last = Bench {
        client: Arc::new(freshroot::http::Client::new(options())),
        ..again
    };
    last.fetch().unwrap();
    last.assert_committed();
}

/// The length of a piece where chunks are small and there are many at once.
const PIECE: usize = 1 << 20;

/// An image of several pieces, in chunks of a quarter of one.
fn large(script: impl Fn(&Ask, Reply) -> Reply + Send + Sync + 'static, parallel: usize, options: Options) -> Bench {
    let world = || World::sized(2, PIECE / 4, 5 * PIECE + 1234);
    let files = files(&world());
    let server = Server::new(move |ask| script(ask, Reply::honest(&files, ask)));
    let bench = Bench::of(world(), vec![server], options);
    Bench {
        patience: Patience {
            parallel,
            ..bench.patience
        },
        ..bench
    }
}

/// Holds whoever calls it until two have called. True if that came about.
fn meet(place: &(Mutex<usize>, Condvar)) -> bool {
    let mut there = place.0.lock().unwrap();
    *there += 1;
    place.1.notify_all();
    let alone = |there: &mut usize| *there < 2;
    !place
        .1
        .wait_timeout_while(there, Duration::from_secs(5), alone)
        .unwrap()
        .1
        .timed_out()
}

#[test]
fn several_ranges_are_asked_for_at_once_and_cover_the_image_once() {
    let place = Arc::new((Mutex::new(0), Condvar::new()));
    let met = Arc::clone(&place);
    let options = Options::new(Limits {
        stall: Duration::from_secs(8),
        ..LIMITS
    });
    let bench = large(
        move |ask, reply| {
            // The second and the third, while the first is read.
            let waits = ask.range().is_some_and(|(first, _)| first == PIECE || first == 2 * PIECE);
            if waits && !meet(&place) { Reply::new(404, b"") } else { reply }
        },
        3,
        options,
    );
    bench.fetch().unwrap();
    assert_eq!(*met.0.lock().unwrap(), 2);
    bench.assert_committed();
    let size = bench.new.bytes.len();
    let mut ranges: Vec<_> = bench.ranges().into_iter().map(Option::unwrap).collect();
    ranges.sort_unstable();
    let expected: Vec<_> = (0..size).step_by(PIECE).map(|first| (first, size.min(first + PIECE) - 1)).collect();
    assert_eq!((ranges, bench.received()), (expected, size));
}

#[test]
fn a_server_without_ranges_is_read_by_one_connection() {
    let whole = World::sized(2, PIECE / 4, 5 * PIECE + 1234).bytes;
    let bench = large(
        move |ask, reply| {
            if ask.range().is_some() { Reply::new(200, &whole) } else { reply }
        },
        4,
        Options::new(LIMITS),
    );
    bench.fetch().unwrap();
    bench.assert_committed();
    assert_eq!((bench.servers[0].requests(), bench.received()), (1, bench.new.bytes.len()));
}

#[test]
fn what_is_wrong_with_one_range_of_several_ends_the_body_there_and_nothing_wrong_is_used() {
    type Fault = fn(Reply) -> Reply;
    let other: Fault = |reply| reply.header("ETag", "\"two\"");
    let cases: [(&str, Fault); 7] = [
        ("cut", |reply| reply.cut(PIECE / 2, Then::Close)),
        ("busy", |_| Reply::new(503, b"")),
        ("gone", |_| Reply::new(404, b"")),
        ("another file", other),
        ("another part", |mut reply| {
            reply.headers[0].1 = format!("bytes 0-{}/{}", PIECE - 1, 5 * PIECE + 1234);
            reply
        }),
        ("the whole", |reply| Reply::new(200, &reply.body)),
        ("damaged", |mut reply| {
            reply.body[5] ^= 1;
            reply
        }),
    ];
    each(cases, |why, fault| {
        let once = std::sync::atomic::AtomicBool::new(true);
        let bench = large(
            move |ask, reply| {
                let reply = reply.header("ETag", "\"one\"");
                let third = ask.range().is_some_and(|(first, _)| first == 2 * PIECE);
                if third && once.swap(false, std::sync::atomic::Ordering::SeqCst) {
                    let reply = fault(reply);
                    if reply.headers.iter().any(|(_, value)| value == "\"two\"") {
                        return Reply {
                            headers: reply.headers.into_iter().filter(|(_, value)| value != "\"one\"").collect(),
                            ..reply
                        };
                    }
                    return reply;
                }
                reply
            },
            3,
            Options::new(LIMITS),
        );
        bench.fetch().unwrap_or_else(|error| panic!("{why}: {error}"));
        bench.assert_committed();
        let again = bench.received() - bench.new.bytes.len();
        assert!(again <= 4 * PIECE, "{why}: {again} bytes were fetched twice");
    });
}

#[test]
fn a_transfer_that_cannot_be_done_in_time_is_given_up_early_and_gone_on_with() {
    // Half a megabyte at 100 kB/s takes more than five seconds.
    let slow = || Bench::with(vec![Server::new(honestly(|_, reply| paced(reply, 100_000)))]);
    let hurried = |bench: Bench, seconds: u64| {
        let limit = Duration::from_secs(seconds);
        let patience = Patience {
            deadline: Some(Instant::now() + limit),
            hurry: Some(Hurry {
                limit,
                fair: Duration::from_secs(1),
            }),
            ..bench.patience
        };
        Bench { patience, ..bench }
    };
    let bench = hurried(slow(), 3);
    let started = Instant::now();
    match bench.fetch() {
        Err(FetchError::Late(what)) => assert!(what.contains("policy.fetchWait"), "{what}"),
        other => panic!("{other:?}"),
    }
    assert!(started.elapsed() < Duration::from_millis(2500), "{:?}", started.elapsed());
    bench.assert_unchanged();
    let there = support::world::present(&bench.cache, &bench.new);
    assert!(there >= 1, "what came in its share is kept");
    // Later, in the running system, there is time.
    let patience = Patience {
        deadline: None,
        hurry: None,
        ..bench.patience
    };
    let bench = Bench { patience, ..bench };
    bench.fetch().unwrap();
    bench.assert_committed();
    // What will be done in time is waited for.
    let bench = hurried(slow(), 8);
    bench.fetch().unwrap();
    bench.assert_committed();
}
