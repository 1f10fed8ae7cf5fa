//! Behind real proxies: Envoy, nginx, Caddy and Traefik, with the configurations in `examples/`. `tests/proxies/run` installs the
//! programs, and passes their paths.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use axum::{Json, Router, extract::State};
use bytes::Bytes;
use futures_util::future::join_all;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, Uri};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use sessiond::{
    config::network,
    pb::{CookieOptions, CreateSessionRequest},
};
use sessiond_core::session::policy::CookieScope;
use tokio::{net::TcpListener, net::TcpStream, runtime::Runtime};

use crate::harness::{
    PROJECT, Service, Wire, bearer, both,
    database::fresh_dir,
    eventually, header,
    serving::{Installed, free_port},
    wire::{Wires, refused_json},
};

/// The bound from the 200 of a sign-out to the first rejection behind the proxy.
const BOUND: Duration = Duration::from_secs(1);

/// The lifetime of an access token, by default.
const ACCESS_TTL: Duration = Duration::from_secs(10 * 60);

/// The number of sign-outs to measure.
const SIGN_OUTS: usize = 100;

/// Where clients are: not where the proxies are.
const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));

/// A proxy's program, its example configuration, and what to replace in it.
struct Kind {
    /// The variable with the path of the program.
    program: &'static str,
    example: &'static str,
    /// The ports of sessiond, the application and the proxy in the example.
    ports: [&'static str; 3],
    arguments: fn(&Path, &Path) -> Vec<String>,
    /// The client's response if sessiond does not answer.
    down: u16,
    /// Whether the client gets our body, or the proxy's.
    passes_bodies_on: bool,
    /// Whether it can forbid caches to keep a response with new cookies.
    forbids_caches: bool,
}

const ENVOY: Kind = Kind {
    program: "SESSIOND_TEST_ENVOY",
    example: "examples/envoy/envoy.yaml",
    ports: ["port_value: 8080", "port_value: 9000", "port_value: 10000"],
    arguments: |_, config| {
        let config = config.display().to_string();
        ["-c", &config, "--use-dynamic-base-id", "--concurrency", "1", "--log-level", "warn"].map(str::to_owned).into()
    },
    down: 503,
    passes_bodies_on: true,
    forbids_caches: true,
};

const NGINX: Kind = Kind {
    program: "SESSIOND_TEST_NGINX",
    example: "examples/nginx/nginx.conf",
    ports: ["127.0.0.1:8080", "127.0.0.1:9000", "127.0.0.1:10080"],
    arguments: |dir, config| {
        vec!["-p".to_owned(), dir.display().to_string(), "-c".to_owned(), config.display().to_string()]
    },
    down: 500,
    passes_bodies_on: false,
    forbids_caches: true,
};

const ENVOY_COOKIES: Kind = Kind { example: "examples/envoy/cookies.yaml", ..ENVOY };

const NGINX_COOKIES: Kind = Kind { example: "examples/nginx/cookies.conf", ..NGINX };

const CADDY: Kind = Kind {
    program: "SESSIOND_TEST_CADDY",
    example: "examples/caddy/Caddyfile",
    ports: ["127.0.0.1:8080", "127.0.0.1:9000", "127.0.0.1:10090"],
    arguments: |_, config| {
        let config = config.display().to_string();
        ["run", "--adapter", "caddyfile", "--config", &config].map(str::to_owned).into()
    },
    down: 502,
    passes_bodies_on: true,
    forbids_caches: true,
};

const TRAEFIK: Kind = Kind {
    program: "SESSIOND_TEST_TRAEFIK",
    example: "examples/traefik/traefik.yaml",
    ports: ["127.0.0.1:8080", "127.0.0.1:9000", "127.0.0.1:10070"],
    arguments: |_, config| vec![format!("--configfile={}", config.display())],
    down: 500,
    passes_bodies_on: true,
    forbids_caches: false,
};

const TRAEFIK_COOKIES: Kind = Kind { example: "examples/traefik/cookies.yaml", ..TRAEFIK };

const CADDY_COOKIES: Kind = Kind { example: "examples/caddy/cookies.Caddyfile", ..CADDY };

/// A running proxy. Stopped on drop.
struct Front {
    process: Child,
    wires: Wires,
    dir: PathBuf,
}

impl Front {
    async fn start(kind: &Kind, sessiond: SocketAddr, app: SocketAddr) -> Self {
        Self::start_with(kind, sessiond, app, |config| config).await
    }

    /// With a configuration that differs from the example.
    async fn start_with(
        kind: &Kind,
        sessiond: SocketAddr,
        app: SocketAddr,
        change: impl FnOnce(String) -> String,
    ) -> Self {
        let program = std::env::var_os(kind.program).unwrap_or_else(|| panic!("{} is not set", kind.program));
        let example = Path::new(env!("CARGO_MANIFEST_DIR")).join(kind.example);
        let mut config = fs::read_to_string(&example).expect("an example");
        let own = free_port().port();
        for (spelled, port) in kind.ports.iter().zip([sessiond.port(), app.port(), own]) {
            assert!(config.contains(spelled), "{spelled} in {}", example.display());
            let (before, _) = spelled.rsplit_once([' ', ':']).expect("a port");
            let separator = &spelled[before.len()..=before.len()];
            config = config.replace(spelled, &format!("{before}{separator}{port}"));
        }
        let file = example.file_name().expect("a name");
        let dir = fresh_dir(&format!("behind-{}", file.display()));
        fs::create_dir_all(dir.join("temp")).expect("makes it");
        let place = dir.join(file);
        // Traefik's names itself.
        config = config.replace(kind.example, &place.display().to_string());
        fs::write(&place, change(config)).expect("writes");
        let log = dir.join("log");
        let process = Command::new(program)
            .args((kind.arguments)(&dir, &place))
            // Where Caddy keeps its state.
            .env("HOME", &dir)
            .env("XDG_CONFIG_HOME", &dir)
            .env("XDG_DATA_HOME", &dir)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(&log).expect("creates"))
            .spawn()
            .expect("starts");
        let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, own));
        let mut front = Self { process, wires: Wires::from(Some(CLIENT), addr), dir };
        eventually("the proxy listens", async || {
            let ended = front.process.try_wait().expect("a child");
            assert!(ended.is_none(), "it ended: {}", fs::read_to_string(&log).unwrap_or_default());
            TcpStream::connect(addr).await.is_ok()
        })
        .await;
        // Traefik listens before it knows its routes.
        eventually("it has its routes", async || {
            front.ask(Method::GET, "/checked", HeaderMap::new()).await.status() != 404
        })
        .await;
        front
    }

    async fn ask(&self, method: Method, path: &str, headers: HeaderMap) -> Response<Bytes> {
        self.wires.http(method, path, headers, "").await
    }

    /// Where an answer sends the client, on its own origin.
    fn location(&self, answer: &Response<Bytes>) -> Option<String> {
        let location = answer.headers().get("location")?.to_str().expect("text");
        let own = format!("http://{}", self.wires.addr);
        Some(location.strip_prefix(&own).unwrap_or(location).to_owned())
    }

    async fn status(&self, headers: HeaderMap) -> u16 {
        self.ask(Method::GET, "/orders", headers).await.status().as_u16()
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        // Terminated, not killed: nginx's worker would survive.
        if kill_process(Pid::from_child(&self.process), Signal::TERM).is_err() {
            let _ = self.process.kill();
        }
        let _ = self.process.wait();
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// The server's runtime: on drop, the server and all its connections are gone.
struct Host(Option<Runtime>);

impl Default for Host {
    fn default() -> Self {
        Self(Some(Runtime::new().expect("starts")))
    }
}

impl Host {
    fn runtime(&self) -> &Runtime {
        self.0.as_ref().expect("not dropped")
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.0.take().expect("dropped once").shutdown_background();
    }
}

/// An application that reports the headers it gets, and counts requests.
async fn application() -> (SocketAddr, Arc<AtomicUsize>) {
    let asked = Arc::new(AtomicUsize::new(0));
    let show =
        async |State(asked): State<Arc<AtomicUsize>>, method: Method, uri: Uri, headers: HeaderMap, body: String| {
            asked.fetch_add(1, Ordering::Relaxed);
            let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
            let headers: Vec<_> = headers.iter().map(|(name, value)| (name.to_string(), text(value))).collect();
            Json(json!({"method": method.as_str(), "path": uri.path(), "headers": headers, "body": body}))
        };
    let router = Router::new().fallback(show).with_state(Arc::clone(&asked));
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("binds");
    let addr = listener.local_addr().expect("bound");
    tokio::spawn(async move { axum::serve(listener, router).await });
    (addr, asked)
}

/// The value of a header that the application saw, under any spelling. Absent equals empty.
fn shown(answer: &Response<Bytes>, name: &str) -> String {
    let json: Value = serde_json::from_slice(answer.body()).expect("the application's JSON");
    let headers = json["headers"].as_array().expect("a list");
    let spelled = |one: &str| one.replace(|letter: char| !letter.is_ascii_alphanumeric(), "-");
    let same = headers.iter().filter(|pair| pair[0].as_str().is_some_and(|one| spelled(one) == name));
    let values: Vec<&str> = same.map(|pair| pair[1].as_str().expect("text")).collect();
    assert!(values.len() <= 1, "{name}: {values:?}");
    values.concat()
}

fn shown_identity(answer: &Response<Bytes>) -> [String; 4] {
    IDENTITY.map(|name| shown(answer, name))
}

/// What a header's name may have besides letters, digits and the dash (RFC 9110 §5.6.2), and some applications take for a dash.
const ALIASES: &str = "_.!#$%&'*+^`|~";

/// The headers that tell an application who is signed in.
const IDENTITY: [&str; 4] = ["x-session-id", "x-user-id", "x-project-id", "x-impersonator-id"];

/// Spoofed headers: each in every spelling, twice.
fn spoofed() -> HeaderMap {
    let others = [
        ("x-stack-override-error-status", "true"),
        ("x-original-uri", "/public/"),
        ("x-original-url", "/public/"),
        ("x-forwarded-uri", "/public/"),
        ("x-forwarded-method", "OPTIONS"),
        ("x-original-method", "OPTIONS"),
        ("x-forwarded-host", "evil.example"),
        ("x-forwarded-cookie", "theme=light"),
    ];
    let headers: HeaderMap =
        others.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect();
    both(headers, both(misspelled('-'), misspelled('_')))
}

/// The identity headers with another character in place of each dash, or both; each twice.
fn misspelled(alias: char) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for name in IDENTITY {
        let [first, second, third] = name.split('-').collect::<Vec<_>>().try_into().expect("three words");
        for (one, other) in [(alias, alias), (alias, '-'), ('-', alias)] {
            let spelled = HeaderName::try_from(format!("{first}{one}{second}{other}{third}")).expect("a name");
            for value in ["root", "eve"] {
                headers.append(&spelled, HeaderValue::from_static(value));
            }
        }
    }
    headers
}

/// Asks a proxy to keep the identity to itself: these headers are only for the next hop (RFC 9110 §7.6.1).
fn nominated() -> HeaderMap {
    header("connection", &format!("close, {}", IDENTITY.join(", ")))
}

/// Paths that a proxy and an application may read differently: public to one, and something else to the other. Envoy and Traefik
/// pass on the path by which they decided.
async fn no_ambiguous_path_reaches_the_application(front: &Front, asked: &AtomicUsize, public: &str) {
    let before = asked.load(Ordering::Relaxed);
    for path in [
        format!("/orders/%2e%2e/{public}/x"),
        format!("/orders/..%2f{public}/x"),
        format!("/orders/../{public}/x"),
        format!("/orders/%2E./{public}/x"),
        format!("/orders/..%5c{public}/x"),
        format!("/{public}/../orders"),
        format!("/{public}/%2e%2e/orders"),
        format!("/{public}x"),
    ] {
        let answer = front.ask(Method::GET, &path, spoofed()).await;
        if answer.status().is_success() {
            let seen: Value = serde_json::from_slice(answer.body()).expect("the application's JSON");
            assert_eq!(seen["path"], json!(format!("/{public}/x")), "{path}");
            asked.fetch_sub(1, Ordering::Relaxed);
        }
        assert_eq!(asked.load(Ordering::Relaxed), before, "{path}");
    }
}

async fn who_is_signed_in_passes_and_nobody_else(kind: &Kind) {
    let host = Host::default();
    let service = host.runtime().spawn(Service::start()).await.expect("starts");
    let (app, asked) = application().await;
    let front = Front::start(kind, service.addr, app).await;

    let other = service.create_project("other").await;
    let request = CreateSessionRequest { user_id: "ada".into(), ..Default::default() };
    let elsewhere = service.create_as(Wire::Grpc, &other, request).await.expect("opens").access_token;
    let (phone, laptop) = (service.sign_in("ada l", "phone").await, service.sign_in("ada l", "laptop").await);

    // Rejected, whatever the headers, without reaching the application.
    let refused = [
        ("no token", HeaderMap::new(), "CREDENTIALS_MISSING", "Bearer"),
        ("rubbish", bearer("rubbish"), "UNPARSABLE_ACCESS_TOKEN", "Bearer error=\"invalid_token\""),
        ("another project's", bearer(&elsewhere), "INVALID_PROJECT_FOR_ACCESS_TOKEN", "Bearer error=\"invalid_token\""),
    ];
    for (what, headers, reason, challenge) in refused {
        for method in [Method::GET, Method::POST, Method::OPTIONS] {
            let answer = front.ask(method.clone(), "/orders?token=secret", both(spoofed(), headers.clone())).await;
            assert_eq!(answer.status().as_u16(), 401, "{what} {method}");
            let header = answer.headers()["www-authenticate"].to_str().expect("text");
            assert!(header.starts_with(challenge), "{what}: {header}");
            if kind.passes_bodies_on {
                let json = serde_json::from_slice(answer.body()).expect("JSON");
                assert_eq!(refused_json(answer.status(), &json).reason, reason, "{what}");
            }
        }
    }
    assert_eq!(asked.load(Ordering::Relaxed), 0);
    no_ambiguous_path_reaches_the_application(&front, &asked, "public").await;

    // The user that sessiond reports, not the client's.
    for device in [&phone, &laptop] {
        for more in [HeaderMap::new(), nominated()] {
            let answer = front.ask(Method::GET, "/orders?a=b", both(both(spoofed(), more), device.bearer())).await;
            assert_eq!(answer.status().as_u16(), 200, "{:?}", answer.body());
            assert_eq!(shown_identity(&answer), [&device.session, "ada%20l", PROJECT, ""].map(str::to_owned));
        }
    }
    let acted = service.impersonate("ada", "root, himself").await;
    let answer = front.ask(Method::GET, "/orders", both(spoofed(), acted.bearer())).await;
    assert_eq!(shown_identity(&answer)[3], "root%2C%20himself");
    let answer = front.wires.http(Method::POST, "/orders", both(spoofed(), phone.bearer()), "an order").await;
    let json: Value = serde_json::from_slice(answer.body()).expect("JSON");
    assert_eq!((&json["method"], &json["body"]), (&json!("POST"), &json!("an order")));

    // In any spelling, on any route.
    for alias in ALIASES.chars() {
        let answer = front.ask(Method::GET, "/orders", both(misspelled(alias), phone.bearer())).await;
        let expected = [&phone.session, "ada%20l", PROJECT, ""].map(str::to_owned);
        assert_eq!((answer.status().as_u16(), shown_identity(&answer)), (200, expected), "{alias}");
        let answer = front.ask(Method::GET, "/public/prices", misspelled(alias)).await;
        assert_eq!((answer.status().as_u16(), shown_identity(&answer)), (200, Default::default()), "{alias}");
    }

    // The client's own query is not the configuration's.
    let page = header("sec-fetch-mode", "navigate");
    let answer = front.ask(Method::GET, "/orders?login=https://evil.example/", page.clone()).await;
    assert_eq!((answer.status().as_u16(), answer.headers().get("location")), (401, None));
    let answer = front.ask(Method::GET, "/orders?max_age=1&acr_values=none", phone.bearer()).await;
    assert_eq!(answer.status().as_u16(), 200);

    // On an unchecked route no identity is passed.
    for headers in [HeaderMap::new(), phone.bearer()] {
        let answer = front.ask(Method::GET, "/public/prices", both(spoofed(), headers)).await;
        assert_eq!((answer.status().as_u16(), shown_identity(&answer)), (200, Default::default()));
    }
    for path in ["/public/../orders", "/public/%2e%2e/orders", "/publicorders", "//orders", "/.verify"] {
        let status = front.ask(Method::GET, path, spoofed()).await.status().as_u16();
        assert!(matches!(status, 400 | 401 | 404), "{path}: {status}");
    }

    // Signed out, and rejected behind the proxy too.
    let mut times = vec![];
    for at in 0..SIGN_OUTS {
        let device = if at == 0 { phone.clone() } else { service.sign_in("ada l", "tablet").await };
        assert_eq!(front.status(device.bearer()).await, 200, "signed in");
        device.sign_out().await.expect("signs out");
        let signed_out = Instant::now();
        while front.status(device.bearer()).await != 401 {
            assert!(signed_out.elapsed() < BOUND, "still let through");
        }
        times.push(signed_out.elapsed());
    }
    times.sort_unstable();
    let [median, most] = [SIGN_OUTS / 2, SIGN_OUTS - 1].map(|at| times[at]);
    println!("{}: refused {median:?} after the 200 of a sign-out, and at most {most:?} of {SIGN_OUTS}", kind.example);
    assert_eq!(front.status(laptop.bearer()).await, 200, "the other session still works");

    // sessiond is down: every request is rejected.
    let before = asked.load(Ordering::Relaxed);
    let (good, bad) = (laptop.bearer(), phone.bearer());
    drop(host);
    for headers in [good, bad, HeaderMap::new()] {
        assert_eq!(front.status(both(spoofed(), headers)).await, kind.down);
    }
    assert_eq!(asked.load(Ordering::Relaxed), before, "the application does not hear of them");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Envoy: run tests/proxies/run"]
async fn envoy_lets_only_signed_in_users_through() {
    who_is_signed_in_passes_and_nobody_else(&ENVOY).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs nginx: run tests/proxies/run"]
async fn nginx_lets_only_signed_in_users_through() {
    who_is_signed_in_passes_and_nobody_else(&NGINX).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Traefik: run tests/proxies/run"]
async fn traefik_lets_only_signed_in_users_through() {
    who_is_signed_in_passes_and_nobody_else(&TRAEFIK).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Traefik: run tests/proxies/run"]
async fn traefik_keeps_a_browser_signed_in() {
    a_browser_stays_signed_in_and_is_signed_out(&TRAEFIK_COOKIES).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Caddy: run tests/proxies/run"]
async fn caddy_lets_only_signed_in_users_through() {
    who_is_signed_in_passes_and_nobody_else(&CADDY).await;
}

/// Two cells, each with a database of its own, behind one nginx that routes by the project.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs nginx: run tests/proxies/run"]
async fn nginx_sends_each_project_to_its_cell() {
    let program = std::env::var_os(NGINX.program).unwrap_or_else(|| panic!("{} is not set", NGINX.program));
    let (eu, us) = (Service::start().await, Service::start().await);
    let (shop, books) = (eu.create_project("shop").await, us.create_project("books").await);
    let mut config =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/cells/nginx.conf")).expect("is there");
    let own = free_port().port();
    let ports = [("8080", eu.addr.port()), ("8081", us.addr.port()), ("10080", own), ("10081", free_port().port())];
    for (spelled, port) in ports {
        let spelled = format!("127.0.0.1:{spelled}");
        assert!(config.contains(&spelled), "{spelled}");
        config = config.replace(&format!("{spelled};"), &format!("127.0.0.1:{port};"));
        config = config.replace(&format!("{spelled} "), &format!("127.0.0.1:{port} "));
    }
    let dir = fresh_dir("cells");
    fs::create_dir_all(dir.join("temp")).expect("makes it");
    let place = dir.join("nginx.conf");
    fs::write(&place, config).expect("writes");
    let process =
        Command::new(program).args((NGINX.arguments)(&dir, &place)).stdin(Stdio::null()).spawn().expect("starts");
    let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, own));
    let front = Front { process, wires: Wires::to(addr), dir };
    eventually("nginx listens", async || TcpStream::connect(addr).await.is_ok()).await;

    let at = |host: &str| header("host", host);
    let of = |name: &str| at(&format!("{name}.sessions.example.org"));
    let create = async |name: &str, key: &str| {
        let headers = both(both(of(name), bearer(key)), header("content-type", "application/json"));
        front.wires.http(Method::POST, "/auth/sessions", headers, r#"{"user_id": "ada"}"#).await
    };
    for (name, key, cell) in [("shop", &shop, &eu), ("books", &books, &us)] {
        let key = secrecy::ExposeSecret::expose_secret(key);
        let created = create(name, key).await;
        assert_eq!(created.status(), 200, "{name}");
        let body: Value = serde_json::from_slice(created.body()).expect("JSON");
        let token = body["access_token"].as_str().expect("a token");
        // The session is in that cell's database, and nowhere else.
        let query = format!("SELECT count(*) FROM sessions WHERE project_id = '{name}'");
        for database in [&eu.database, &us.database] {
            let expected = if std::ptr::eq(database, &cell.database) { "1" } else { "0" };
            assert_eq!(database.lines(&query).await, [expected], "{name}");
        }
        // By the path, at the issuer's own name.
        let verify = format!("/projects/{name}/auth/verify");
        let verified = front.ask(Method::GET, &verify, both(at("sessions.example.org"), bearer(token))).await;
        assert_eq!(verified.status(), 200, "{name}");
        let keys = format!("/projects/{name}/.well-known/jwks.json");
        assert_eq!(front.ask(Method::GET, &keys, at("sessions.example.org")).await.status(), 200, "{name}");
        // Another cell refuses what it does not know: no answer is ever that of the wrong project.
        let other = if name == "shop" { "books" } else { "shop" };
        assert_eq!(create(other, key).await.status(), 401);
        assert_eq!(
            front.ask(Method::GET, "/auth/sessions/current", both(of(other), bearer(token))).await.status(),
            401
        );
        let signed_out = front.ask(Method::DELETE, "/auth/sessions/current", both(of(name), bearer(token))).await;
        assert_eq!(signed_out.status(), 200);
    }
    for host in ["sessions.example.org", "unknown.sessions.example.org", "shop.sessions.example.org.evil.test"] {
        assert_eq!(front.ask(Method::GET, "/auth/sessions/current", at(host)).await.status(), 404, "{host}");
    }
}

/// What OpenTelemetry's own messages say about a span.
struct Span {
    service: String,
    trace: String,
    id: String,
    parent: String,
    name: String,
    kind: String,
    attributes: Value,
}

/// A collector with OpenTelemetry's own messages. Killed on drop.
struct Collector {
    process: Child,
    _stdout: BufReader<ChildStdout>,
    /// The ports for gRPC and HTTP.
    ports: [u16; 2],
    file: PathBuf,
}

impl Collector {
    fn start() -> Self {
        let python = std::env::var_os("SESSIOND_TEST_PYTHON").expect("SESSIOND_TEST_PYTHON is set");
        let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/proxies/collector.py");
        let file = fresh_dir("collector.jsonl");
        let mut process = Command::new(python)
            .args([&program, &file])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("starts");
        let mut stdout = BufReader::new(process.stdout.take().expect("piped"));
        let mut line = String::new();
        stdout.read_line(&mut line).expect("reads");
        let ports: Vec<u16> = line.split_whitespace().map(|port| port.parse().expect("a port")).collect();
        Self { process, _stdout: stdout, ports: ports.try_into().expect("two"), file }
    }

    fn requests(&self) -> Vec<Value> {
        let text = fs::read_to_string(&self.file).unwrap_or_default();
        // The last line may be incomplete.
        text.split_inclusive('\n').filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    fn spans(&self) -> Vec<Span> {
        let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
        let mut spans = vec![];
        for resource in self.requests().iter().flat_map(|request| list(&request["spans"]["resourceSpans"])) {
            let service = attribute(&resource["resource"]["attributes"], "service.name");
            for span in list(&resource["scopeSpans"]).iter().flat_map(|scope| list(&scope["spans"])) {
                let text = |field: &str| span[field].as_str().unwrap_or_default().to_owned();
                spans.push(Span {
                    service: service.clone(),
                    trace: text("traceId"),
                    id: text("spanId"),
                    parent: text("parentSpanId"),
                    name: text("name"),
                    kind: text("kind"),
                    attributes: span["attributes"].clone(),
                });
            }
        }
        spans
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = fs::remove_file(&self.file);
    }
}

/// An attribute's text; empty if there is none.
fn attribute(attributes: &Value, key: &str) -> String {
    let found = attributes.as_array().and_then(|all| all.iter().find(|attribute| attribute["key"] == key));
    found.and_then(|attribute| attribute["value"]["stringValue"].as_str()).unwrap_or_default().to_owned()
}

/// Lets Envoy trace all requests. Without a `traceparent` of its own choice, a client cannot join a trace.
fn traced(config: &str, collector: u16) -> String {
    let manager = "                stat_prefix: front\n";
    let tracing = r#"                tracing:
                  provider:
                    name: envoy.tracers.opentelemetry
                    typed_config:
                      "@type": type.googleapis.com/envoy.config.trace.v3.OpenTelemetryConfig
                      service_name: envoy
                      grpc_service: { timeout: 2s, envoy_grpc: { cluster_name: collector } }
"#;
    let cluster = r#"
    - name: collector
      connect_timeout: 1s
      typed_extension_protocol_options:
        envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
          "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
          explicit_http_config: { http2_protocol_options: {} }
      load_assignment:
        cluster_name: collector
        endpoints:
          - lb_endpoints:
              - endpoint: { address: { socket_address: { address: 127.0.0.1, port_value: PORT } } }

layered_runtime:
  layers: [{ name: test, static_layer: { tracing.opentelemetry.flush_interval_ms: 100 } }]
"#;
    assert_eq!(config.matches(manager).count(), 1);
    let config = config.replace(manager, &format!("{manager}{tracing}"));
    config.replace("project_id: demo", "project_id: shop") + &cluster.replace("PORT", &collector.to_string())
}

/// One trace: from Envoy, through its check and through the sign-out itself, to the statements. As OpenTelemetry's own
/// messages say, over gRPC and HTTP; and all exported bytes have no token and no user.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Envoy and OpenTelemetry's messages: tests/proxies/run"]
async fn a_trace_leads_from_envoy_to_the_statement() {
    const USER: &str = "ada-lovelace-1815";
    let installed = Installed::new().await;
    for (at, protocol) in ["grpc", "http/protobuf"].into_iter().enumerate() {
        let collector = Collector::start();
        let endpoint = format!("http://127.0.0.1:{}", collector.ports[at]);
        let args = ["--otlp-endpoint", &endpoint, "--otlp-protocol", protocol, "--trace-ratio", "0"];
        let serving = installed.serve(&[], &args, Stdio::null()).await;
        eventually("it is ready", async || {
            serving.wires.http(Method::GET, "/readyz", HeaderMap::new(), "").await.status() == 200
        })
        .await;
        let front =
            Front::start_with(&ENVOY, serving.addr, serving.addr, |config| traced(&config, collector.ports[0])).await;
        let (token, session) = serving.sign_in(&installed.key, USER).await.expect("signs in");
        let answer = front.ask(Method::DELETE, "/auth/sessions/current", bearer(&token)).await;
        assert_eq!(answer.status(), 200);
        let answer = front.ask(Method::DELETE, "/auth/sessions/current", bearer(&token)).await;
        assert_eq!(answer.status(), 401, "the check refuses it now");
        let revoke = "sessiond.v1.SessionService/RevokeCurrent";
        let mut spans = vec![];
        eventually("all is exported", async || {
            spans = collector.spans();
            let has = |service: &str, name: &str| spans.iter().any(|span| span.service == service && span.name == name);
            has("sessiond", revoke)
                && spans.iter().filter(|span| span.service == "envoy" && span.parent.is_empty()).count() > 1
        })
        .await;
        let parent = |span: &Span| spans.iter().find(|one| one.trace == span.trace && one.id == span.parent);
        let signed_out = spans.iter().find(|span| span.name == revoke).expect("exported");
        let root = std::iter::successors(Some(signed_out), |span| parent(span)).last().expect("itself at least");
        assert_eq!((root.service.as_str(), root.parent.as_str()), ("envoy", ""));
        assert_eq!(attribute(&signed_out.attributes, "sessiond.project"), "shop");
        let check = "envoy.service.auth.v3.Authorization/Check";
        let check =
            spans.iter().find(|span| span.name == check && span.trace == root.trace).expect("the check is a part");
        assert_eq!(parent(check).expect("exported").service, "envoy");
        let statements: Vec<_> = spans
            .iter()
            .filter(|span| span.trace == root.trace && span.kind == "SPAN_KIND_CLIENT" && span.service == "sessiond")
            .collect();
        let names: Vec<_> = statements.iter().map(|span| attribute(&span.attributes, "db.query.summary")).collect();
        assert!(names.iter().any(|name| name == "SessionsRevoke"), "{names:?}");
        for statement in statements {
            let mut above = std::iter::successors(Some(statement), |span| parent(span));
            assert!(above.any(|span| std::ptr::eq(span, root)), "{}", statement.name);
        }

        let bytes = collector.requests().into_iter().flat_map(|request| {
            let hex = request["bytes"].as_str().expect("text").to_owned();
            (0..hex.len())
                .step_by(2)
                .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hex"))
                .collect::<Vec<_>>()
        });
        let bytes: Vec<u8> = bytes.collect();
        let text = String::from_utf8_lossy(&bytes);
        assert!(text.contains(revoke));
        for secret in token.split('.').chain([token.as_str(), &session, &installed.key, USER]) {
            assert!(!text.contains(secret), "{secret} was exported");
        }
    }
}

/// The cookies of a browser, with one of the application's own.
struct Jar {
    access: String,
    refresh: String,
}

impl Jar {
    /// Keeps what the values of `Set-Cookie` say, and returns their number.
    fn take<'v>(&mut self, values: impl IntoIterator<Item = &'v str>) -> usize {
        let mut taken = 0;
        for value in values {
            let (name, value) = value.split(';').next().and_then(|pair| pair.split_once('=')).expect("a pair");
            match name {
                "__Host-sessiond.demo.access" => value.clone_into(&mut self.access),
                "__Host-sessiond.demo.refresh" => value.clone_into(&mut self.refresh),
                other => panic!("{other} is set too"),
            }
            taken += 1;
        }
        taken
    }

    fn take_from(&mut self, answer: &Response<Bytes>) -> usize {
        let values = answer.headers().get_all("set-cookie").iter();
        self.take(values.map(|value| value.to_str().expect("text")))
    }

    fn headers(&self) -> HeaderMap {
        let Self { access, refresh } = self;
        let cookies =
            format!("theme=dark; __Host-sessiond.demo.access={access}; __Host-sessiond.demo.refresh={refresh}");
        header("cookie", &cookies)
    }

    fn own(&self) -> HeaderMap {
        both(self.headers(), header("sec-fetch-site", "same-origin"))
    }

    fn page(&self) -> HeaderMap {
        both(both(self.headers(), header("sec-fetch-site", "none")), header("sec-fetch-mode", "navigate"))
    }
}

/// A browser signs in, loads pages past the end of its access token, and signs out, in front of an application that knows nothing
/// of sessions.
async fn a_browser_stays_signed_in_and_is_signed_out(kind: &Kind) {
    let host = Host::default();
    let trusting = Service::start_with(|web, _| web.trusted_proxies = vec![network("127.0.0.1").expect("an address")]);
    let service = host.runtime().spawn(trusting).await.expect("starts");
    service.set_policy(|policy| policy.cookies.scope = CookieScope::Host).await;
    let (app, asked) = application().await;
    let front = Front::start(kind, service.addr, app).await;
    let mut jar = Jar { access: String::new(), refresh: String::new() };

    // Not signed in: pages go to the login page, which is public, and API calls get the 401.
    let navigation = both(spoofed(), both(header("sec-fetch-mode", "navigate"), header("sec-fetch-site", "none")));
    let answer = front.ask(Method::GET, "/orders?open=1", navigation.clone()).await;
    assert_eq!(answer.status().as_u16(), 302, "{}", kind.example);
    assert_eq!(front.location(&answer).as_deref(), Some("/login?return_to=%2Forders%3Fopen%3D1"), "{}", kind.example);
    let answer = front.ask(Method::GET, "/orders", both(spoofed(), header("sec-fetch-mode", "cors"))).await;
    assert_eq!(answer.status().as_u16(), 401, "{}", kind.example);
    assert_eq!(answer.headers()["www-authenticate"], "Bearer", "{}", kind.example);
    assert_eq!(asked.load(Ordering::Relaxed), 0);
    no_ambiguous_path_reaches_the_application(&front, &asked, "login").await;
    for path in ["//evil.example/", "/%5cevil.example"] {
        let answer = front.ask(Method::GET, path, navigation.clone()).await;
        let location = front.location(&answer);
        let location = location.as_deref();
        assert!(location.is_none_or(|location| location.starts_with("/login?return_to=%2F")), "{location:?}");
        assert!(
            location.is_none_or(|location| !location.contains("%2F%2F") && !location.contains("%5")),
            "{location:?}"
        );
    }
    let answer = front.ask(Method::GET, "/login", spoofed()).await;
    assert_eq!((answer.status().as_u16(), shown_identity(&answer)), (200, Default::default()), "{}", kind.example);

    for alias in ALIASES.chars() {
        let answer = front.ask(Method::GET, "/login", misspelled(alias)).await;
        assert_eq!(shown_identity(&answer), <[String; 4]>::default(), "{} {alias}", kind.example);
    }

    // Signed in: the application sees the user and the token, and neither of the cookies.
    let request =
        CreateSessionRequest { user_id: "ada l".into(), cookies: Some(CookieOptions::default()), ..Default::default() };
    let created = service.create(Wire::Rest, request).await.expect("signs in");
    jar.take(created.set_cookies.iter().map(String::as_str));
    let session = created.session.expect("a session").id;
    let link = both(jar.headers(), header("sec-fetch-site", "cross-site"));
    for headers in [jar.page(), link, jar.own(), both(jar.own(), nominated())] {
        let answer = front.ask(Method::GET, "/orders", both(spoofed(), headers)).await;
        assert_eq!(answer.status().as_u16(), 200, "{}: {:?}", kind.example, answer.body());
        assert_eq!(shown_identity(&answer), [&session, "ada%20l", PROJECT, ""].map(str::to_owned));
        assert_eq!(shown(&answer, "authorization"), format!("Bearer {}", jar.access));
        assert_eq!(shown(&answer, "cookie"), "theme=dark", "{}", kind.example);
        assert!(!answer.headers().contains_key("set-cookie"), "{}", kind.example);
    }
    let answer = front.wires.http(Method::POST, "/orders", both(spoofed(), jar.own()), "an order").await;
    let json: Value = serde_json::from_slice(answer.body()).expect("JSON");
    assert_eq!((&json["method"], &json["body"]), (&json!("POST"), &json!("an order")), "{}", kind.example);

    // Neither a foreign page nor a sibling's changes anything.
    let before = asked.load(Ordering::Relaxed);
    for site in ["cross-site", "same-site"] {
        let foreign = both(jar.headers(), header("sec-fetch-site", site));
        for method in [Method::POST, Method::PUT, Method::PATCH, Method::DELETE] {
            let answer = front.ask(method.clone(), "/orders", both(spoofed(), foreign.clone())).await;
            assert_eq!(answer.status().as_u16(), 403, "{method} {site} {}", kind.example);
        }
        let handshake = [
            ("connection", "Upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ];
        let handshake = handshake.into_iter().fold(foreign, |all, (name, value)| both(all, header(name, value)));
        let answer = front.ask(Method::GET, "/socket", handshake).await;
        // Envoy refuses a handshake by itself where none is configured.
        assert!(matches!(answer.status().as_u16(), 403), "{site} {}: {}", kind.example, answer.status());
        let end_all = both(jar.headers(), header("sec-fetch-site", site));
        let answer = front.ask(Method::DELETE, "/auth/sessions/current", end_all).await;
        assert_eq!(answer.status().as_u16(), 403, "{site} {}", kind.example);
    }
    assert_eq!(asked.load(Ordering::Relaxed), before);

    // The access token has run out: a page with ten parts loads all the same, and one refresh is enough.
    for round in 1..=3 {
        service.clock.advance(ACCESS_TTL);
        let parts = (0..10).map(|_| front.ask(Method::GET, "/orders", jar.page()));
        for answer in join_all(parts).await {
            assert_eq!(answer.status().as_u16(), 200, "{}", kind.example);
            assert_eq!(shown_identity(&answer)[1], "ada%20l");
            assert_eq!(jar.take_from(&answer), 2, "{}", kind.example);
            let cached: Vec<_> = answer.headers().get_all("cache-control").iter().collect();
            let is_forbidden = cached.iter().any(|value| *value == "private, no-store");
            assert_eq!(is_forbidden, kind.forbids_caches, "{}: {cached:?}", kind.example);
            assert_eq!(shown(&answer, "authorization"), format!("Bearer {}", jar.access));
            assert_eq!(shown(&answer, "cookie"), "theme=dark", "{}", kind.example);
            assert_eq!(answer.headers().get_all("x-set-cookie-access").iter().count(), 0, "{}", kind.example);
        }
        let seen = service.seen(&session).await.expect("is there");
        assert_eq!(seen.stored.chain.generation(), round, "{}", kind.example);
        assert_eq!(seen.stored.session.device.ip, Some(CLIENT), "{}: the client's, not the proxy's", kind.example);
        let answer = front.ask(Method::GET, "/orders", jar.page()).await;
        assert_eq!((answer.status().as_u16(), jar.take_from(&answer)), (200, 0), "{}", kind.example);
    }

    // The API on the application's own origin, and signing out.
    let answer = front.ask(Method::GET, "/auth/sessions", jar.own()).await;
    assert_eq!(answer.status().as_u16(), 200, "{}: {:?}", kind.example, answer.body());
    let answer = front
        .ask(
            Method::POST,
            "/auth/sessions/current/refresh",
            both(jar.own(), header("content-type", "application/json")),
        )
        .await;
    assert_eq!((answer.status().as_u16(), jar.take_from(&answer)), (200, 2), "{}: {:?}", kind.example, answer.body());
    let other_tab = jar.page();
    let answer = front.ask(Method::DELETE, "/auth/sessions/current", jar.own()).await;
    let signed_out = Instant::now();
    assert_eq!((answer.status().as_u16(), jar.take_from(&answer)), (200, 2), "{}", kind.example);
    assert_eq!((jar.access.as_str(), jar.refresh.as_str()), ("", ""));
    loop {
        let answer = front.ask(Method::GET, "/orders", other_tab.clone()).await;
        if answer.status().as_u16() == 302 {
            assert_eq!(front.location(&answer).as_deref(), Some("/login?return_to=%2Forders"), "{}", kind.example);
            break;
        }
        assert!(signed_out.elapsed() < BOUND, "still let through: {}", answer.status());
    }
    println!("{}: the other tab is at the login page {:?} after the sign-out", kind.example, signed_out.elapsed());
    // sessiond is down: nothing passes.
    let before = asked.load(Ordering::Relaxed);
    drop(host);
    // It may answer one request more while it stops.
    eventually("the proxy fails closed", async || {
        front.ask(Method::GET, "/orders", other_tab.clone()).await.status().as_u16() == kind.down
    })
    .await;
    assert_eq!(asked.load(Ordering::Relaxed), before, "{}", kind.example);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Envoy: run tests/proxies/run"]
async fn envoy_keeps_a_browser_signed_in() {
    a_browser_stays_signed_in_and_is_signed_out(&ENVOY_COOKIES).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs nginx: run tests/proxies/run"]
async fn nginx_keeps_a_browser_signed_in() {
    a_browser_stays_signed_in_and_is_signed_out(&NGINX_COOKIES).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Caddy: run tests/proxies/run"]
async fn caddy_keeps_a_browser_signed_in() {
    a_browser_stays_signed_in_and_is_signed_out(&CADDY_COOKIES).await;
}
