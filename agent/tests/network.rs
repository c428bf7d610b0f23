//! The network in real network namespaces: veth pairs as cables, dnsmasq as DHCP server and IPv6 router.
//!
//! Needs root, iproute2 and dnsmasq (Debian: `dnsmasq-base`); without them the tests fail and say so.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod support {
    pub mod bench;
    pub mod record;
    pub mod server;
    #[allow(dead_code, reason = "shared with other tests")]
    pub mod world;
}

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::net::IpAddr;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use freshroot::fetch::image::Patience;
use freshroot::http::{Limits, Options};
use freshroot::net::systems::wait_for_systems;
use freshroot::net::{Family, IpParam, NetError, NetPaths, NetSettings, Network, Summary, ip_param};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use support::bench::{Bench, honestly};
use support::server::Server;
use support::world::{CHUNK, SIZE};

/// Two namespaces: the machine that boots, and the network that it is plugged into.
struct Lab {
    machine: String,
    network: String,
    folder: tempfile::TempDir,
    servers: Vec<Child>,
}

static NEXT: AtomicU32 = AtomicU32::new(0);

fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program)
        .args(args)
        .output()
        .unwrap_or_else(|err| panic!("{program} cannot be run ({err}): install it"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{program} {}: {}", args.join(" "), text(&output.stderr));
    text(&output.stdout)
}

impl Lab {
    fn new() -> Self {
        assert!(
            nix::unistd::geteuid().is_root(),
            "these tests make network namespaces and need root: run them as root"
        );
        let id = format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let (machine, network) = (format!("fr-m-{id}"), format!("fr-n-{id}"));
        run("ip", &["netns", "add", &machine]);
        run("ip", &["netns", "add", &network]);
        Self {
            machine,
            network,
            folder: tempfile::tempdir().unwrap(),
            servers: Vec::new(),
        }
    }

    /// Runs a test as the machine. It has a thread of its own, as the namespace belongs to the thread.
    fn test(test: impl FnOnce(&mut Self) + Send) {
        let mut lab = Self::new();
        let outcome = thread::scope(|scope| {
            let lab = &mut lab;
            let machine = move || {
                let namespace = File::open(Path::new("/run/netns").join(&lab.machine)).unwrap();
                move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
                test(lab);
            };
            scope.spawn(machine).join()
        });
        if let Err(panic) = outcome {
            drop(lab);
            std::panic::resume_unwind(panic);
        }
    }

    /// A card in the machine with its cable in the network, which has these addresses there.
    fn card(&self, card: &str, port: &str, addresses: &[&str]) {
        run(
            "ip",
            &[
                "link",
                "add",
                card,
                "netns",
                &self.machine,
                "type",
                "veth",
                "peer",
                "name",
                port,
                "netns",
                &self.network,
            ],
        );
        for address in addresses {
            self.network(&["addr", "add", address, "dev", port]);
            // Without a wait for duplicates: dnsmasq cannot speak from an address that is not settled.
            if address.contains("::") {
                self.network(&["addr", "change", address, "dev", port, "nodad"]);
            }
        }
        self.network(&["link", "set", port, "up"]);
    }

    fn network(&self, args: &[&str]) -> String {
        run("ip", &[&["-n", &self.network], args].concat())
    }

    fn machine(&self, args: &[&str]) -> String {
        run("ip", &[&["-n", &self.machine], args].concat())
    }

    /// Everything that there is to see of the machine's network.
    fn state(&self) -> String {
        let mut state = String::new();
        for args in [
            &["-o", "addr"][..],
            &["route", "show", "table", "all"],
            &["-6", "route", "show", "table", "all"],
        ] {
            state.push_str(&self.machine(args));
        }
        for line in self.machine(&["-o", "link"]).lines() {
            // The name, the flags and the MTU; not the counters and queues behind them.
            state.push_str(line.split(" qdisc").next().unwrap());
            state.push('\n');
        }
        for name in ["accept_ra", "autoconf"] {
            state.push_str(&run(
                "ip",
                &["netns", "exec", &self.machine, "sysctl", &format!("net.ipv6.conf.eth0.{name}")],
            ));
        }
        state
    }

    /// Starts dnsmasq at a port of the network and returns its log, once it listens.
    fn dnsmasq(&mut self, port: &str, args: &[&str]) -> Receiver<String> {
        let leases = format!("--dhcp-leasefile={}", self.folder.path().join(format!("leases-{port}")).display());
        let interface = format!("--interface={port}");
        let fixed = [
            "--conf-file=/dev/null",
            "--no-daemon",
            "--log-facility=-",
            "--log-dhcp",
            "--port=0",
            "--user=root",
            "--pid-file",
            "--bind-interfaces",
            "--no-ping",
            "--dhcp-authoritative",
        ];
        let mut server = Command::new("ip")
            .args(["netns", "exec", &self.network, "dnsmasq", &leases, &interface])
            .args(fixed)
            .args(args)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (sender, log) = channel();
        let stderr = BufReader::new(server.stderr.take().unwrap());
        self.servers.push(server);
        thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        await_line(
            &log,
            if args.contains(&"--enable-ra") {
                "router advertisement"
            } else {
                "sockets bound"
            },
            1,
        );
        log
    }

    fn settings(&self) -> NetSettings {
        let root = self.folder.path();
        NetSettings {
            dhcp_first_retry: Duration::from_millis(500),
            paths: NetPaths {
                sys: root.join("sys"),
                resolv_conf: root.join("etc/resolv.conf"),
                hosts: root.join("etc/hosts"),
                ..NetPaths::default()
            },
            ..NetSettings::default()
        }
    }

    fn resolv_conf(&self) -> String {
        fs::read_to_string(self.folder.path().join("etc/resolv.conf")).unwrap()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for server in &mut self.servers {
            if let Err(err) = server.kill().and_then(|()| server.wait()) {
                eprintln!("ending dnsmasq: {err}");
            }
        }
        for namespace in [&self.machine, &self.network] {
            if let Err(err) = Command::new("ip").args(["netns", "del", namespace]).status() {
                eprintln!("removing {namespace}: {err}");
            }
        }
    }
}

/// Reads a log until this text has come so many times.
fn await_line(log: &Receiver<String>, text: &str, times: usize) {
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut seen = Vec::new();
    while seen.iter().filter(|line: &&String| line.contains(text)).count() < times {
        match log.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) => seen.push(line),
            Err(err) => panic!(
                "dnsmasq did not say «{text}» {times} times ({err}): is dnsmasq-base installed? It said:\n{}",
                seen.join("\n")
            ),
        }
    }
}

/// Waits until the network's thread tells of this.
fn await_summary(network: &Network, wanted: impl Fn(&Summary) -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !wanted(&network.summary()) {
        assert!(Instant::now() < deadline, "it stayed at {:?}", network.summary());
        thread::sleep(Duration::from_millis(20));
    }
}

fn up(settings: &NetSettings, seconds: u64) -> (Result<Network, NetError>, Vec<String>, Duration) {
    let began = Instant::now();
    let mut lines = Vec::new();
    let network = Network::bring_up(settings, began + Duration::from_secs(seconds), &mut |line| {
        lines.push(line.to_owned())
    });
    (network, lines, began.elapsed())
}

/// Reaches a host from the machine: nothing listens there, so a refusal is the answer.
fn reach(host: &str) {
    let address = std::net::SocketAddr::new(host.parse().unwrap(), 9);
    let outcome = std::net::TcpStream::connect_timeout(&address, Duration::from_secs(3));
    assert!(
        outcome
            .as_ref()
            .is_err_and(|err| err.kind() == std::io::ErrorKind::ConnectionRefused),
        "{host}: {outcome:?}"
    );
}

fn parsed(params: &[&str]) -> Vec<IpParam> {
    params.iter().map(|p| ip_param::parse(p).unwrap()).collect()
}

const RANGE: &str = "--dhcp-range=192.0.2.50,192.0.2.60,255.255.255.0,2m";
const SERVER: &str = "192.0.2.1/24";

#[test]
fn a_lease_brings_address_routes_dns_and_mtu_and_tearing_down_leaves_nothing() {
    Lab::test(|lab| {
        lab.card("eth0", "srv0", &[SERVER]);
        let routes = "--dhcp-option=option:classless-static-route,0.0.0.0/0,192.0.2.1,198.51.100.0/24,192.0.2.7,203.0.113.5/32,0.0.0.0";
        let dns = ["--dhcp-option=option:dns-server,192.0.2.53,192.0.2.54", "--domain=lab.example"];
        lab.dnsmasq("srv0", &[RANGE, routes, dns[0], dns[1], "--dhcp-option=option:mtu,1400"]);
        let before = lab.state();
        let settings = NetSettings {
            dns: vec!["198.51.100.53".parse().unwrap()],
            hostname: Some("web-1".to_owned()),
            ..lab.settings()
        };
        let (network, lines, _) = up(&settings, 20);
        let network = network.unwrap_or_else(|err| panic!("{err}: {lines:?}"));
        let summary = network.summary();
        assert_eq!(summary.interface, "eth0");
        let range = "192.0.2.50".parse::<IpAddr>().unwrap()..="192.0.2.60".parse().unwrap();
        assert!(
            range.contains(&summary.addresses[0].address) && summary.addresses[0].length == 24,
            "{summary:?}"
        );
        assert_eq!(summary.gateways, ["192.0.2.1".parse::<IpAddr>().unwrap()]);
        assert_eq!((summary.lease_seconds, summary.leases), (Some(120), 1));
        let table = lab.machine(&["route"]);
        for route in [
            "default via 192.0.2.1 dev eth0 proto dhcp",
            "198.51.100.0/24 via 192.0.2.7 dev eth0 proto dhcp",
            "203.0.113.5 dev eth0 proto dhcp scope link",
        ] {
            assert!(table.contains(route), "«{route}» is missing in:\n{table}");
        }
        let expected = "nameserver 198.51.100.53\nnameserver 192.0.2.53\nnameserver 192.0.2.54\nsearch lab.example\n";
        assert!(lab.resolv_conf().contains(expected), "{}", lab.resolv_conf());
        assert!(
            fs::read_to_string(lab.folder.path().join("etc/hosts"))
                .unwrap()
                .contains("localhost")
        );
        assert!(lab.machine(&["link", "show", "eth0"]).contains("mtu 1400"));
        reach("192.0.2.1");
        assert_ne!(lab.state(), before);
        network.tear_down(false).unwrap();
        assert_eq!(lab.state(), before);
        assert!(lines.iter().any(|l| l.starts_with("waiting for a")), "{lines:?}");
    });
}

#[test]
fn what_is_kept_stays() {
    Lab::test(|lab| {
        lab.card("eth0", "srv0", &[SERVER]);
        lab.dnsmasq("srv0", &[RANGE]);
        let network = up(&lab.settings(), 20).0.unwrap();
        let address = network.summary().addresses[0].to_string();
        network.tear_down(true).unwrap();
        let kept = lab.machine(&["addr", "show", "eth0"]);
        assert!(
            kept.contains(&address) && kept.contains("valid_lft 1"),
            "the kernel knows when the lease ends:\n{kept}"
        );
        assert!(lab.machine(&["route"]).contains("default via 192.0.2.1"));
    });
}

#[test]
fn a_short_lease_is_renewed_in_the_background() {
    Lab::test(|lab| {
        lab.card("eth0", "srv0", &[SERVER]);
        let log = lab.dnsmasq("srv0", &[RANGE, "--dhcp-option=option:T1,3", "--dhcp-option=option:T2,60"]);
        let network = up(&lab.settings(), 20).0.unwrap();
        let address = network.summary().addresses.clone();
        await_line(&log, "DHCPACK", 3);
        network.tear_down(false).unwrap();
        assert_eq!(address.len(), 1);
    });
}

#[test]
fn a_lease_that_the_server_refuses_to_renew_is_replaced() {
    Lab::test(|lab| {
        lab.card("eth0", "srv0", &[SERVER]);
        let log = lab.dnsmasq("srv0", &[RANGE, "--dhcp-option=option:T1,3", "--dhcp-option=option:T2,60"]);
        let network = up(&lab.settings(), 20).0.unwrap();
        let first = network.summary().addresses[0];
        await_line(&log, "DHCPACK", 1);
        // The network is renumbered: an authoritative server refuses what it would not have given.
        let mut old = lab.servers.pop().unwrap();
        old.kill().unwrap();
        old.wait().unwrap();
        let log = lab.dnsmasq("srv0", &["--dhcp-range=192.0.2.150,192.0.2.160,255.255.255.0,2m"]);
        await_line(&log, "DHCPNAK", 1);
        await_line(&log, "DHCPACK", 1);
        await_summary(&network, |now| now.addresses.first().is_some_and(|now| *now != first));
        let addresses = lab.machine(&["-4", "addr", "show", "eth0"]);
        let second = network.summary().addresses[0];
        let range = "192.0.2.150".parse::<IpAddr>().unwrap()..="192.0.2.160".parse().unwrap();
        assert!(range.contains(&second.address), "{second}");
        assert!(
            addresses.contains(&second.to_string()) && !addresses.contains(&first.to_string()),
            "{addresses}"
        );
        network.tear_down(false).unwrap();
    });
}

#[test]
fn row_18_a_download_goes_on_after_its_lease_was_renewed_and_its_address_taken_away() {
    Lab::test(|lab| {
        lab.card("eth0", "srv0", &[SERVER]);
        let times = ["--dhcp-option=option:T1,3", "--dhcp-option=option:T2,60"];
        lab.dnsmasq("srv0", &[&[RANGE], &times[..]].concat());
        let network = up(&lab.settings(), 20).0.unwrap();
        let first = network.summary().addresses[0];
        // The first answer takes fourteen seconds.
        let script = honestly(|ask, mut reply| {
            if ask.nth == 0 {
                (reply.pace, reply.piece) = (Some(Duration::from_millis(100)), SIZE / 140);
            }
            reply
        });
        let namespace = Path::new("/run/netns").join(&lab.network);
        let server = thread::spawn(move || {
            let namespace = File::open(namespace).unwrap();
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            Server::at([192, 0, 2, 1].into(), script)
        });
        let limits = Limits {
            connect: Duration::from_secs(5),
            stall: Duration::from_secs(1),
        };
        let bench = Bench::by(vec![server.join().unwrap()], Options::new(limits));
        let patience = Patience {
            without_progress: Duration::from_secs(20),
            ..bench.patience
        };
        let bench = Bench { patience, ..bench };
        thread::scope(|scope| {
            let download = scope.spawn(|| bench.fetch());
            // What the client has, and not what the server says: it says so before it sends.
            await_summary(&network, |now| now.leases == 2);
            assert_eq!(bench.servers[0].requests(), 1, "a renewal disturbs nothing");
            assert!(!download.is_finished());
            // The network is renumbered.
            let mut old = lab.servers.pop().unwrap();
            old.kill().unwrap();
            old.wait().unwrap();
            let log = lab.dnsmasq("srv0", &["--dhcp-range=192.0.2.150,192.0.2.160,255.255.255.0,2m"]);
            await_line(&log, "DHCPACK", 1);
            await_summary(&network, |now| now.addresses.first().is_some_and(|now| *now != first));
            download.join().unwrap().unwrap();
        });
        bench.assert_committed();
        let served = bench.servers[0].served();
        assert!(
            served.len() > 1 && served[1].ask.range().is_some_and(|(first, _)| first > 0),
            "{served:?}"
        );
        assert!(bench.received() <= SIZE + CHUNK, "{} bytes", bench.received());
        network.tear_down(false).unwrap();
    });
}

#[test]
fn a_carrier_that_comes_after_three_seconds_is_waited_for() {
    Lab::test(|lab| {
        lab.card("eth0", "srv0", &[SERVER]);
        lab.dnsmasq("srv0", &[RANGE]);
        lab.network(&["link", "set", "srv0", "down"]);
        let namespace = lab.network.clone();
        let plug = thread::spawn(move || {
            thread::sleep(Duration::from_secs(3));
            run("ip", &["-n", &namespace, "link", "set", "srv0", "up"]);
        });
        let (network, lines, took) = up(&lab.settings(), 20);
        plug.join().unwrap();
        network.unwrap().tear_down(false).unwrap();
        assert!(lines.contains(&"waiting for a carrier on eth0".to_owned()), "{lines:?}");
        assert!(took >= Duration::from_secs(3) && took < Duration::from_secs(8), "{took:?}");
    });
}

#[test]
fn a_card_whose_driver_comes_late_is_picked_up() {
    Lab::test(|lab| {
        let (machine, network) = (lab.machine.clone(), lab.network.clone());
        let driver = thread::spawn(move || {
            thread::sleep(Duration::from_secs(1));
            run(
                "ip",
                &[
                    "link", "add", "eth7", "netns", &machine, "type", "veth", "peer", "name", "srv0", "netns", &network,
                ],
            );
            run("ip", &["-n", &network, "link", "set", "srv0", "up"]);
        });
        let settings = NetSettings {
            ip: parsed(&["192.0.2.9::192.0.2.1:24"]),
            ..lab.settings()
        };
        let (network, lines, _) = up(&settings, 20);
        driver.join().unwrap();
        let network = network.unwrap_or_else(|err| panic!("{err}: {lines:?}"));
        assert_eq!(network.summary().interface, "eth7");
        assert_eq!(lines[0], "waiting for a network interface");
        network.tear_down(false).unwrap();
    });
}

#[test]
fn a_card_in_the_wrong_network_does_not_hold_the_right_one_up() {
    Lab::test(|lab| {
        lab.card("eth0", "dead0", &[]);
        lab.card("eth1", "srv0", &[SERVER]);
        lab.card("eth2", "dead2", &[]);
        lab.dnsmasq("srv0", &[RANGE]);
        let (network, lines, took) = up(&lab.settings(), 20);
        let network = network.unwrap_or_else(|err| panic!("{err}: {lines:?}"));
        assert_eq!(network.summary().interface, "eth1");
        assert!(took < Duration::from_secs(5), "{took:?}");
        for other in ["eth0", "eth2"] {
            assert!(lab.machine(&["link", "show", other]).contains("state DOWN"), "{other} is left up");
        }
        network.tear_down(false).unwrap();
    });
}

#[test]
fn bootif_chooses_the_card_even_if_another_would_be_up_first() {
    Lab::test(|lab| {
        lab.card("eth0", "srv0", &[SERVER]);
        lab.card("eth1", "srv1", &["198.51.100.1/24"]);
        lab.machine(&["link", "set", "eth1", "address", "52:54:00:ab:cd:ef"]);
        lab.dnsmasq("srv0", &[RANGE]);
        lab.dnsmasq("srv1", &["--dhcp-range=198.51.100.50,198.51.100.60,255.255.255.0,2m"]);
        let bootif = freshroot::net::Mac::parse_bootif("01-52-54-00-ab-cd-ef").unwrap();
        let network = up(
            &NetSettings {
                bootif: Some(bootif),
                ..lab.settings()
            },
            20,
        )
        .0
        .unwrap();
        assert_eq!(network.summary().interface, "eth1");
        assert!(
            lab.machine(&["link", "show", "eth0"]).contains("state DOWN"),
            "the other card is left alone"
        );
        network.tear_down(false).unwrap();
    });
}

#[test]
fn static_addresses_of_both_families_need_nobody() {
    Lab::test(|lab| {
        lab.card("eth0", "srv0", &[SERVER, "2001:db8:1::1/64"]);
        let before = lab.state();
        let ip = [
            "192.0.2.10::192.0.2.1:255.255.255.0::eth0:none:192.0.2.53",
            "[2001:db8:1::10]::[2001:db8:1::1]:64::eth0:none",
        ];
        let (network, lines, took) = up(
            &NetSettings {
                ip: parsed(&ip),
                ..lab.settings()
            },
            10,
        );
        let network = network.unwrap_or_else(|err| panic!("{err}: {lines:?}"));
        assert!(took < Duration::from_secs(2), "{took:?}");
        assert!(lab.machine(&["route"]).contains("default via 192.0.2.1 dev eth0"));
        assert!(lab.machine(&["-6", "route"]).contains("default via 2001:db8:1::1 dev eth0"));
        assert!(lab.resolv_conf().contains("nameserver 192.0.2.53\n"));
        reach("192.0.2.1");
        network.tear_down(false).unwrap();
        assert_eq!(lab.state(), before);
    });
}

const RA: [&str; 4] = [
    "--enable-ra",
    "--dhcp-range=2001:db8:1::,ra-only",
    "--dhcp-option=option6:dns-server,[2001:db8:1::53]",
    "--dhcp-option=option6:domain-search,six.example",
];

#[test]
fn a_router_alone_brings_ipv6_with_its_dns_servers() {
    Lab::test(|lab| {
        lab.card("eth0", "srv0", &["2001:db8:1::1/64"]);
        lab.dnsmasq("srv0", &RA);
        let before = lab.state();
        let (network, lines, _) = up(&lab.settings(), 20);
        let network = network.unwrap_or_else(|err| panic!("{err}: {lines:?}"));
        let summary = network.summary();
        assert!(summary.addresses[0].to_string().starts_with("2001:db8:1:"), "{summary:?}");
        assert!(summary.gateways[0].to_string().starts_with("fe80:"), "{summary:?}");
        let resolv = lab.resolv_conf();
        assert!(resolv.contains("nameserver 2001:db8:1::53\nsearch six.example\n"), "{resolv}");
        reach("2001:db8:1::1");
        network.tear_down(false).unwrap();
        assert_eq!(lab.state(), before);
    });
}

#[test]
fn a_link_that_was_up_before_stays_up_and_loses_what_the_router_gave() {
    Lab::test(|lab| {
        lab.card("eth0", "srv0", &["2001:db8:1::1/64"]);
        run(
            "ip",
            &["netns", "exec", &lab.machine, "sysctl", "-qw", "net.ipv6.conf.eth0.accept_ra=0"],
        );
        lab.machine(&["link", "set", "eth0", "up"]);
        lab.dnsmasq("srv0", &RA);
        let (network, lines, _) = up(&lab.settings(), 30);
        network.unwrap_or_else(|err| panic!("{err}: {lines:?}")).tear_down(false).unwrap();
        let after = lab.state();
        assert!(after.contains("state UP") || after.contains(",UP,"), "{after}");
        assert!(!after.contains("2001:db8:1:"), "{after}");
        assert!(!after.contains("default"), "{after}");
    });
}

#[test]
fn the_family_that_is_needed_is_waited_for_and_the_other_comes_along() {
    Lab::test(|lab| {
        lab.card("eth0", "srv0", &[SERVER, "2001:db8:1::1/64"]);
        lab.dnsmasq("srv0", &[&RA[..], &[RANGE]].concat());
        let network = up(
            &NetSettings {
                family: Some(Family::V6),
                ..lab.settings()
            },
            20,
        )
        .0
        .unwrap();
        let addresses = network.summary().addresses;
        assert!(
            addresses.iter().any(|a| a.address.is_ipv6()) && addresses.iter().any(|a| a.address.is_ipv4()),
            "{addresses:?}"
        );
        network.tear_down(false).unwrap();
    });
}

#[test]
fn a_dhcp_server_that_comes_late_adds_ipv4_to_a_network_that_is_up() {
    Lab::test(|lab| {
        lab.card("eth0", "srv0", &[SERVER, "2001:db8:1::1/64"]);
        lab.dnsmasq("srv0", &RA);
        let before = lab.state();
        let network = up(&lab.settings(), 20).0.unwrap();
        assert!(network.summary().addresses.iter().all(|a| a.address.is_ipv6()));
        let log = lab.dnsmasq("srv0", &[RANGE, "--dhcp-option=option:dns-server,192.0.2.53"]);
        await_line(&log, "DHCPACK", 1);
        await_summary(&network, |now| now.dns.len() == 2);
        let summary = network.summary();
        assert!(summary.addresses[0].address.is_ipv4(), "{summary:?}");
        assert!(
            lab.resolv_conf().contains("nameserver 192.0.2.53\nnameserver 2001:db8:1::53\n"),
            "{}",
            lab.resolv_conf()
        );
        network.tear_down(false).unwrap();
        assert_eq!(lab.state(), before);
    });
}

#[test]
fn nobody_answering_is_told_at_the_deadline_and_leaves_nothing() {
    Lab::test(|lab| {
        lab.card("eth0", "dead0", &[]);
        let before = lab.state();
        let (network, lines, took) = up(&lab.settings(), 5);
        let err = network.expect_err("no network");
        assert!(
            matches!(&err, NetError::NoLease { links, asked, .. } if links == &["eth0"] && *asked >= 2),
            "{err:?} {lines:?}"
        );
        assert!(took >= Duration::from_secs(5) && took < Duration::from_secs(6), "{took:?}");
        assert_eq!(lab.state(), before);
    });
}

#[test]
fn no_carrier_and_no_card_are_told_apart() {
    Lab::test(|lab| {
        let sys = lab.folder.path().join("sys/bus/pci/devices/0000:00:03.0");
        fs::create_dir_all(&sys).unwrap();
        for (name, text) in [("class", "0x020000\n"), ("vendor", "0x8086\n"), ("device", "0x100e\n")] {
            fs::write(sys.join(name), text).unwrap();
        }
        let err = up(&lab.settings(), 1).0.expect_err("no network");
        assert!(
            err.to_string().contains("[8086:100e]") && matches!(err, NetError::NoInterface { .. }),
            "{err}"
        );
        lab.card("eth0", "dead0", &[]);
        lab.network(&["link", "set", "dead0", "down"]);
        let err = up(&lab.settings(), 1).0.expect_err("no network");
        assert!(matches!(&err, NetError::NoCarrier { links, .. } if links == &["eth0"]), "{err}");
        let err = up(
            &NetSettings {
                interface: Some("eth9".to_owned()),
                ..lab.settings()
            },
            1,
        )
        .0
        .expect_err("no network");
        assert!(
            err.to_string().contains("eth0 (not the interface that network.interface names)"),
            "{err}"
        );
        let err = up(
            &NetSettings {
                ip: parsed(&["off"]),
                ..lab.settings()
            },
            30,
        )
        .0
        .expect_err("no network");
        assert!(matches!(err, NetError::Off), "{err}");
    });
}

/// As when systemd-networkd is at work: an interface is set up, then has an address, then a route.
fn configure(lab: &Lab, card: &str, address: &str, gateway: Option<&str>) {
    lab.machine(&["link", "set", card, "up"]);
    lab.machine(&["addr", "add", address, "dev", card]);
    if let Some(gateway) = gateway {
        lab.machine(&["route", "add", "default", "via", gateway]);
    }
}

#[test]
fn a_network_that_somebody_else_configures_is_waited_for_and_a_second_card_costs_nothing() {
    Lab::test(|lab| {
        lab.card("eth0", "srv0", &[]);
        lab.card("eth1", "srv1", &[SERVER]);
        // Has a carrier, and nobody will ever give it an address.
        lab.machine(&["link", "set", "eth0", "up"]);
        let settings = lab.settings();
        let deadline = Instant::now() + Duration::from_secs(60);
        let mut lines = Vec::new();
        let summary = wait_for_systems(&settings, deadline, &mut |line| {
            // Once it is waited for: the rest comes by the kernel's events alone.
            if lines.is_empty() {
                configure(lab, "eth1", "192.0.2.7/24", Some("192.0.2.1"));
            }
            lines.push(line.to_owned());
        })
        .unwrap();
        assert!(Instant::now() < deadline, "{lines:?}");
        assert_eq!(
            (summary.interface.as_str(), summary.addresses[0].to_string().as_str()),
            ("eth1", "192.0.2.7/24")
        );
        assert_eq!(summary.gateways, ["192.0.2.1".parse::<IpAddr>().unwrap()]);
        assert!(
            lines.iter().any(|line| line.contains("eth0 has a carrier and no address")),
            "{lines:?}"
        );
        assert!(!lab.folder.path().join("etc/resolv.conf").exists(), "nothing is configured here");
        reach("192.0.2.1");
    });
}

#[test]
fn at_the_deadline_it_is_told_how_far_somebody_else_came() {
    Lab::test(|lab| {
        let wait =
            |settings: &NetSettings| wait_for_systems(settings, Instant::now() + Duration::from_millis(300), &mut |_| {}).unwrap_err();
        assert!(matches!(wait(&lab.settings()), NetError::NoInterface { .. }));
        lab.card("eth0", "srv0", &[SERVER]);
        assert!(matches!(wait(&lab.settings()), NetError::NoCarrier { links, .. } if links == ["eth0"]));
        configure(lab, "eth0", "fd00::7/64", None);
        let error = wait(&NetSettings {
            family: Some(Family::V4),
            ..lab.settings()
        });
        assert!(
            error.to_string().contains("eth0 has") && error.remedy().contains("network.by"),
            "{error}"
        );
        let named = NetSettings {
            interface: Some("eth7".to_owned()),
            ..lab.settings()
        };
        assert!(wait(&named).to_string().contains("left alone: eth0"));
    });
}
