//! A server over TLS. Its certificate is for 127.0.0.1, its key is known to everybody.
#![allow(dead_code, reason = "each test program uses its share")]

use std::io::Write as _;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;

use super::server::{Ask, Reply, head, read_head};

/// Nothing in a test takes so long; what does hangs.
const HANG: Duration = Duration::from_secs(10);

/// One of the test's own files for TLS.
pub fn tls_file(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/support/tls").join(name)
}

type Script = dyn Fn(&Ask) -> Reply + Send + Sync;

struct Shared {
    script: Box<Script>,
    asked: Mutex<Vec<Ask>>,
    over: AtomicBool,
}

/// The server; ends when it is dropped.
pub struct Secure {
    address: SocketAddr,
    shared: Arc<Shared>,
    listening: Option<JoinHandle<()>>,
}

impl Secure {
    /// Starts a server, which takes only clients with a certificate of the authority in this file of the test, if there is one.
    pub fn new(clients: Option<&str>, script: impl Fn(&Ask) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            script: Box::new(script),
            asked: Mutex::new(Vec::new()),
            over: AtomicBool::new(false),
        });
        let (inside, config) = (Arc::clone(&shared), Arc::new(config(clients)));
        let listening = std::thread::spawn(move || {
            let mut connections = Vec::new();
            while let Ok((stream, _)) = listener.accept() {
                if inside.over.load(Ordering::SeqCst) {
                    break;
                }
                let (inside, config) = (Arc::clone(&inside), Arc::clone(&config));
                connections.push(std::thread::spawn(move || answer(&inside, config, stream)));
            }
            for connection in connections {
                connection.join().unwrap();
            }
        });
        Self {
            address,
            shared,
            listening: Some(listening),
        }
    }

    /// Its base URL.
    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// The requests so far, as far as a handshake came before them.
    pub fn asked(&self) -> Vec<Ask> {
        self.shared.asked.lock().unwrap().clone()
    }
}

impl Drop for Secure {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::SeqCst);
        drop(TcpStream::connect(self.address));
        if let Some(listening) = self.listening.take() {
            assert!(listening.join().is_ok() || std::thread::panicking(), "the server died");
        }
    }
}

fn chain(name: &str) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_file_iter(tls_file(name)).unwrap().map(Result::unwrap).collect()
}

fn config(clients: Option<&str>) -> rustls::ServerConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .unwrap();
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(name) => {
            let mut authorities = RootCertStore::empty();
            authorities.add_parsable_certificates(chain(name));
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(authorities), provider);
            builder.with_client_cert_verifier(verifier.build().unwrap())
        }
    };
    let key = PrivateKeyDer::from_pem_file(tls_file("server.key")).unwrap();
    builder.with_single_cert(chain("server.pem"), key).unwrap()
}

fn answer(shared: &Shared, config: Arc<rustls::ServerConfig>, mut stream: TcpStream) {
    stream.set_read_timeout(Some(HANG)).unwrap();
    stream.set_write_timeout(Some(HANG)).unwrap();
    let mut session = rustls::ServerConnection::new(config).unwrap();
    // A client that does not believe the server, or is not believed, goes away.
    if session.complete_io(&mut stream).is_err() {
        return;
    }
    let mut tls = rustls::Stream::new(&mut session, &mut stream);
    let Some(mut ask) = read_head(&mut tls) else { return };
    {
        let mut asked = shared.asked.lock().unwrap();
        ask.nth = asked.iter().filter(|earlier| earlier.path == ask.path).count();
        asked.push(ask.clone());
    }
    let reply = (shared.script)(&ask);
    let sent = tls
        .write_all(head(&reply).as_bytes())
        .and_then(|()| tls.write_all(&reply.body[..reply.send]));
    if sent.is_ok() {
        session.send_close_notify();
        // Who has what it wants may have gone.
        drop(session.complete_io(&mut stream));
    }
}
