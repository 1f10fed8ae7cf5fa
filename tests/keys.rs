//! Keys: rotation without interruption, revocation, and resealing.

use std::{
    collections::BTreeSet,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use diesel_async::SimpleAsyncConnection as _;
use http::{HeaderMap, Method, StatusCode};
use jsonwebtoken::{Algorithm, DecodingKey, Validation, jwk::JwkSet};
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::{Value, json};
use sessiond::{
    app::{App, Caller, KeyCache, KeyRevoked, ProjectError, RELOAD_INTERVAL, Rotated, ServerKeyRevoked},
    pb::CreateSessionRequest,
    store::Store,
    telemetry::Metrics,
};
use sessiond_core::{
    clock::{Clock, Timestamp},
    id::{KeyId, ProjectId},
    session::{Origin, Policy, create::CreateRequest, policy::ACCESS_TOKEN_TTL_MAX},
    token::{
        access::{Claims, Issuer},
        jwks,
        refresh::RefreshToken,
        schedule::{MARGIN, Stage, Urgency},
        sealing::{Purpose, Sealer, SealingKey},
        server_key::ServerKey,
        unverified::UnverifiedToken,
    },
};

use crate::{
    assert_refused,
    binary::{assert_says, sessiond},
    harness::{
        ISSUER, PROJECT, REFRESH_GRACE, REFUSED_REFRESH, SEALING_KEY, Service, Wire, bearer, database::Database,
        eventually, header, options, refresh_token,
    },
    verify::{Route, genuine_claims},
};

const INSTANT: Duration = Duration::from_micros(1);
const UNKNOWN_KEY: &str = "UNPARSABLE_ACCESS_TOKEN";

fn demo() -> ProjectId {
    ProjectId::parse(PROJECT).expect("a name")
}

pub fn kid(token: &str) -> KeyId {
    UnverifiedToken::parse(token).expect("genuine").key()
}

fn refresh_kid(token: &str) -> KeyId {
    RefreshToken::parse(token).expect("genuine").key()
}

async fn jwks(service: &Service) -> JwkSet {
    let path = format!("/projects/{PROJECT}/.well-known/jwks.json");
    let answer = service.wires.http(Method::GET, &path, HeaderMap::new(), "").await;
    assert_eq!(answer.headers()["cache-control"], format!("public, max-age={}", jwks::MAX_AGE.as_secs()));
    serde_json::from_slice(answer.body()).expect("a JWK set")
}

/// The published keys, of the project and of all projects.
async fn published(service: &Service) -> BTreeSet<KeyId> {
    let set = jwks(service).await;
    let everywhere = service.wires.http(Method::GET, "/.well-known/jwks.json", HeaderMap::new(), "").await;
    assert_eq!(serde_json::from_slice::<JwkSet>(everywhere.body()).expect("a JWK set"), set);
    kids(&set)
}

fn kids(set: &JwkSet) -> BTreeSet<KeyId> {
    set.keys.iter().map(|key| KeyId::parse(key.common.key_id.as_deref().expect("a kid")).expect("an id")).collect()
}

async fn rotate(app: &App, purpose: Purpose, urgency: Urgency) -> Rotated {
    app.rotate_key(purpose, demo(), urgency).await.expect("rotates")
}

/// Advances the clock to this moment.
fn advance_to(service: &Service, moment: Timestamp) {
    service.clock.advance(moment.since(service.clock.now()));
    assert_eq!(service.clock.now(), moment, "not back");
}

#[tokio::test]
async fn a_new_signing_key_is_published_an_hour_before_it_signs() {
    let service = Service::start().await;
    let first = service.sign_in("ada", "phone").await;
    let old = kid(&first.access_token);
    assert_eq!(published(&service).await, [old].into());

    let began = service.clock.now();
    let Rotated { successor, from, retired } = rotate(&service.operator(), Purpose::Signing, Urgency::Planned).await;
    assert_eq!(retired, [old]);
    assert!(from.since(began) >= jwks::MAX_AGE + RELOAD_INTERVAL, "{:?}", from.since(began));
    service.app.keys().reload().await.expect("reads");
    assert_eq!(published(&service).await, [old, successor].into(), "at once");

    for (moment, signs) in [(from - INSTANT, old), (from, successor), (from + INSTANT, successor)] {
        advance_to(&service, moment);
        assert_eq!(kid(&service.sign_in("ada", "laptop").await.access_token), signs, "{moment}");
    }

    // Tokens from the old key's last instant verify for the longest possible lifetime.
    let end = from + ACCESS_TOKEN_TTL_MAX + MARGIN;
    let verifies = |now| service.app.keys().snapshot().keyring.verifies(old, now, ACCESS_TOKEN_TTL_MAX).is_some();
    advance_to(&service, end - INSTANT);
    assert_eq!(published(&service).await, [old, successor].into());
    assert!(verifies(service.clock.now()));
    advance_to(&service, end);
    assert_eq!(published(&service).await, [successor].into());
    assert!(!verifies(service.clock.now()));

    // A leaked retired key makes no valid tokens; a client that is merely slow is told to refresh.
    let leaked = forged(&service, &first.access_token, end + Duration::from_secs(600));
    for wire in Wire::ALL {
        assert_refused!(service.current(wire, bearer(leaked.expose_secret())), "UNPARSABLE_ACCESS_TOKEN");
        assert_refused!(service.current(wire, bearer(&first.access_token)), "ACCESS_TOKEN_EXPIRED");
        assert!(!service.introspect(wire, service.key(), leaked.expose_secret()).await.expect("answers").active);
    }
    for route in Route::ALL {
        let reason = async |token: &str| service.verify(route, PROJECT, bearer(token)).await.reason;
        assert_eq!(reason(leaked.expose_secret()).await.as_deref(), Some("UNPARSABLE_ACCESS_TOKEN"));
        assert_eq!(reason(&first.access_token).await.as_deref(), Some("ACCESS_TOKEN_EXPIRED"));
    }

    // For a sign-out, long after that.
    service.clock.advance(Duration::from_secs(60 * 86_400));
    let ended = first.sign_out().await.expect("signs out");
    assert_eq!(ended.already_revoked, None);
}

/// The claims of a genuine token with another expiry, signed with the same key.
fn forged(service: &Service, genuine: &str, until: Timestamp) -> SecretString {
    let presented = UnverifiedToken::parse(genuine).expect("genuine");
    let key = service.app.keys().snapshot().keyring.signing(presented.key()).expect("known").clone();
    let claims = presented.verify(key.verifying(), &Issuer::new(ISSUER)).expect("genuine");
    key.sign(&Claims { exp: until.as_seconds(), ..claims }).expect("signs")
}

/// Verifiers ask often, and the answer rarely changes.
#[tokio::test]
async fn unchanged_keys_are_answered_with_not_modified() {
    let service = Service::start().await;
    service.create_project("other").await;
    let ask = async |path: &str, known: &str| {
        let answer = service.wires.http(Method::GET, path, header("if-none-match", known), "").await;
        let tag = answer.headers()["etag"].to_str().expect("text").to_owned();
        assert_eq!(answer.headers()["cache-control"], "public, max-age=3600");
        (answer.status(), tag, answer.into_body())
    };
    let paths =
        ["/.well-known/jwks.json", "/projects/demo/.well-known/jwks.json", "/projects/other/.well-known/jwks.json"];
    let mut tags = vec![];
    for path in paths {
        let (status, tag, body) = ask(path, "\"another\"").await;
        assert_eq!(status, StatusCode::OK);
        for known in [tag.clone(), format!("W/{tag}"), format!("\"another\", {tag}"), "*".to_owned()] {
            // The validator does not change when the same keys are read again.
            service.app.keys().reload().await.expect("reads");
            let again = ask(path, &known).await;
            assert_eq!(again, (StatusCode::NOT_MODIFIED, tag.clone(), Bytes::new()), "{path} {known}");
        }
        assert!(!body.is_empty() && !tags.contains(&tag));
        tags.push(tag);
    }
    rotate(&service.operator(), Purpose::Signing, Urgency::Planned).await;
    service.app.keys().reload().await.expect("reads");
    let mut now = vec![];
    for (path, tag) in paths.iter().zip(&tags) {
        now.push(ask(path, tag).await.0);
    }
    assert_eq!(now, [StatusCode::OK, StatusCode::OK, StatusCode::NOT_MODIFIED], "the other project's are the same");
}

#[tokio::test]
async fn refresh_tokens_survive_the_rotation_of_their_key() {
    let service = Service::start().await;
    let mut phone = service.sign_in("ada", "phone").await;
    let old = refresh_kid(&phone.refresh_token);
    let Rotated { successor, from, retired } = rotate(&service.operator(), Purpose::Refresh, Urgency::Planned).await;
    assert_eq!(retired, [old]);
    assert!(from.since(service.clock.now()) >= 3 * RELOAD_INTERVAL);
    service.app.keys().reload().await.expect("reads");

    advance_to(&service, from - INSTANT);
    let before = phone.refresh_without_keeping().await.expect("refreshes");
    assert_eq!(refresh_kid(&before.refresh_token), old);
    advance_to(&service, from);
    // The same place in the chain, under the new key: both are good.
    let repeated = phone.refresh_without_keeping().await.expect("within the grace");
    assert_eq!(refresh_kid(&repeated.refresh_token), successor);
    phone.refresh_token = before.refresh_token;
    phone.refresh().await.expect("made by the old key");
    assert_eq!(refresh_kid(&phone.refresh_token), successor);
    service.clock.advance(2 * REFRESH_GRACE);
    phone.refresh().await.expect("made by the new key");

    let stale = service.sign_in("ada", "tablet").await;
    rotate(&service.operator(), Purpose::Refresh, Urgency::Emergency).await;
    service.app.keys().reload().await.expect("reads");
    service.clock.advance(Duration::from_secs(30 * 86_400));
    let ended = service.revoke_current(Wire::Rest, refresh_token(&stale.refresh_token)).await.expect("signs out");
    assert_eq!(ended.already_revoked, None);
}

/// Another replica signs with a key that this one has not loaded yet.
#[tokio::test]
async fn a_replica_loads_a_key_that_it_does_not_know() {
    let service = Service::start().await;
    let old = kid(&service.sign_in("ada", "phone").await.access_token);
    let elsewhere = service.operator();
    let Rotated { successor, from, .. } = rotate(&elsewhere, Purpose::Signing, Urgency::Emergency).await;
    let refresh = rotate(&elsewhere, Purpose::Refresh, Urgency::Emergency).await;
    assert_eq!((from, refresh.from), (service.clock.now(), service.clock.now()));

    elsewhere.keys().reload().await.expect("reads");
    let key = ServerKey::parse(service.server_key.expose_secret()).expect("a key");
    let request = CreateRequest { user_id: "ada".to_owned(), ..CreateRequest::default() };
    let grant = elsewhere.create_session(Caller::Service(key), None, request, None, None, Origin::default()).await;
    let (grant, _) = grant.expect("signs in");
    assert_eq!(kid(grant.access_token.expose_secret()), successor);
    service.refresh(Wire::Grpc, refresh_token(grant.refresh_token.expose_secret())).await.expect("refreshes");
    let ended = service.revoke_current(Wire::Grpc, bearer(grant.access_token.expose_secret())).await;
    assert_eq!(ended.expect("signs out").already_revoked, None);
    assert_eq!(published(&service).await, [old, successor].into());
}

/// An external verifier with another JWT library, which fetches the keys once an hour.
struct Verifier {
    keys: JwkSet,
    fetched_at: Timestamp,
}

impl Verifier {
    async fn new(service: &Service) -> Self {
        Self { keys: jwks(service).await, fetched_at: service.clock.now() }
    }

    async fn accepts(&mut self, service: &Service, token: &str) -> bool {
        if service.clock.now().since(self.fetched_at) >= jwks::MAX_AGE {
            *self = Self::new(service).await;
        }
        let header = jsonwebtoken::decode_header(token).expect("a JWT");
        let Some(key) = self.keys.find(&header.kid.expect("a kid")) else { return false };
        let mut checks = Validation::new(Algorithm::ES256);
        checks.set_audience(&[PROJECT]);
        checks.set_issuer(&[format!("{ISSUER}/projects/{PROJECT}")]);
        // It would use the system clock.
        checks.validate_exp = false;
        let key = DecodingKey::from_jwk(key).expect("a key");
        jsonwebtoken::decode::<Value>(token, &key, &checks).is_ok()
    }
}

/// Users who sign in, refresh and sign out continuously, and the tokens they got.
#[derive(Default)]
struct Load {
    rounds: AtomicU64,
    done: AtomicBool,
    issued: Mutex<Vec<String>>,
}

impl Load {
    async fn run(&self, service: &Service, user: &str) {
        while !self.done.load(Ordering::SeqCst) {
            let mut device = service.sign_in(user, "phone").await;
            self.issue(&device.access_token);
            for wire in Wire::ALL {
                let tokens = service.refresh(wire, refresh_token(&device.refresh_token)).await.expect("refreshes");
                (device.access_token, device.refresh_token) = (tokens.access_token, tokens.refresh_token);
                self.issue(&device.access_token);
            }
            let ended = device.sign_out().await.expect("signs out");
            assert_eq!(ended.already_revoked, None);
            self.rounds.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn issue(&self, token: &str) {
        self.issued.lock().expect("whole").push(token.to_owned());
    }
}

/// Nearly three hours with two rotations of each key. Every request succeeds, and verifiers that fetch the JWKS once an
/// hour accept every token, when it is issued and just before it expires.
#[tokio::test(flavor = "multi_thread")]
async fn rotating_keys_under_load_fails_no_request() {
    const STEP: Duration = Duration::from_secs(60);
    const TTL: Duration = Duration::from_secs(600);
    let service = Service::start().await;
    let operator = service.operator();
    let load = Load::default();

    let drive = async {
        let mut verifiers = vec![Verifier::new(&service).await];
        let (mut young, mut signed_by) = (vec![], BTreeSet::new());
        let mut laptop = service.sign_in("grace", "laptop").await;
        for step in 0..150 {
            if step % 70 == 10 {
                rotate(&operator, Purpose::Signing, Urgency::Planned).await;
                rotate(&operator, Purpose::Refresh, Urgency::Planned).await;
                // The worst case for a verifier: it fetches from a replica that has not loaded the new key yet.
                service.clock.advance(RELOAD_INTERVAL);
                verifiers.push(Verifier::new(&service).await);
                service.app.keys().reload().await.expect("reads");
                verifiers.push(Verifier::new(&service).await);
            }
            service.clock.advance(STEP);
            let rounds = load.rounds.load(Ordering::SeqCst);
            eventually("requests under way", async || load.rounds.load(Ordering::SeqCst) >= rounds + 2).await;
            laptop.refresh().await.expect("the same session all the way");

            let now = service.clock.now();
            let fresh = std::mem::take(&mut *load.issued.lock().expect("whole"));
            let (old, rest): (Vec<_>, Vec<_>) = std::mem::take(&mut young)
                .into_iter()
                .partition(|(at, _): &(Timestamp, String)| *at + TTL <= now + STEP);
            young = rest;
            for token in fresh.iter().chain(old.iter().map(|(_, token)| token)) {
                for (number, verifier) in verifiers.iter_mut().enumerate() {
                    assert!(verifier.accepts(&service, token).await, "verifier {number} at step {step}");
                }
                signed_by.insert(kid(token));
            }
            young.extend(fresh.into_iter().map(|token| (now, token)));
        }
        load.done.store(true, Ordering::SeqCst);
        assert_eq!(signed_by.len(), 3, "two rotations");
    };
    let users = ["ada", "alan"].map(|user| load.run(&service, user));
    tokio::join!(drive, futures_util::future::join_all(users));
}

#[tokio::test]
async fn no_token_under_a_revoked_signing_key_is_accepted_on_any_replica() {
    let service = Service::start().await;
    let mut devices = vec![];
    for device in ["phone", "laptop", "tv"] {
        devices.push(service.sign_in("ada", device).await);
    }
    let old = kid(&devices[0].access_token);
    for route in Route::ALL {
        assert!(service.verify(route, PROJECT, devices[0].bearer()).await.passes(), "{route:?}");
    }
    // This server knows the tokens that it issued. Those of another replica it has not seen.
    let leaked = service.app.keys().snapshot().keyring.signing(old).expect("known").clone();
    let elsewhere = |jti: &str| {
        let claims = Claims { jti: jti.to_owned(), ..genuine_claims(&service, &devices[0].access_token) };
        leaked.sign(&claims).expect("signs").expose_secret().to_owned()
    };
    for route in Route::ALL {
        assert!(service.verify(route, PROJECT, bearer(&elsewhere("before"))).await.passes(), "{route:?}");
    }
    let unseen = elsewhere("after");
    let operator = service.operator();
    let revoked = operator.revoke_key(Purpose::Signing, demo(), old).await.expect("revokes");
    let KeyRevoked::Replaced(successor) = revoked else { panic!("{revoked:?}") };

    // The server finds out by itself.
    eventually("the server knows", async || kids(&jwks(&service).await) == [successor].into()).await;
    assert_eq!(published(&service).await, [successor].into());
    for route in Route::ALL {
        for token in [&devices[0].access_token, &unseen] {
            let outcome = service.verify(route, PROJECT, bearer(token)).await;
            assert_eq!(outcome.reason.as_deref(), Some(UNKNOWN_KEY), "{route:?}");
        }
    }
    for (wire, device) in Wire::ALL.into_iter().zip(&mut devices) {
        assert_refused!(service.revoke_current(wire, bearer(&device.access_token)), UNKNOWN_KEY);
        assert!(device.is_signed_in().await, "the leaked key revokes nothing");
        device.refresh().await.expect("the refresh token is another matter");
        assert_eq!(kid(&device.access_token), successor);
        service.revoke_current(wire, bearer(&device.access_token)).await.expect("signs out");
    }
    assert!(service.app.keys().snapshot().keyring.signing(old).is_none());

    let keys = operator.list_keys(Purpose::Signing, demo()).await.expect("lists");
    let again = operator.revoke_key(Purpose::Signing, demo(), old).await.expect("once more");
    assert_eq!(again, KeyRevoked::Before);
    assert_eq!(operator.list_keys(Purpose::Signing, demo()).await.expect("lists"), keys, "nothing has changed");
}

/// The new key also signs on a replica whose clock is behind the operator's.
#[tokio::test]
async fn a_replica_whose_clock_is_behind_signs_with_the_new_key() {
    let service = Service::start().await;
    let old = kid(&service.sign_in("ada", "phone").await.access_token);
    let now = service.clock.now();
    service.app.revoke_key(Purpose::Signing, demo(), old).await.expect("revokes");
    service.app.keys().reload().await.expect("reads");
    let snapshot = service.app.keys().snapshot();
    let successor = snapshot.signs_for(&demo(), now).expect("a key").id();
    for behind in [MARGIN, MARGIN + INSTANT, MARGIN * 60] {
        assert_eq!(snapshot.signs_for(&demo(), now - behind).expect("a key").id(), successor, "{behind:?}");
    }
}

#[tokio::test]
async fn no_token_under_a_revoked_refresh_key_is_accepted() {
    let service = Service::start().await;
    let mut phone = service.sign_in("ada", "phone").await;
    let old = refresh_kid(&phone.refresh_token);
    let revoked = service.operator().revoke_key(Purpose::Refresh, demo(), old).await.expect("revokes");
    assert!(matches!(revoked, KeyRevoked::Replaced(_)), "{revoked:?}");
    service.app.keys().reload().await.expect("reads");
    for wire in Wire::ALL {
        assert_refused!(service.refresh(wire, refresh_token(&phone.refresh_token)), REFUSED_REFRESH);
        assert_refused!(service.revoke_current(wire, refresh_token(&phone.refresh_token)), REFUSED_REFRESH);
    }
    assert!(phone.is_signed_in().await);
    phone = service.sign_in("ada", "phone").await;
    phone.refresh().await.expect("a new sign-in has a token under the new key");
}

#[tokio::test]
async fn a_waiting_key_can_be_revoked_or_activated_early() {
    let service = Service::start().await;
    let operator = service.operator();
    let first = kid(&service.sign_in("ada", "phone").await.access_token);
    let signs = async || {
        service.app.keys().reload().await.expect("reads");
        kid(&service.sign_in("ada", "phone").await.access_token)
    };

    let planned = rotate(&operator, Purpose::Signing, Urgency::Planned).await;
    let refused = operator.rotate_key(Purpose::Signing, demo(), Urgency::Planned).await.expect_err("one at a time");
    assert!(
        matches!(refused, ProjectError::UnderWay { successor, from, .. } if (successor, from) == (planned.successor, planned.from))
    );
    let revoked = operator.revoke_key(Purpose::Signing, demo(), planned.successor).await.expect("revokes");
    assert_eq!(revoked, KeyRevoked::CalledOff(first));
    advance_to(&service, planned.from);
    assert_eq!(signs().await, first, "no gap where the rotation would have been");

    let planned = rotate(&operator, Purpose::Signing, Urgency::Planned).await;
    let forward = rotate(&operator, Purpose::Signing, Urgency::Emergency).await;
    assert_eq!(
        (forward.successor, forward.from),
        (planned.successor, service.clock.now()),
        "verifiers may know it already"
    );
    assert_eq!(signs().await, planned.successor);

    // The signing key is revoked while another waits: that one takes over.
    let waiting = rotate(&operator, Purpose::Signing, Urgency::Planned).await;
    let revoked = operator.revoke_key(Purpose::Signing, demo(), planned.successor).await.expect("revokes");
    assert_eq!(revoked, KeyRevoked::Replaced(waiting.successor));
    assert_eq!(signs().await, waiting.successor);
    // Revoking a retired key changes nothing else.
    let revoked = operator.revoke_key(Purpose::Signing, demo(), first).await.expect("revokes");
    assert_eq!(revoked, KeyRevoked::Alone);
    assert_eq!(signs().await, waiting.successor);
    assert_eq!(published(&service).await, [waiting.successor].into());
}

#[tokio::test]
async fn a_key_of_another_project_is_not_found() {
    let service = Service::start().await;
    service.create_project("other").await;
    let key = kid(&service.sign_in("ada", "phone").await.access_token);
    let other = ProjectId::parse("other").expect("a name");
    for purpose in [Purpose::Signing, Purpose::Refresh] {
        let refused = service.app.revoke_key(purpose, other.clone(), key).await.expect_err("refused");
        assert!(matches!(refused, ProjectError::MissingKey { id, .. } if id == key), "{refused}");
    }
    let unknown = ProjectId::parse("nobody").expect("a name");
    let refused = service.app.revoke_key(Purpose::Signing, unknown.clone(), key).await.expect_err("refused");
    assert!(matches!(refused, ProjectError::Missing(_)), "{refused}");
    let refused = service.app.rotate_key(Purpose::Signing, unknown, Urgency::Planned).await.expect_err("refused");
    assert!(matches!(refused, ProjectError::Missing(_)), "{refused}");
    service.app.keys().reload().await.expect("reads");
    assert_eq!(kid(&service.sign_in("ada", "phone").await.access_token), key);
}

/// Lets operators run until each waits for the project, then releases them all at once.
async fn at_once<T: Send + 'static>(
    service: &Service,
    acts: Vec<impl Future<Output = Result<T, ProjectError>> + Send + 'static>,
) -> Vec<Result<T, ProjectError>> {
    let mut holder = service.database.connect().await;
    holder.batch_execute("BEGIN; SELECT FROM projects FOR NO KEY UPDATE").await.expect("holds the project");
    let acts: Vec<_> = acts.into_iter().map(tokio::spawn).collect();
    eventually("everyone waits", async || service.database.lock_waits().await == acts.len()).await;
    holder.batch_execute("COMMIT").await.expect("lets go");
    futures_util::future::join_all(acts).await.into_iter().map(|outcome| outcome.expect("ends")).collect()
}

/// Concurrent operators: one rotation happens, and at each moment exactly one key signs.
#[tokio::test(flavor = "multi_thread")]
async fn concurrent_operators_take_turns() {
    let service = Service::start().await;
    let planned = (0..8).map(|_| {
        let operator = service.operator();
        async move { operator.rotate_key(Purpose::Signing, demo(), Urgency::Planned).await }
    });
    let outcomes = at_once(&service, planned.collect()).await;
    let refused = outcomes.into_iter().filter_map(Result::err).collect::<Vec<_>>();
    assert_eq!(refused.len(), 7, "one rotation");
    assert!(refused.iter().all(|error| matches!(error, ProjectError::UnderWay { .. })), "{refused:?}");

    let keys = service.app.list_keys(Purpose::Signing, demo()).await.expect("lists");
    let known: Vec<KeyId> = keys.iter().map(|key| key.id).collect();
    let mixed = (0..12).map(|number| {
        let (operator, key) = (service.operator(), known[number % known.len()]);
        async move {
            match number % 3 {
                0 => operator.rotate_key(Purpose::Signing, demo(), Urgency::Emergency).await.map(drop),
                1 => operator.revoke_key(Purpose::Signing, demo(), key).await.map(drop),
                _ => operator.rotate_key(Purpose::Signing, demo(), Urgency::Planned).await.map(drop),
            }
        }
    });
    for outcome in at_once(&service, mixed.collect()).await {
        assert!(matches!(outcome, Ok(()) | Err(ProjectError::UnderWay { .. })), "{outcome:?}");
    }
    let keys = service.app.list_keys(Purpose::Signing, demo()).await.expect("lists");
    assert!(known.iter().all(|id| keys.iter().any(|key| key.id == *id && key.revoked_at.is_some())));
    let live: Vec<_> = keys.iter().filter(|key| key.revoked_at.is_none()).map(|key| key.schedule).collect();
    let now = service.clock.now();
    let changes = live.iter().flat_map(|schedule| [Some(schedule.signs_from), schedule.retired_at]).flatten();
    let moments = changes.chain([now]);
    for moment in
        moments.flat_map(|moment| [moment - INSTANT, moment, moment + INSTANT]).filter(|moment| *moment >= now)
    {
        let signing = live.iter().filter(|schedule| schedule.stage(moment) == Stage::Signing).count();
        assert_eq!(signing, 1, "{live:?} at {moment:?}");
    }
}

#[tokio::test]
async fn a_revoked_server_key_is_refused() {
    let service = Service::start().await;
    let other = service.app.server_key_create(demo(), sessiond::store::Role::Admin).await.expect("makes a key");
    let request = || CreateSessionRequest { user_id: "ada".into(), ..Default::default() };
    let sign_in = async |wire, key: &SecretString| service.create_as(wire, key, request()).await;
    let id = ServerKey::parse(service.server_key.expose_secret()).expect("a key").id();
    let operator = service.operator();

    for wire in Wire::ALL {
        sign_in(wire, &service.server_key).await.expect("a good key");
    }
    assert_eq!(operator.server_key_revoke(id).await.expect("revokes"), ServerKeyRevoked::Now);
    eventually("the server has read it", async || service.app.feed().has_revoked(id)).await;
    for wire in Wire::ALL {
        assert_refused!(sign_in(wire, &service.server_key), "INVALID_SERVER_KEY");
        sign_in(wire, &other.1).await.expect("the other one is as good as ever");
    }
    let revoked_at = service.clock.now();
    service.clock.advance(Duration::from_secs(1));
    assert_eq!(operator.server_key_revoke(id).await.expect("once more"), ServerKeyRevoked::Before);
    let keys = operator.server_keys(demo()).await.expect("lists");
    let of = |id| keys.iter().find(|key| key.id == id).expect("is listed");
    assert_eq!((of(id).revoked_at, of(other.0).revoked_at), (Some(revoked_at), None));

    let unknown = operator.server_key_revoke(KeyId::parse(NO_KEY).expect("an id"));
    assert!(matches!(unknown.await, Err(ProjectError::MissingServerKey(_))));
}

/// An installation with the given sealing keys.
fn installation(store: &Store, present: &SealingKey, previous: Option<&SealingKey>) -> App {
    let keys = KeyCache::new(store.clone(), Sealer::new(present, previous));
    App::new(store.clone(), keys, Issuer::new(ISSUER), Clock::frozen())
}

fn store(database: &Database) -> Store {
    Store::new(&options(&database.url), Metrics::default()).expect("a good URL")
}

#[tokio::test]
async fn the_sealing_key_is_changed_without_an_interruption() {
    let database = Database::create().await;
    let (store, old, new) = (store(&database), SealingKey::generate(), SealingKey::generate());
    let before = installation(&store, &old, None);
    let projects = ["one", "two"].map(|name| ProjectId::parse(name).expect("a name"));
    for project in &projects {
        before.project_create(project.clone(), Policy::default()).await.expect("creates");
    }
    // More than one transaction's worth of keys.
    for _ in 0..sessiond::store::RESEAL_PAGE {
        // A new operator each time: one that has just loaded the keys waits before it loads again.
        let operator = installation(&store, &old, None);
        operator.rotate_key(Purpose::Refresh, projects[0].clone(), Urgency::Emergency).await.expect("rotates");
    }
    let total = sessiond::store::RESEAL_PAGE + 4;

    let during = installation(&store, &new, Some(&old));
    during.rotate_key(Purpose::Signing, projects[1].clone(), Urgency::Planned).await.expect("under the new key");
    let none_lost = |app: &App| {
        let snapshot = app.keys().snapshot();
        let now = app.clock().now();
        projects
            .iter()
            .all(|project| snapshot.signs_for(project, now).is_ok() && snapshot.refreshes_for(project, now).is_ok())
    };
    during.keys().reload().await.expect("reads");
    assert!(none_lost(&during));

    // Two reseals at once: each key is resealed by one of them.
    let (one, other) = tokio::join!(during.reseal(), during.reseal());
    let (one, other) = (one.expect("reseals"), other.expect("reseals"));
    assert_eq!((one.resealed + other.resealed, one.present + other.present), (total, total + 2));
    assert!(one.unopened.is_empty() && other.unopened.is_empty());
    let again = during.reseal().await.expect("reseals");
    assert_eq!((again.resealed, again.present), (0, total + 1));
    let recorded = database.lines("SELECT key_id FROM audit_events WHERE kind = 14 GROUP BY key_id").await;
    assert_eq!(recorded.len(), total, "the audit has each of them");

    let after = installation(&store, &new, None);
    after.check_sealing().await.expect("the new key alone");
    assert!(none_lost(&after));
    let alone = after.reseal().await.expect("reseals");
    assert_eq!((alone.resealed, alone.present, alone.unopened.len()), (0, total + 1, 0));
    let too_late = installation(&store, &old, None);
    assert!(too_late.check_sealing().await.is_err(), "the old key opens nothing any more");
}

#[tokio::test]
async fn a_key_that_cannot_be_opened_is_reported_and_the_others_are_resealed() {
    let database = Database::create().await;
    let (store, old, new) = (store(&database), SealingKey::generate(), SealingKey::generate());
    let before = installation(&store, &old, None);
    let shop = ProjectId::parse("shop").expect("a name");
    before.project_create(shop.clone(), Policy::default()).await.expect("creates");
    let lost = before.rotate_key(Purpose::Signing, shop.clone(), Urgency::Planned).await.expect("rotates").successor;
    database.run(&format!("UPDATE signing_keys SET sealed_private = 'lost' WHERE id = '{lost}'")).await;

    let during = installation(&store, &new, Some(&old));
    let outcome = during.reseal().await.expect("still works");
    assert_eq!((outcome.resealed, outcome.present), (2, 0));
    assert_eq!(outcome.unopened.iter().map(|lost| lost.id).collect::<Vec<_>>(), [lost]);
    during.revoke_key(Purpose::Signing, shop, lost).await.expect("revokes");
    assert!(during.reseal().await.expect("reseals").unopened.is_empty(), "nothing opens a revoked key any more");
}

/// Two operators change different settings: both changes hold.
#[tokio::test(flavor = "multi_thread")]
async fn an_update_changes_only_the_given_settings() {
    let service = Service::start().await;
    let minute = Duration::from_secs(60);
    let changes: [fn(&mut Policy); 2] = [
        |policy| policy.idle_ttl = Duration::from_secs(3_600),
        |policy| policy.access_token_ttl = Duration::from_secs(60),
    ];
    let set = changes.map(|change| {
        let operator = service.operator();
        async move { operator.project_update(demo(), change).await }
    });
    for outcome in at_once(&service, set.into()).await {
        outcome.expect("changes");
    }
    let policy = service.app.project(demo()).await.expect("is there").policy;
    let expected = Policy {
        idle_ttl: 60 * minute,
        access_token_ttl: minute,
        ..Policy { refresh_grace: REFRESH_GRACE, ..Policy::default() }
    };
    assert_eq!(policy, expected);
    service.app.keys().reload().await.expect("reads");
    let request = CreateSessionRequest { user_id: "ada".into(), ..Default::default() };
    assert_eq!(service.create(Wire::Rest, request).await.expect("signs in").expires_in, 60);
}

/// An unknown key id.
const NO_KEY: &str = "01890a5d-ac96-474b-bcce-b302099a8057";

/// A busy machine must not fail the test.
const PATIENT: (&str, &str) = ("SESSIOND_DATABASE_TIMEOUT", "20s");

const NEXT_SEALING_KEY: &str = "BAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";

/// The output of a command with `--json`.
fn listed(args: &[&str], env: &[(&str, &str)]) -> Vec<Value> {
    let output = sessiond(&[args, &["--json"]].concat(), env);
    assert_says(&output, true, "");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    text.lines().map(|line| serde_json::from_str(line).expect("a JSON object a line")).collect()
}

fn of_state<'a>(keys: &'a [Value], state: &str) -> Vec<&'a str> {
    let wanted = keys.iter().filter(|key| key["state"] == state);
    wanted.map(|key| key["id"].as_str().expect("an id")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_rotates_and_revokes_by_hand() {
    let database = Database::create().await;
    let env = [("DATABASE_URL", database.url.as_str()), PATIENT, ("SESSIOND_SEALING_KEY", SEALING_KEY)];
    assert_says(&sessiond(&["project", "create", "shop"], &env), true, "created project shop");

    for (kind, name) in [("signing-key", "signing key"), ("refresh-key", "refresh key")] {
        let list = [kind, "list", "--project", "shop"];
        let rotate = [kind, "rotate", "--project", "shop"];
        // Listing needs no sealing key, and shows no secret.
        let keys = listed(&list, &env[..2]);
        let names: BTreeSet<&str> = keys[0].as_object().expect("an object").keys().map(String::as_str).collect();
        assert_eq!(names, ["id", "state", "created_at", "signs_from", "retired_at", "revoked_at"].into());
        assert_eq!((keys.len(), &keys[0]["state"], &keys[0]["retired_at"]), (1, &json!("signing"), &Value::Null));
        let first = of_state(&keys, "signing")[0].to_owned();

        assert_says(&sessiond(&rotate, &env), true, &format!("{name} {first} retires then"));
        assert_says(&sessiond(&rotate, &env), false, "a rotation is in progress");
        let keys = listed(&list, &env);
        let waiting = of_state(&keys, "waiting")[0].to_owned();
        assert_eq!(of_state(&keys, "signing"), [&first]);
        assert_eq!(keys[0]["retired_at"], keys[1]["signs_from"]);
        assert_says(&sessiond(&list, &env), true, "ID                                    STATE    CREATED AT");

        assert_says(&sessiond(&[&rotate[..], &["--now"]].concat(), &env), true, &format!("{name} {waiting}"));
        let keys = listed(&list, &env);
        assert_eq!((of_state(&keys, "signing"), of_state(&keys, "retired")), (vec![&*waiting], vec![&*first]));

        let revoke = |key: &str| sessiond(&[kind, "revoke", key, "--project", "shop"], &env);
        assert_says(&revoke(NO_KEY), false, &format!("project shop has no {name} 01890a5d"));
        assert_says(&revoke("first"), false, "must be a key's id as `list` shows it");
        assert_says(&revoke(&first), true, &format!("revoked {name} {first}; every server applies it within 5 s"));
        assert_says(&revoke(&waiting), true, "takes over at once");
        assert_says(&revoke(&waiting), true, "was already revoked");
        let keys = listed(&list, &env);
        assert_eq!((of_state(&keys, "signing").len(), of_state(&keys, "revoked").len()), (1, 2));

        assert_says(&sessiond(&[kind, "list", "--project", "none"], &env), false, "unknown project none");
        assert_says(&sessiond(&[kind, "rotate", "--project", "none"], &env), false, "unknown project none");
        assert_says(&sessiond(&[kind, "rotate"], &env), false, "--project <ID>");
        let stranger = [env[0], env[1], ("SESSIOND_SEALING_KEY", NEXT_SEALING_KEY)];
        assert_says(
            &sessiond(&rotate, &stranger),
            false,
            "no key in the database opens with the configured sealing key",
        );
    }
    let planned = ["signing-key", "rotate", "--project", "shop"];
    let hurried = sessiond(&[&planned[..], &["--now"]].concat(), &env);
    assert_says(&hurried, true, "verifiers with a JWKS without the new key refuse its tokens for up to 1h");
    assert_says(&sessiond(&planned, &env), true, "takes over at");
    let waiting = of_state(&listed(&["signing-key", "list", "--project", "shop"], &env), "waiting")[0].to_owned();
    let revoke = sessiond(&["signing-key", "revoke", &waiting, "--project", "shop"], &env);
    assert_says(&revoke, true, "the rotation is cancelled");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_lists_and_revokes_server_keys() {
    let database = Database::create().await;
    let env = [("DATABASE_URL", database.url.as_str()), PATIENT, ("SESSIOND_SEALING_KEY", SEALING_KEY)];
    assert_says(&sessiond(&["project", "create", "shop"], &env), true, "created project shop");
    let env = &env[..2];
    let list = ["server-key", "list", "--project", "shop"];
    assert_says(&sessiond(&list, env), true, "project shop has no server key");
    assert!(listed(&list, env).is_empty());
    let mut secrets = vec![];
    for role in ["service", "admin"] {
        let made = sessiond(&["server-key", "create", "--project", "shop", "--role", role], env);
        assert_says(&made, true, "sdsk_");
        secrets.push(String::from_utf8(made.stdout).expect("UTF-8").trim().to_owned());
    }
    let boss = sessiond(&["server-key", "create", "--project", "shop", "--role", "boss"], env);
    assert_says(&boss, false, "must be `verifier`, `service` or `admin`");

    let keys = listed(&list, env);
    let names: BTreeSet<&str> = keys[0].as_object().expect("an object").keys().map(String::as_str).collect();
    let expected = [
        "id",
        "role",
        "impersonation",
        "project",
        "certificate_name",
        "created_at",
        "expires_at",
        "last_used_at",
        "revoked_at",
    ];
    assert_eq!(names, expected.into());
    assert_eq!(
        (&keys[0]["role"], &keys[1]["role"], &keys[0]["project"]),
        (&json!("service"), &json!("admin"), &json!("shop"))
    );
    let id = ServerKey::parse(&secrets[0]).expect("a key").id().to_string();
    assert_eq!(keys[0]["id"], id);
    assert!(!String::from_utf8_lossy(&sessiond(&list, env).stdout).contains("sdsk_"));

    assert_says(&sessiond(&["server-key", "revoke", &id], env), true, "every server refuses it within milliseconds");
    assert_says(&sessiond(&["server-key", "revoke", &id], env), true, "was already revoked");
    assert_says(&sessiond(&["server-key", "revoke", &secrets[1]], env), false, "must be a key's id");
    let unknown = sessiond(&["server-key", "revoke", NO_KEY], env);
    assert_says(&unknown, false, &format!("unknown server key {NO_KEY}"));
    let keys = listed(&list, env);
    assert!(keys[0]["revoked_at"].is_string() && keys[1]["revoked_at"].is_null());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_changes_a_projects_settings_one_by_one() {
    let database = Database::create().await;
    let env = [("DATABASE_URL", database.url.as_str()), PATIENT, ("SESSIOND_SEALING_KEY", SEALING_KEY)];
    assert_says(&sessiond(&["project", "list"], &env), true, "there are no projects");
    let create = ["project", "create", "shop", "--access-token-ttl", "5m", "--strict-refresh"];
    assert_says(&sessiond(&create, &env), true, "created project shop");
    let env = &env[..2];
    assert_eq!(listed(&["project", "list"], env)[0]["id"], "shop");

    let show = || listed(&["project", "show", "shop"], env).remove(0);
    let fresh = json!({
        "id": "shop", "access_token_ttl": "5m", "refresh_grace": "10s", "session_ttl": "365d", "session_ttl_max": "367d",
        "idle_ttl": "90d", "idle_ttl_max": "367d", "strict_refresh": true, "sessions_max": "none",
        "sessions_overflow": "reject", "default_claims": {}, "refresh_repeat_elsewhere": "allow",
        "refresh_requires_client": false, "revoke_auth_age": "none", "revoke_acr": "none", "impersonation_ttl": "1h",
        "impersonation_ttl_max": "1d", "cookies": "off", "cookies_same_site": "lax", "cookies_clear_site_data": false,
    });
    assert_eq!(show(), fresh);
    assert_says(&sessiond(&["project", "update", "shop"], env), false, "nothing to change");
    assert_says(&sessiond(&["project", "update", "shop", "--idle-ttl", "36h"], env), true, "36h");
    let relax = ["project", "update", "shop", "--strict-refresh=false", "--refresh-grace", "1500ms"];
    assert_says(&sessiond(&relax, env), true, "1500ms");
    let changed = |changes: Value| {
        let mut settings = fresh.as_object().expect("an object").clone();
        settings.extend(changes.as_object().expect("an object").clone());
        Value::Object(settings)
    };
    assert_eq!(show(), changed(json!({"refresh_grace": "1500ms", "idle_ttl": "36h", "strict_refresh": false})));
    let limit = ["--preset", "aal2", "--sessions-max", "3", "--sessions-overflow", "evict-idle"];
    let update = [&["project", "update", "shop", "--default-claims", r#"{"tier":"gold"}"#][..], &limit].concat();
    assert_says(&sessiond(&update, env), true, "evict-idle");
    let limited = changed(json!({
        "refresh_grace": "1500ms", "strict_refresh": false, "session_ttl": "1d", "session_ttl_max": "1d",
        "idle_ttl": "1h", "idle_ttl_max": "1h", "sessions_max": 3, "sessions_overflow": "evict-idle",
        "default_claims": {"tier": "gold"},
    }));
    assert_eq!(show(), limited);
    let cookies = ["--cookies", "example.org", "--cookies-same-site", "strict", "--cookies-clear-site-data"];
    assert_says(&sessiond(&[&["project", "update", "shop"][..], &cookies].concat(), env), true, "example.org");
    let shown = show();
    let of = |name: &str| shown[name].clone();
    let settings = [of("cookies"), of("cookies_same_site"), of("cookies_clear_site_data")];
    assert_eq!(settings, [json!("example.org"), json!("strict"), json!(true)]);
    let off = ["--cookies", "off", "--cookies-same-site", "lax", "--cookies-clear-site-data=false"];
    assert_says(&sessiond(&[&["project", "update", "shop"][..], &off].concat(), env), true, "off");
    assert_eq!(show(), limited);
    for (flags, why) in [
        (["--cookies", "com"], "must be `off`, `host`, or a domain"),
        (["--cookies", "Example.org"], "--cookies must be"),
        (["--cookies-same-site", "none"], "`none` is not offered"),
        (["--cookies=host", "--refresh-requires-client"], "exclude each other"),
        (["--idle-ttl", "2h"], "--idle-ttl 2h is longer than --idle-ttl-max 1h, the limit of preset aal2: give"),
        (["--session-ttl-max", "1h"], "--session-ttl 1d is longer than --session-ttl-max 1h: give"),
        (["--sessions-max", "0"], "must be 1 to 1000, or `none`"),
        (["--impersonation-ttl", "25h"], "--impersonation-ttl 25h is longer than --impersonation-ttl-max 1d: give"),
        (["--refresh-repeat-elsewhere", "deny"], "must be `allow` or `end`"),
        (["--revoke-auth-age", "0s"], "must be 1s to"),
        (["--revoke-acr", "two words"], "without spaces"),
        (["--preset", "aal4"], "must be `aal1`, `aal2` or `aal3`"),
        (["--default-claims", "[]"], "must be a JSON object"),
        (["--default-claims", r#"{"sub":"eve"}"#], "without reserved names"),
    ] {
        let update = [&["project", "update", "shop"][..], &flags].concat();
        assert_says(&sessiond(&update, env), false, why);
    }
    assert_eq!(show(), limited, "a refused change changes nothing");
    let careful = [
        ["--refresh-repeat-elsewhere", "end"],
        ["--revoke-auth-age", "5m"],
        ["--revoke-acr", "aal2, aal3"],
        ["--impersonation-ttl", "10m"],
        ["--impersonation-ttl-max", "30m"],
    ];
    let update = [&["project", "update", "shop", "--refresh-requires-client"][..], &careful.concat()].concat();
    assert_says(&sessiond(&update, env), true, "aal2,aal3");
    let shown = show();
    let of = |name: &str| shown[name].clone();
    assert_eq!((of("refresh_repeat_elsewhere"), of("refresh_requires_client")), (json!("end"), json!(true)));
    assert_eq!((of("revoke_auth_age"), of("revoke_acr")), (json!("5m"), json!("aal2,aal3")));
    assert_eq!((of("impersonation_ttl"), of("impersonation_ttl_max")), (json!("10m"), json!("30m")));
    let back = [
        ["--refresh-repeat-elsewhere", "allow"],
        ["--revoke-auth-age", "none"],
        ["--revoke-acr", "none"],
        ["--impersonation-ttl-max", "24h"],
        ["--impersonation-ttl", "1h"],
    ];
    let update = [&["project", "update", "shop", "--refresh-requires-client=false"][..], &back.concat()].concat();
    assert_says(&sessiond(&update, env), true, "allow");
    assert_eq!(show(), limited);
    assert_says(&sessiond(&["project", "update", "shop", "--sessions-max", "none"], env), true, "none");
    assert_says(&sessiond(&["project", "update", "shop", "--idle-ttl", "400d"], env), false, "must be 1s to");
    assert_says(&sessiond(&["project", "update", "none", "--idle-ttl", "1d"], env), false, "unknown project none");
    assert_says(&sessiond(&["project", "show", "none"], env), false, "unknown project none");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_changes_the_sealing_key() {
    let database = Database::create().await;
    let old = [("DATABASE_URL", database.url.as_str()), PATIENT, ("SESSIOND_SEALING_KEY", SEALING_KEY)];
    assert_says(&sessiond(&["project", "create", "shop"], &old), true, "created project shop");
    let new = [old[0], old[1], ("SESSIOND_SEALING_KEY", NEXT_SEALING_KEY)];
    let both = [new[0], new[1], new[2], ("SESSIOND_PREVIOUS_SEALING_KEY", SEALING_KEY)];

    let early = sessiond(&["reseal"], &new);
    assert_says(&early, false, "2 keys open with neither sealing key");
    assert_says(&early, false, "of project shop does not open with the configured sealing key");
    assert_says(&sessiond(&["reseal"], &both), true, "resealed 2 keys; 0 were already under the present");
    assert_says(&sessiond(&["reseal"], &both), true, "resealed 0 keys; 2 were already under the present");
    assert_says(&sessiond(&["reseal"], &new), true, "resealed 0 keys; 2 were already under the present");
    assert_says(&sessiond(&["signing-key", "rotate", "--project", "shop"], &new), true, "takes over at");
    let too_late = sessiond(&["refresh-key", "rotate", "--project", "shop"], &old);
    assert_says(&too_late, false, "no key in the database opens with the configured sealing key");
}
