//! Traces: one per sampled request, from the caller's span down to each statement, without anything that identifies a user.
//! A collector that is away, slow or wrong costs spans and nothing else.

use std::{
    fs::{self, File},
    process::Stdio,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use http::{HeaderMap, Method, StatusCode};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use sessiond::pb::{CreateSessionRequest, CreateSessionResponse, RevokeCurrentRequest, RevokeCurrentResponse};

use crate::binary::{assert_says, sessiond};
use crate::harness::{
    SEALING_KEY, Wire,
    authority::Authority,
    bearer, both,
    collector::{Answer, CLIENT, Collector, INTERNAL, SERVER, Span},
    database::fresh_dir,
    eventually, header,
    serving::{Installed, Serving},
};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CALLER: &str = "00f067aa0ba902b7";

/// A user's id that no other text contains.
const USER: &str = "ada-lovelace-1815";

/// A `traceparent` with the number in the trace's id.
fn parent(number: u8, is_sampled: bool) -> HeaderMap {
    header("traceparent", &format!("00-{}{number:02x}-{CALLER}-0{}", &TRACE[..30], u8::from(is_sampled)))
}

fn trace_id(number: u8) -> Vec<u8> {
    bytes(&format!("{}{number:02x}", &TRACE[..30]))
}

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hex")).collect()
}

/// Settings for a collector.
fn to(collector: &Collector, protocol: &str) -> Vec<String> {
    ["--otlp-endpoint", &collector.url(), "--otlp-protocol", protocol, "--drain-delay", "0s"].map(str::to_owned).into()
}

async fn serve(installed: &Installed, args: &[String], stderr: impl Into<Stdio>) -> Serving {
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let serving = installed.serve(&[], &args, stderr).await;
    eventually("it is ready", async || {
        serving.wires.http(Method::GET, "/readyz", HeaderMap::new(), "").await.status() == StatusCode::OK
    })
    .await;
    serving
}

async fn create(serving: &Serving, key: &str, wire: Wire, headers: HeaderMap) -> CreateSessionResponse {
    let request = CreateSessionRequest { user_id: USER.to_owned(), ..CreateSessionRequest::default() };
    serving.wires.call(wire, "CreateSession", both(bearer(key), headers), &request).await.expect("signs in")
}

/// The one span of this kind and name.
#[track_caller]
fn one<'a>(spans: &'a [Span], kind: i32, name: &str) -> &'a Span {
    let found: Vec<_> = spans.iter().filter(|span| span.kind == kind && span.name == name).collect();
    assert_eq!(found.len(), 1, "{name}: {spans:#?}");
    found[0]
}

fn interrupt(serving: &Serving) {
    let pid = Pid::from_raw(i32::try_from(serving.process.id()).expect("a pid")).expect("not 0");
    kill_process(pid, Signal::TERM).expect("runs");
}

/// Over gRPC and HTTP, on every wire, and through SIGTERM: nothing that was sampled is lost.
#[tokio::test(flavor = "multi_thread")]
async fn a_trace_leads_from_the_caller_to_each_statement() {
    let installed = Installed::new().await;
    let key = &installed.key;
    for protocol in ["grpc", "http/protobuf"] {
        let collector = Collector::start().await;
        let mut args = to(&collector, protocol);
        args.extend(["--otlp-resource-attribute", "deployment.environment.name=test"].map(str::to_owned));
        let mut serving = serve(&installed, &args, Stdio::null()).await;
        let mut secrets = vec![key.clone(), USER.to_owned(), "127.0.0.1".to_owned()];
        for (number, wire) in [(1, Wire::Grpc), (2, Wire::GrpcWeb), (3, Wire::Rest)] {
            let created = create(&serving, key, wire, parent(number, true)).await;
            let headers = both(bearer(&created.access_token), parent(number + 10, true));
            let revoked: Result<RevokeCurrentResponse, _> =
                serving.wires.call(wire, "RevokeCurrent", headers, &RevokeCurrentRequest {}).await;
            revoked.expect("signs out");
            let token = created.access_token.split('.').map(str::to_owned).collect::<Vec<_>>();
            secrets.extend([created.access_token, created.refresh_token, created.session.expect("a session").id]);
            secrets.extend(token);
        }
        let form = both(header("content-type", "application/x-www-form-urlencoded"), parent(20, true));
        let forged = "grant_type=refresh_token&refresh_token=made-up&client_id=shop";
        let refused = serving.wires.http(Method::POST, "/oauth2/token", form, forged).await;
        assert_eq!(refused.status(), StatusCode::BAD_REQUEST);
        serving.wires.http(Method::GET, "/projects/shop/.well-known/jwks.json", parent(21, true), "").await;
        serving.wires.http(Method::GET, "/auth/sessions/not-a-route?token=secret", parent(22, true), "").await;
        let accept = header("accept", "application/openmetrics-text;version=1.0.0");
        let page = serving.metrics.http(Method::GET, "/metrics", accept, "").await;
        let page = String::from_utf8_lossy(page.body()).into_owned();
        for metric in ["sessiond_request_duration_seconds_bucket", "sessiond_store_operation_duration_seconds_bucket"] {
            let is_traced =
                |line: &str| line.starts_with(metric) && line.contains(&format!("# {{trace_id=\"{}", &TRACE[..30]));
            assert!(page.lines().any(is_traced), "{metric} has no exemplar: {page}");
        }
        interrupt(&serving);
        let stopped = Instant::now();
        assert!(serving.ended().await.success());
        assert!(stopped.elapsed() < Duration::from_secs(3), "the last spans are sent at once");

        for (number, wire) in [(1, "grpc"), (2, "grpc-web"), (3, "rest")] {
            let spans = collector.trace(&trace_id(number));
            let request = one(&spans, SERVER, "sessiond.v1.SessionService/CreateSession");
            assert_eq!(request.parent, bytes(CALLER));
            assert_eq!(request.attribute("sessiond.wire"), wire);
            assert_eq!(request.attribute("sessiond.project"), "shop");
            assert_eq!(request.attribute("http.response.status_code"), "200");
            assert!(!request.has_failed());
            // One for each part of the work: the server key may have been looked up first.
            let has_statements = |of: &Span| spans.iter().any(|one| one.kind == CLIENT && one.parent == of.id);
            let operations = spans.iter().filter(|span| span.kind == INTERNAL && has_statements(span));
            assert!(operations.into_iter().any(|operation| operation.name == "create_session"), "{spans:#?}");
            let statements: Vec<_> = spans.iter().filter(|span| span.kind == CLIENT).collect();
            let texts: Vec<_> = statements.iter().map(|span| span.attribute("db.query.summary")).collect();
            assert!(!texts.iter().any(String::is_empty), "{texts:?}");
            for span in &spans {
                assert!(span.start <= span.end && span.start >= request.start && span.end <= request.end, "{spans:#?}");
                let has_parent = span == request || spans.iter().any(|other| other.id == span.parent);
                assert!(has_parent, "{span:#?}");
            }

            let spans = collector.trace(&trace_id(number + 10));
            one(&spans, SERVER, "sessiond.v1.SessionService/RevokeCurrent");
            assert!(spans.iter().any(|span| span.kind == CLIENT && span.attribute("db.system.name") == "postgresql"));
        }
        let spans = collector.trace(&trace_id(20));
        let refresh = one(&spans, SERVER, "sessiond.v1.SessionService/RefreshSession");
        assert_eq!(refresh.attribute("sessiond.wire"), "oauth");
        assert_eq!(refresh.attribute("error.type"), "REFRESH_TOKEN_NOT_FOUND_OR_EXPIRED");
        assert!(!refresh.has_failed(), "the client is at fault, not the server");
        one(&collector.trace(&trace_id(21)), SERVER, "/.well-known/jwks.json");
        let spans = collector.spans();
        assert!(!spans.iter().any(|span| span.name.contains("readyz")), "probes begin no trace");
        let resource = collector.resource();
        assert_eq!(
            (resource["service.name"].as_str(), resource["deployment.environment.name"].as_str()),
            ("sessiond", "test")
        );

        let exported: Vec<u8> = collector
            .requests()
            .into_iter()
            .flat_map(|(headers, body)| [format!("{headers:?}").into_bytes(), body.into()].concat())
            .collect();
        assert!(exported.len() > 5_000);
        let exported = String::from_utf8_lossy(&exported).replace(&collector.addr.to_string(), "");
        for secret in secrets.iter().chain(["secret".to_owned(), "made-up".to_owned()].iter()) {
            assert!(!exported.contains(secret.as_str()), "{secret} was exported");
        }
    }
}

/// Requests that share a transaction: each trace leads to it, by a parent or a link.
#[tokio::test(flavor = "multi_thread")]
async fn requests_of_a_group_are_linked_with_its_transaction() {
    let installed = Installed::new().await;
    let collector = Collector::start().await;
    let mut serving = serve(&installed, &to(&collector, "grpc"), Stdio::null()).await;
    // Until some have shared a transaction, which depends on when they arrive.
    let mut number = 0;
    while number < 200 {
        let created = (0..25).map(|more| create(&serving, &installed.key, Wire::Grpc, parent(number + more, true)));
        join_all(created).await;
        number += 25;
    }
    interrupt(&serving);
    serving.ended().await;
    let spans = collector.spans();
    let shared: Vec<_> =
        spans.iter().filter(|span| span.attribute("sessiond.group.size").parse().unwrap_or(0) > 1).collect();
    assert!(!shared.is_empty(), "25 at once share transactions");
    for group in shared {
        assert_eq!(group.links.len() + 1, group.attribute("sessiond.group.size").parse::<usize>().expect("a number"));
        let is_below = |span: &Span, of: &Span| span.trace == of.trace && span.parent == of.id;
        let operation = spans.iter().find(|span| is_below(span, group)).expect("its operation");
        assert!(spans.iter().any(|span| span.kind == CLIENT && is_below(span, operation)), "its statements");
        for link in &group.links {
            let wait = spans.iter().find(|span| span.trace == link.trace && span.id == link.id).expect("exported too");
            assert!(wait.links.iter().any(|back| back.id == group.id && back.trace == group.trace));
        }
    }
}

/// The caller decides, and the ratio where there is no caller.
#[tokio::test(flavor = "multi_thread")]
async fn sampling_follows_the_caller() {
    let installed = Installed::new().await;
    for (ratio, roots) in [("0", false), ("1", true)] {
        let collector = Collector::start().await;
        let args = [to(&collector, "http/protobuf"), vec!["--trace-ratio".to_owned(), ratio.to_owned()]].concat();
        let mut serving = serve(&installed, &args, Stdio::null()).await;
        create(&serving, &installed.key, Wire::Grpc, parent(1, true)).await;
        create(&serving, &installed.key, Wire::Grpc, parent(2, false)).await;
        let malformed = header("traceparent", "00-nonsense-01");
        let root = serving.wires.http(Method::GET, "/projects/shop/.well-known/jwks.json", malformed, "").await;
        let id = root.headers()["x-request-id"].to_str().expect("text").to_owned();
        interrupt(&serving);
        serving.ended().await;
        assert!(!collector.trace(&trace_id(1)).is_empty(), "{ratio}");
        assert!(collector.trace(&trace_id(2)).is_empty(), "{ratio}");
        assert_eq!(!collector.trace(&bytes(&id)).is_empty(), roots, "the request's id is the trace's");
    }
}

/// Away, slow, wrong, or hostile: requests are answered as fast as ever, every span is counted, and SIGTERM works.
#[tokio::test(flavor = "multi_thread")]
async fn a_faulty_collector_costs_spans_and_nothing_else() {
    let installed = Installed::new().await;
    let answers =
        [Answer::Hangs, Answer::Fails(503), Answer::Fails(401), Answer::Nonsense, Answer::Floods, Answer::RejectsOne];
    for answer in answers.into_iter().map(Some).chain([None]) {
        // Side by side: most of the time they wait.
        join_all(["grpc", "http/protobuf"].map(|protocol| faulty(&installed, answer, protocol))).await;
    }
}

async fn faulty(installed: &Installed, answer: Option<Answer>, protocol: &str) {
    let case = format!("{answer:?} over {protocol}");
    let collector = Collector::answering(answer.unwrap_or(Answer::Accepts)).await;
    let args = to(&collector, protocol);
    if answer.is_none() {
        // Nothing listens at its address.
        drop(collector);
    }
    let dir = fresh_dir(&format!("faulty-collector-{}", protocol.replace('/', "-")));
    fs::create_dir_all(&dir).expect("makes it");
    let log = dir.join("log");
    let mut serving = serve(installed, &args, File::create(&log).expect("creates")).await;
    let longest = async {
        let mut longest = Duration::ZERO;
        for _ in 0..20 {
            let started = Instant::now();
            let (token, _) = serving.sign_in(&installed.key, USER).await.expect("signs in");
            assert_eq!(serving.sign_out(&token).await, StatusCode::OK);
            longest = longest.max(started.elapsed());
        }
        longest
    };
    // Generous, for a busy machine; a collector that hangs would hold them up for 10 s.
    assert!(longest.await < Duration::from_secs(5), "{case}");
    let dropped = match answer {
        Some(Answer::RejectsOne | Answer::Fails(401)) => Some("rejected"),
        Some(Answer::Nonsense) if protocol == "http/protobuf" => Some("rejected"),
        // Repeated first, for longer than this test waits.
        _ => None,
    };
    if let Some(reason) = dropped {
        let metric = format!("sessiond_spans_dropped_total{{reason=\"{reason}\"}}");
        eventually(&format!("{case}: counts the spans"), async || {
            let page = serving.metrics.http(Method::GET, "/metrics", HeaderMap::new(), "").await;
            String::from_utf8_lossy(page.body()).contains(&metric)
        })
        .await;
    }
    interrupt(&serving);
    let stopped = Instant::now();
    assert!(serving.ended().await.success(), "{case}");
    assert!(stopped.elapsed() < Duration::from_secs(6), "{case}: {:?}", stopped.elapsed());
    let log = fs::read_to_string(&log).expect("text");
    assert!(log.contains("spans"), "{case}: {log}");
    assert!(!log.contains('\u{1b}') && !log.contains("panicked"), "{case}: {log}");
    fs::remove_dir_all(&dir).expect("deletes");
}

/// A collector that was away for a moment gets the spans of that time too.
#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_comes_back_gets_the_spans() {
    let installed = Installed::new().await;
    for protocol in ["grpc", "http/protobuf"] {
        let collector = Collector::answering(Answer::Fails(503)).await;
        let serving = serve(&installed, &to(&collector, protocol), Stdio::null()).await;
        create(&serving, &installed.key, Wire::Grpc, parent(1, true)).await;
        eventually("it is sent", async || !collector.requests().is_empty()).await;
        collector.answers(Answer::Accepts);
        eventually("it is sent again", async || !collector.trace(&trace_id(1)).is_empty()).await;
    }
}

/// Over https, with a private authority; and not with another one.
#[tokio::test(flavor = "multi_thread")]
async fn the_collectors_certificate_is_verified() {
    let installed = Installed::new().await;
    let (authority, other) = (Authority::new("otlp"), Authority::new("otlp-other"));
    for protocol in ["grpc", "http/protobuf"] {
        let collector = Collector::start_secure(&authority).await;
        let trusting = |authority: &Authority| {
            let file = ["--otlp-ca-file".to_owned(), authority.path("ca.pem").display().to_string()];
            [to(&collector, protocol), file.to_vec()].concat()
        };
        let serving = serve(&installed, &trusting(&other), Stdio::null()).await;
        create(&serving, &installed.key, Wire::Grpc, parent(1, true)).await;
        let unavailable = "sessiond_spans_dropped_total{reason=\"unavailable\"}";
        eventually("its spans are dropped", async || {
            let page = serving.metrics.http(Method::GET, "/metrics", HeaderMap::new(), "").await;
            String::from_utf8_lossy(page.body()).contains(unavailable)
        })
        .await;
        drop(serving);
        assert_eq!(collector.requests().len(), 0);
        let serving = serve(&installed, &trusting(&authority), Stdio::null()).await;
        create(&serving, &installed.key, Wire::Grpc, parent(2, true)).await;
        eventually("it is exported", async || !collector.trace(&trace_id(2)).is_empty()).await;
    }
    // A file without certificates is refused at the start.
    authority.replace("ca.pem", "no certificate");
    let file = authority.path("ca.pem").display().to_string();
    let env = [("DATABASE_URL", "postgres://u@127.0.0.1:1/d"), ("SESSIOND_SEALING_KEY", SEALING_KEY)];
    for protocol in ["grpc", "http/protobuf"] {
        let args =
            ["serve", "--otlp-endpoint=https://localhost:1", "--otlp-protocol", protocol, "--otlp-ca-file", &file];
        assert_says(&sessiond(&args, &env), false, "--otlp-ca-file");
    }
}

/// The API key of the collector is sent to it, and is nowhere else.
#[tokio::test(flavor = "multi_thread")]
async fn headers_for_the_collector_come_from_a_file() {
    let installed = Installed::new().await;
    let dir = fresh_dir("otlp-headers");
    fs::create_dir_all(&dir).expect("makes it");
    let (headers, log) = (dir.join("headers"), dir.join("log"));
    fs::write(&headers, "api-key=top%20secret,x-team=a\n").expect("writes");
    let collector = Collector::start().await;
    let file = vec!["--otlp-headers-file".to_owned(), headers.display().to_string(), "--log=debug".to_owned()];
    let mut serving =
        serve(&installed, &[to(&collector, "grpc"), file].concat(), File::create(&log).expect("creates")).await;
    create(&serving, &installed.key, Wire::Grpc, HeaderMap::new()).await;
    interrupt(&serving);
    serving.ended().await;
    let (sent, _) = collector.requests().pop().expect("one at least");
    assert_eq!((sent["api-key"].as_bytes(), sent["x-team"].as_bytes()), (&b"top secret"[..], &b"a"[..]));
    let log = fs::read_to_string(&log).expect("text");
    assert!(log.contains("tracing requests") && !log.contains("top secret") && !log.contains("top%20"), "{log}");
    fs::remove_dir_all(&dir).expect("deletes");
}

/// A line for each request, with what an operator looks for, and nothing that identifies a user.
#[tokio::test(flavor = "multi_thread")]
async fn every_request_is_logged_if_asked_for() {
    let installed = Installed::new().await;
    let dir = fresh_dir("request-log");
    fs::create_dir_all(&dir).expect("makes it");
    let log = dir.join("log");
    let args = ["--log-requests", "--log-format", "json", "--drain-delay", "0s", "--trusted-proxy", "127.0.0.1"];
    let args = args.map(str::to_owned);
    let mut serving = serve(&installed, &args, File::create(&log).expect("creates")).await;
    let from = header("x-forwarded-for", "203.0.113.7");
    let mut secrets = vec![installed.key.clone(), USER.to_owned(), "203.0.113.7".to_owned()];
    for wire in [Wire::Grpc, Wire::GrpcWeb, Wire::Rest] {
        let created = create(&serving, &installed.key, wire, both(from.clone(), parent(1, false))).await;
        secrets.extend([created.access_token, created.refresh_token, created.session.expect("a session").id]);
    }
    let made_up = both(bearer("made-up.access.token"), from);
    let path = "/auth/sessions/current";
    assert_eq!(serving.wires.http(Method::DELETE, path, made_up.clone(), "").await.status(), StatusCode::UNAUTHORIZED);
    let path = "/projects/shop/auth/verify";
    assert_eq!(serving.wires.http(Method::GET, path, made_up.clone(), "").await.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(
        serving.wires.http(Method::GET, "/made-up?token=made-up", made_up, "").await.status(),
        StatusCode::NOT_FOUND
    );
    interrupt(&serving);
    serving.ended().await;
    let text = fs::read_to_string(&log).expect("text");
    for secret in secrets.iter().map(String::as_str).chain(["made-up"]) {
        assert!(!text.contains(secret), "{secret} was logged: {text}");
    }
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    let lines: Vec<_> =
        lines.filter(|line| line["target"] == "sessiond::requests" && line["rpc"] != "/readyz").collect();
    let facts = |line: &Value| {
        assert!(line["duration_ms"].is_number() && line["request_id"].as_str().expect("an id").len() == 32, "{line}");
        ["method", "rpc", "wire", "status", "code", "reason", "project", "network", "trace_id"]
            .map(|field| line[field].clone())
    };
    let created = |wire: &str| {
        let trace = format!("{}01", &TRACE[..30]);
        [
            json!("POST"),
            json!("sessiond.v1.SessionService/CreateSession"),
            json!(wire),
            json!(200),
            json!("OK"),
            Value::Null,
            json!("shop"),
            json!("203.0.113.0/24"),
            json!(trace),
        ]
    };
    let refused = |method: &str, rpc: &str, wire: &str, project: Value| {
        let [network, none] = [json!("203.0.113.0/24"), Value::Null];
        let code = if rpc.contains("Check") { "OK" } else { "UNAUTHENTICATED" };
        let reason = json!("UNPARSABLE_ACCESS_TOKEN");
        [json!(method), json!(rpc), json!(wire), json!(401), json!(code), reason, project, network, none]
    };
    let expected = [
        created("grpc"),
        created("grpc-web"),
        created("rest"),
        refused("DELETE", "sessiond.v1.SessionService/RevokeCurrent", "rest", Value::Null),
        refused("GET", "envoy.service.auth.v3.Authorization/Check", "rest", json!("shop")),
    ];
    assert_eq!(lines.iter().map(facts).take(5).collect::<Vec<_>>(), expected);
    assert_eq!((&lines[5]["rpc"], &lines[5]["status"]), (&json!("unknown"), &json!(404)));
    assert_eq!(lines.len(), 6);
    fs::remove_dir_all(&dir).expect("deletes");
}
