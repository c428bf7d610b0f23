//! The server, asked by curl.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Stdio};

use freshroot::digest::Digest;

use super::images::program;

struct Server {
    child: Child,
    log: BufReader<ChildStderr>,
    url: String,
    folder: tempfile::TempDir,
}

impl Server {
    /// Serves a folder with `file` (ten digits) in it.
    fn start(options: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("root")).unwrap();
        fs::write(folder.path().join("root/file"), "0123456789").unwrap();
        let mut child = Command::new(program())
            .arg("serve")
            .arg(folder.path().join("root"))
            .args(["--listen", "127.0.0.1:0"])
            .args(options)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let url = line.trim_end().strip_prefix("listening on ").expect(&line).to_owned();
        let log = BufReader::new(child.stderr.take().unwrap());
        Self { child, log, url, folder }
    }

    fn root(&self) -> std::path::PathBuf {
        self.folder.path().join("root")
    }

    /// The next log line, cut into fields, without the client and the milliseconds.
    fn logged(&mut self) -> String {
        let mut line = String::new();
        self.log.read_line(&mut line).unwrap();
        let fields: Vec<_> = line.split_whitespace().collect();
        assert_eq!(fields.len(), 7, "{line}");
        assert!(fields[0].starts_with("127.0.0.1:"), "{line}");
        fields[6].parse::<u64>().unwrap();
        fields[1..6].join(" ")
    }

    fn curl(&self, path: &str, options: &[&str]) -> Reply {
        let output = Command::new("curl")
            .args(["--silent", "--show-error", "--include", "--path-as-is", "--max-time", "60"])
            .args(options)
            .arg(format!("{}{path}", self.url))
            .output()
            .expect("curl is needed: install it");
        assert!(
            output.status.success(),
            "{path} {options:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        let text = String::from_utf8(output.stdout).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        Reply {
            status: head.split(' ').nth(1).unwrap().parse().unwrap(),
            head: head.to_owned(),
            body: body.to_owned(),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

struct Reply {
    status: u16,
    head: String,
    body: String,
}

impl Reply {
    fn header(&self, name: &str) -> Option<&str> {
        self.head
            .lines()
            .filter_map(|line| line.split_once(": "))
            .find(|(found, _)| found.eq_ignore_ascii_case(name))
            .map(|(_, value)| value)
    }
}

#[test]
fn ranges_are_answered_and_logged_with_what_was_sent() {
    let mut server = Server::start(&[]);
    for (range, status, body, content_range) in [
        ("bytes=2-5", 206, "2345", Some("bytes 2-5/10")),
        ("bytes=-3", 206, "789", Some("bytes 7-9/10")),
        ("bytes=4-", 206, "456789", Some("bytes 4-9/10")),
        ("bytes=8-99", 206, "89", Some("bytes 8-9/10")),
        ("bytes=0-1,4-5", 200, "0123456789", None),
        ("bytes=5-2", 200, "0123456789", None),
        ("rubbish", 200, "0123456789", None),
        ("bytes=10-", 416, "", Some("bytes */10")),
        ("bytes=-0", 416, "", Some("bytes */10")),
    ] {
        let reply = server.curl("/file", &["--header", &format!("Range: {range}")]);
        assert_eq!((reply.status, reply.body.as_str()), (status, body), "{range}");
        assert_eq!(reply.header("content-range"), content_range, "{range}");
        assert_eq!(reply.header("content-length"), Some(body.len().to_string().as_str()), "{range}");
        assert_eq!(reply.header("accept-ranges"), Some("bytes"));
        assert_eq!(server.logged(), format!("GET /file {status} {} {range}", body.len()));
    }
}

#[test]
fn conditions_follow_the_entity_tag() {
    let mut server = Server::start(&[]);
    let first = server.curl("/file", &[]);
    let etag = first.header("etag").unwrap().to_owned();
    assert!(etag.starts_with('"'), "{etag}");
    assert_eq!(server.logged(), "GET /file 200 10 -");
    let again = server.curl("/file", &["--header", &format!("If-None-Match: {etag}")]);
    assert_eq!(
        (again.status, again.body.as_str(), again.header("etag")),
        (304, "", Some(etag.as_str()))
    );
    assert_eq!(server.logged(), "GET /file 304 0 -");
    let part = ["--header", "Range: bytes=5-", "--header", &format!("If-Range: {etag}")];
    assert_eq!(server.curl("/file", &part).body, "56789");
    fs::write(server.root().join("file"), "abcdefghij").unwrap();
    let changed = server.curl("/file", &part);
    assert_eq!((changed.status, changed.body.as_str()), (200, "abcdefghij"));
    assert_ne!(changed.header("etag"), Some(etag.as_str()));
}

#[test]
fn a_digest_named_file_has_its_digest_as_tag() {
    let server = Server::start(&[]);
    let digest = Digest::of(b"kernel");
    fs::create_dir(server.root().join("kernels")).unwrap();
    fs::write(server.root().join(format!("kernels/{digest}")), "kernel").unwrap();
    let reply = server.curl(&format!("/kernels/{digest}"), &[]);
    assert_eq!(reply.header("etag"), Some(format!("\"{digest}\"").as_str()));
    assert!(reply.header("cache-control").unwrap().contains("immutable"));
}

#[test]
fn head_says_what_get_would_and_sends_nothing() {
    let mut server = Server::start(&[]);
    fs::write(server.root().join("x.ipxe"), "#!ipxe\n").unwrap();
    let reply = server.curl("/x.ipxe", &["--head"]);
    assert_eq!(
        (reply.status, reply.header("content-length"), reply.body.as_str()),
        (200, Some("7"), "")
    );
    assert!(reply.header("content-type").unwrap().starts_with("text/plain"));
    assert_eq!(server.logged(), "HEAD /x.ipxe 200 0 -");
}

#[test]
fn what_is_not_served_is_not_found_and_other_methods_are_not_allowed() {
    let mut server = Server::start(&[]);
    fs::write(server.folder.path().join("secret"), "s").unwrap();
    fs::write(server.root().join(".hidden"), "h").unwrap();
    fs::create_dir(server.root().join("folder")).unwrap();
    symlink("../secret", server.root().join("out")).unwrap();
    symlink("file", server.root().join("in")).unwrap();
    for path in ["/in", "//file", "/%66ile?query"] {
        assert_eq!(server.curl(path, &[]).body, "0123456789");
        assert_eq!(server.logged(), format!("GET {path} 200 10 -"));
    }
    for path in [
        "/none",
        "/",
        "/folder",
        "/folder/",
        "/../secret",
        "/%2e%2e/secret",
        "/folder/../../secret",
        "/out",
        "/.hidden",
        "/file/",
        "/file/x",
    ] {
        let reply = server.curl(path, &[]);
        assert_eq!((reply.status, reply.body.as_str()), (404, ""), "{path}");
        assert_eq!(server.logged(), format!("GET {path} 404 0 -"));
    }
    for method in ["POST", "PUT", "DELETE", "OPTIONS"] {
        let reply = server.curl("/file", &["--request", method, "--data", "x=y"]);
        assert_eq!((reply.status, reply.header("allow")), (405, Some("GET, HEAD")), "{method}");
        assert_eq!(server.logged(), format!("{method} /file 405 0 -"));
    }
}

#[test]
fn a_client_that_goes_away_is_logged_with_what_it_was_sent() {
    let mut server = Server::start(&[]);
    let size = 64_u64 << 20;
    fs::File::create(server.root().join("large")).unwrap().set_len(size).unwrap();
    let mut stream = TcpStream::connect(server.url.strip_prefix("http://").unwrap()).unwrap();
    stream.write_all(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut some = vec![0; 1 << 20];
    stream.read_exact(&mut some).unwrap();
    drop(stream);
    let line = server.logged();
    let fields: Vec<_> = line.split(' ').collect();
    assert_eq!((&fields[..3], fields[4]), (&["GET", "/large", "200"][..], "-"));
    let sent: u64 = fields[3].parse().unwrap();
    assert!(sent > 900_000 && sent < size, "{line}");
}

#[test]
fn one_connection_serves_many_requests_each_with_its_line() {
    let mut server = Server::start(&[]);
    let mut stream = TcpStream::connect(server.url.strip_prefix("http://").unwrap()).unwrap();
    // Pipelined: three requests in one write.
    let request = "GET /file HTTP/1.1\r\nHost: x\r\nRange: bytes=0-0\r\n\r\nGET /none HTTP/1.1\r\nHost: x\r\n\r\nGET /file HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert!(text.ends_with("0123456789"), "{text}");
    for line in ["GET /file 206 1 bytes=0-0", "GET /none 404 0 -", "GET /file 200 10 -"] {
        assert_eq!(server.logged(), line);
    }
}

#[test]
fn a_rate_bounds_all_connections_together() {
    let server = Server::start(&["--rate", "1M"]);
    fs::File::create(server.root().join("half")).unwrap().set_len(500_000).unwrap();
    let started = std::time::Instant::now();
    let clients: Vec<_> = (0..2)
        .map(|_| {
            Command::new("curl")
                .args(["--silent", "--output", "/dev/null"])
                .arg(format!("{}/half", server.url))
                .spawn()
                .unwrap()
        })
        .collect();
    for mut client in clients {
        assert!(client.wait().unwrap().success());
    }
    // 1 MB at 1 MB/s, less the first and the last piece, which are not waited for. Only a lower bound: a busy machine may take longer.
    assert!(started.elapsed().as_millis() > 700, "{:?}", started.elapsed());
}

#[test]
fn pixiecore_is_told_what_a_listed_machine_boots_from_urls_that_it_can_reach() {
    const MAC: &str = "00:1f:29:12:34:56";
    for (options, base) in [(&[][..], None), (&["--url", "https://images.lan/f"], Some("https://images.lan/f"))] {
        let mut server = Server::start(options);
        let base = base.unwrap_or(&server.url).to_owned();
        fs::create_dir(server.root().join("netboot")).unwrap();
        let answer = "{\"kernel\":\"/kernels/k\",\"initrd\":[\"/initrds/i\"],\"cmdline\":\"quiet\"}";
        fs::write(server.root().join("netboot/lab.pixiecore.json"), answer).unwrap();
        let hosts = format!("{{\"version\":1,\"hosts\":{{\"{MAC}\":{{\"channel\":\"lab\"}}}}}}");
        fs::write(server.root().join("hosts.json"), hosts).unwrap();
        let reply = server.curl(&format!("/v1/boot/{MAC}"), &[]);
        assert_eq!((reply.status, reply.header("content-type")), (200, Some("application/json")));
        let expected = format!("{{\"cmdline\":\"quiet\",\"initrd\":[\"{base}/initrds/i\"],\"kernel\":\"{base}/kernels/k\"}}\n");
        assert_eq!(reply.body, expected);
        assert_eq!(reply.header("content-length"), Some(expected.len().to_string().as_str()));
        assert_eq!(server.logged(), format!("GET /v1/boot/{MAC} 200 {} -", expected.len()));
        let head = server.curl(&format!("/v1/boot/{MAC}"), &["--head"]);
        assert_eq!((head.status, head.body.as_str()), (200, ""));
        assert_eq!(head.header("content-length"), Some(expected.len().to_string().as_str()));
        for (mac, status) in [("00:1f:29:12:34:57", 404), ("x", 404), ("", 404)] {
            assert_eq!(server.curl(&format!("/v1/boot/{mac}"), &[]).status, status, "{mac}");
        }
        assert_eq!(server.curl(&format!("/v1/boot/{MAC}"), &["--request", "POST"]).status, 405);
        fs::write(server.root().join("hosts.json"), "{").unwrap();
        assert_eq!(server.curl(&format!("/v1/boot/{MAC}"), &[]).status, 500);
    }
}

#[test]
fn the_port_file_holds_the_port() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("port");
    let server = Server::start(&["--port-file", file.to_str().unwrap()]);
    let port = fs::read_to_string(&file).unwrap();
    assert!(server.url.ends_with(&format!(":{}", port.trim_end())), "{port} {}", server.url);
}

#[test]
fn a_folder_that_is_not_there_is_named() {
    let output = Command::new(program()).args(["serve", "/nowhere/at/all"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("/nowhere/at/all"));
    assert!(!Path::new("/nowhere/at/all").exists());
}
