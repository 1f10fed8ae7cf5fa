//! TLS on the listeners: protocols, replacement of the certificate under load, and files that cannot be used.

use std::fs;
use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, date_time_ymd};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use sessiond_guard::{ConnectError, Guard, GuardOptions};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;

use crate::binary::{Dir, assert_says, sessiond};
use crate::harness::eventually;
use crate::harness::serving::{Installed, Serving};

/// An authority, and the files of the server that it certifies.
struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    dir: Dir,
}

/// What a server certificate is like.
#[derive(Clone, Copy)]
enum Kind {
    Good,
    Expired,
}

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(vec![]).expect("no names");
        // Not the name of the certificates that it signs, or OpenSSL takes them for self-signed.
        params.distinguished_name.push(DnType::CommonName, "the tests' authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let dir = Dir::fresh(name);
        fs::create_dir_all(&*dir).expect("creates");
        let issuer = CertifiedIssuer::self_signed(params, key).expect("signs");
        fs::write(dir.join("ca.pem"), issuer.pem()).expect("writes");
        Self { issuer, dir }
    }

    fn path(&self, file: &str) -> PathBuf {
        self.dir.join(file)
    }

    /// Writes a new certificate with its key. Each file is replaced at once, one after the other, as renewals do.
    fn issue(&self, kind: Kind) -> CertificateDer<'static> {
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).expect("a name");
        if matches!(kind, Kind::Expired) {
            (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2021, 1, 1));
        }
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("signs");
        self.replace("cert.pem", &certificate.pem());
        self.replace("key.pem", &key.serialize_pem());
        certificate.der().clone()
    }

    fn replace(&self, file: &str, text: &str) {
        let next = self.path("next");
        fs::write(&next, text).expect("writes");
        fs::rename(next, self.path(file)).expect("renames");
    }

    fn flags(&self) -> [String; 4] {
        let path = |file| self.path(file).display().to_string();
        ["--tls-certificate-file".to_owned(), path("cert.pem"), "--tls-key-file".to_owned(), path("key.pem")]
    }

    async fn serve(&self, installed: &Installed, more: &[&str]) -> (Serving, PathBuf) {
        let flags = self.flags();
        let args: Vec<&str> = flags.iter().map(String::as_str).chain(more.iter().copied()).collect();
        let log = self.path("log");
        let serving = installed.serve(&[], &args, File::create(&log).expect("creates")).await;
        (serving, log)
    }

    /// Makes a request on a connection of its own. Returns the certificate that the server presented.
    async fn get(&self, addr: SocketAddr, path: &str) -> Result<CertificateDer<'static>, String> {
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone()).expect("a certificate");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let config = config.expect("versions").with_root_certificates(roots).with_no_client_auth();
        let tcp = TcpStream::connect(addr).await.map_err(|error| format!("connect: {error}"))?;
        let name = ServerName::try_from("localhost").expect("a name");
        let mut tls = TlsConnector::from(Arc::new(config))
            .connect(name, tcp)
            .await
            .map_err(|error| format!("handshake: {error}"))?;
        let presented = tls.get_ref().1.peer_certificates().expect("presented")[0].clone().into_owned();
        let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
        tls.write_all(request.as_bytes()).await.map_err(|error| format!("write: {error}"))?;
        let mut answer = vec![];
        // The server may close without a close_notify after `connection: close`.
        let _ = tls.read_to_end(&mut answer).await;
        match answer.starts_with(b"HTTP/1.1 200") {
            true => Ok(presented),
            false => Err(String::from_utf8_lossy(&answer).into_owned()),
        }
    }
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).expect("reads")
}

/// The three protocols work as without TLS; without TLS nothing does. Metrics have the same certificate.
#[tokio::test(flavor = "multi_thread")]
async fn every_listener_speaks_tls_and_nothing_else() {
    let (installed, authority) = (Installed::new().await, Authority::new("tls"));
    authority.issue(Kind::Good);
    let (serving, log) = authority.serve(&installed, &["--header-timeout", "1s"]).await;
    let port = serving.addr.port();
    let curl = |args: &[&str]| {
        let url = format!("https://localhost:{port}/healthz");
        let ca = authority.path("ca.pem").display().to_string();
        let output = Command::new("curl")
            .args(["--silent", "--show-error", "--output", "/dev/null", "--cacert", &ca])
            .args(["--resolve", &format!("localhost:{port}:127.0.0.1"), "--write-out", "%{http_version} %{http_code}"])
            .args(args)
            .arg(url)
            .output()
            .expect("runs");
        String::from_utf8([output.stdout, output.stderr].concat()).expect("text")
    };
    assert_eq!(curl(&["--http2"]), "2 200", "chosen by ALPN");
    assert_eq!(curl(&["--http1.1"]), "1.1 200");
    assert_eq!(curl(&["--tlsv1.2", "--tls-max", "1.2"]), "2 200");

    authority.get(serving.metrics_addr, "/metrics").await.expect("the metrics");
    // Sessions, over gRPC and REST, as without TLS.
    let output = Command::new("curl")
        .args(["--silent", "--cacert", &authority.path("ca.pem").display().to_string()])
        .args(["--resolve", &format!("localhost:{port}:127.0.0.1")])
        .args(["--header", &format!("authorization: Bearer {}", installed.key)])
        .args(["--header", "content-type: application/json", "--data", r#"{"user_id": "ada"}"#])
        .arg(format!("https://localhost:{port}/auth/sessions"))
        .output()
        .expect("runs");
    assert!(String::from_utf8_lossy(&output.stdout).contains("access_token"), "{output:?}");

    // Without TLS the connection is closed, and says nothing of the API.
    let mut plain = TcpStream::connect(serving.addr).await.expect("connects");
    plain.write_all(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n").await.expect("writes");
    let mut answer = vec![];
    let _ = timeout(Duration::from_secs(10), plain.read_to_end(&mut answer)).await.expect("is closed");
    assert!(!answer.windows(4).any(|window| window == b"HTTP"), "{answer:?}");
    // A client that never begins its handshake is disconnected.
    let mut silent = TcpStream::connect(serving.addr).await.expect("connects");
    let _ = timeout(Duration::from_secs(10), silent.read_to_end(&mut answer)).await.expect("is closed");
    assert!(!text(&log).contains("without TLS"), "{}", text(&log));
}

/// A guard follows over TLS, with the certificates that it was told to trust and no others.
#[tokio::test(flavor = "multi_thread")]
async fn a_guard_trusts_a_private_authority() {
    let (installed, authority) = (Installed::new().await, Authority::new("tls-guard"));
    authority.issue(Kind::Good);
    let (serving, _) = authority.serve(&installed, &[]).await;
    let url = format!("https://localhost:{}", serving.addr.port());
    let options = |trusted: Option<String>| GuardOptions {
        trusted_certificates: trusted,
        startup_timeout: Duration::from_secs(2),
        ..GuardOptions::new(&url, "shop", "https://sessions.example.org", installed.key.clone())
    };
    let guard = Guard::connect(options(Some(authority.issuer.pem()))).await.expect("connects");
    timeout(Duration::from_secs(10), guard.ready()).await.expect("is ready").expect("is configured");
    assert!(guard.stats().staleness.is_some());

    let stranger = Authority::new("tls-stranger");
    let guard = Guard::connect(options(Some(stranger.issuer.pem()))).await.expect("an outage, as far as it knows");
    assert!(guard.stats().staleness.is_none(), "it trusts nobody who shows another authority's certificate");
    let refused = Guard::connect(options(Some("rubbish".to_owned()))).await.expect_err("no certificate");
    assert_eq!(refused, ConnectError::MalformedCertificates);
}

/// New connections get the new certificate, and none fails meanwhile. What cannot be used is ignored, and logged once.
#[tokio::test(flavor = "multi_thread")]
async fn a_replaced_certificate_is_used_without_a_failed_request() {
    const REPLACEMENTS: usize = 20;
    let (installed, authority) = (Installed::new().await, Arc::new(Authority::new("tls-reload")));
    authority.issue(Kind::Good);
    let unlimited = ["--address-rate", "0", "--verify-rate", "0"];
    let (serving, log) = authority.serve(&installed, &unlimited).await;
    let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let (authority, stop, done) = (Arc::clone(&authority), Arc::clone(&stop), Arc::clone(&done));
            let addr = serving.addr;
            tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    authority.get(addr, "/healthz").await?;
                    done.fetch_add(1, Ordering::Relaxed);
                }
                Ok::<_, String>(())
            })
        })
        .collect();
    for _ in 0..REPLACEMENTS {
        let issued = authority.issue(Kind::Good);
        eventually("is presented", async || authority.get(serving.addr, "/healthz").await == Ok(issued.clone())).await;
    }
    let present = authority.get(serving.addr, "/healthz").await.expect("serves");
    let warnings = || text(&log).lines().filter(|line| line.contains("was not replaced")).count();
    for (file, rubbish, says) in [
        ("cert.pem", "rubbish".to_owned(), "has no certificate in PEM"),
        ("key.pem", "rubbish".to_owned(), "has no certificate in PEM"),
        ("cert.pem", text(&authority.path("ca.pem")), "cannot read"),
        ("key.pem", KeyPair::generate().expect("a key").serialize_pem(), "does not belong to the certificate"),
    ] {
        let before = warnings();
        authority.replace(file, &rubbish);
        eventually("says so", async || warnings() > before).await;
        let log = text(&log);
        assert!(
            log.lines().rfind(|line| line.contains("was not replaced")).is_some_and(|line| line.contains(says)),
            "{log}"
        );
        assert_eq!(authority.get(serving.addr, "/healthz").await, Ok(present.clone()), "{file}");
    }
    let before = warnings();
    sleep(Duration::from_millis(2_500)).await;
    assert_eq!(warnings(), before, "the same files are not logged again");
    authority.issue(Kind::Expired);
    eventually("says so", async || text(&log).contains("until 2021-01-01T00:00:00Z only")).await;
    let issued = authority.issue(Kind::Good);
    eventually("recovers", async || authority.get(serving.addr, "/healthz").await == Ok(issued.clone())).await;

    stop.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.expect("no panic").expect("no request failed");
    }
    assert!(done.load(Ordering::Relaxed) > 1_000, "{done:?} requests");
}

/// Files that cannot be used are refused at the start, by name.
#[test]
fn unusable_files_are_refused_at_the_start() {
    let authority = Authority::new("tls-start");
    let refused = |says: &str| {
        let flags = authority.flags();
        let args: Vec<&str> = ["serve"].into_iter().chain(flags.iter().map(String::as_str)).collect();
        let env = [("DATABASE_URL", "postgres://u@127.0.0.1:1/d"), ("SESSIOND_SEALING_KEY", "x")];
        assert_says(&sessiond(&args, &env), false, says);
    };
    refused("cannot read");
    authority.issue(Kind::Expired);
    refused("is valid from 2020-01-01T00:00:00Z until 2021-01-01T00:00:00Z only");
    authority.issue(Kind::Good);
    authority.replace("key.pem", &KeyPair::generate().expect("a key").serialize_pem());
    refused("does not belong to the certificate in");
    authority.replace("cert.pem", "rubbish");
    refused("cert.pem has no certificate in PEM");
    let alone = ["serve", "--tls-certificate-file", "cert.pem"];
    assert_says(&sessiond(&alone, &[]), false, "--tls-key-file <FILE>");
}

/// Anyone between the client and the server could read tokens; on loopback nobody is.
#[tokio::test(flavor = "multi_thread")]
async fn a_listener_without_tls_is_warned_of_unless_it_is_on_loopback() {
    let (installed, authority) = (Installed::new().await, Authority::new("tls-plain"));
    for (proxies, warned) in [("127.0.0.1:0", false), ("0.0.0.0:0", true)] {
        let log = authority.path(proxies);
        let args = ["--proxy-listen", proxies];
        let serving = installed.serve(&[], &args, File::create(&log).expect("creates")).await;
        eventually("serves", async || serving.is_alive().await).await;
        let is_warned = text(&log).contains("listening for other machines without TLS");
        assert_eq!(is_warned, warned, "{}", text(&log));
        assert_eq!(text(&log).contains("listeners=\"--proxy-listen\""), warned, "{}", text(&log));
    }
}
