//! Client certificates in place of server keys: whom they stand for, when they count, and when they no longer do.

use std::fs;
use std::time::{Duration, Instant};

use serde_json::Value;
use sessiond::feed::AGE_MAX;
use sessiond::pb::session_service_client::SessionServiceClient;
use sessiond::pb::{CreateSessionRequest, EraseUserRequest, IntrospectTokenRequest, WatchRevocationsRequest};
use sessiond_guard::{ClientCertificate, ConnectError, Guard, GuardOptions};
use tokio::time::{sleep, timeout};
use tonic::Code;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use crate::harness::authority::{Authority, ClientIdentity, Kind};
use crate::harness::eventually;
use crate::harness::serving::{Installed, Serving};

const LOGIN: &str = "spiffe://example.org/ns/shop/sa/login";

/// A server with TLS, its project `shop`, and the authority of its own and its clients' certificates.
struct Setup {
    installed: Installed,
    authority: Authority,
    serving: Serving,
    log: std::path::PathBuf,
}

impl Setup {
    async fn new(name: &str, more: &[&str]) -> Self {
        let (installed, authority) = (Installed::new().await, Authority::new(name));
        authority.issue(Kind::Good);
        fs::copy(authority.path("ca.pem"), authority.path("clients.pem")).expect("copies");
        let clients = authority.path("clients.pem").display().to_string();
        let args: Vec<&str> = ["--tls-client-ca-file", &clients].into_iter().chain(more.iter().copied()).collect();
        let (serving, log) = authority.serve(&installed, &args).await;
        Self { installed, authority, serving, log }
    }

    /// Adds a name to a project. Returns the id.
    fn add(&self, name: &str, project: &str, role: &str) -> String {
        let args = ["client-certificate", "add", name, "--project", project, "--role", role];
        self.installed.run(&args).trim().to_owned()
    }

    /// Creates a session by curl. Returns the answer, or curl's error.
    fn create(&self, identity: Option<&ClientIdentity>, args: &[&str]) -> String {
        let create = ["--header", "content-type: application/json", "--data", r#"{"user_id": "ada"}"#];
        self.curl(identity, "/auth/sessions", &[&create, args].concat())
    }

    fn curl(&self, identity: Option<&ClientIdentity>, path: &str, args: &[&str]) -> String {
        let file = self.authority.path("client.pem");
        let mut all = vec![];
        if let Some(identity) = identity {
            fs::write(&file, format!("{}{}", identity.certificate, identity.key)).expect("writes");
            all.extend(["--cert", file.to_str().expect("text")]);
        }
        all.extend(args);
        self.authority.curl(self.serving.addr, path, &all)
    }

    /// A connection by tonic.
    async fn connect(&self, identity: &ClientIdentity) -> SessionServiceClient<Channel> {
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(self.authority.issuer.pem()))
            .identity(Identity::from_pem(&identity.certificate, &identity.key));
        let endpoint = Endpoint::from_shared(format!("https://localhost:{}", self.serving.addr.port())).expect("a URL");
        let channel = endpoint.tls_config(tls).expect("certificates").connect().await.expect("connects");
        SessionServiceClient::new(channel)
    }
}

fn user(user_id: &str) -> CreateSessionRequest {
    CreateSessionRequest { user_id: user_id.to_owned(), ..CreateSessionRequest::default() }
}

fn introspect(token: &str) -> IntrospectTokenRequest {
    IntrospectTokenRequest { token: token.to_owned() }
}

/// The reason of a refusal over REST.
fn reason(answer: &str) -> String {
    let answer: Value = serde_json::from_str(answer).unwrap_or_else(|_| panic!("{answer}"));
    answer["details"][0]["reason"].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned()
}

fn message(answer: &str) -> String {
    let answer: Value = serde_json::from_str(answer).unwrap_or_else(|_| panic!("{answer}"));
    answer["message"].as_str().expect("a message").to_owned()
}

/// A path through the certificates is looked for before the client has proved anything.
#[tokio::test(flavor = "multi_thread")]
async fn a_long_chain_of_certificates_is_refused() {
    let setup = Setup::new("mtls-chain", &[]).await;
    setup.add(LOGIN, "shop", "service");
    let own = setup.authority.client(&[LOGIN], Kind::Good);
    let mut chain = own.certificate.clone();
    for intermediates in 1..=4 {
        chain.push_str(&setup.authority.issuer.pem());
        let identity = ClientIdentity { certificate: chain.clone(), key: own.key.clone() };
        let created = setup.create(Some(&identity), &[]);
        assert_eq!(created.contains("access_token"), intermediates < 4, "{intermediates}: {created}");
    }
}

/// Over HTTP/1.1 and HTTP/2, REST and gRPC; within its project and its role.
#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_stands_in_for_a_server_key() {
    let setup = Setup::new("mtls", &[]).await;
    let (login, web) =
        (setup.authority.client(&[LOGIN], Kind::Good), setup.authority.client(&["WEB.example.org"], Kind::Good));
    let id = setup.add(LOGIN, "shop", "service");
    setup.add("Web.Example.org", "shop", "admin");
    for identity in [&login, &web] {
        for version in ["--http1.1", "--http2"] {
            let created = setup.create(Some(identity), &[version]);
            assert!(created.contains("access_token"), "{created}");
        }
    }
    let mut client = setup.connect(&login).await;
    let created = client.create_session(user("ada")).await.expect("creates").into_inner();
    assert!(client.introspect_token(introspect(&created.access_token)).await.expect("answers").into_inner().active);
    let refused = client.erase_user(EraseUserRequest { user_id: "ada".to_owned() }).await.expect_err("needs an admin");
    assert_eq!(refused.code(), Code::PermissionDenied);
    let mut admin = setup.connect(&web).await;
    admin.erase_user(EraseUserRequest { user_id: "ada".to_owned() }).await.expect("is an admin");

    // Tokens of another project are not its own.
    setup.installed.run(&["project", "create", "blog"]);
    setup.add("blog.example.org", "blog", "service");
    let blog = setup.authority.client(&["blog.example.org"], Kind::Good);
    let mut blog = setup.connect(&blog).await;
    let created = client.create_session(user("bob")).await.expect("creates").into_inner();
    assert!(!blog.introspect_token(introspect(&created.access_token)).await.expect("answers").into_inner().active);

    // The audit names it by its id, as it names a server key; and the list says when it was used.
    let session = created.session.expect("is set").id;
    let revoke = format!("/auth/sessions/{session}");
    assert!(setup.curl(Some(&login), &revoke, &["--request", "DELETE"]).contains("success"));
    let audit = setup.installed.run(&["audit", "--project", "shop", "--json"]);
    assert!(audit.lines().any(|line| line.contains(&session) && line.contains(&id)), "{audit}");
    eventually("is recorded", async || {
        let listed = setup.installed.run(&["client-certificate", "list", "--project", "shop", "--json"]);
        let names: Vec<Value> = listed.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        assert_eq!(
            (names.len(), &names[0]["certificate_name"], &names[0]["id"]),
            (2, &LOGIN.into(), &id.clone().into())
        );
        names.iter().all(|name| name["last_used_at"].is_string())
    })
    .await;
    let keys = setup.installed.run(&["server-key", "list", "--project", "shop", "--json"]);
    assert_eq!(keys.lines().count(), 3, "{keys}");
}

/// A header says what a request means to present; a certificate comes with every request on its connection.
#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_counts_only_without_another_credential() {
    let setup = Setup::new("mtls-beside", &[]).await;
    let login = setup.authority.client(&[LOGIN], Kind::Good);
    setup.add(LOGIN, "shop", "service");
    let key = format!("authorization: Bearer {}", setup.installed.key);
    let created = setup.create(None, &["--header", &key]);
    assert!(created.contains("access_token"), "without a certificate: {created}");
    assert!(setup.create(Some(&login), &["--header", &key]).contains("access_token"), "with both");
    assert_eq!(reason(&setup.create(None, &[])), "CREDENTIALS_MISSING");

    let created: Value = serde_json::from_str(&created).expect("JSON");
    let token = created["access_token"].as_str().expect("a token");
    let bearer = format!("authorization: Bearer {token}");
    let current = setup.curl(Some(&login), "/auth/sessions/current", &["--header", &bearer]);
    assert!(current.contains(created["session"]["id"].as_str().expect("an id")), "the user's own: {current}");
    assert_eq!(reason(&setup.create(Some(&login), &["--header", &bearer])), "INSUFFICIENT_ACCESS_TYPE");
    assert_eq!(reason(&setup.curl(Some(&login), "/auth/sessions/current", &[])), "INSUFFICIENT_ACCESS_TYPE");
    let (start, last) = key.split_at(key.len() - 1);
    let forged = format!("{start}{}", if last == "A" { "B" } else { "A" });
    for wrong in ["authorization: Bearer sdsk_rubbish", &forged] {
        assert_eq!(reason(&setup.create(Some(&login), &["--header", wrong])), "INVALID_SERVER_KEY", "{wrong}");
    }
    let refresh = format!("x-refresh-token: {}", created["refresh_token"].as_str().expect("a token"));
    assert_eq!(reason(&setup.create(Some(&login), &["--header", &refresh])), "INSUFFICIENT_ACCESS_TYPE");
    let refreshed = setup.curl(
        Some(&login),
        "/auth/sessions/current/refresh",
        &["--header", &refresh, "--header", "content-type: application/json", "--data", "{}"],
    );
    assert!(refreshed.contains("access_token"), "a refresh token is presented as ever: {refreshed}");

    // A browser presents its certificate for every page, and no proxy's header is believed.
    for browser in ["origin: https://elsewhere.example", "origin: null", "sec-fetch-site: cross-site"] {
        assert_eq!(reason(&setup.create(Some(&login), &["--header", browser])), "CREDENTIALS_MISSING", "{browser}");
    }
    for header in ["x-forwarded-client-cert: URI=spiffe://example.org/ns/shop/sa/login", "x-ssl-client-verify: SUCCESS"]
    {
        assert_eq!(reason(&setup.create(None, &["--header", header])), "CREDENTIALS_MISSING", "{header}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_stands_for_no_project_is_refused() {
    let setup = Setup::new("mtls-refused", &[]).await;
    setup.installed.run(&["project", "create", "blog"]);
    setup.add(LOGIN, "shop", "service");
    setup.add("login.example.org", "shop", "service");
    setup.add("admin.example.org", "shop", "admin");
    setup.add("blog.example.org", "blog", "service");
    let create = |names: &[&str]| setup.create(Some(&setup.authority.client(names, Kind::Good)), &[]);

    assert!(create(&[LOGIN, "login.example.org", "other.example.org"]).contains("access_token"), "the same, twice");
    let many: Vec<String> = (0..16).map(|number| format!("n{number}.example.org")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).chain([LOGIN]).collect();
    for (names, says) in [
        (&["other.example.org"][..], "No name in the client certificate"),
        (&[], "No name in the client certificate"),
        (&["*.example.org"], "No name in the client certificate"),
        (&["https://example.org/ns/shop/sa/login"], "No name in the client certificate"),
        (&["spiffe://example.org/ns/shop/sa/login/"], "No name in the client certificate"),
        (&many, "No name in the client certificate"),
        (&[LOGIN, "blog.example.org"], "stand for different projects or roles"),
        (&["login.example.org", "admin.example.org"], "stand for different projects or roles"),
    ] {
        let answer = create(names);
        assert_eq!(reason(&answer), "INVALID_SERVER_KEY", "{names:?}");
        assert!(message(&answer).contains(says), "{names:?}: {answer}");
    }

    // The handshake fails: no request is made.
    let stranger = Authority::new("mtls-stranger");
    let impostor = stranger.client(&[LOGIN], Kind::Good);
    let expired = setup.authority.client(&[LOGIN], Kind::Expired);
    // Under TLS 1.3 the client has sent its request by then, so curl reads the alert or sees the connection closed.
    for identity in [&impostor, &expired] {
        for version in [&["--http2"][..], &["--http1.1"], &["--tls-max", "1.2"]] {
            let answer = setup.create(Some(identity), version);
            assert!(answer.starts_with("curl: ("), "{answer}");
        }
    }
    eventually("is logged", async || {
        let log = fs::read_to_string(&setup.log).expect("reads");
        log.lines().any(|line| {
            line.contains("client certificate refused (logged every 10 s at most)") && line.contains("UnknownIssuer")
        })
    })
    .await;
    let page = setup.authority.curl(setup.serving.metrics_addr, "/metrics", &[]);
    assert!(page.contains(r#"sessiond_connections_refused_total{reason="client_certificate"} 6"#), "{page}");

    let name = ["client-certificate", "add", LOGIN, "--project", "blog"];
    let taken = setup.installed.try_run(&name);
    assert!(taken.contains("already stands for a project"), "{taken}");
    let refused = setup.installed.try_run(&["client-certificate", "add", "*.example.org", "--project", "blog"]);
    assert!(refused.contains("must be a SPIFFE id with a path"), "{refused}");
    let refused = setup.installed.try_run(&["client-certificate", "add", "a.example.org", "--project", "none"]);
    assert!(refused.contains("unknown project none"), "{refused}");
}

/// OAuth 2.0 Mutual-TLS Client Authentication (RFC 8705 §2.1): the client names its project, and sends no secret.
#[tokio::test(flavor = "multi_thread")]
async fn an_oauth_client_authenticates_with_its_certificate() {
    let setup = Setup::new("mtls-oauth", &[]).await;
    setup.installed.run(&["project", "create", "blog"]);
    setup.add(LOGIN, "shop", "service");
    let login = setup.authority.client(&[LOGIN], Kind::Good);
    let unknown = setup.authority.client(&["other.example.org"], Kind::Good);
    let created: Value = serde_json::from_str(&setup.create(Some(&login), &[])).expect("JSON");
    let token = format!("token={}", created["access_token"].as_str().expect("a token"));
    let ask = |identity: Option<&ClientIdentity>, client: &str| -> Value {
        let answer = setup.curl(identity, "/oauth2/introspect", &["--data", client, "--data", &token]);
        serde_json::from_str(&answer).unwrap_or_else(|_| panic!("{answer}"))
    };
    assert_eq!(ask(Some(&login), "client_id=shop")["active"], true);
    for (identity, client) in [
        (None, "client_id=shop"),
        (Some(&unknown), "client_id=shop"),
        (Some(&login), "client_id=blog"),
        (Some(&login), "client_id=shop&client_secret=rubbish"),
    ] {
        assert_eq!(ask(identity, client)["error"], "invalid_client", "{client}");
    }

    // A refresh that needs an authenticated client. Others are public clients, whatever certificate a gateway presents for them.
    let refresh = |identity: Option<&ClientIdentity>, token: &str| -> Value {
        let form = format!("grant_type=refresh_token&client_id=shop&refresh_token={token}");
        let answer = setup.curl(identity, "/oauth2/token", &["--data", &form]);
        serde_json::from_str(&answer).unwrap_or_else(|_| panic!("{answer}"))
    };
    let mut granted = created;
    for identity in [None, Some(&unknown), Some(&login)] {
        granted = refresh(identity, granted["refresh_token"].as_str().expect("a token"));
        assert!(granted["access_token"].is_string(), "{granted}");
    }
    let probe: Value = serde_json::from_str(&setup.create(Some(&login), &[])).expect("JSON");
    let probe = probe["refresh_token"].as_str().expect("a token").to_owned();
    setup.installed.run(&["project", "update", "shop", "--refresh-requires-client"]);
    let token = granted["refresh_token"].as_str().expect("a token").to_owned();
    eventually("applies", async || refresh(None, &probe)["error"] == "invalid_client").await;
    assert_eq!(refresh(Some(&unknown), &token)["error"], "invalid_client");
    let granted = refresh(Some(&login), &token);
    assert!(granted["access_token"].is_string(), "{granted}");
    let revoked = setup.curl(
        Some(&login),
        "/oauth2/revoke",
        &["--data", &format!("client_id=shop&token={token}"), "--write-out", "%{http_code}"],
    );
    assert_eq!(revoked, "200");
}

/// By every server, within the delay of the feed; its streams end, and the name can be added again.
#[tokio::test(flavor = "multi_thread")]
async fn a_removed_name_is_refused() {
    let setup = Setup::new("mtls-removed", &[]).await;
    let id = setup.add(LOGIN, "shop", "service");
    let login = setup.authority.client(&[LOGIN], Kind::Good);
    let mut client = setup.connect(&login).await;
    let created = client.create_session(user("ada")).await.expect("creates").into_inner();
    // The server may not have read the feed yet.
    let watching = timeout(Duration::from_secs(20), async {
        loop {
            match client.watch_revocations(WatchRevocationsRequest::default()).await {
                Err(status) if status.code() == Code::Unavailable => sleep(Duration::from_millis(100)).await,
                watching => return watching,
            }
        }
    });
    let mut stream = watching.await.expect("reads the feed").expect("watches").into_inner();
    stream.message().await.expect("answers").expect("the first message");
    let is_active = async |client: &mut SessionServiceClient<Channel>| {
        client.introspect_token(introspect(&created.access_token)).await.map(|answer| answer.into_inner().active)
    };
    assert!(is_active(&mut client).await.expect("answers"));

    let removed = setup.installed.run(&["client-certificate", "remove", &id]);
    assert!(removed.contains("every server refuses it within milliseconds"), "{removed}");
    let began = Instant::now();
    eventually("is refused", async || is_active(&mut client.clone()).await.is_err()).await;
    assert!(began.elapsed() < AGE_MAX, "{:?}", began.elapsed());
    assert_eq!(is_active(&mut client).await.expect_err("refused").code(), Code::Unauthenticated);
    let ended = timeout(Duration::from_secs(10), async {
        loop {
            match stream.message().await {
                Ok(Some(_)) => {}
                ended => return ended,
            }
        }
    });
    let ended = ended.await.expect("ends");
    assert_eq!(ended.expect_err("with the key").code(), Code::Unauthenticated);
    assert!(setup.installed.run(&["client-certificate", "remove", &id]).contains("already removed"));

    let again = setup.add(LOGIN, "shop", "service");
    assert_ne!(again, id);
    eventually("is accepted", async || matches!(is_active(&mut client.clone()).await, Ok(true))).await;
}

/// A guard that has no server key, and whose certificate is renewed while it runs.
#[tokio::test(flavor = "multi_thread")]
async fn a_guard_authenticates_with_its_certificate() {
    let setup = Setup::new("mtls-guard", &[]).await;
    let id = setup.add(LOGIN, "shop", "service");
    let files = ClientCertificate {
        certificate_file: setup.authority.path("guard.pem"),
        key_file: setup.authority.path("guard-key.pem"),
    };
    let write = |identity: &ClientIdentity| {
        setup.authority.replace("guard-key.pem", &identity.key);
        setup.authority.replace("guard.pem", &identity.certificate);
    };
    let url = format!("https://localhost:{}", setup.serving.addr.port());
    let options = || GuardOptions {
        trusted_certificates: Some(setup.authority.issuer.pem()),
        startup_timeout: Duration::from_secs(2),
        ..GuardOptions::with_client_certificate(&url, "shop", "https://sessions.example.org", files.clone())
    };
    let refused = Guard::connect(options()).await.expect_err("no file");
    assert!(refused.to_string().contains("guard.pem: No such file"), "{refused}");
    setup.authority.replace("guard.pem", "");
    setup.authority.replace("guard-key.pem", "");
    let unusable = ConnectError::UnusableCertificate { file: files.certificate_file.clone() };
    assert_eq!(Guard::connect(options()).await.expect_err("empty"), unusable);
    write(&setup.authority.client(&[LOGIN], Kind::Good));
    setup.authority.replace("guard-key.pem", &setup.authority.client(&[LOGIN], Kind::Good).key);
    assert_eq!(Guard::connect(options()).await.expect_err("another key"), unusable);
    let plain = GuardOptions { endpoints: vec!["http://localhost:1".to_owned()], ..options() };
    let refused = Guard::connect(plain).await.expect_err("no TLS");
    assert_eq!(refused, ConnectError::CertificateWithoutTls { endpoint: "http://localhost:1".to_owned() });
    let nothing = GuardOptions { client_certificate: None, ..options() };
    assert_eq!(Guard::connect(nothing).await.expect_err("nothing"), ConnectError::NoCredential);
    write(&setup.authority.client(&["other.example.org"], Kind::Good));
    let refused = Guard::connect(options()).await.expect_err("an unknown name");
    assert_eq!(refused, ConnectError::RejectedCertificate { endpoint: url.clone(), project: "shop".to_owned() });

    write(&setup.authority.client(&[LOGIN], Kind::Good));
    let guard = Guard::connect(options()).await.expect("connects");
    timeout(Duration::from_secs(10), guard.ready()).await.expect("is ready").expect("is configured");
    let created: Value =
        serde_json::from_str(&setup.create(Some(&setup.authority.client(&[LOGIN], Kind::Good)), &[])).expect("JSON");
    let token = created["access_token"].as_str().expect("a token");
    assert_eq!(guard.verify(token).await.expect("is accepted").user_id().as_str(), "ada");

    // After an interruption the renewed certificate is used, and the stream goes on.
    setup.add("renewed.example.org", "shop", "service");
    write(&setup.authority.client(&["renewed.example.org"], Kind::Good));
    setup.installed.run(&["client-certificate", "remove", &id]);
    let is_used = async || {
        let listed = setup.installed.run(&["client-certificate", "list", "--project", "shop", "--json"]);
        listed.lines().any(|line| line.contains("renewed.example.org") && !line.contains(r#""last_used_at":null"#))
    };
    eventually("is used", is_used).await;
    sleep(Duration::from_secs(3)).await;
    assert!(guard.stats().staleness.is_some_and(|age| age < Duration::from_secs(3)), "{:?}", guard.stats());
    guard.verify(token).await.expect("is accepted");
}

/// The authorities are replaced while the server runs. What cannot be used is ignored, and logged.
#[tokio::test(flavor = "multi_thread")]
async fn the_authorities_are_replaced_without_a_restart() {
    let setup = Setup::new("mtls-replaced", &[]).await;
    setup.add(LOGIN, "shop", "service");
    let successor = Authority::new("mtls-successor");
    let (old, new) = (setup.authority.client(&[LOGIN], Kind::Good), successor.client(&[LOGIN], Kind::Good));
    let is_accepted = |identity: &ClientIdentity| setup.create(Some(identity), &[]).contains("access_token");
    let log = || fs::read_to_string(&setup.log).expect("reads");
    let rejected = |file: &str| {
        let page = setup.authority.curl(setup.serving.metrics_addr, "/metrics", &[]);
        page.contains(&format!("sessiond_tls_files_rejected{{file=\"{file}\"}} 1"))
    };
    assert!(is_accepted(&old) && !is_accepted(&new));

    for (rubbish, says) in [
        ("rubbish", "has no certificate in PEM"),
        ("", "has no certificate in PEM"),
        ("-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n", "cannot read"),
        ("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "cannot use the certificate"),
    ] {
        let lines = log().lines().count();
        setup.authority.replace("clients.pem", rubbish);
        let said = async || {
            log()
                .lines()
                .skip(lines)
                .any(|line| line.contains("authorities") && line.contains("were not replaced") && line.contains(says))
        };
        eventually("says so", said).await;
        assert!(rejected("client_ca") && !rejected("certificate"));
        assert!(is_accepted(&old) && !is_accepted(&new));
    }
    // The certificate is replaced nevertheless.
    let issued = setup.authority.issue(Kind::Good);
    let presented = async || setup.authority.get(setup.serving.addr, "/healthz").await == Ok(issued.clone());
    eventually("is presented", presented).await;
    assert!(is_accepted(&old), "with the authorities as they were");

    // Both, during a change of the authority; then the new one alone. Connections in use go on.
    let mut open = setup.connect(&old).await;
    open.create_session(user("ada")).await.expect("creates");
    setup.authority.replace("clients.pem", &format!("{}{}", setup.authority.issuer.pem(), successor.issuer.pem()));
    eventually("is accepted", async || is_accepted(&new)).await;
    assert!(is_accepted(&old) && !rejected("client_ca"));
    setup.authority.replace("clients.pem", &successor.issuer.pem());
    eventually("is refused", async || !is_accepted(&old)).await;
    assert!(is_accepted(&new));
    open.create_session(user("ada")).await.expect("an open connection stays as it is");
}

/// Authorities that cannot be used are refused at the start, by name.
#[test]
fn unusable_authorities_are_refused_at_the_start() {
    use crate::binary::{assert_says, sessiond};
    let authority = Authority::new("mtls-start");
    authority.issue(Kind::Good);
    let clients = authority.path("clients.pem").display().to_string();
    let flags = authority.flags();
    let args: Vec<&str> =
        ["serve", "--tls-client-ca-file", &clients].into_iter().chain(flags.iter().map(String::as_str)).collect();
    let env = [("DATABASE_URL", "postgres://u@127.0.0.1:1/d"), ("SESSIOND_SEALING_KEY", "x")];
    assert_says(&sessiond(&args, &env), false, "clients.pem");
    authority.replace("clients.pem", "rubbish");
    assert_says(&sessiond(&args, &env), false, "clients.pem has no certificate in PEM");
    assert_says(&sessiond(&["serve", "--tls-client-ca-file", &clients], &env), false, "--tls-certificate-file <FILE>");
}
