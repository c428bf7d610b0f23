//! Whom the client believes, as whom it goes, and which way: TLS, credentials, proxies, addresses.
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

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, ToSocketAddrs as _};
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use freshroot::clock::Clock;
use freshroot::digest::Digest;
use freshroot::fetch::Source;
use freshroot::fetch::answer::ask;
use freshroot::fetch::retry::Memory;
use freshroot::formats::answer::Question;
use freshroot::formats::authorised::Trust;
use freshroot::http::proxy::{Exception, Proxy as Route, Routes};
use freshroot::http::{Client, HttpError, Limits, Options, Request, TlsOptions};
use support::bench::{Bench, honest};
use support::proxy::{Manner, Proxy};
use support::secure::{Secure, tls_file};
use support::server::{Ask, Reply, Server};

const LIMITS: Limits = Limits {
    connect: Duration::from_secs(5),
    stall: Duration::from_secs(5),
};
/// The digest of the server's `SubjectPublicKeyInfo`, by `openssl pkey -pubin -outform der | openssl dgst -sha256`.
const KEY: &str = "66d6d71c3b543d3d6c3af0d76eb65cf0266d8e21fc4a7f9d0055146c267af8f5";
/// 2030, when the server's certificate is valid.
const VALID: u64 = 1_900_000_000;

fn options() -> Options {
    Options::new(LIMITS)
}

fn trusting() -> TlsOptions {
    TlsOptions {
        ca_file: Some(tls_file("authority.pem")),
        ..at(VALID)
    }
}

/// No authority, and this time.
fn at(time: u64) -> TlsOptions {
    TlsOptions {
        clock: Clock {
            floor: time,
            machine: || 0,
        },
        ..TlsOptions::default()
    }
}

fn with(tls: TlsOptions) -> Client {
    Client::new(Options { tls, ..options() })
}

fn get(client: &Client, url: &str) -> Result<Vec<u8>, HttpError> {
    let request = Request { url, ..Request::default() };
    Ok(client.get_bytes(&request, 1000)?.expect("nobody asked whether it is modified").0)
}

fn hello(_: &Ask) -> Reply {
    Reply::new(200, b"hello")
}

fn pins(keys: &[&str]) -> Vec<Digest> {
    keys.iter().map(|key| key.parse().unwrap()).collect()
}

#[test]
fn an_authority_vouches_for_a_server_and_another_does_not() {
    let server = Secure::new(None, hello);
    assert_eq!(get(&with(trusting()), &server.url()).unwrap(), b"hello");
    let foreign = TlsOptions {
        ca_file: Some(tls_file("client-authority.pem")),
        ..at(VALID)
    };
    let error = get(&with(foreign), &server.url()).unwrap_err();
    assert!(
        matches!(&error, HttpError::Unusable(what) if what.contains("no authority that is trusted")),
        "{error:?}"
    );
    // Its certificate is for 127.0.0.1.
    let error = get(&with(trusting()), &format!("https://localhost:{}", server.port())).unwrap_err();
    assert!(
        matches!(&error, HttpError::Unusable(what) if what.contains("certificate is refused")),
        "{error:?}"
    );
}

#[test]
fn pinned_keys_decide_alone_or_together_with_an_authority() {
    let server = Secure::new(None, hello);
    let other = &Digest::of(b"another key").to_string();
    let foreign = tls_file("client-authority.pem");
    for (keys, authority, clock, words) in [
        (&[KEY][..], None, 0, None),
        (&[other, KEY], None, 0, None),
        (&[KEY], Some(tls_file("authority.pem")), VALID, None),
        (&[other], None, 0, Some("pinnedPublicKeys")),
        (&[other], Some(tls_file("authority.pem")), VALID, Some("pinnedPublicKeys")),
        (&[KEY], Some(foreign), VALID, Some("no authority that is trusted")),
        (&[KEY], Some(tls_file("authority.pem")), 0, Some("clock")),
    ] {
        let tls = TlsOptions {
            pinned_public_keys: pins(keys),
            ca_file: authority,
            ..at(clock)
        };
        match (get(&with(tls), &server.url()), words) {
            (Ok(body), None) => assert_eq!(body, b"hello"),
            (Err(HttpError::Unusable(what)), Some(words)) => assert!(what.contains(words), "{what}"),
            (other, words) => panic!("{keys:?}, {words:?}: {other:?}"),
        }
    }
}

#[test]
fn row_19_a_clock_that_is_behind_is_helped_by_what_was_signed_and_one_that_is_wrong_is_named() {
    let server = Secure::new(None, hello);
    let by = |floor, machine: fn() -> u64| TlsOptions {
        clock: Clock { floor, machine },
        ..trusting()
    };
    // 1970 and 2000, with a release that was signed in 2030.
    for machine in [(|| 0) as fn() -> u64, || 946_684_800] {
        assert_eq!(get(&with(by(VALID, machine)), &server.url()).unwrap(), b"hello");
    }
    for (floor, machine, words) in [
        (0, (|| 0) as fn() -> u64, &["valid from 2026-11-21", "clock says 1970-01-01"][..]),
        (
            1_000_000_000,
            || 0,
            &["valid from", "clock says 1970-01-01", "2001-09-09 01:46 UTC was taken instead"],
        ),
        (VALID, || 7_258_118_400, &["expired at 2126-10-28", "clock says 2200-01-01"]),
    ] {
        match get(&with(by(floor, machine)), &server.url()) {
            Err(HttpError::Unusable(what)) => {
                for word in words {
                    assert!(what.contains(word), "«{word}» is expected: {what}");
                }
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(server.asked().len(), 2, "nothing was said to who is not believed");
}

#[test]
fn what_is_missing_for_https_stops_no_plain_server() {
    let folder = tempfile::tempdir().unwrap();
    let (plain, secure) = (Server::new(hello), Secure::new(None, hello));
    let absent = folder.path().join("absent.pem");
    let empty = folder.path().join("empty.pem");
    fs::write(&empty, "nothing\n").unwrap();
    for (tls, words) in [
        (
            TlsOptions {
                ca_file: Some(absent.clone()),
                ..at(VALID)
            },
            "absent.pem",
        ),
        (
            TlsOptions {
                ca_file: Some(empty),
                ..at(VALID)
            },
            "holds no certificate",
        ),
        (
            TlsOptions {
                client_certificate: Some((absent.clone(), absent)),
                ..trusting()
            },
            "absent.pem",
        ),
    ] {
        let client = with(tls);
        match get(&client, &secure.url()) {
            Err(HttpError::Unusable(what)) => assert!(what.contains(words), "{what}"),
            other => panic!("{other:?}"),
        }
        assert_eq!(get(&client, &plain.url()).unwrap(), b"hello");
        // By way of the mirrors: both are named, so both were asked.
        let (mirrors, memory) = ([secure.url(), plain.url()], Memory::default());
        let source = Source {
            client: &client,
            mirrors: &mirrors,
            memory: &memory,
        };
        let question = Question::Channel("stable".parse().unwrap());
        let asked = ask(
            &source,
            &question,
            &Trust::default(),
            None,
            &|_| Ok(()),
            Instant::now() + LIMITS.stall,
        );
        let what = asked.unwrap_err();
        assert!(what.contains(words) && what.contains(&plain.url()), "{what}");
        assert_eq!(memory.order(2), [1, 0], "the server that cannot be believed is asked last");
    }
}

#[test]
fn a_client_certificate_is_shown_to_who_wants_it() {
    let server = Secure::new(Some("client-authority.pem"), hello);
    let known = TlsOptions {
        client_certificate: Some((tls_file("client.pem"), tls_file("client.key"))),
        ..trusting()
    };
    assert_eq!(get(&with(known), &server.url()).unwrap(), b"hello");
    assert!(get(&with(trusting()), &server.url()).is_err());
    let mixed_up = TlsOptions {
        client_certificate: Some((tls_file("client.pem"), tls_file("server.key"))),
        ..trusting()
    };
    let error = get(&with(mixed_up), &server.url()).unwrap_err().to_string();
    assert!(error.contains("client.pem") && error.contains("server.key"), "{error}");
    assert_eq!(server.asked().len(), 1);
}

/// All that is logged while this program runs, as much as the agent would: of other crates only warnings, as `console.rs` has it.
struct Log(Mutex<String>);

impl log::Log for Log {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }
    fn log(&self, record: &log::Record<'_>) {
        if !record.target().starts_with("freshroot") && record.level() > log::Level::Warn {
            return;
        }
        let mut text = self.0.lock().unwrap();
        text.push_str(&format!("{} {}: {}\n", record.level(), record.target(), record.args()));
    }
    fn flush(&self) {}
}

fn log_text() -> &'static Log {
    static LOG: OnceLock<&'static Log> = OnceLock::new();
    LOG.get_or_init(|| {
        let log: &'static Log = Box::leak(Box::new(Log(Mutex::new(String::new()))));
        log::set_logger(log).unwrap();
        log::set_max_level(log::LevelFilter::Trace);
        log
    })
}

fn authorization(asked: &[Ask]) -> Vec<Option<&str>> {
    asked
        .iter()
        .map(|ask| ask.headers.get("authorization").map(String::as_str))
        .collect()
}

#[test]
fn credentials_of_a_file_go_to_https_servers_and_into_no_message() {
    let log = log_text();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("credentials");
    let elsewhere = Secure::new(None, hello);
    let place = elsewhere.url();
    let server = Secure::new(None, move |ask| match ask.path.as_str() {
        "/elsewhere" => Reply::new(302, b"").header("Location", &place),
        "/here" => Reply::new(302, b"").header("Location", "/landed"),
        "/no" => Reply::new(401, b""),
        _ => hello(ask),
    });
    let plain = Server::new(hello);
    let client = || {
        Client::new(Options {
            tls: trusting(),
            credentials_file: Some(file.clone()),
            ..options()
        })
    };
    fs::write(&file, "bearer hunter2\n").unwrap();
    let bearer = client();
    for path in ["/", "/elsewhere", "/here"] {
        get(&bearer, &format!("{}{path}", server.url())).unwrap();
    }
    get(&bearer, &plain.url()).unwrap();
    let refused = get(&bearer, &format!("{}/no", server.url())).unwrap_err();
    assert!(matches!(&refused, HttpError::Fatal(what) if what.contains("401") && what.contains("http.credentialsFile")));
    let token = Some("Bearer hunter2");
    assert_eq!(authorization(&server.asked()), [token, token, token, None, token]);
    assert_eq!(server.asked()[3].path, "/landed");
    assert_eq!(authorization(&elsewhere.asked()), [None], "they are not for whom it redirects to");
    assert_eq!(
        plain.served()[0].ask.headers.get("authorization"),
        None,
        "nor for who listens on a plain line"
    );
    fs::write(&file, "basic me:hunter2\n").unwrap();
    get(&client(), &server.url()).unwrap();
    assert_eq!(authorization(&server.asked()).last().unwrap(), &Some("Basic bWU6aHVudGVyMg=="));
    // Those of a URL come first, and go to plain servers too.
    let own = server.url().replace("https://", "https://you:hunter2@");
    get(&client(), &own).unwrap();
    assert_eq!(authorization(&server.asked()).last().unwrap(), &Some("Basic eW91Omh1bnRlcjI="));
    let own = plain.url().replace("http://", "http://you:hunter2@");
    get(&client(), &own).unwrap();
    assert_eq!(plain.served()[1].ask.headers["authorization"], "Basic eW91Omh1bnRlcjI=");
    // Without the file, the plain server is as good as before, and the other is named with the file.
    fs::remove_file(&file).unwrap();
    let lost = client();
    let missing = get(&lost, &server.url()).unwrap_err();
    assert!(missing.to_string().contains("credentials"), "{missing}");
    get(&lost, &plain.url()).unwrap();
    let told = format!("{refused} {refused:?} {missing} {missing:?} {bearer:?}{}", log.0.lock().unwrap());
    for secret in ["hunter2", "aHVudGVyMg", "Omh1bnRlcjI"] {
        assert!(!told.contains(secret), "«{secret}» is told: {told}");
    }
}

#[test]
fn credentials_of_a_url_do_not_follow_a_redirect_to_another_server() {
    let elsewhere = Server::new(hello);
    let place = elsewhere.url();
    let server = Server::new(move |_| Reply::new(302, b"").header("Location", &place));
    get(&Client::new(options()), &server.url().replace("http://", "http://me:word@")).unwrap();
    assert_eq!(server.served()[0].ask.headers["authorization"], "Basic bWU6d29yZA==");
    assert_eq!(elsewhere.served()[0].ask.headers.get("authorization"), None);
}

fn by_proxy(scheme: &str, proxy: &Proxy, exceptions: &[&str]) -> Client {
    Client::new(Options {
        // A name that only the proxy can resolve is in no certificate: the key is.
        tls: TlsOptions {
            pinned_public_keys: pins(&[KEY]),
            ..at(VALID)
        },
        routes: Routes {
            proxy: Some(Route::parse(&format!("{scheme}{}", proxy.address())).unwrap()),
            exceptions: exceptions.iter().map(|text| Exception::parse(text).unwrap()).collect(),
        },
        ..options()
    })
}

#[test]
fn row_29_requests_take_the_proxy_with_its_credentials_and_names_are_its_own() {
    let (plain, secure) = (Server::new(hello), Secure::new(None, hello));
    let (http, https) = (
        plain.url().replace("127.0.0.1", "images.test"),
        format!("https://images.test:{}/x", secure.port()),
    );
    let target = https.strip_prefix("https://").unwrap().strip_suffix("/x").unwrap().to_owned();
    let plain_target = http.strip_prefix("http://").unwrap().to_owned();
    let whole = format!("GET {http}/");
    for (manner, scheme, expected) in [
        (Manner::Open, "http://", [whole.clone(), format!("CONNECT {target}")]),
        (Manner::Closed, "http://me:word@", [whole, format!("CONNECT {target}")]),
        (
            Manner::Socks,
            "socks5://",
            [format!("SOCKS {plain_target}"), format!("SOCKS {target}")],
        ),
        (
            Manner::SocksClosed,
            "socks5://me:word@",
            [format!("SOCKS {plain_target}"), format!("SOCKS {target}")],
        ),
    ] {
        let proxy = Proxy::new(manner);
        let client = by_proxy(scheme, &proxy, &[]);
        for url in [&http, &https] {
            assert_eq!(get(&client, url).unwrap_or_else(|error| panic!("{manner:?}: {error}")), b"hello");
        }
        assert_eq!(proxy.asked(), expected, "{manner:?}");
    }
    for served in plain.served() {
        assert!(!served.ask.headers.contains_key("proxy-authorization"), "it is for the proxy");
        assert_eq!(
            (served.ask.path.as_str(), served.ask.headers["host"].as_str()),
            ("/", plain_target.as_str())
        );
    }
    assert!(secure.asked().iter().all(|ask| !ask.headers.contains_key("proxy-authorization")));
}

#[test]
fn row_29_a_proxy_that_refuses_is_named_and_its_password_is_not() {
    let secure = format!("https://images.test:{}/", Secure::new(None, hello).port());
    for (manner, scheme, url, words) in [
        (Manner::Refusing, "http://me:hunter2@", &secure, "refuses a tunnel"),
        (
            Manner::Refusing,
            "http://me:hunter2@",
            &"http://images.test/".to_owned(),
            "answers 403",
        ),
        (Manner::Closed, "http://me:hunter2@", &secure, "other credentials (407)"),
        (
            Manner::Closed,
            "http://me:hunter2@",
            &"http://images.test/".to_owned(),
            "answers 407",
        ),
        (Manner::Socks, "socks5://me:hunter2@", &secure, "takes no user"),
        (Manner::SocksClosed, "socks5://me:hunter2@", &secure, "refuses user"),
        (Manner::SocksClosed, "socks5://", &secure, "wants credentials"),
    ] {
        let proxy = Proxy::new(manner);
        let client = by_proxy(scheme, &proxy, &[]);
        let told = get(&client, url).unwrap_err().to_string();
        assert!(told.contains(words), "{manner:?}: {told}");
        assert!(!format!("{told} {client:?}").contains("hunter2"), "{told}");
        assert!(told.contains(&proxy.address().to_string()) || told.contains("answers"), "{told}");
    }
    // Nobody is there.
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let client = Client::new(Options {
        routes: Routes {
            proxy: Some(Route::parse(&format!("http://{gone}")).unwrap()),
            exceptions: Vec::new(),
        },
        ..options()
    });
    let told = get(&client, "http://images.test/").unwrap_err().to_string();
    assert!(told.contains(&format!("through the proxy http://{gone}")), "{told}");
}

#[test]
fn row_29_exceptions_and_the_machine_itself_go_around_the_proxy() {
    let (proxy, server) = (Proxy::new(Manner::Refusing), Server::new(hello));
    let client = by_proxy("http://", &proxy, &["192.0.2.0/24", "lan.test"]);
    assert_eq!(get(&client, &server.url()).unwrap(), b"hello");
    assert_eq!(get(&client, &server.url().replace("127.0.0.1", "localhost")).unwrap(), b"hello");
    let told = get(&client, "http://images.lan.test/").unwrap_err().to_string();
    assert!(!told.contains("403") && !told.contains("proxy"), "{told}");
    assert_eq!(proxy.asked(), Vec::<String>::new());
    get(&client, "http://images.test/").unwrap_err();
    assert_eq!(proxy.asked().len(), 1);
}

/// A proxy that is spoken to inside TLS.
fn proxy_over_tls(behind: &Proxy) -> Secure {
    let behind = behind.address();
    Secure::new(None, move |ask| {
        // What the client said, but for the version of its last line.
        let mut stream = std::net::TcpStream::connect(behind).unwrap();
        let host = &ask.headers["host"];
        let head = format!("GET {} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n", ask.path);
        stream.write_all(head.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        Reply::new(head.split(' ').nth(1).unwrap().parse().unwrap(), body.as_bytes())
    })
}

#[test]
fn row_29_a_proxy_may_be_spoken_to_inside_tls() {
    let (behind, server) = (Proxy::new(Manner::Open), Server::new(hello));
    let proxy = proxy_over_tls(&behind);
    let url = server.url().replace("127.0.0.1", "images.test");
    let client = Client::new(Options {
        tls: trusting(),
        routes: Routes {
            proxy: Some(Route::parse(&proxy.url()).unwrap()),
            exceptions: Vec::new(),
        },
        ..options()
    });
    assert_eq!(get(&client, &url).unwrap(), b"hello");
    assert_eq!(behind.asked(), [format!("GET {url}/")]);
    // A proxy that cannot be believed is told nothing.
    let client = Client::new(Options {
        tls: TlsOptions {
            ca_file: Some(tls_file("client-authority.pem")),
            ..at(VALID)
        },
        ..Options {
            routes: Routes {
                proxy: Some(Route::parse(&proxy.url()).unwrap()),
                exceptions: Vec::new(),
            },
            ..options()
        }
    });
    assert!(matches!(get(&client, &url), Err(HttpError::Unusable(_))));
    assert_eq!(proxy.asked().len(), 1);
}

const CHILD: &str = "FRESHROOT_TEST_NAMESPACE";

/// Runs this test once more, in namespaces of its own for mounts and network, after `setup`.
fn in_namespaces(name: &str, folder: &Path, setup: &str) {
    assert!(
        nix::unistd::geteuid().is_root(),
        "this test makes network namespaces and needs root: run it as root"
    );
    let script = format!("set -e; ip link set lo up; {setup}; exec \"$0\" --exact {name} --nocapture");
    let output = Command::new("unshare")
        .args(["--mount", "--net", "sh", "-c", &script])
        .arg(std::env::current_exe().unwrap())
        .env(CHILD, folder)
        .output()
        .unwrap_or_else(|error| panic!("unshare cannot be run ({error}): install util-linux"));
    let told = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && told.contains("1 passed"), "{told}");
}

#[test]
fn row_17_an_ipv6_address_that_nobody_answers_at_costs_less_than_a_second() {
    let name = "row_17_an_ipv6_address_that_nobody_answers_at_costs_less_than_a_second";
    if std::env::var_os(CHILD).is_none() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("hosts"), "127.0.0.1 images.test\n2001:db8::2 images.test\n").unwrap();
        // A link without neighbours: what is sent there is gone, and nobody says so.
        let setup = "mount --bind \"$FRESHROOT_TEST_NAMESPACE/hosts\" /etc/hosts; ip link add hole type veth peer other; \
                     ip link set other up; ip link set hole arp off up; ip addr add 2001:db8::1/64 dev hole nodad";
        in_namespaces(name, folder.path(), setup);
        return;
    }
    let addresses: Vec<_> = "images.test:80".to_socket_addrs().unwrap().collect();
    assert!(addresses[0].is_ipv6() && addresses.len() == 2, "IPv6 comes first: {addresses:?}");
    let limits = Limits {
        connect: Duration::from_secs(2),
        stall: Duration::from_secs(2),
    };
    let bench = Bench::by(vec![honest()], Options::new(limits));
    let mirrors = vec![bench.mirrors[0].replace("127.0.0.1", "images.test")];
    let bench = Bench { mirrors, ..bench };
    let started = Instant::now();
    bench.fetch().unwrap();
    bench.assert_committed();
    let client = &bench.client;
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
    // It is the black hole that it is taken for.
    let started = Instant::now();
    let told = get(client, "http://[2001:db8::2]:80/").unwrap_err().to_string();
    assert!(told.contains("[2001:db8::2]:80 does not answer"), "{told}");
    assert!(started.elapsed() >= Duration::from_secs(2), "{:?}", started.elapsed());
}
