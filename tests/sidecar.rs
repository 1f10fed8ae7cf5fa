//! The sidecar: a guard beside a service in any language. It answers as the server does, and by itself.

use std::{
    net::SocketAddr,
    path::PathBuf,
    time::{Duration, Instant},
};

use http::{HeaderMap, Method, StatusCode};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use sessiond::{
    config::SidecarAddress,
    edge::{Sidecar, SidecarListener},
    pb::{
        CreateSessionRequest,
        envoy::{CheckRequest, CheckResponse, authorization_client::AuthorizationClient},
    },
    store::Role,
};
use sessiond_core::id::ProjectId;
use sessiond_guard::{FailMode, Guard, GuardOptions};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, UnixStream},
    sync::oneshot,
    task::JoinHandle,
};
use tonic::body::Body;

use crate::{
    guard::options_for,
    harness::{Device, PROJECT, Service, Wire, both, eventually, link::Link, wire::Wires},
    verify::{Route, VerifyOutcome, check_request, envoy_outcome, outcome, spoofed},
};

const MAX_STALENESS: Duration = Duration::from_secs(2);
const CONNECTIONS_MAX: usize = 100;

/// A mistyped path must not cost a file.
#[tokio::test]
async fn only_an_abandoned_socket_is_replaced() {
    let dir = crate::harness::database::fresh_dir("sidecar");
    std::fs::create_dir_all(&dir).expect("creates");
    let path = dir.join("guard.sock");
    let address = SidecarAddress::parse(&format!("unix:{}", path.display())).expect("a path");
    std::fs::write(&path, "somebody's").expect("writes");
    SidecarListener::bind(&address).await.err().expect("is no socket");
    assert_eq!(std::fs::read_to_string(&path).expect("is there"), "somebody's");
    std::fs::remove_file(&path).expect("is ours");
    let abandoned = tokio::net::UnixListener::bind(&path).expect("listens");
    SidecarListener::bind(&address).await.err().expect("is in use");
    drop(abandoned);
    SidecarListener::bind(&address).await.expect("takes its place");
    let _ = std::fs::remove_dir_all(dir);
}

/// A sidecar for some guards.
struct Running {
    addr: SocketAddr,
    wires: Wires,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

impl Running {
    async fn start(guards: Vec<(&str, Guard)>) -> Self {
        let listener = SidecarListener::bind(&SidecarAddress::parse("127.0.0.1:0").expect("loopback")).await;
        let listener = listener.expect("binds");
        let addr = listener.local_addr().expect("a port");
        let (stop, stopped) = oneshot::channel::<()>();
        let guards =
            guards.into_iter().map(|(name, guard)| (ProjectId::parse(name).expect("a name"), guard, MAX_STALENESS));
        let task =
            tokio::spawn(listener.serve(Sidecar::new(guards), CONNECTIONS_MAX, async move { drop(stopped.await) }));
        Self { addr, wires: Wires::to(addr), stop: Some(stop), task }
    }

    async fn of(service: &Service) -> Self {
        let guard = Guard::connect(options_for(service)).await.expect("connects");
        Self::start(vec![(PROJECT, guard)]).await
    }

    async fn get(&self, path: &str, headers: HeaderMap) -> VerifyOutcome {
        outcome(&self.wires.http(Method::GET, path, headers, "").await)
    }

    async fn check(&self, request: CheckRequest) -> CheckResponse {
        let channel: Client<HttpConnector, Body> = Client::builder(TokioExecutor::new()).http2_only(true).build_http();
        let origin = format!("http://{}", self.addr).parse().expect("a URI");
        AuthorizationClient::with_origin(channel, origin).check(request).await.expect("decides").into_inner()
    }

    async fn text(&self, path: &str) -> (StatusCode, String) {
        let answer = self.wires.http(Method::GET, path, HeaderMap::new(), "").await;
        (answer.status(), String::from_utf8_lossy(answer.body()).into_owned())
    }
}

/// Whatever is asked, by a path or by Envoy.
#[tokio::test]
async fn it_answers_as_the_server_does() {
    let service = Service::start().await;
    let clock = service.clock.clone();
    let guard = Guard::connect(GuardOptions { clock, ..options_for(&service) }).await.expect("connects");
    let sidecar = Running::start(vec![(PROJECT, guard)]).await;
    let other = service.create_project("other").await;
    let request = CreateSessionRequest { user_id: "ada".into(), ..Default::default() };
    let elsewhere = service.device(service.create_as(Wire::Grpc, &other, request.clone()).await.expect("opens"));
    let strong = CreateSessionRequest { acr: Some("aal2".into()), ..request };
    let strong = service.device(service.create(Wire::Grpc, strong).await.expect("opens"));
    let (phone, ended) = (service.sign_in("ada+ä", "phone").await, service.sign_in("ada", "laptop").await);
    let superseded = service.sign_in("bob", "phone").await;
    let acted = service.impersonate("ada", "root, himself").await;
    ended.sign_out().await.expect("signs out");
    service.supersede(&superseded, "support").await;
    eventually("the sidecar knows", async || {
        let outcome = sidecar.get("/verify", superseded.bearer()).await;
        outcome.reason.as_deref() == Some("ACCESS_TOKEN_SUPERSEDED")
    })
    .await;

    let rubbish = crate::harness::bearer("a.b.c");
    let devices = [&phone, &ended, &superseded, &acted, &strong, &elsewhere];
    let mut headers: Vec<HeaderMap> = devices.into_iter().map(|device: &Device<'_>| device.bearer()).collect();
    headers.extend([HeaderMap::new(), rubbish]);
    let parameters: [&[(&str, &str)]; 5] = [
        &[],
        &[("acr_values", "aal2 aal3")],
        &[("max_age", "300")],
        &[("acr_values", "aal2"), ("max_age", "x")],
        &[("login", "https://id.example.org/")],
    ];
    for headers in headers.into_iter().map(|headers| both(spoofed(), headers)) {
        for parameters in parameters {
            let of_server = service.verify_with(Route::Path, PROJECT, headers.clone(), parameters).await;
            let query = form_urlencoded::Serializer::new(String::new()).extend_pairs(parameters).finish();
            for path in [format!("/projects/{PROJECT}/auth/verify?{query}"), format!("/verify?{query}")] {
                assert_eq!(sidecar.get(&path, headers.clone()).await, of_server, "{path}");
            }
            for route in [Route::Envoy, Route::EnvoyRaw] {
                let of_server = service.verify_with(route, PROJECT, headers.clone(), parameters).await;
                for project in [Some(PROJECT), None] {
                    let mut request = check_request(route, project, &headers);
                    let extensions = &mut request.attributes.as_mut().expect("is there").context_extensions;
                    let own = parameters.iter().filter(|(name, _)| *name != "login");
                    extensions.extend(own.map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
                    assert_eq!(envoy_outcome(sidecar.check(request).await), of_server, "{route:?} {parameters:?}");
                }
            }
        }
    }
    let unknown = sidecar.get("/projects/nobody/auth/verify", phone.bearer()).await;
    assert_eq!((unknown.status, unknown.reason.as_deref()), (404, Some("PROJECT_NOT_FOUND")));
    // The user expires at the same moment.
    service.clock.advance(Duration::from_secs(600));
    let expired = sidecar.get("/verify", phone.bearer()).await;
    assert_eq!(expired.reason.as_deref(), Some("ACCESS_TOKEN_EXPIRED"));
}

#[tokio::test]
async fn it_answers_every_method_and_says_how_it_is() {
    let service = Service::start().await;
    let sidecar = Running::of(&service).await;
    let phone = service.sign_in("ada", "phone").await;
    for method in ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PURGE"] {
        let method = Method::from_bytes(method.as_bytes()).expect("a token");
        let answer = sidecar.wires.http(method.clone(), "/verify", phone.bearer(), "").await;
        assert_eq!((answer.status(), answer.body().len()), (StatusCode::OK, 0), "{method}");
        assert_eq!(answer.headers()["x-user-id"], "ada", "{method}");
    }
    assert_eq!(sidecar.text("/healthz").await, (StatusCode::OK, "alive".to_owned()));
    assert_eq!(sidecar.text("/readyz").await, (StatusCode::OK, "ready".to_owned()));
    let (_, page) = sidecar.text("/metrics").await;
    let accepted = r#"sessiond_guard_verifications_total{project="demo",outcome="accepted"} 7"#;
    assert!(page.lines().any(|line| line == accepted), "{page}");
    assert_eq!(page.matches("# TYPE sessiond_guard_entries gauge").count(), 1);
    assert_eq!(sidecar.text("/nothing").await.0, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn it_follows_several_projects() {
    let service = Service::start().await;
    let other_key = service.create_project("other").await;
    let (demo, other) = (
        Guard::connect(options_for(&service)).await.expect("connects"),
        Guard::connect(GuardOptions {
            project: "other".to_owned(),
            server_key: Some(other_key.clone()),
            ..options_for(&service)
        })
        .await
        .expect("connects"),
    );
    let sidecar = Running::start(vec![(PROJECT, demo), ("other", other)]).await;
    let phone = service.sign_in("ada", "phone").await;
    let request = CreateSessionRequest { user_id: "bob".into(), ..Default::default() };
    let elsewhere = service.device(service.create_as(Wire::Grpc, &other_key, request).await.expect("opens"));
    let verify = async |project: &str, device: &Device<'_>| {
        sidecar.get(&format!("/projects/{project}/auth/verify"), device.bearer()).await
    };
    assert!(verify(PROJECT, &phone).await.passes() && verify("other", &elsewhere).await.passes());
    for (project, device) in [(PROJECT, &elsewhere), ("other", &phone)] {
        let outcome = verify(project, device).await;
        assert_eq!(outcome.reason.as_deref(), Some("INVALID_PROJECT_FOR_ACCESS_TOKEN"));
    }
    let unnamed = sidecar.get("/verify", phone.bearer()).await;
    assert_eq!(unnamed.reason.as_deref(), Some("PROJECT_NOT_FOUND"), "which one?");
    let (_, page) = sidecar.text("/metrics").await;
    for project in [PROJECT, "other"] {
        assert!(page.contains(&format!("sessiond_guard_entries{{project=\"{project}\"}} 0\n")), "{page}");
    }
}

/// A signed-out token is refused at once, and within the bound when the sidecar is cut off.
#[tokio::test]
async fn it_keeps_the_guards_promise() {
    let service = Service::start().await;
    let link = Link::to(service.addr).await;
    for fail_mode in [FailMode::Reject, FailMode::AcceptUntilExpiry] {
        let options = options_for(&service);
        let options = GuardOptions { endpoints: vec![link.url.clone()], fail_mode, ..options };
        let guard = Guard::connect(options).await.expect("connects");
        let sidecar = Running::start(vec![(PROJECT, guard)]).await;
        let (phone, laptop) = (service.sign_in("ada", "phone").await, service.sign_in("ada", "laptop").await);
        let ask = async |device: &Device<'_>| sidecar.get("/verify", device.bearer()).await;
        eventually("accepted", async || ask(&phone).await.passes() && ask(&laptop).await.passes()).await;
        phone.sign_out().await.expect("signs out");
        let started = Instant::now();
        eventually("refused", async || ask(&phone).await.reason.as_deref() == Some("SESSION_REVOKED")).await;
        assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());

        link.silence();
        laptop.sign_out().await.expect("signs out elsewhere");
        eventually("it is not ready", async || sidecar.text("/readyz").await.0 != StatusCode::OK).await;
        let (_, why) = sidecar.text("/readyz").await;
        assert_eq!(why, "project demo: the feed is too old\n");
        let outcome = ask(&laptop).await;
        match fail_mode {
            FailMode::Reject => {
                assert_eq!((outcome.status, outcome.reason.as_deref()), (503, Some("VERIFICATION_UNAVAILABLE")));
                let request = check_request(Route::Envoy, Some(PROJECT), &laptop.bearer());
                let channel: Client<HttpConnector, Body> =
                    Client::builder(TokioExecutor::new()).http2_only(true).build_http();
                let origin = format!("http://{}", sidecar.addr).parse().expect("a URI");
                let undecided = AuthorizationClient::with_origin(channel, origin).check(request).await;
                assert_eq!(undecided.expect_err("Envoy decides").code(), tonic::Code::Unavailable);
            }
            _ => assert!(outcome.passes(), "as configured: {outcome:?}"),
        }
        assert_eq!(ask(&phone).await.reason.as_deref(), Some("SESSION_REVOKED"), "what it knows, it knows");
        link.restore();
        eventually("it catches up", async || ask(&laptop).await.reason.as_deref() == Some("SESSION_REVOKED")).await;
    }
}

#[tokio::test]
async fn it_listens_on_a_socket_and_replaces_one_that_was_left() {
    let service = Service::start().await;
    let phone = service.sign_in("ada", "phone").await;
    let dir = std::env::temp_dir().join(format!("sessiond-guard-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("creates");
    let path: PathBuf = dir.join("guard.sock");
    let address = SidecarAddress::Unix(path.clone());
    // Left by a process that was killed.
    drop(std::os::unix::net::UnixListener::bind(&path).expect("binds"));
    let listener = SidecarListener::bind(&address).await.expect("takes its place");
    let in_use = SidecarListener::bind(&address).await.err().expect("in use");
    assert_eq!(in_use.kind(), std::io::ErrorKind::AddrInUse);
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&path).expect("is there").permissions());
    assert_eq!(mode & 0o777, 0o660);

    let guard = Guard::connect(options_for(&service)).await.expect("connects");
    let sidecar = Sidecar::new([(ProjectId::parse(PROJECT).expect("a name"), guard, MAX_STALENESS)]);
    let (stop, stopped) = oneshot::channel::<()>();
    let task = tokio::spawn(listener.serve(sidecar, 100, async move { drop(stopped.await) }));
    let mut stream = UnixStream::connect(&path).await.expect("connects");
    let request = format!(
        "GET /verify HTTP/1.1\r\nhost: guard\r\nauthorization: Bearer {}\r\nconnection: close\r\n\r\n",
        phone.access_token
    );
    stream.write_all(request.as_bytes()).await.expect("sends");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("answers");
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("x-user-id: ada\r\n"), "{answer}");
    drop(stop);
    task.await.expect("stops");
    assert!(!path.exists(), "it leaves nothing behind");
    std::fs::remove_dir_all(dir).expect("removes");
}

/// Idle connections do not keep others out.
#[tokio::test]
async fn idle_connections_make_room_for_new_ones() {
    let service = Service::start().await;
    let sidecar = Running::of(&service).await;
    let mut idle = vec![];
    for _ in 0..CONNECTIONS_MAX {
        idle.push(TcpStream::connect(sidecar.addr).await.expect("connects"));
    }
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    let answered =
        tokio::time::timeout(Duration::from_secs(10), sidecar.text("/healthz")).await.expect("there is room");
    assert_eq!(answered.0, StatusCode::OK);
}

/// A key of the least role is all that it needs, and a head of any length costs no more than the bound.
#[tokio::test]
async fn it_needs_a_verifiers_key_and_bounds_what_it_reads() {
    let service = Service::start().await;
    let project = ProjectId::parse(PROJECT).expect("a name");
    let (_, key) = service.app.server_key_create(project, Role::Verifier).await.expect("makes a key");
    let options = GuardOptions { server_key: Some(key), ..options_for(&service) };
    let introspecting = GuardOptions { fail_mode: FailMode::Introspect, ..options };
    let mut sidecar = Running::start(vec![(PROJECT, Guard::connect(introspecting).await.expect("connects"))]).await;
    let phone = service.sign_in("ada", "phone").await;
    assert!(sidecar.get("/verify", phone.bearer()).await.passes());
    let long = crate::harness::bearer(&"x".repeat(200_000));
    let answer = sidecar.wires.http(Method::GET, "/verify", long, "").await;
    assert_eq!(answer.status(), StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
    assert!(sidecar.get("/verify", phone.bearer()).await.passes());
    drop(sidecar.stop.take());
    (&mut sidecar.task).await.expect("stops");
}

/// A client that begins and does not go on is disconnected, whatever it has begun; one that is idle for longer is not.
#[tokio::test]
async fn an_unfinished_request_ends_and_an_idle_connection_is_kept() {
    let service = Service::start().await;
    let sidecar = Running::of(&service).await;
    let asked = b"GET /healthz HTTP/1.1\r\nhost: guard\r\n\r\n";
    let mut answer = [0; 1024];
    let mut kept = TcpStream::connect(sidecar.addr).await.expect("connects");
    kept.write_all(asked).await.expect("sends");
    assert!(kept.read(&mut answer).await.expect("answers") > 0);
    let check = "POST /envoy.service.auth.v3.Authorization/Check HTTP/1.1\r\nhost: guard\r\ncontent-length: 9\r\n\r\n";
    let ends = [check, "GET /healthz HTT"].map(|begun| {
        let addr = sidecar.addr;
        async move {
            let mut stream = TcpStream::connect(addr).await.expect("connects");
            stream.write_all(asked).await.expect("sends");
            assert!(stream.read(&mut [0; 1024]).await.expect("answers") > 0);
            stream.write_all(begun.as_bytes()).await.expect("sends");
            let mut rest = vec![];
            let ended = tokio::time::timeout(Duration::from_secs(30), stream.read_to_end(&mut rest)).await;
            assert!(ended.is_ok(), "{begun:?} is kept");
        }
    });
    futures_util::future::join_all(ends).await;
    kept.write_all(asked).await.expect("is still open");
    let read = kept.read(&mut answer).await.expect("answers");
    assert!(answer[..read].starts_with(b"HTTP/1.1 200 "));
}
