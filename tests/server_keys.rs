//! Server keys: a genuine one is remembered for a while, and a revoked one is refused by every replica within the feed's delay.

use std::time::{Duration, Instant};

use http::HeaderMap;
use secrecy::{ExposeSecret as _, SecretString};
use sessiond::{app::ServerKeyRevoked, feed::AGE_MAX, store::Role};
use sessiond_core::{
    id::{KeyId, ProjectId},
    token::server_key::ServerKey,
};

use crate::{
    assert_refused,
    harness::{PROJECT, Service, Wire, bearer, eventually, options, proxy::Proxy},
    revoke::flip,
};

/// How long a key is remembered.
const LIFETIME: Duration = Duration::from_secs(5);

fn id_of(key: &SecretString) -> KeyId {
    ServerKey::parse(key.expose_secret()).expect("a key").id()
}

fn headers(key: &SecretString) -> HeaderMap {
    bearer(key.expose_secret())
}

async fn new_key(service: &Service) -> SecretString {
    let project = ProjectId::parse(PROJECT).expect("a name");
    service.app.server_key_create(project, Role::Service).await.expect("makes a key").1
}

/// How often a server key was looked up.
pub async fn lookups(service: &Service) -> u64 {
    let operation = r#"{operation="server_key_find",outcome="ok"}"#;
    service.metric(&format!("sessiond_store_operation_duration_seconds_count{operation}")).await
}

async fn assert_refused_on_every_wire(service: &Service, key: &SecretString, token: &str) {
    for wire in Wire::ALL {
        assert_refused!(service.introspect(wire, headers(key), token), "INVALID_SERVER_KEY");
    }
}

#[tokio::test]
async fn a_known_key_is_not_looked_up_again() {
    let service = Service::start().await;
    let phone = service.sign_in("ada", "phone").await;
    assert!(service.is_active(&phone.access_token).await);
    let (before, began) = (lookups(&service).await, Instant::now());
    for wire in Wire::ALL {
        for _ in 0..20 {
            assert!(service.introspect(wire, service.key(), &phone.access_token).await.expect("answers").active);
        }
    }
    // On a busy machine, it may have taken longer than a key is remembered.
    let expired = began.elapsed().as_secs() / LIFETIME.as_secs();
    assert!(lookups(&service).await - before <= expired);

    // Another secret with the same id is looked up, and does not affect the genuine one.
    let key = service.server_key.expose_secret();
    let forged = SecretString::from(flip(key, key.len() - 10));
    let before = lookups(&service).await;
    assert_refused_on_every_wire(&service, &forged, &phone.access_token).await;
    assert_eq!(lookups(&service).await, before + 3);
    assert!(service.is_active(&phone.access_token).await);
}

#[tokio::test]
async fn a_key_revoked_at_one_replica_is_refused_at_the_others() {
    let service = Service::start().await;
    let other = service.replica().await;
    let phone = service.sign_in("ada", "phone").await;
    for _ in 0..3 {
        let key = new_key(&service).await;
        for replica in [&service, &other] {
            replica.introspect(Wire::Grpc, headers(&key), &phone.access_token).await.expect("a good key");
        }
        let began = Instant::now();
        let outcome = service.app.server_key_revoke(id_of(&key)).await.expect("revokes");
        assert_eq!(outcome, ServerKeyRevoked::Now);
        assert_refused_on_every_wire(&service, &key, &phone.access_token).await;
        let is_refused = async || other.introspect(Wire::Grpc, headers(&key), &phone.access_token).await.is_err();
        eventually("the other replica refuses it", is_refused).await;
        assert!(began.elapsed() < AGE_MAX, "{:?}", began.elapsed());
        assert_refused_on_every_wire(&other, &key, &phone.access_token).await;
    }
    assert!(other.is_active(&phone.access_token).await, "the first key is as good as ever");
}

/// A lookup begins, the key is revoked, the feed learns of it, and then the lookup ends: its row is out of date.
#[tokio::test]
async fn a_key_revoked_during_its_lookup_is_refused_afterwards() {
    let service = Service::start().await;
    let (proxy, silence) = Proxy::that_holds_answers(&service.database, "\"server_keys\"").await;
    let behind = service.replica_with(options(&proxy.url)).await;
    let phone = service.sign_in("ada", "phone").await;
    let key = new_key(&service).await;
    let id = id_of(&key);

    // On every connection that it may use, the statement is prepared, so that only its result is held.
    let forged = SecretString::from(flip(key.expose_secret(), key.expose_secret().len() - 10));
    for _ in 0..16 {
        assert_refused!(behind.introspect(Wire::Grpc, headers(&forged), &phone.access_token), "INVALID_SERVER_KEY");
    }
    let now = service.database.lines("SELECT clock_timestamp()").await.remove(0);
    let answered = format!(
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND state = 'idle'
           AND query LIKE 'SELECT \"server_keys\"%' AND query_start > '{now}'"
    );
    silence.begin();
    let revoked_meanwhile = async {
        let is_answered = async || !service.database.lines(&answered).await.is_empty();
        eventually("the database has answered", is_answered).await;
        service.app.server_key_revoke(id).await.expect("revokes");
        eventually("the feed knows", async || behind.app.feed().has_revoked(id)).await;
        silence.end();
    };
    let (held, ()) = tokio::join!(behind.introspect(Wire::Grpc, headers(&key), &phone.access_token), revoked_meanwhile);
    assert!(held.expect("it was looked up before the revocation").active);
    assert_refused_on_every_wire(&behind, &key, &phone.access_token).await;
}

/// Without a fresh feed, a revocation might be missed.
#[tokio::test]
async fn a_replica_without_a_fresh_feed_looks_keys_up() {
    let service = Service::start().await;
    let (proxy, silence) = Proxy::that_swallows(&service.database, "pg_current_snapshot").await;
    let behind = service.replica_by(&proxy.url).await;
    let phone = service.sign_in("ada", "phone").await;
    let key = new_key(&service).await;
    let ask = async || behind.introspect(Wire::Grpc, headers(&key), &phone.access_token).await;
    silence.begin();
    while behind.app.feed().is_fresh() {
        ask().await.expect("a good key");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    service.app.server_key_revoke(id_of(&key)).await.expect("revokes");
    assert!(!behind.app.feed().has_revoked(id_of(&key)));
    let before = lookups(&behind).await;
    assert_refused!(ask(), "INVALID_SERVER_KEY");
    assert_eq!(lookups(&behind).await, before + 1);
    silence.end();
    eventually("the feed is fresh again", async || behind.app.feed().is_fresh()).await;
    assert_refused_on_every_wire(&behind, &key, &phone.access_token).await;
}
