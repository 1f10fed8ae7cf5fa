//! The database is down: a clear 503 in time, never "not found", and recovery without a restart.

use std::time::{Duration, Instant};

use dev_postgres::{Cluster, Mode};
use http::{Method, StatusCode};
use sessiond_core::session::policy::CookieScope;
use tonic::Code;

use crate::harness::{
    Service, Wire, bearer, both,
    database::{Database, disposable},
    eventually, header, refresh_token,
};
use crate::verify::{Route, check_request};

/// How long the first error of an outage may take, and the recovery.
const BOUND: Duration = Duration::from_secs(2);

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_database_is_a_503_and_its_return_is_noticed() {
    let mut cluster = Cluster::start(disposable("outage")).await.expect("Postgres starts");
    let database = Database { url: cluster.database_url("postgres") };
    database.migrate().await;
    let service = Service::start_on(database).await;
    service.set_policy(|policy| policy.cookies.scope = CookieScope::Host).await;
    let mut phone = service.sign_in("ada", "phone").await;
    // Several connections, so that several are dead afterwards.
    let many = (0..8).map(|_| phone.refresh_without_keeping());
    futures_util::future::join_all(many).await.into_iter().for_each(|one| assert!(one.is_ok()));

    for mode in [Mode::Fast, Mode::Immediate] {
        cluster.stop_server(mode).await.expect("stops");
        for wire in Wire::ALL {
            let started = Instant::now();
            let refused = service.revoke_current(wire, bearer(&phone.access_token)).await.expect_err("no database");
            assert_eq!((refused.reason.as_str(), refused.code), ("STORE_UNAVAILABLE", Code::Unavailable), "{wire:?}");
            let refused = service.refresh(wire, refresh_token(&phone.refresh_token)).await.err().expect("no database");
            assert_eq!(refused.reason, "STORE_UNAVAILABLE", "{wire:?}");
            assert!(started.elapsed() < 2 * BOUND, "{:?}", started.elapsed());
        }
        let path = "/auth/sessions/current";
        let response = service.wires.http(Method::DELETE, path, bearer(&phone.access_token), "").await;
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(response.headers()["retry-after"], "1");
        // A browser keeps its cookies, and a page that cannot be refreshed is not sent to the login page.
        let cookie = format!("__Host-sessiond.demo.refresh={}", phone.refresh_token);
        let by_cookie = || both(header("cookie", &cookie), header("sec-fetch-site", "same-origin"));
        let response = service.wires.http(Method::DELETE, path, by_cookie(), "").await;
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert!(!response.headers().contains_key("set-cookie"));
        let page = both(by_cookie(), header("sec-fetch-mode", "navigate"));
        let page = both(page, header("x-forwarded-method", "GET"));
        let response = service.wires.http(Method::GET, "/projects/demo/auth/verify?login=/login", page, "").await;
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        let form = format!("client_id=demo&token={}", phone.access_token);
        let typed = header("content-type", "application/x-www-form-urlencoded");
        let response = service.wires.http(Method::POST, "/oauth2/revoke", typed, form).await;
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(response.headers()["retry-after"], "1");
        // A proxy gets a 503 once the feed is old; requests that can be refused without the feed are refused.
        eventually("the feed is old", async || !service.app.feed().is_fresh()).await;
        let path = "/projects/demo/auth/verify";
        let response = service.wires.http(Method::GET, path, bearer(&phone.access_token), "").await;
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(response.headers()["retry-after"], "1");
        assert_eq!(response.headers()["x-user-id"], "", "and no identity");
        let page = service.metrics_page().await;
        assert!(page.contains(r#"{operation="outlines_find",outcome="error"}"#), "the rows were asked: {page}");
        let response = service.wires.http(Method::GET, path, bearer("rubbish"), "").await;
        assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
        let asked = check_request(Route::Envoy, Some("demo"), &bearer(&phone.access_token));
        assert_eq!(service.check(asked).await.expect_err("no database").code(), Code::Unavailable);
        becomes_ready(&service, StatusCode::SERVICE_UNAVAILABLE).await;

        cluster.start_server().await.expect("starts again");
        let started = Instant::now();
        while phone.refresh().await.is_err() {
            assert!(started.elapsed() < BOUND, "still away");
        }
        becomes_ready(&service, StatusCode::OK).await;
    }
    phone.sign_out().await.expect("signs out");
    assert!(!phone.is_signed_in().await);
    drop(service);
    cluster.stop().await.expect("stops");
}

/// Readiness is the result of the last database check, and there is one every second.
async fn becomes_ready(service: &Service, status: StatusCode) {
    let started = Instant::now();
    while service.readyz().await.0 != status {
        assert!(started.elapsed() < 2 * BOUND, "not {status} in time");
    }
}

/// A server that accepts connections and never answers, like one behind a dead network.
#[tokio::test]
async fn a_database_that_does_not_answer_is_a_503_in_time() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let port = silent.local_addr().expect("bound").port();
    let options = crate::harness::hasty(&format!("postgres://u@127.0.0.1:{port}/d"));
    let store = sessiond::store::Store::new(&options, sessiond::telemetry::Metrics::default()).expect("a good URL");
    let started = Instant::now();
    assert!(matches!(store.writes_refused().await, Err(sessiond::store::Error::Unavailable { .. })));
    assert!(started.elapsed() < BOUND, "{:?}", started.elapsed());
}

/// The first of several hosts is paused, not dead: it must not delay connections to the second.
#[tokio::test]
async fn a_silent_host_is_skipped() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let port = silent.local_addr().expect("bound").port();
    let database = Database::create().await;
    let url = database.url.replacen("@", &format!("@127.0.0.1:{port},"), 1);
    let store = sessiond::store::Store::new(&crate::harness::hasty(&url), sessiond::telemetry::Metrics::default());
    let store = store.expect("a good URL");
    store.writes_refused().await.expect("the second host answers");
    let started = Instant::now();
    store.writes_refused().await.expect("and is remembered");
    assert!(started.elapsed() < Duration::from_millis(700), "{:?}", started.elapsed());
}
