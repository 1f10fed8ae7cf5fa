//! TLS on the listeners: protocols, replacement of the certificate under load, and files that cannot be used.

use std::fs;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::HOST;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use rcgen::KeyPair;
use sessiond_guard::{ConnectError, Guard, GuardOptions};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{interval, sleep, timeout};

use crate::binary::{assert_says, sessiond};
use crate::harness::authority::{Authority, Kind};
use crate::harness::eventually;
use crate::harness::serving::Installed;

/// Reads an answer to its end, which must be a 200.
async fn succeeds(answer: Result<Response<Incoming>, hyper::Error>) -> Result<(), String> {
    let answer = answer.map_err(|error| error.to_string())?;
    if answer.status() != StatusCode::OK {
        return Err(answer.status().to_string());
    }
    answer.into_body().collect().await.map(drop).map_err(|error| error.to_string())
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
    let curl = |args: &[&str]| {
        let version = ["--output", "/dev/null", "--write-out", "%{http_version} %{http_code}"];
        authority.curl(serving.addr, "/healthz", &[&version, args].concat())
    };
    assert_eq!(curl(&["--http2"]), "2 200", "chosen by ALPN");
    assert_eq!(curl(&["--http1.1"]), "1.1 200");
    assert_eq!(curl(&["--tlsv1.2", "--tls-max", "1.2"]), "2 200");
    // OpenSSL offers it only at the lowest security level.
    let old = curl(&["--tlsv1.0", "--tls-max", "1.1", "--ciphers", "DEFAULT@SECLEVEL=0"]);
    assert!(old.starts_with("0 000") && old.contains("alert"), "refused by the server: {old}");

    authority.get(serving.metrics_addr, "/metrics").await.expect("the metrics");
    // Sessions, over gRPC and REST, as without TLS.
    let bearer = format!("authorization: Bearer {}", installed.key);
    let create = ["--header", &bearer, "--header", "content-type: application/json", "--data", r#"{"user_id": "ada"}"#];
    let created = authority.curl(serving.addr, "/auth/sessions", &create);
    assert!(created.contains("access_token"), "{created}");

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

/// `sessiond health` is configured like `serve`.
#[tokio::test(flavor = "multi_thread")]
async fn the_health_check_speaks_tls() {
    let (installed, authority) = (Installed::new().await, Authority::new("tls-health"));
    authority.issue(Kind::Good);
    let (serving, _) = authority.serve(&installed, &[]).await;
    let (listen, certificate) = (serving.addr.to_string(), authority.path("cert.pem").display().to_string());
    let health = |certificate: &str| {
        sessiond(&["health"], &[("SESSIOND_LISTEN", &listen), ("SESSIOND_TLS_CERTIFICATE_FILE", certificate)])
    };
    eventually("is ready", async || health(&certificate).status.success()).await;
    assert_eq!(String::from_utf8(health(&certificate).stdout).expect("text"), "ready\n");
    assert!(health(&certificate).stderr.is_empty());
    // A renewal that the server cannot use must not make a platform kill it.
    let authorities = authority.path("ca.pem").display().to_string();
    assert_says(&health(&authorities), true, "presents another certificate than --tls-certificate-file");
    assert_says(&health(&certificate), true, "ready");
    assert_says(&health("/none.pem"), false, "cannot read a certificate in /none.pem");
    let plain = sessiond(&["health"], &[("SESSIOND_LISTEN", &listen)]);
    assert_says(&plain, false, "does not answer");
    assert_says(&plain, false, "(if it serves TLS: use --tls-certificate-file)");
    let without_tls = installed.serve(&[], &[], std::process::Stdio::null()).await;
    let args = ["health", "--listen", &without_tls.addr.to_string(), "--tls-certificate-file", &certificate];
    assert_says(&sessiond(&args, &[]), false, "does not answer");
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

/// New connections get the new certificate, open ones stay open, and no request fails meanwhile. What cannot be used is ignored, and
/// logged once. Prints the rate: `cargo test --test sessiond a_replaced_certificate -- --nocapture`.
#[tokio::test(flavor = "multi_thread")]
async fn a_replaced_certificate_is_used_without_a_failed_request() {
    const REPLACEMENTS: usize = 20;
    /// Each sends a request every 20 ms on a connection that stays open: 1,000 a second.
    const STEADY: u32 = 20;
    let (installed, authority) = (Installed::new().await, Arc::new(Authority::new("tls-reload")));
    authority.issue(Kind::Good);
    let unlimited = ["--address-rate", "0", "--verify-rate", "0"];
    let (serving, log) = authority.serve(&installed, &unlimited).await;
    let addr = serving.addr;
    let stop = Arc::new(AtomicBool::new(false));
    let (steady, connecting) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
    let mut clients = vec![];
    for _ in 0..STEADY {
        let (authority, stop, done) = (Arc::clone(&authority), Arc::clone(&stop), Arc::clone(&steady));
        clients.push(tokio::spawn(async move {
            let mut connection = authority.open(addr).await?;
            let mut ticks = interval(Duration::from_millis(20));
            while !stop.load(Ordering::Relaxed) {
                // One that is late is made up for.
                ticks.tick().await;
                let request = Request::get("/healthz").header(HOST, "localhost").body(Empty::<Bytes>::new());
                succeeds(connection.send_request(request.expect("a request")).await).await?;
                connection.ready().await.map_err(|error| error.to_string())?;
                done.fetch_add(1, Ordering::Relaxed);
            }
            Ok::<_, String>(())
        }));
    }
    let (h2_authority, h2_stop, over_h2) = (Arc::clone(&authority), Arc::clone(&stop), Arc::<AtomicUsize>::default());
    let done = Arc::clone(&over_h2);
    clients.push(tokio::spawn(async move {
        let mut connection = h2_authority.open_h2(addr).await?;
        while !h2_stop.load(Ordering::Relaxed) {
            let request = Request::get("https://localhost/healthz").body(Empty::<Bytes>::new()).expect("a request");
            succeeds(connection.send_request(request).await).await?;
            done.fetch_add(1, Ordering::Relaxed);
            sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }));
    for _ in 0..2 {
        let (authority, stop, done) = (Arc::clone(&authority), Arc::clone(&stop), Arc::clone(&connecting));
        clients.push(tokio::spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                authority.get(addr, "/healthz").await?;
                done.fetch_add(1, Ordering::Relaxed);
                sleep(Duration::from_millis(5)).await;
            }
            Ok(())
        }));
    }
    let began = Instant::now();
    for _ in 0..REPLACEMENTS {
        let issued = authority.issue(Kind::Good);
        eventually("is presented", async || authority.get(addr, "/healthz").await == Ok(issued.clone())).await;
    }
    let took = began.elapsed().as_secs_f64();
    let [open, h2, new] = [&steady, &over_h2, &connecting].map(|done| done.load(Ordering::Relaxed));
    println!(
        "{REPLACEMENTS} replacements in {took:.1} s: {open} requests on open connections ({:.0}/s), {h2} on one with HTTP/2, {new} on \
         new ones ({:.0}/s)",
        open as f64 / took,
        new as f64 / took
    );
    // A thousand a second are sent. How many of them are answered in time depends on the machine.
    assert!(open as f64 / took >= 500.0 && h2 > 0 && new > 0, "too little load: {open}, {h2} and {new} in {took:.1} s");
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
    let before = warnings();
    let issued = authority.issue(Kind::Early);
    eventually("says so", async || warnings() > before).await;
    eventually("is presented when it is valid", async || {
        authority.get(serving.addr, "/healthz").await == Ok(issued.clone())
    })
    .await;
    let issued = authority.issue(Kind::Good);
    eventually("recovers", async || authority.get(serving.addr, "/healthz").await == Ok(issued.clone())).await;

    stop.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.expect("no panic").expect("no request failed");
    }
    println!("0 of {} requests failed", steady.load(Ordering::Relaxed) + connecting.load(Ordering::Relaxed));
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
        let _serving = installed.serve(&[], &args, File::create(&log).expect("creates")).await;
        // Which is logged after the warning; and the log is written beside the answers.
        eventually("says that it is ready", async || text(&log).contains("INFO ready")).await;
        let is_warned = text(&log).contains("listening for other machines without TLS");
        assert_eq!(is_warned, warned, "{}", text(&log));
        assert_eq!(text(&log).contains("listeners=\"--proxy-listen\""), warned, "{}", text(&log));
    }
}
