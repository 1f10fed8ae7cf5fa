//! The certificates of a real Postgres: which are accepted, and what the error for each of the others says.

use std::{
    fs,
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    process,
};

use dev_postgres::{Cluster, Options};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    PKCS_ECDSA_P256_SHA256, date_time_ymd,
};
use sessiond::{store::ReachError, store::Store, telemetry::Metrics};

use crate::{
    binary::{assert_says, sessiond},
    harness::{
        database::{Database, disposable, fresh_dir},
        hasty,
    },
};

/// A certificate of X.509 version 1, as Citus and old scripts create by themselves, with its key. Only for this test.
const VERSION_1: &str = "-----BEGIN CERTIFICATE-----
MIIBIzCBywIUNS6+Ek1da/YAx6ueYTuwWlJE9QEwCgYIKoZIzj0EAwIwFDESMBAG
A1UEAwwJbG9jYWxob3N0MCAXDTI2MTEyNzExMjQ1MFoYDzIxMjYxMTAzMTEyNDUw
WjAUMRIwEAYDVQQDDAlsb2NhbGhvc3QwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNC
AAR5jSpHzAEH6APhbJL/BOvclPd7bjsvNx7SRptqNR4PafhWiMFyR3ZCPFgDamvu
Kk+GM+wXVeUfKn/DYnxrcKm3MAoGCCqGSM49BAMCA0cAMEQCIB/ANSH2NI8NtWRG
XOXsMnNUR9ReFvSADYrFwRZnAOkDAiBbVhoYqAdlBOrkOWvgMJgKhFXFqpzv/gOt
6ezNE08Q+g==
-----END CERTIFICATE-----
";
const VERSION_1_KEY: &str = "-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQguq6/YBaJhcZgTQA6
QjUiU8DtXfUMUOKKxKuMP4tA2ouhRANCAAR5jSpHzAEH6APhbJL/BOvclPd7bjsv
Nx7SRptqNR4PafhWiMFyR3ZCPFgDamvuKk+GM+wXVeUfKn/DYnxrcKm3
-----END PRIVATE KEY-----
";

/// A Postgres with TLS, whose certificate the test replaces while it runs.
struct TlsPostgres {
    _cluster: Cluster,
    database: Database,
    address: Ipv4Addr,
}

impl TlsPostgres {
    /// `None` if this machine has no loopback address of its own for this test, whose port is always 5432.
    async fn start(address: Ipv4Addr) -> Option<Self> {
        if let Err(error) = TcpListener::bind((address, 5432)) {
            eprintln!("not tested: {address}:5432 is not free: {error}");
            return None;
        }
        let mut options = disposable(&format!("tls-{address}"));
        options.settings.push(("listen_addresses".to_owned(), address.to_string()));
        let cluster = Cluster::start(Options { ..options }).await.expect("Postgres starts");
        let database = Database { url: cluster.database_url("postgres") };
        database.migrate().await;
        let server = Self { _cluster: cluster, database, address };
        server.allow("hostssl all all 127.0.0.0/8 trust").await;
        Some(server)
    }

    /// Puts a line before the others in `pg_hba.conf`, for the next reload.
    async fn allow(&self, rule: &str) {
        let hba = self.database.lines("SELECT current_setting('hba_file')").await.remove(0);
        let rules = fs::read_to_string(&hba).expect("reads");
        fs::write(&hba, format!("{rule}\n{rules}")).expect("writes");
    }

    /// Writes a file in the data directory. The server writes it, so that it owns it.
    async fn write(&self, file: &str, text: &str) {
        let lines = format!("SELECT unnest(string_to_array(trim(E'{}', E'\\n'), E'\\n'))", text.replace('\n', "\\n"));
        self.database.run(&format!("COPY ({lines}) TO PROGRAM 'umask 077 && cat >{file}'")).await;
    }

    /// Uses another certificate for new connections.
    async fn present(&self, certificate: &str, key: &str) {
        self.write("server.crt", certificate).await;
        self.write("server.key", key).await;
        self.database.run("ALTER SYSTEM SET ssl = on").await;
        // In a session of its own: a connection sees the new configuration only some time after the reload.
        self.database.run("SELECT pg_reload_conf(); SELECT pg_sleep(0.3)").await;
    }

    fn url(&self, parameters: &str) -> String {
        // `hostaddr` is the address, `host` the name to verify.
        format!("host=db.example.org hostaddr={} user=postgres dbname=postgres {parameters}", self.address)
    }
}

/// A loopback address of this process for one of its tests.
fn address(test: u8) -> Ipv4Addr {
    let [.., high, low] = process::id().to_be_bytes();
    Ipv4Addr::new(127, 200 + test, high, low.clamp(1, 254))
}

fn pem(name: &str, text: &str) -> PathBuf {
    let file = fresh_dir(name);
    fs::write(&file, text).expect("writes");
    file
}

fn store(url: &str) -> Store {
    Store::new(&hasty(url), Metrics::default()).expect("a good URL")
}

async fn error(url: &str) -> String {
    match store(url).reach().await {
        Err(error @ ReachError::Connect(_)) => {
            assert!(error.is_lasting(), "a retry changes nothing: {error}");
            error.to_string()
        }
        other => panic!("{other:?}"),
    }
}

/// A role that has no password: its client certificate is read again for each connection.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_certificate_is_presented() {
    let Some(server) = TlsPostgres::start(address(1)).await else { return };
    let mut params = CertificateParams::new(vec![]).expect("parameters");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("signs");
    let issue = |name: &str, usage| {
        let mut params = CertificateParams::new(vec!["db.example.org".to_owned()]).expect("parameters");
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![usage];
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("a key");
        (params.signed_by(&key, &authority).expect("signs").pem(), key.serialize_pem())
    };
    let (certificate, key) = issue("server", ExtendedKeyUsagePurpose::ServerAuth);
    server.write("ca.crt", &authority.pem()).await;
    server.database.run("ALTER SYSTEM SET ssl_ca_file = 'ca.crt'").await;
    server.database.run("CREATE ROLE certified LOGIN SUPERUSER").await;
    server.allow("hostssl all certified 127.0.0.0/8 cert").await;
    server.present(&certificate, &key).await;

    let (certificate, key) = issue("certified", ExtendedKeyUsagePurpose::ClientAuth);
    let files = (pem("real-client", &certificate), pem("real-client-key", &key));
    let url = |certificate: &Path| {
        server.url(&format!(
            "user=certified sslrootcert={} sslcert={} sslkey={}",
            pem("real-client-ca", &authority.pem()).display(),
            certificate.display(),
            files.1.display()
        ))
    };
    let good = url(&files.0);
    store(&good).reach().await.expect("is let in");
    let without =
        server.url(&format!("user=certified sslrootcert={}", pem("real-client-ca", &authority.pem()).display()));
    assert!(store(&without).reach().await.is_err(), "no certificate");
    assert_says(&sessiond(&["project", "list"], &[("DATABASE_URL", &good)]), true, "there are no projects");

    let refused = |url: &str, says: &str| {
        assert_says(&sessiond(&["project", "list"], &[("DATABASE_URL", url)]), false, says);
    };
    refused(&url(Path::new("/none.pem")), "the client certificate for the database, or its key, cannot be read");
    let (other, other_key) = issue("certified", ExtendedKeyUsagePurpose::ClientAuth);
    let mismatch = pem("real-client-other", &other);
    refused(&url(&mismatch), "the client certificate for the database cannot be used with its key");
    refused(&server.url("sslcert=/a.pem"), "sslcert and sslkey in the database URL must both be set");

    // A renewal, one file after the other: meanwhile the previous certificate is presented, which is that of another role.
    let (wrong, wrong_key) = issue("another", ExtendedKeyUsagePurpose::ClientAuth);
    fs::write(&files.0, wrong).expect("writes");
    fs::write(&files.1, wrong_key).expect("writes");
    let renewed = store(&good);
    assert!(renewed.reach().await.is_err(), "another role's");
    fs::write(&files.0, other).expect("writes");
    assert!(renewed.reach().await.is_err(), "still the previous one");
    fs::write(&files.1, other_key).expect("writes");
    renewed.reach().await.expect("the renewed one");
}

/// A certificate, and what the error must say; `Ok` if it is accepted.
#[tokio::test(flavor = "multi_thread")]
async fn the_error_for_each_certificate_says_what_is_wrong_and_what_to_do() {
    let Some(server) = TlsPostgres::start(address(0)).await else { return };
    let mut params = CertificateParams::new(vec![]).expect("parameters");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("signs");
    let trusted = format!("sslrootcert={}", pem("real-ca", &authority.pem()).display());
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("a key");
    let named = |name: &str| CertificateParams::new(vec![name.to_owned()]).expect("parameters");
    let signed = |params: CertificateParams| params.signed_by(&key, &authority).expect("signs").pem();

    let mut expired = named("db.example.org");
    expired.not_after = date_time_ymd(2020, 1, 1);
    let mut early = named("db.example.org");
    early.not_before = date_time_ymd(4000, 1, 1);
    let mut for_clients = named("db.example.org");
    for_clients.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    for (what, certificate, outcome) in [
        ("good", signed(named("db.example.org")), Ok(())),
        ("another name", signed(named("db2.example.org")), Err(["is for another name", "sslmode=verify-ca"])),
        ("expired", signed(expired), Err(["has expired", "Renew the certificate"])),
        ("early", signed(early), Err(["is not valid yet", "this machine's clock"])),
        ("for clients", signed(for_clients), Err(["is not for servers", "extendedKeyUsage=serverAuth"])),
        (
            "unknown authority",
            named("db.example.org").self_signed(&key).expect("signs").pem(),
            Err(["not signed by a trusted authority", "sslrootcert=FILE"]),
        ),
    ] {
        server.present(&certificate, &key.serialize_pem()).await;
        for mode in ["", "sslmode=require", "sslmode=verify-full"] {
            let url = server.url(&format!("{trusted} {mode}"));
            match outcome {
                Ok(()) => store(&url).reach().await.unwrap_or_else(|error| panic!("{what}, {mode}: {error}")),
                Err(words) => {
                    let message = error(&url).await;
                    assert!(words.iter().all(|words| message.contains(words)), "{what}, {mode}: {message}");
                    assert!(message.contains("db.example.org"), "{message}");
                }
            }
        }
    }

    // A self-signed one is accepted once the URL names it, unless it is an authority's own.
    let own = named("db.example.org").self_signed(&key).expect("signs").pem();
    server.present(&own, &key.serialize_pem()).await;
    let itself = format!("sslrootcert={}", pem("real-itself", &own).display());
    store(&server.url(&itself)).reach().await.expect("the file makes it trusted");
    let mut params = named("db.example.org");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let own = params.self_signed(&key).expect("signs").pem();
    server.present(&own, &key.serialize_pem()).await;
    let itself = format!("sslrootcert={}", pem("real-authority", &own).display());
    let message = error(&server.url(&itself)).await;
    assert!(message.contains("is that of an authority") && message.contains("CA:FALSE"), "{message}");

    // Version 1, as Citus makes its own: by default, and even if the URL names it. The command says so at once.
    server.present(VERSION_1, VERSION_1_KEY).await;
    let itself = format!("sslrootcert={}", pem("real-version-1", VERSION_1).display());
    for parameters in ["", "sslmode=prefer", "sslmode=verify-ca", &itself] {
        let message = error(&server.url(parameters)).await;
        assert!(message.contains("a version before X.509v3, as Citus"), "{parameters}: {message}");
        assert!(
            message.contains("openssl req -x509") && message.contains("sslmode=disable"),
            "{parameters}: {message}"
        );
    }
    let migrate = sessiond(&["migrate"], &[("DATABASE_URL", &server.url(""))]);
    assert_says(&migrate, false, "a version before X.509v3, as Citus");
}
