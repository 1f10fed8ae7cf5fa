//! The connection to the database: credentials, TLS, settings, and error messages.

use std::{
    fs,
    net::SocketAddr,
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use dev_postgres::{Cluster, Options};
use diesel_async::SimpleAsyncConnection as _;
use http::{Method, StatusCode};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustix::process::{Pid, Signal};
use rustls::{
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject as _},
    sign::{CertifiedKey, SingleCertAndKey},
};
use sessiond::{
    app::{App, KeyCache, NotReady},
    store::{ReachError, Store},
    telemetry::Metrics,
};
use sessiond_core::{
    clock::Clock,
    token::{
        access::Issuer,
        sealing::{Sealer, SealingKey},
    },
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional},
    net::{TcpListener, TcpStream, UnixStream},
    sync::watch,
};
use tokio_rustls::TlsAcceptor;

use crate::{
    binary::{assert_says, sessiond},
    harness::{
        ISSUER, SEALING_KEY, Service, Wire, bearer,
        database::{Database, disposable, fresh_dir},
        divided, eventually, hasty, options,
        proxy::Proxy,
    },
};

const PASSWORD: &str = "hunter2hunter2";

fn store(url: &str) -> Store {
    Store::new(&hasty(url), Metrics::default()).expect("a good URL")
}

async fn connect_error(url: &str) -> String {
    match store(url).reach().await {
        Err(ReachError::Connect(error)) => error.to_string(),
        other => panic!("{other:?}"),
    }
}

/// A fake database: no TLS, and this request for a password. Records everything that it receives.
async fn impostor(request: &'static [u8]) -> (SocketAddr, Arc<Mutex<Vec<u8>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let addr = listener.local_addr().expect("bound");
    let heard = Arc::<Mutex<Vec<u8>>>::default();
    let notes = Arc::clone(&heard);
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let notes = Arc::clone(&notes);
            tokio::spawn(async move {
                let mut buffer = [0; 4096];
                while let Ok(count @ 1..) = client.read(&mut buffer).await {
                    notes.lock().expect("no panic").extend_from_slice(&buffer[..count]);
                    let wants_tls = buffer[..count] == [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];
                    let answer = if wants_tls { b"N" } else { request };
                    if client.write_all(answer).await.is_err() {
                        break;
                    }
                }
            });
        }
    });
    (addr, heard)
}

/// `AuthenticationCleartextPassword`, and `AuthenticationMD5Password` with a salt.
const REQUESTS: [&[u8]; 2] = [b"R\0\0\0\x08\0\0\0\x03", b"R\0\0\0\x0c\0\0\0\x05salt"];

/// Without TLS no password is sent, neither in clear, nor as a hash that can be guessed.
#[tokio::test]
async fn a_password_is_never_sent_in_clear_or_as_md5_without_tls() {
    for request in REQUESTS {
        for mode in ["", "?sslmode=prefer", "?sslmode=allow", "?sslmode=disable", "?sslmode=require"] {
            let (addr, heard) = impostor(request).await;
            let message = connect_error(&format!("postgres://u:{PASSWORD}@{addr}/d{mode}")).await;
            assert!(message.contains("there is no TLS") || message.contains("it has no TLS"), "{mode}: {message}");
            let heard = heard.lock().expect("no panic");
            assert!(!heard.windows(PASSWORD.len()).any(|window| window == PASSWORD.as_bytes()), "{mode}");
            assert!(!heard.windows(3).any(|window| window == b"md5"), "{mode}");
            assert!(!message.contains(PASSWORD));
        }
    }
}

/// Another machine without TLS does not even learn the user's name; each of several hosts by itself.
#[tokio::test]
async fn another_machine_without_tls_learns_nothing() {
    let (addr, heard) = impostor(REQUESTS[0]).await;
    let port = addr.port();
    // `hostaddr` is the address, `host` the name: the name of another machine would be resolved.
    for url in [
        format!("host=127.0.0.1 hostaddr=127.0.0.1 port={port} user=u password={PASSWORD} sslmode=require"),
        format!("postgres://u:{PASSWORD}@127.0.0.1:{port}/d?sslmode=verify-ca"),
        format!("postgres://u:{PASSWORD}@127.0.0.1:{port}/d?sslmode=verify-full"),
    ] {
        heard.lock().expect("no panic").clear();
        let message = connect_error(&url).await;
        assert!(message.contains("it has no TLS, but sslmode requires it"), "{message}");
        assert_eq!(heard.lock().expect("no panic").len(), 8, "the request for TLS, and nothing else");
    }
}

/// A TLS proxy to the database, with the test's certificate, as `localhost`.
struct Front {
    port: u16,
    database: String,
    proxy: Proxy,
}

impl Front {
    async fn with(chain: Vec<CertificateDer<'static>>, key: &KeyPair) -> (Self, Database) {
        let database = Database::create().await;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let key = provider.key_provider.load_private_key(key).expect("a key");
        // The client checks that the key matches the certificate.
        let resolver = SingleCertAndKey::from(CertifiedKey::new(chain, key));
        let tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(resolver));
        let tls = TlsAcceptor::from(Arc::new(tls));
        let relay = move |mut client: TcpStream, mut server: UnixStream| {
            let tls = tls.clone();
            async move {
                let mut asked = [0; 8];
                client.read_exact(&mut asked).await.expect("is asked for TLS");
                client.write_all(b"S").await.expect("agrees");
                let Ok(mut client) = tls.accept(client).await else { return };
                let _ = copy_bidirectional(&mut client, &mut server).await;
            }
        };
        let proxy = Proxy::to(&database, relay).await;
        let (place, name) = proxy.url.split_once('@').expect("a URL").1.split_once('/').expect("a database");
        let port = place.rsplit_once(':').expect("a port").1.parse().expect("a port");
        let name = name.split('?').next().expect("a name").to_owned();
        (Self { port, database: name, proxy }, database)
    }

    fn url(&self, host: &str, parameters: &str) -> String {
        let _open = &self.proxy;
        format!("postgres://postgres@{host}:{}/{}?{parameters}", self.port, self.database)
    }
}

fn pem(name: &str, text: &str) -> PathBuf {
    let file = fresh_dir(name);
    fs::write(&file, text).expect("writes");
    file
}

fn authority() -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::new(vec![]).expect("parameters");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("makes a certificate")
}

/// What each `sslmode` accepts, and the errors for the rest.
#[tokio::test(flavor = "multi_thread")]
async fn each_sslmode_verifies_certificates_as_documented() {
    let (trusted, stranger, key) = (authority(), authority(), KeyPair::generate().expect("a key"));
    let params = CertificateParams::new(vec!["localhost".to_owned()]).expect("parameters");
    let made = params.signed_by(&key, &trusted).expect("signs");
    let (front, _database) = Front::with(vec![made.der().clone()], &key).await;
    let ours = format!("sslrootcert={}", pem("trusted-ca", &trusted.pem()).display());
    let theirs = format!("sslrootcert={}", pem("stranger-ca", &stranger.pem()).display());
    for (host, parameters, outcome) in [
        ("localhost", format!("{ours}&sslmode=require"), Ok(())),
        ("localhost", format!("{ours}&sslmode=verify-full"), Ok(())),
        ("localhost", format!("{ours}&sslmode=prefer"), Ok(())),
        ("127.0.0.1", format!("{ours}&sslmode=verify-ca"), Ok(())),
        ("127.0.0.1", format!("{ours}&sslmode=require"), Err("sslmode=verify-ca")),
        ("127.0.0.1", format!("{ours}&sslmode=verify-full"), Err("for another name")),
        ("localhost", format!("{theirs}&sslmode=require"), Err("sslrootcert=FILE")),
        ("localhost", format!("{theirs}&sslmode=prefer"), Err("sslrootcert=FILE")),
        ("127.0.0.1", format!("{theirs}&sslmode=verify-ca"), Err("not signed by a trusted authority")),
        ("localhost", "sslrootcert=system&sslmode=require".to_owned(), Err("not signed by a trusted authority")),
    ] {
        let url = front.url(host, &parameters);
        match outcome {
            Ok(()) => store(&url).reach().await.unwrap_or_else(|error| panic!("{parameters}: {error}")),
            Err(words) => {
                let message = connect_error(&url).await;
                assert!(message.contains(words), "{parameters}: {message}");
            }
        }
    }
    // The same in the other URL form, and by the flag.
    let url = format!("host=localhost port={} user=postgres dbname={} sslmode=verify-full", front.port, front.database);
    assert!(connect_error(&url).await.contains("sslrootcert=FILE"));
    let by_flag =
        sessiond::store::Options { trusted_certificates: Some(pem("flag-ca", &trusted.pem())), ..hasty(&url) };
    Store::new(&by_flag, Metrics::default()).expect("a good URL").reach().await.expect("is trusted");
}

/// A certificate of X.509 version 1, as old scripts create.
const VERSION_1: &str = "-----BEGIN CERTIFICATE-----
MIIBIzCBywIUD5becoXJWnhZhZhfNdHSGvURasowCgYIKoZIzj0EAwIwFDESMBAG
A1UEAwwJbG9jYWxob3N0MCAXDTI2MTEyNzAwNTMyMloYDzIxMjYxMTAzMDA1MzIy
WjAUMRIwEAYDVQQDDAlsb2NhbGhvc3QwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNC
AATOxp4fDnuRWV9gDUh7pYJ/S+9P2kcRKlim3uyAxDAXbCxLjPkdSC63OIevoEaI
67EG8Moci/H2GzqnXWaPwav7MAoGCCqGSM49BAMCA0cAMEQCIBk/iVsE+Um8SU70
QlKUUWO3tpk+1AhuLsqcje/No7IzAiBmJz29db5U2IzA/hiODPXsG0jZyLWDHLen
MgDYi6gccg==
-----END CERTIFICATE-----
";

/// A self-signed certificate is not accepted by default, and the error says what to do.
#[tokio::test(flavor = "multi_thread")]
async fn the_error_for_a_self_signed_certificate_says_what_to_do() {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("makes a certificate");
    let (front, _database) = Front::with(vec![made.cert.der().clone()], &made.signing_key).await;
    let message = connect_error(&front.url("localhost", "sslmode=require")).await;
    assert!(
        message.contains("a self-signed one itself, with sslrootcert=FILE") && message.contains("sslmode=disable"),
        "{message}"
    );
    let named = format!("sslmode=require&sslrootcert={}", pem("self-signed", &made.cert.pem()).display());
    store(&front.url("localhost", &named)).reach().await.expect("the file makes it trusted");

    let old = CertificateDer::from_pem_slice(VERSION_1.as_bytes()).expect("a certificate");
    let (front, _database) = Front::with(vec![old], &made.signing_key).await;
    let message = connect_error(&front.url("localhost", "sslmode=prefer")).await;
    assert!(message.contains("before X.509v3") && message.contains("openssl req -x509"), "{message}");
}

/// Signs out over REST. Returns the status and `Retry-After`.
async fn sign_out(service: &Service, token: &str) -> (StatusCode, Option<String>) {
    let response = service.wires.http(Method::DELETE, "/auth/sessions/current", bearer(token), "").await;
    let retry = response.headers().get("retry-after").map(|value| value.to_str().expect("text").to_owned());
    (response.status(), retry)
}

/// Temporary errors are a 503 with `Retry-After`, in any language; others are bugs of ours.
#[tokio::test(flavor = "multi_thread")]
async fn temporary_errors_are_a_503_in_every_language() {
    let service = Service::start().await;
    let phone = service.sign_in("ada", "phone").await;
    let codes = "53100 53200 53300 53400 57014 57P01 57P03 58030 40001 40P01 55P03 25006 08006 26000 0A000 42501";
    let unavailable = codes.split(' ').map(|code| (code, StatusCode::SERVICE_UNAVAILABLE));
    for (code, status) in unavailable.chain([("22012", StatusCode::INTERNAL_SERVER_ERROR)]) {
        for (table, event) in [("sessions", "UPDATE"), ("sessions", "INSERT")] {
            let statements = format!("{event} ON {table}");
            service.database.refuse(&statements, code, "konnte nicht schreiben: kein Platz").await;
            if event == "UPDATE" {
                let (found, retry) = sign_out(&service, &phone.access_token).await;
                assert_eq!(found, status, "{code}");
                assert_eq!(retry.is_some(), status == StatusCode::SERVICE_UNAVAILABLE, "{code}");
            } else {
                let request = sessiond::pb::CreateSessionRequest { user_id: "ada".to_owned(), ..Default::default() };
                let refused = service.create(Wire::Rest, request).await.err().expect("refused");
                let is_unavailable = refused.reason == "STORE_UNAVAILABLE";
                assert_eq!(is_unavailable, status == StatusCode::SERVICE_UNAVAILABLE, "{code}: {refused:?}");
            }
        }
    }
    service.database.accept("sessions").await;
    assert_eq!(sign_out(&service, &phone.access_token).await.0, StatusCode::OK);
}

/// Programs of the server that find a German locale, made for them; `None` where this machine has no sources of locales.
async fn german_programs() -> Option<PathBuf> {
    let dir = fresh_dir("german");
    let (locales, programs) = (dir.join("locales"), dir.join("programs"));
    fs::create_dir_all(&locales).expect("creates");
    fs::create_dir_all(&programs).expect("creates");
    let localedef =
        Command::new("localedef").args(["-i", "de_DE", "-f", "UTF-8"]).arg(locales.join("de_DE.UTF-8")).output();
    if !localedef.is_ok_and(|output| output.status.success()) {
        return None;
    }
    let bin =
        Database::create_empty().await.lines("SELECT setting FROM pg_config WHERE name = 'BINDIR'").await.remove(0);
    for program in ["postgres", "initdb", "pg_ctl"] {
        let script = format!("#!/bin/sh\nLOCPATH={} exec {bin}/{program} \"$@\"\n", locales.display());
        let path = programs.join(program);
        fs::write(&path, script).expect("writes");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("may");
    }
    Some(programs)
}

/// A server that speaks German. What it means is in the SQLSTATE, and only that is read.
#[tokio::test(flavor = "multi_thread")]
async fn an_outage_is_recognised_in_the_servers_own_language() {
    let Some(programs) = german_programs().await else {
        return eprintln!("not tested: localedef cannot make de_DE.UTF-8");
    };
    let options = Options { postgres_bin: Some(programs), ..disposable("speaks-german") };
    let cluster = Cluster::start(options).await.expect("Postgres starts");
    let database = Database { url: cluster.database_url("postgres") };
    database.run("ALTER DATABASE postgres SET lc_messages = 'de_DE.UTF-8'").await;
    let (client, connection) = tokio_postgres::connect(&database.url, tokio_postgres::NoTls).await.expect("connects");
    tokio::spawn(connection);
    let message = client.simple_query("SELECT 1 / 0").await.expect_err("is refused");
    if message.as_db_error().expect("an error").message() != "Division durch Null" {
        return eprintln!("not tested: the server has no translations");
    }
    database.migrate().await;
    let service = Service::start_on(database).await;
    let phone = service.sign_in("ada", "phone").await;
    let unavailable = (StatusCode::SERVICE_UNAVAILABLE, Some("1".to_owned()));

    // Each the server's own message: a missing table, a missing column, no writes, a statement that takes too long.
    let wait =
        "CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(10); RETURN NULL; END';
        CREATE TRIGGER wait BEFORE UPDATE ON sessions EXECUTE FUNCTION wait();
        ALTER DATABASE postgres SET statement_timeout = 100";
    for (begin, end) in [
        ("ALTER TABLE revocations RENAME TO moved", "ALTER TABLE moved RENAME TO revocations"),
        ("ALTER TABLE sessions RENAME revoke_reason TO why", "ALTER TABLE sessions RENAME why TO revoke_reason"),
        (
            "ALTER DATABASE postgres SET default_transaction_read_only = on",
            "ALTER DATABASE postgres RESET default_transaction_read_only",
        ),
        (wait, "DROP TRIGGER wait ON sessions; ALTER DATABASE postgres RESET statement_timeout"),
    ] {
        let end_others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'postgres' AND pid <> pg_backend_pid()";
        client.batch_execute(begin).await.expect("runs");
        service.database.run(&format!("{end_others} AND application_name = 'sessiond'")).await;
        assert_eq!(sign_out(&service, &phone.access_token).await, unavailable, "{begin}");
        client.batch_execute("SET default_transaction_read_only = off").await.expect("runs");
        client.batch_execute(end).await.expect("runs");
        service.database.run(&format!("{end_others} AND application_name = 'sessiond'")).await;
    }
    // And one that is not an outage: our own bug, as far as anybody can tell.
    client
        .batch_execute(
            "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM 1 / 0; RETURN NULL; END';
             CREATE TRIGGER fail BEFORE UPDATE ON sessions EXECUTE FUNCTION fail()",
        )
        .await
        .expect("runs");
    assert_eq!(sign_out(&service, &phone.access_token).await.0, StatusCode::INTERNAL_SERVER_ERROR);
    client.batch_execute("DROP TRIGGER fail ON sessions").await.expect("runs");
    assert_eq!(sign_out(&service, &phone.access_token).await.0, StatusCode::OK);
    drop(service);
    cluster.stop().await.expect("stops");
}

/// An administrator cancels the statement, or terminates its process, while it waits.
#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_statement_is_a_503() {
    let service = Service::start().await;
    for end in ["pg_cancel_backend", "pg_terminate_backend"] {
        let phone = service.sign_in("ada", "phone").await;
        let mut holder = service.database.hold("sessions", "true").await;
        let token = phone.access_token.clone();
        let (outcome, ()) = tokio::join!(sign_out(&service, &token), async {
            eventually("the sign-out waits, and is ended", async || service.database.end_lock_waits(end).await > 0)
                .await;
            // A statement whose connection ended may be retried.
            holder.batch_execute("ROLLBACK").await.expect("lets go");
        });
        match end {
            "pg_cancel_backend" => assert_eq!(outcome, (StatusCode::SERVICE_UNAVAILABLE, Some("1".to_owned()))),
            _ => assert!([StatusCode::OK, StatusCode::SERVICE_UNAVAILABLE].contains(&outcome.0), "{outcome:?}"),
        }
        assert_eq!(sign_out(&service, &token).await.0, StatusCode::OK);
    }
}

/// Whatever the database's defaults: tables of the same names elsewhere, and an isolation level that makes refreshes
/// conflict.
#[tokio::test(flavor = "multi_thread")]
async fn required_settings_override_the_databases_defaults() {
    let database = Database::create().await;
    let name = database.lines("SELECT current_database()").await.remove(0);
    database
        .run(&format!(
            "CREATE SCHEMA elsewhere; CREATE TABLE elsewhere.sessions (LIKE public.sessions);
             CREATE TABLE elsewhere.projects (LIKE public.projects);
             ALTER DATABASE {name} SET search_path = elsewhere, public;
             ALTER DATABASE {name} SET default_transaction_isolation = 'serializable';
             ALTER DATABASE {name} SET client_min_messages = 'error'"
        ))
        .await;
    // The nodes of a cluster send each other literals, and need the default.
    if divided::cluster().is_none() {
        database.run(&format!("ALTER DATABASE {name} SET standard_conforming_strings = off")).await;
    }
    let service = Service::start_on(database).await;
    let mut devices = vec![];
    for _ in 0..16 {
        devices.push(service.sign_in("ada", "phone").await);
    }
    for _ in 0..4 {
        let refreshes = devices.iter_mut().map(|device| device.refresh());
        for outcome in futures_util::future::join_all(refreshes).await {
            outcome.expect("refreshes");
        }
    }
    assert_eq!(service.database.lines("SELECT count(*) FROM public.sessions").await, ["16"]);
    assert_eq!(service.database.lines("SELECT count(*) FROM elsewhere.sessions").await, ["0"]);
}

/// The tables may be in another schema if the URL says so; if only the role does, the error says what to add.
#[tokio::test(flavor = "multi_thread")]
async fn the_url_selects_the_schema_of_the_tables() {
    let database = Database::create_empty().await;
    database.run("CREATE SCHEMA own").await;
    let url = format!("{}?options=-c%20search_path%3Down", database.url);
    let own = Store::new(&options(&url), Metrics::default()).expect("a good URL");
    assert!(!own.migrate().await.expect("migrates").is_empty());
    assert!(own.pending_migrations().await.expect("answers").is_empty());
    let message = store(&database.url).pending_migrations().await.expect_err("they are elsewhere").to_string();
    assert!(message.contains("options=-c%20search_path%3Down"), "{message}");
    let message = store(&database.url).migrate().await.expect_err("no second set of tables").to_string();
    assert!(message.contains("in the schema own"), "{message}");
}

/// Postgres is shown the password of the file, and of no other place.
#[tokio::test(flavor = "multi_thread")]
async fn the_database_password_is_read_from_a_file() {
    let cluster = Cluster::start(disposable("password")).await.expect("Postgres starts");
    let database = Database { url: cluster.database_url("postgres") };
    let hba = database.lines("SELECT current_setting('hba_file')").await.remove(0);
    let rules = fs::read_to_string(&hba).expect("reads");
    fs::write(&hba, format!("local all locked scram-sha-256\n{rules}")).expect("writes");
    database.run("CREATE ROLE locked LOGIN SUPERUSER PASSWORD 'right'; SELECT pg_reload_conf()").await;
    let url = database.url.replace("postgres://postgres@", "postgres://locked@");
    eventually("the rule holds", async || store(&url).reach().await.is_err()).await;
    let dir = fresh_dir("password-file");
    fs::create_dir_all(&dir).expect("creates");
    let path = dir.join("password");
    for (text, succeeds, words) in [
        ("wrong\n", false, "password authentication failed"),
        ("right\n", true, "applied"),
        // An empty file is no password, for servers that ask for none.
        ("", false, "password missing"),
    ] {
        fs::write(&path, text).expect("writes");
        let args = ["migrate", "--database-password-file", path.to_str().expect("text")];
        assert_says(&sessiond(&args, &[("DATABASE_URL", &url)]), succeeds, words);
    }
    fs::remove_dir_all(&dir).expect("removes");
    cluster.stop().await.expect("stops");
}

/// Permanent errors are reported at once, with the database's own message first.
#[tokio::test(flavor = "multi_thread")]
async fn permanent_errors_are_reported_at_once_in_the_databases_words() {
    let cluster = Cluster::start(disposable("words")).await.expect("Postgres starts");
    let database = Database { url: cluster.database_url("postgres") };
    let hba = database.lines("SELECT current_setting('hba_file')").await.remove(0);
    let rules = fs::read_to_string(&hba).expect("reads");
    fs::write(&hba, format!("local all locked scram-sha-256\n{rules}")).expect("writes");
    database
        .run("CREATE ROLE locked LOGIN PASSWORD 'right'; CREATE ROLE full_up LOGIN CONNECTION LIMIT 0; SELECT pg_reload_conf()")
        .await;
    let serve = ["serve", "--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"];
    let as_user = |user: &str| database.url.replace("postgres://postgres@", &format!("postgres://{user}@"));
    // A newline after the URL is ignored.
    let right = format!("{}\n", as_user("locked:right"));
    eventually("the rule holds", async || store(&as_user("locked:wrong")).reach().await.is_err()).await;
    store(&right).reach().await.expect("is accepted");
    for (url, words) in [
        (as_user("locked:wrong"), "password authentication failed for user \"locked\" (SQLSTATE 28P01)"),
        (as_user("nobody_here"), "role \"nobody_here\" does not exist (SQLSTATE 28000)"),
        (cluster.database_url("nowhere"), "database \"nowhere\" does not exist (SQLSTATE 3D000)"),
    ] {
        for command in [&serve[..], &["migrate"], &["project", "create", "shop"]] {
            let started = Instant::now();
            let output = sessiond(command, &[("DATABASE_URL", &url), ("SESSIOND_SEALING_KEY", SEALING_KEY)]);
            assert_says(&output, false, words);
            assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
            assert!(!String::from_utf8_lossy(&output.stderr).contains("waiting"), "{command:?}");
        }
    }
    // Temporary errors are retried, and each log line names the problem.
    let full = sessiond(&["migrate"], &[("DATABASE_URL", &as_user("full_up"))]);
    let message = String::from_utf8_lossy(&[full.stdout, full.stderr].concat()).into_owned();
    let waits: Vec<&str> = message.lines().filter(|line| line.contains("waiting for the database")).collect();
    assert!(waits.len() > 3, "{message}");
    assert!(
        waits.iter().all(|line| line.contains("too many connections for role \"full_up\" (SQLSTATE 53300)")),
        "{message}"
    );
    cluster.stop().await.expect("stops");
}

/// An unsuitable encoding is refused at the start.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_in_another_encoding_is_refused() {
    let database = Database::create_empty().await;
    // A cluster that was there before has that of an earlier run.
    database.run("DROP DATABASE IF EXISTS latin").await;
    database.run("CREATE DATABASE latin ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0").await;
    let (before, _) = database.url.rsplit_once('/').expect("a database");
    let env = [("DATABASE_URL", &*format!("{before}/latin")), ("SESSIOND_SEALING_KEY", SEALING_KEY)];
    for command in [&["migrate"][..], &["serve", "--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"]] {
        assert_says(&sessiond(command, &env), false, "its encoding is LATIN1, and must be UTF8");
    }
}

/// A running command.
fn spawn(args: &[&str], url: &str) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sessiond"));
    command.args(args).env_clear().env("DATABASE_URL", url).env("SESSIOND_SEALING_KEY", SEALING_KEY);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts")
}

fn send(child: &Child, signal: Signal) {
    rustix::process::kill_process(Pid::from_child(child), signal).expect("it is ours");
}

async fn end(child: Child) -> Output {
    tokio::task::spawn_blocking(move || child.wait_with_output().expect("a child")).await.expect("ends")
}

/// Handles signals itself, as a process with id 1 must: the kernel gives it no default action.
#[cfg(target_os = "linux")]
fn catches(child: &Child, signal: Signal) -> bool {
    let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:\t")).unwrap_or("0");
    u64::from_str_radix(mask.trim(), 16).expect("a mask") >> (signal.as_raw() - 1) & 1 == 1
}

/// SIGTERM and SIGINT while the database is down.
#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn commands_that_wait_for_the_database_stop_on_signals() {
    // It accepts connections and never answers.
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let url = format!("postgres://u@{}/d", silent.local_addr().expect("bound"));
    let (connected, count) = watch::channel(0);
    tokio::spawn(async move {
        let mut kept = vec![];
        while let Ok(connection) = silent.accept().await {
            kept.push(connection);
            connected.send_replace(kept.len());
        }
    });
    let serve = ["serve", "--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"];
    let dir = fresh_dir("told");
    let dev = ["dev", "--listen", "127.0.0.1:0", "--data-dir", dir.to_str().expect("a path of text")];
    let dev = [&dev[..], &["--database-url", &url]].concat();
    for command in [&serve[..], &dev, &["migrate"], &["sweep"], &["project", "create", "shop"], &["reseal"]] {
        for signal in [Signal::TERM, Signal::INT] {
            let before = *count.borrow();
            let child = spawn(command, &url);
            eventually("signals are caught", async || catches(&child, signal)).await;
            eventually("it waits for the database", async || *count.borrow() > before).await;
            let signalled_at = Instant::now();
            send(&child, signal);
            let output = end(child).await;
            assert!(signalled_at.elapsed() < Duration::from_secs(2), "{command:?}: {:?}", signalled_at.elapsed());
            let is_server = ["serve", "dev"].contains(&command[0]);
            assert_eq!(output.status.success(), is_server, "{command:?}: {output:?}");
        }
    }
}

/// The blocking client is named, and waited for as long as configured.
#[tokio::test(flavor = "multi_thread")]
async fn migrate_waits_for_blocking_clients_and_names_them() {
    let database = Database::create().await;
    // A wait that the server cuts short does not fail the migration.
    let name = database.lines("SELECT current_database()").await.remove(0);
    database.run(&format!("ALTER DATABASE {name} SET statement_timeout = '800ms'")).await;
    let holder = async || {
        let url = format!("{}?application_name=long-reader", database.url);
        let (client, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await.expect("connects");
        tokio::spawn(connection);
        client
    };
    for lock in ["LOCK TABLE __diesel_schema_migrations", "SELECT pg_advisory_xact_lock(7306081530162)"] {
        let client = holder().await;
        client.batch_execute(&format!("BEGIN; {lock}")).await.expect("locks");
        let given_up = end(spawn(&["migrate", "--wait", "2s"], &database.url)).await;
        assert_says(&given_up, false, "waited 2s for");
        assert_says(&given_up, false, "of long-reader as postgres");

        let migrating = spawn(&["migrate", "--wait", "1m"], &database.url);
        let migrating = tokio::spawn(end(migrating));
        tokio::time::sleep(Duration::from_millis(2_500)).await;
        assert!(!migrating.is_finished());
        client.batch_execute("COMMIT").await.expect("lets go");
        let migrating = migrating.await.expect("ends");
        assert_says(&migrating, true, "up to date");
        assert_says(&migrating, true, "waits for");
        assert_says(&migrating, true, "of long-reader as postgres");
    }
}

/// Stopped during a migration: the command exits at once, and the server soon rolls the migration back.
#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_migration_is_rolled_back() {
    let database = Database::create().await;
    let (client, connection) = tokio_postgres::connect(&database.url, tokio_postgres::NoTls).await.expect("connects");
    tokio::spawn(connection);
    client.batch_execute("BEGIN; LOCK TABLE __diesel_schema_migrations").await.expect("locks");
    let child = spawn(&["migrate"], &database.url);
    let waiting = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
    eventually("it waits", async || !database.lines(waiting).await.is_empty()).await;
    let signalled_at = Instant::now();
    send(&child, Signal::TERM);
    let output = end(child).await;
    assert_says(&output, false, "stopped before it finished");
    assert!(signalled_at.elapsed() < Duration::from_secs(2), "{:?}", signalled_at.elapsed());
    let ours = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'sessiond'";
    eventually("its processes are gone", async || database.lines(ours).await.is_empty()).await;
}

/// A migration is reverted under a running server.
#[tokio::test(flavor = "multi_thread")]
async fn a_reverted_migration_fails_readiness() {
    let service = Service::start().await;
    eventually("ready", async || service.readyz().await.0 == StatusCode::OK).await;
    let last = service.database.lines("SELECT max(version) FROM __diesel_schema_migrations").await.concat();
    service.database.run(&format!("DELETE FROM __diesel_schema_migrations WHERE version = '{last}'")).await;
    eventually("not ready", async || {
        let (status, message) = service.readyz().await;
        status == StatusCode::SERVICE_UNAVAILABLE && message.contains("the database lacks migrations")
    })
    .await;
    // A newer schema is fine: migrations run before the binaries that need them.
    service.database.run(&format!("INSERT INTO __diesel_schema_migrations VALUES ('{last}', now())")).await;
    service.database.run("INSERT INTO __diesel_schema_migrations VALUES ('20991231000001', now())").await;
    eventually("ready again", async || service.readyz().await.0 == StatusCode::OK).await;
    // Missing tables are an outage, not a bug.
    let phone = service.sign_in("ada", "phone").await;
    service.database.run("ALTER TABLE sessions RENAME TO gone").await;
    assert_eq!(sign_out(&service, &phone.access_token).await, (StatusCode::SERVICE_UNAVAILABLE, Some("1".to_owned())));
}

/// A replica with another sealing key could not create sessions.
#[tokio::test(flavor = "multi_thread")]
async fn keys_that_cannot_be_opened_fail_readiness() {
    let service = Service::start().await;
    let found = service.app.readiness().await;
    assert!(!found.iter().any(|reason| matches!(reason, NotReady::Keys(_))), "{found:?}");
    let store = Store::new(&options(&service.database.url), Metrics::default()).expect("a good URL");
    let keys = KeyCache::new(store.clone(), Sealer::new(&SealingKey::generate(), None));
    let stranger = App::new(store, keys, Issuer::new(ISSUER), Clock::system());
    stranger.keys().reload().await.expect("reads the keys");
    let found = stranger.readiness().await;
    assert!(found.iter().any(|reason| matches!(reason, NotReady::Keys(2))), "{found:?}");
}
