//! Networks that are slow, half broken, or not what they say; and clocks that are wrong.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::Scenario;
use crate::command::Tool;
use crate::lab::CHANNEL;
use crate::lan::{LATER, Lan, ROUTER};
use crate::line::Line;
use crate::qemu::Nic;
use crate::trial::{Booted, Trial, cache_content, closed_port, must_power_off};

/// Of each chunk of an image but the last, as `freshroot-publish` makes them.
const CHUNK: u64 = 1 << 20;
const TOOL_LIMIT: Duration = Duration::from_secs(30);

/// The tests of this file.
pub const ALL: &[Scenario] = &[
    Scenario::new(
        "slow-link",
        "a link of 256 kbit/s without anything else to boot is waited for, and a lease is renewed meanwhile",
        slow_link,
    ),
    Scenario::new(
        "dns-late",
        "a name that does not exist leads to the next mirror, and a DNS server that comes late is waited for",
        late_dns,
    ),
    Scenario::new(
        "dns-dead-aaaa",
        "an address that nobody answers at does not hold up the other",
        dead_aaaa,
    ),
    Scenario::new("portal", "a captive portal is named, and the cache boots", portal),
    Scenario::new(
        "slow-loris",
        "a server that sends a byte a second costs no more than policy.wait",
        loris,
    ),
    Scenario::new(
        "stall-mirror",
        "a mirror that stalls in the middle of an image is left for the next one, which sends the rest",
        stall,
    ),
    Scenario::new(
        "clock-1970",
        "a machine whose clock says 1970 boots over https, by the clock's floor",
        clock_1970,
    ),
    Scenario::new(
        "clock-2050",
        "a machine whose clock says 2050 names it where https fails, and takes what is signed from the next mirror",
        clock_2050,
    ),
];

/// What the report warns of.
fn warnings(booted: &Booted) -> String {
    booted.report.pointer("/warnings").map(ToString::to_string).unwrap_or_default()
}

fn slow_link(trial: &Trial<'_>) -> Result<()> {
    let served = trial.lab.served(1)?;
    let (digest, _) = served.image(CHANNEL)?;
    let file = format!("/freshroot/images/{digest}.squashfs");
    let disk = trial.filled_cache()?;
    let mut bytes = disk.read(&file)?;
    const BAD: [u64; 3] = [1, 10, 20];
    for number in BAD {
        let byte = bytes.get_mut((number * CHUNK) as usize).context("the image has fewer chunks")?;
        *byte ^= 1;
    }
    disk.overwrite(&file, &bytes)?;
    let mut lan = Lan::new()?;
    // The shortest lease that dnsmasq gives: it is renewed after a minute.
    lan.dhcp("2m", &["--port=0"])?;
    lan.limit("256kbit")?;
    let server = trial.serve_in(&lan, &served)?;
    let booted = trial
        .boot()
        // A chunk alone takes 33 s: that bytes come is what counts.
        .config(json!({ "policy": { "wait": "20s", "fetchWait": "20s" } }))
        .disk(&disk)
        .nic(Nic::on(&lan))
        .words(&format!("freshroot.url=http://{}", server.address()))
        .patience(4)
        .once("boot")?;
    let received = booted.number("/bytes/received")?;
    ensure!(
        (BAD.len() as u64 * CHUNK..BAD.len() as u64 * CHUNK + (64 << 10)).contains(&received),
        "{received} bytes were received for {} bad chunks: {}",
        BAD.len(),
        booted.report
    );
    let renewed = lan.said("DHCPREQUEST");
    ensure!(renewed >= 2, "the lease was asked for {renewed} times only");
    ensure!(cache_content(&disk)?.contains(&(file, digest)), "the image is not whole");
    Ok(())
}

fn late_dns(trial: &Trial<'_>) -> Result<()> {
    let served = trial.lab.served(1)?;
    let mut lan = Lan::new()?;
    lan.dhcp("1h", &["--port=0", &format!("--dhcp-option=option:dns-server,{LATER}")])?;
    let server = trial.serve_in(&lan, &served)?;
    let port = server.address().port();
    let mut vm = trial
        .boot()
        .disk(&trial.empty_cache()?)
        .nic(Nic::on(&lan))
        .words(&format!(
            "\"freshroot.url=http://nowhere.lan:{port} http://images.lan:{port}\" demo.then=poweroff"
        ))
        .start("boot")?;
    // Both names were looked for, and nobody was there to ask.
    vm.wait_for(&["images.lan"])?;
    vm.wait_for(&["nowhere.lan"])?;
    lan.dns(LATER, &[&format!("--host-record=images.lan,{ROUTER}")])?;
    let booted = Booted::read(&mut vm)?;
    must_power_off(&mut vm)?;
    ensure!(
        booted.generation()? == 1 && booted.text("/source") == "network",
        "report: {}",
        booted.report
    );
    ensure!(lan.said("images.lan is 10.77.0.1") > 0, "the DNS server was never asked");
    Ok(())
}

fn dead_aaaa(trial: &Trial<'_>) -> Result<()> {
    let served = trial.lab.served(1)?;
    let mut lan = Lan::new()?;
    lan.dhcp(
        "1h",
        &[
            // The address by advertisement comes first, so that both families are there when the server is asked.
            "--dhcp-reply-delay=5",
            "--enable-ra",
            "--dhcp-range=fd77::,ra-only",
            "--local=/lan/",
            "--log-queries",
            &format!("--host-record=images.lan,{ROUTER},fd77::dead"),
        ],
    )?;
    let server = trial.serve_in(&lan, &served)?;
    let booted = trial
        .boot()
        // Whoever asked one address after the other would have no time left for the second: the first is given up after three seconds.
        .config(json!({ "transfer": { "connect": "1s" } }))
        .disk(&trial.empty_cache()?)
        .nic(Nic::on(&lan))
        .words(&format!("freshroot.url=http://images.lan:{}", server.address().port()))
        .once("boot")?;
    ensure!(
        booted.generation()? == 1 && booted.text("/source") == "network",
        "report: {}",
        booted.report
    );
    ensure!(lan.said("images.lan is fd77::dead") > 0, "the dead address was never asked for");
    let addresses = booted
        .report
        .pointer("/network/addresses")
        .map(ToString::to_string)
        .unwrap_or_default();
    ensure!(
        addresses.contains("fd77:"),
        "the machine had no address of that family: {addresses}"
    );
    Ok(())
}

/// A server that answers every request with what `answer` makes of its path; none: a byte a second, for ever.
struct Impostor {
    address: SocketAddr,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Impostor {
    fn new(answer: fn(&str) -> Option<String>) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").context("listening on loopback")?;
        let address = listener.local_addr().context("reading the own address")?;
        let over = Arc::new(AtomicBool::new(false));
        let theirs = Arc::clone(&over);
        let thread = std::thread::spawn(move || {
            let mut conversations = Vec::new();
            for stream in listener.incoming().map_while(Result::ok) {
                if theirs.load(Ordering::SeqCst) {
                    break;
                }
                let over = Arc::clone(&theirs);
                conversations.push(std::thread::spawn(move || {
                    // A client that has had enough ends it.
                    if let Err(error) = converse(stream, answer, &over) {
                        eprintln!("impostor: {error}");
                    }
                }));
            }
            for conversation in conversations {
                if conversation.join().is_err() {
                    eprintln!("impostor: a conversation panicked");
                }
            }
        });
        Ok(Self {
            address,
            over,
            thread: Some(thread),
        })
    }
}

fn converse(mut stream: TcpStream, answer: fn(&str) -> Option<String>, over: &AtomicBool) -> std::io::Result<()> {
    let mut first = String::new();
    let mut reader = BufReader::new(stream.try_clone()?);
    reader.read_line(&mut first)?;
    for line in reader.lines().map_while(Result::ok) {
        if line.is_empty() {
            break;
        }
    }
    let path = first.split(' ').nth(1).unwrap_or_default();
    match answer(path) {
        Some(answer) => stream.write_all(answer.as_bytes()),
        None => {
            for byte in b"HTTP/1.1 200 OK\r\nX-Slow: ".iter().chain(b"z".iter().cycle()) {
                if over.load(Ordering::SeqCst) || stream.write_all(&[*byte]).is_err() {
                    break;
                }
                // The pace is what the server is, not a wait for anything.
                std::thread::park_timeout(Duration::from_secs(1));
            }
            Ok(())
        }
    }
}

impl Drop for Impostor {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        // Wakes the listener, which then sees that it is over.
        if let Err(error) = TcpStream::connect(self.address) {
            eprintln!("impostor: {error}");
            return;
        }
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            eprintln!("impostor: its thread panicked");
        }
    }
}

fn portal(trial: &Trial<'_>) -> Result<()> {
    let portal = Impostor::new(|path| {
        let page = "<!DOCTYPE html><title>Welcome</title><p>Please log in.</p>";
        Some(if path == "/login" {
            format!(
                "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{page}",
                page.len()
            )
        } else {
            "HTTP/1.1 302 Found\r\nLocation: /login\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".to_owned()
        })
    })?;
    let warned = cached_boots(trial, &portal, "10s")?;
    ensure!(warned.contains("captive portal"), "the portal is not named: {warned}");
    Ok(())
}

fn loris(trial: &Trial<'_>) -> Result<()> {
    let loris = Impostor::new(|_| None)?;
    cached_boots(trial, &loris, "5s").map(drop)
}

/// Channel mode, generation 1 in the cache and an impostor on the network: generation 1 boots, and the cache is as before. Returns what was warned of.
fn cached_boots(trial: &Trial<'_>, impostor: &Impostor, wait: &str) -> Result<String> {
    let disk = trial.filled_cache()?;
    let before = cache_content(&disk)?;
    let booted = trial
        .boot()
        .config(json!({ "policy": { "wait": wait } }))
        .disk(&disk)
        .server(impostor.address.port())
        .once("boot")?;
    ensure!(
        booted.generation()? == 1 && booted.text("/source") == "cache" && booted.number("/requests")? > 0,
        "report: {}",
        booted.report
    );
    ensure!(cache_content(&disk)? == before, "images or generations have changed");
    let warned = warnings(&booted);
    ensure!(
        warned.contains(&impostor.address.port().to_string()),
        "the server is not named: {warned}"
    );
    Ok(warned)
}

fn stall(trial: &Trial<'_>) -> Result<()> {
    let served = trial.lab.served(1)?;
    let (_, size) = served.image(CHANNEL)?;
    let server = trial.serve(&served)?;
    let line = Line::open(server.address())?;
    line.hold_at(size / 2);
    let disk = trial.empty_cache()?;
    let booted = trial
        .boot()
        .config(json!({ "transfer": { "stall": "3s" } }))
        .disk(&disk)
        .nic(Nic::plain())
        .words(&format!(
            "\"freshroot.url=http://10.0.2.2:{} http://10.0.2.2:{}\"",
            line.port(),
            server.address().port()
        ))
        .once("boot")?;
    let received = booted.number("/bytes/received")?;
    ensure!(
        booted.generation()? == 1 && line.received() == size / 2 && received < size + 2 * CHUNK,
        "{received} bytes were received for an image of {size}: {}",
        booted.report
    );
    Ok(())
}

/// Files for a server over TLS, valid from 2026 to 2046; the certificate is for the host as machines see it.
struct Certificate {
    authority: PathBuf,
    key: PathBuf,
}

impl Certificate {
    fn make(dir: &Path) -> Result<Self> {
        let (authority, key) = (dir.join("server.pem"), dir.join("server.key"));
        let (request, config) = (dir.join("server.csr"), dir.join("openssl.cnf"));
        let text = format!(
            "[ca]\ndefault_ca=own\n[own]\ndatabase={0}/index\nserial={0}/serial\nnew_certs_dir={0}\ndefault_md=sha256\npolicy=any\nx509_extensions=server\n\
             [any]\ncommonName=supplied\n[server]\nsubjectAltName=IP:10.0.2.2\nbasicConstraints=critical,CA:FALSE\n",
            dir.display()
        );
        for (path, text) in [(&config, text.as_str()), (&dir.join("index"), ""), (&dir.join("serial"), "01\n")] {
            fs::write(path, text).with_context(|| format!("writing {}", path.display()))?;
        }
        let openssl = || Tool::new("openssl", TOOL_LIMIT);
        openssl()
            .args([
                "req",
                "-new",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:prime256v1",
                "-nodes",
                "-subj",
                "/CN=10.0.2.2",
            ])
            .arg("-keyout")
            .arg(&key)
            .arg("-out")
            .arg(&request)
            .run()?;
        openssl()
            .args([
                "ca",
                "-batch",
                "-selfsign",
                "-notext",
                "-startdate",
                "20260101000000Z",
                "-enddate",
                "20460101000000Z",
            ])
            .arg("-config")
            .arg(&config)
            .arg("-keyfile")
            .arg(&key)
            .arg("-in")
            .arg(&request)
            .arg("-out")
            .arg(&authority)
            .run()?;
        Ok(Self { authority, key })
    }
}

/// OpenSSL's own small server. It knows no ranges and no lengths, and ends each answer with its connection.
struct Secure(Child);

impl Secure {
    fn start(certificate: &Certificate, folder: &Path, port: u16, log: &Path) -> Result<Self> {
        let log = fs::File::create(log).with_context(|| format!("making {}", log.display()))?;
        let child = crate::lan::command(None, Path::new("openssl"))
            .args(["s_server", "-WWW", "-accept", &format!("127.0.0.1:{port}"), "-cert"])
            .arg(&certificate.authority)
            .arg("-key")
            .arg(&certificate.key)
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("sharing the log")?)
            .stderr(log)
            .spawn()
            .context("starting openssl s_server")?;
        Ok(Self(child))
    }
}

impl Drop for Secure {
    fn drop(&mut self) {
        if let Err(error) = self.0.kill().and_then(|()| self.0.wait()) {
            eprintln!("ending openssl: {error}");
        }
    }
}

fn clock_1970(trial: &Trial<'_>) -> Result<()> {
    let (booted, _) = by_clock(trial, "1970-01-02T00:00:00", "1970")?;
    ensure!(!warnings(&booted).contains("certificate"), "https failed: {}", booted.report);
    Ok(())
}

/// Not 2099: what QEMU's clock makes of that is 2062. Later than the certificate is what counts.
fn clock_2050(trial: &Trial<'_>) -> Result<()> {
    let (_, said) = by_clock(trial, "2050-01-02T00:00:00", "2050")?;
    ensure!(
        said.contains("certificate expired at 2046-01-01") && said.contains("clock says 2050-01-02"),
        "the console does not name the clock"
    );
    Ok(())
}

/// A cold boot from a server over TLS, with one over plain HTTP behind it, on a machine whose clock says `time`.
fn by_clock(trial: &Trial<'_>, time: &str, year: &str) -> Result<(Booted, String)> {
    let served = trial.lab.served(1)?;
    let certificate = Certificate::make(&trial.dir)?;
    let port = closed_port()?.port();
    let _secure = Secure::start(&certificate, served.dir(), port, &trial.dir.join("openssl.log"))?;
    let plain = trial.serve(&served)?;
    let disk = trial.empty_cache()?;
    let mut vm = trial
        .boot()
        .config(json!({ "http": { "caFile": "/etc/freshroot/ca.pem" } }))
        .file("/etc/freshroot/ca.pem", &certificate.authority)
        .disk(&disk)
        .nic(Nic::plain())
        .clock(time)
        // The running system has corrected it: systemd knows when it was made.
        .script("dmesg | grep -m1 -o 'setting system clock to [0-9]*'")
        .words(&format!(
            "\"freshroot.url=https://10.0.2.2:{port} http://10.0.2.2:{}\" demo.then=poweroff",
            plain.address().port()
        ))
        .patience(2)
        .start("boot")?;
    let mut booted = Booted::read(&mut vm)?;
    booted.read_script(&mut vm)?;
    must_power_off(&mut vm)?;
    ensure!(
        booted.script.contains(&format!("setting system clock to {year}")),
        "the machine's clock said {}",
        booted.script
    );
    ensure!(
        booted.generation()? == 1 && booted.text("/source") == "network",
        "report: {}",
        booted.report
    );
    Ok((booted, vm.said()))
}
