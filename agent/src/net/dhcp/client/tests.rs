#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::disallowed_types
)]
use super::super::message::tests::answer;
use super::*;
use proptest::prelude::*;

const MAC: Mac = Mac::new([2, 0, 0, 0, 0, 1]);
const SERVER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 9);

fn config() -> Config {
    Config {
        mac: MAC,
        hostname: Some("web-1".to_owned()),
        requested: None,
        first_retry: Duration::from_secs(4),
        longest_retry: Duration::from_secs(64),
    }
}

fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn from_server(client: &Client, kind: Kind) -> Message {
    let lease = |code: u8, s: u32| (code, s.to_be_bytes().to_vec());
    let options = vec![(code::SERVER_ID, SERVER.octets().to_vec()), lease(code::LEASE_TIME, 800)];
    answer(kind, client.xid, MAC, ADDRESS, options)
}

/// The message that a single action sends.
fn sent(actions: &[Action]) -> (Way, &Message) {
    match actions {
        [Action::Send(way, message)] => (*way, message),
        other => panic!("not one message: {other:?}"),
    }
}

fn due(client: &mut Client) -> (Instant, Vec<Action>) {
    let at = client.next_timer().expect("a timer");
    (at, client.handle(at, Event::Timer))
}

fn bound() -> (Client, Instant) {
    let mut client = Client::new(config(), 7, Instant::now());
    let (at, _) = due(&mut client);
    let offer = from_server(&client, Kind::Offer);
    client.handle(at, Event::Received(&offer));
    let ack = from_server(&client, Kind::Ack);
    assert!(matches!(client.handle(at + s(1), Event::Received(&ack))[..], [Action::Configure { since, .. }] if since == at));
    (client, at)
}

#[test]
fn an_offer_is_requested_and_an_acknowledgement_configures() {
    let mut client = Client::new(config(), 7, Instant::now());
    let (at, actions) = due(&mut client);
    let (way, discover) = sent(&actions);
    assert_eq!((way, discover.kind, discover.broadcast), (Way::Frame, Kind::Discover, true));
    assert_eq!(discover.option(code::CLIENT_ID), Some(&[1, 2, 0, 0, 0, 0, 1][..]));
    assert_eq!(discover.text(code::VENDOR_CLASS), Some("freshroot"));
    assert_eq!(discover.text(code::HOST_NAME), Some("web-1"));
    let offer = from_server(&client, Kind::Offer);
    let actions = client.handle(at, Event::Received(&offer));
    let (way, request) = sent(&actions);
    assert_eq!((way, request.kind), (Way::Frame, Kind::Request));
    assert_eq!(
        (request.address(code::REQUESTED_ADDRESS), request.address(code::SERVER_ID)),
        (Some(ADDRESS), Some(SERVER))
    );
    assert!(client.needs_frames());
    let ack = from_server(&client, Kind::Ack);
    assert!(matches!(client.handle(at, Event::Received(&ack))[..], [Action::Configure { .. }]));
    assert!(!client.needs_frames());
}

#[test]
fn discovers_are_repeated_at_doubling_delays_with_a_second_of_jitter_up_to_the_longest() {
    let mut client = Client::new(config(), 99, Instant::now());
    let (mut last, _) = due(&mut client);
    for base in [4, 8, 16, 32, 64, 64, 64] {
        let (at, actions) = due(&mut client);
        assert_eq!(sent(&actions).1.kind, Kind::Discover);
        let delay = at - last;
        assert!(delay >= s(base - 1) && delay <= s(base + 1), "{delay:?} is not {base} s ± 1 s");
        last = at;
    }
    assert_eq!(client.discovers(), 8);
}

#[test]
fn answers_to_others_are_passed_over() {
    let mut client = Client::new(config(), 7, Instant::now());
    let (at, _) = due(&mut client);
    let offer = from_server(&client, Kind::Offer);
    for wrong in [
        Message {
            xid: offer.xid ^ 1,
            ..offer.clone()
        },
        Message {
            chaddr: Mac::new([9; 6]),
            ..offer.clone()
        },
        Message { op: 1, ..offer.clone() },
        Message {
            kind: Kind::Ack,
            ..offer.clone()
        },
        Message {
            yiaddr: Ipv4Addr::UNSPECIFIED,
            ..offer.clone()
        },
    ] {
        assert_eq!(client.handle(at, Event::Received(&wrong)), Vec::new(), "{wrong:?}");
    }
}

#[test]
fn a_silent_server_is_asked_four_times_for_its_offer_and_then_one_starts_over() {
    let mut client = Client::new(config(), 7, Instant::now());
    let (at, _) = due(&mut client);
    let offer = from_server(&client, Kind::Offer);
    client.handle(at, Event::Received(&offer));
    let kinds: Vec<Kind> = (0..4).map(|_| sent(&due(&mut client).1).1.kind).collect();
    assert_eq!(kinds, [Kind::Request, Kind::Request, Kind::Request, Kind::Discover]);
}

#[test]
fn a_refusal_starts_over_after_a_pause() {
    let mut client = Client::new(config(), 7, Instant::now());
    let (at, _) = due(&mut client);
    let offer = from_server(&client, Kind::Offer);
    client.handle(at, Event::Received(&offer));
    let nak = from_server(&client, Kind::Nak);
    assert_eq!(client.handle(at, Event::Received(&nak)), Vec::new());
    assert_eq!(client.next_timer(), Some(at + AFTER_NAK));
    assert_eq!(sent(&due(&mut client).1).1.kind, Kind::Discover);
}

#[test]
fn a_lease_is_renewed_at_t1_with_its_server_and_counts_from_that_request() {
    let (mut client, since) = bound();
    let (at, actions) = due(&mut client);
    let (way, request) = sent(&actions);
    assert_eq!((at, way), (since + s(400), Way::Unicast(SERVER)));
    assert_eq!((request.ciaddr, request.broadcast), (ADDRESS, false));
    assert_eq!(
        (request.option(code::SERVER_ID), request.option(code::REQUESTED_ADDRESS)),
        (None, None),
        "RFC 2131 table 5"
    );
    let ack = from_server(&client, Kind::Ack);
    assert!(matches!(client.handle(at + s(2), Event::Received(&ack))[..], [Action::Configure { since, .. }] if since == at));
    assert_eq!(client.next_timer(), Some(at + s(400)));
}

#[test]
fn nobody_renewing_means_rebinding_at_t2_and_the_end_at_the_end() {
    let (mut client, since) = bound();
    let mut ways = Vec::new();
    loop {
        let (at, actions) = due(&mut client);
        if let [Action::Deconfigure(gone)] = actions[..] {
            assert_eq!((at, gone), (since + s(800), Gone::Expired));
            break;
        }
        ways.push(((at - since).as_secs(), sent(&actions).0));
    }
    let server = Way::Unicast(SERVER);
    assert_eq!(
        ways,
        [
            (400, server),
            (550, server),
            (625, server),
            (685, server),
            (700, Way::Broadcast),
            (760, Way::Broadcast)
        ]
    );
    assert_eq!(sent(&due(&mut client).1).1.kind, Kind::Discover);
}

/// A machine that was suspended, or whose clock stood still: the address belongs to somebody else by now, and nothing is sent from it.
#[test]
fn who_wakes_up_after_the_end_of_a_lease_has_none() {
    let (mut client, since) = bound();
    for late in [s(800), s(100_000)] {
        let mut client = client.clone();
        assert_eq!(client.handle(since + late, Event::Timer), [Action::Deconfigure(Gone::Expired)]);
        assert_eq!(sent(&due(&mut client).1).1.kind, Kind::Discover);
    }
    assert_eq!(sent(&client.handle(since + s(799), Event::Timer)).0, Way::Broadcast);
}

#[test]
fn a_refused_renewal_takes_the_address_away() {
    let (mut client, _) = bound();
    let (at, _) = due(&mut client);
    let nak = from_server(&client, Kind::Nak);
    assert_eq!(client.handle(at, Event::Received(&nak)), vec![Action::Deconfigure(Gone::Refused)]);
}

#[test]
fn a_client_that_is_hurried_asks_again_at_once_unless_it_has_an_answer() {
    let mut client = Client::new(config(), 7, Instant::now());
    let (at, _) = due(&mut client);
    client.hurry(at);
    assert_eq!(sent(&client.handle(at, Event::Timer)).1.kind, Kind::Discover);
    let (mut client, since) = bound();
    client.hurry(since);
    assert_eq!(client.next_timer(), Some(since + s(400)));
}

#[test]
fn a_timer_that_is_not_due_does_nothing() {
    let (mut client, since) = bound();
    assert_eq!(client.handle(since + s(399), Event::Timer), Vec::new());
}

proptest! {
    #[test]
    fn whatever_servers_answer_the_client_always_has_a_next_step(
        seed: u64,
        events in proptest::collection::vec((0u8..9, 0u64..2000, proptest::option::of(0u32..4000)), 1..60),
    ) {
        let mut now = Instant::now();
        let mut client = Client::new(config(), seed, now);
        for (kind, passed, lease) in events {
            now += s(passed);
            let mut message = from_server(&client, match kind { 0 | 1 => Kind::Offer, 2 | 3 => Kind::Ack, 4 => Kind::Nak, _ => Kind::Inform });
            if let Some(lease) = lease {
                message.options[1].1 = lease.to_be_bytes().to_vec();
            }
            if kind > 4 { client.handle(now, Event::Timer); } else { client.handle(now, Event::Received(&message)); }
            prop_assert!(client.next_timer().is_some());
        }
    }
}
