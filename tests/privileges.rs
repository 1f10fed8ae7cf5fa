//! What each role of a server key may do: every method over every wire, and every other endpoint that takes a server key, tried
//! with a key of each role. The outcome is the table in `docs/reference/privileges.md`. Run with `ACCEPT=1` to accept a change.

use std::{
    fmt::Write as _,
    fs,
    path::Path,
    time::{Duration, Instant},
};

use http::{HeaderMap, Method, StatusCode};
use prost_reflect::{DescriptorPool, MethodDescriptor};
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::{Value, json};
use sessiond::{
    app::ProjectError,
    pb,
    store::{Narrowing, Privileges, Role},
};
use sessiond_core::{
    clock,
    id::{KeyId, ProjectId},
    token::server_key::ServerKey,
};

use crate::harness::{PROJECT, Refused, Service, Wire, bearer, both, eventually, header, watch::asking};

const INTRODUCTION: &str = "\
# Privileges

What a caller may do, by the credential that it presents. A **verifier** is all that a guard needs: a thief of its key can follow
sign-outs and ask about tokens that they already hold, and can neither open nor end a session. Give each service the least that it
needs: [server keys](../guides/keys.md#server-keys).

This table is what the server does: `tests/privileges.rs` tries every method over gRPC, grpc-web and REST, and every other
endpoint, with a key of each role.

| role | is for |
|---|---|
| `verifier` | services that verify tokens: guards, proxies, resource servers |
| `service` | the login's backend and others that open, change and end sessions |
| `admin` | tools that impersonate users, erase them, or sign everybody out |

A user presents an access token or its cookie; see [API](api.md) for which of them. Revocations of other projects, their sessions and
their tokens are out of reach for every key.

";

/// The roles, in the order of the table.
const ROLES: [Role; 3] = Role::ALL;

/// The reasons of a caller that may not do it.
const FORBIDDEN: [&str; 3] = ["CREDENTIALS_MISSING", "INVALID_SERVER_KEY", "INSUFFICIENT_ACCESS_TYPE"];

fn project() -> ProjectId {
    ProjectId::parse(PROJECT).expect("a name")
}

async fn key_with(service: &Service, privileges: impl Into<Privileges>) -> SecretString {
    service.app.server_key_create(project(), privileges).await.expect("makes a key").1
}

fn id_of(key: &SecretString) -> KeyId {
    ServerKey::parse(key.expose_secret()).expect("a key").id()
}

fn headers(key: &SecretString) -> HeaderMap {
    bearer(key.expose_secret())
}

fn methods() -> Vec<MethodDescriptor> {
    let pool = DescriptorPool::decode(pb::DESCRIPTOR_SET).expect("decodes");
    let service = pool.get_service_by_name("sessiond.v1.SessionService").expect("is there");
    service.methods().collect()
}

/// The least role, as the proto says.
fn least_role(method: &MethodDescriptor) -> Option<Role> {
    let extension = method.parent_pool().get_extension_by_name("sessiond.v1.least_role").expect("is there");
    match method.options().get_extension(&extension).as_enum_number() {
        Some(1) => Some(Role::Verifier),
        Some(2) => Some(Role::Service),
        Some(3) => Some(Role::Admin),
        _ => None,
    }
}

/// Whether a credential is accepted, by its number.
fn accepts(method: &MethodDescriptor, credential: i32) -> bool {
    let extension = method.parent_pool().get_extension_by_name("sessiond.v1.credentials").expect("is there");
    let options = method.options();
    let listed = options.get_extension(&extension);
    listed.as_list().is_some_and(|list| list.iter().any(|one| one.as_enum_number() == Some(credential)))
}

/// A request that is refused for nothing but its caller, or for a session that does not exist.
fn request(method: &str) -> Value {
    let session = clock::new_uuid().to_string();
    match method {
        "RevokeCurrent" | "RefreshSession" | "ListSessions" | "GetCurrentSession" | "RevokeProjectSessions" => {
            json!({})
        }
        "CreateSession" => json!({"user_id": "eve"}),
        "RevokeSession" => json!({"id": session}),
        "RevokeAllSessions" | "EraseUser" => json!({"user_id": "nobody"}),
        "UpdateSession" => json!({"session": {"id": session, "device_name": "x"}, "update_mask": "deviceName"}),
        "IntrospectToken" => json!({"token": "x"}),
        "BatchIntrospect" => json!({"tokens": ["x"]}),
        other => panic!("{other} is not tried"),
    }
}

async fn ask(service: &Service, wire: Wire, method: &str, headers: HeaderMap) -> Result<(), Refused> {
    if method == "WatchRevocations" {
        return service.wires.watch_as(wire, headers, &asking("")).await.map(drop);
    }
    service.ask(wire, method, headers, &request(method)).await.map(drop)
}

async fn is_permitted(service: &Service, method: &str, headers: &HeaderMap) -> bool {
    let mut permitted = vec![];
    for wire in Wire::ALL {
        permitted.push(match ask(service, wire, method, headers.clone()).await {
            Ok(()) => true,
            Err(refused) => !FORBIDDEN.contains(&refused.reason.as_str()),
        });
    }
    assert!(permitted.iter().all(|one| *one == permitted[0]), "{method} differs by wire: {permitted:?}");
    permitted[0]
}

/// Its name in the table, the method, the path, and the headers of Stack Auth.
type Endpoint = (&'static str, Method, &'static str, &'static [(&'static str, &'static str)]);

/// The endpoints beside the API that take a server key: as the table names them, and a request.
fn endpoints() -> [Endpoint; 8] {
    const ACCESS: &str = "x-stack-access-type";
    [
        ("`POST /oauth2/introspect` (RFC 7662)", Method::POST, "/oauth2/introspect", &[]),
        ("`POST /oauth2/revoke` as a client with a secret", Method::POST, "/oauth2/revoke", &[]),
        ("`POST /oauth2/token` as a client with a secret", Method::POST, "/oauth2/token", &[]),
        ("Stack Auth, access type `server`: list", Method::GET, "/auth/sessions?user_id=nobody", &[(ACCESS, "server")]),
        ("Stack Auth, access type `server`: create", Method::POST, "/auth/sessions", &[(ACCESS, "server")]),
        ("Stack Auth, access type `admin`: list", Method::GET, "/auth/sessions?user_id=nobody", &[(ACCESS, "admin")]),
        ("Stack Auth, access type `admin`: create", Method::POST, "/auth/sessions", &[(ACCESS, "admin")]),
        (
            "Stack Auth, access type `admin`: revoke",
            Method::DELETE,
            "/auth/sessions/x?user_id=nobody",
            &[(ACCESS, "admin")],
        ),
    ]
}

async fn is_admitted(
    service: &Service,
    key: &SecretString,
    method: &Method,
    path: &str,
    access: &[(&'static str, &str)],
) -> bool {
    let key = key.expose_secret();
    let (headers, body) = match access {
        [(name, value)] => {
            let secret = if *value == "admin" { "x-stack-super-secret-admin-key" } else { "x-stack-secret-server-key" };
            let named = both(header(name, value), header("x-stack-project-id", PROJECT));
            let json = header("content-type", "application/json");
            let body = if *method == Method::POST { json!({"user_id": "eve"}).to_string() } else { String::new() };
            (both(both(named, header(secret, key)), json), body)
        }
        _ => {
            let form = form_urlencoded::Serializer::new(String::new())
                .extend_pairs([("client_id", PROJECT), ("client_secret", key), ("token", "x")])
                .extend_pairs([("grant_type", "refresh_token"), ("refresh_token", "x")])
                .finish();
            (header("content-type", "application/x-www-form-urlencoded"), form)
        }
    };
    let response = service.wires.http(method.clone(), path, headers, body).await;
    assert!(response.status() != StatusCode::NOT_FOUND || path.contains("/x?"), "{path}");
    response.status() != StatusCode::UNAUTHORIZED
}

fn cell(is_permitted: bool) -> &'static str {
    if is_permitted { "yes" } else { "" }
}

#[tokio::test]
async fn each_role_may_do_what_the_table_says_and_nothing_else() {
    let service = Service::start().await;
    eventually("the first reading", async || service.app.feed().age().is_some()).await;
    let mut keys = vec![];
    for role in ROLES {
        keys.push(key_with(&service, role).await);
    }
    let mut page = format!(
        "{INTRODUCTION}## Methods\n\n| method | a user | `verifier` | `service` | `admin` |\n|---|---|---|---|---|\n"
    );
    for method in methods() {
        let name = method.name();
        let least = least_role(&method);
        assert_eq!(least.is_some(), accepts(&method, 2), "{name} has a least role if it takes server keys");
        assert!(!is_permitted(&service, name, &HeaderMap::new()).await, "{name} needs a credential");
        let mut cells = vec![];
        for (role, key) in ROLES.iter().zip(&keys) {
            let permitted = is_permitted(&service, name, &headers(key)).await;
            assert_eq!(permitted, least.is_some_and(|least| *role >= least), "{name} with the role {role:?}");
            cells.push(cell(permitted));
        }
        let is_for_users = [1, 3, 4].iter().any(|credential| accepts(&method, *credential));
        writeln!(page, "| [{name}](api.md#{}) | {} | {} |", name.to_lowercase(), cell(is_for_users), cells.join(" | "))
            .expect("writes");
    }
    page.push_str(
        "\nIn a session of the role `service`, someone else acts as the user only if the key is granted that\n",
    );
    page.push_str("(`--impersonation`); `admin` may always do it.\n");
    page.push_str("\n## Other endpoints\n\n| endpoint | `verifier` | `service` | `admin` |\n|---|---|---|---|\n");
    for (name, method, path, access) in endpoints() {
        let mut cells = vec![];
        for key in &keys {
            cells.push(cell(is_admitted(&service, key, &method, path, access).await));
        }
        writeln!(page, "| {name} | {} |", cells.join(" | ")).expect("writes");
    }
    page.push_str(
        "\nJWKS, metadata, `/openapi.json`, `/healthz`, `/readyz`, `verify` and Envoy's Check need no key, and answer the same with one.\n\
         An unknown, revoked or expired key is refused everywhere with `INVALID_SERVER_KEY`; one with too small a role with\n\
         `INSUFFICIENT_ACCESS_TYPE` and `least_role` in the metadata, or at `/oauth2` with `invalid_client`.\n",
    );
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/reference/privileges.md");
    if std::env::var_os("ACCEPT").is_some() {
        fs::write(&path, &page).expect("writes");
    }
    assert!(fs::read_to_string(&path).unwrap_or_default() == page, "not as in docs/reference/privileges.md: {page}");
}

/// The one table of the issue, in three lines: what a stolen key of a guard is good for.
#[tokio::test]
async fn a_verifiers_key_watches_and_introspects() {
    let service = Service::start().await;
    let phone = service.sign_in("ada", "phone").await;
    let key = key_with(&service, Role::Verifier).await;
    eventually("the first reading", async || service.app.feed().age().is_some()).await;
    for wire in Wire::ALL {
        let answer = service.introspect(wire, headers(&key), &phone.access_token).await.expect("may ask");
        assert!(answer.active);
        let mut watch = service.wires.watch(wire, headers(&key), "").await.expect("may follow");
        assert_eq!(watch.key_role.as_deref(), Some("verifier"), "{wire:?}");
        watch.snapshot().await;
        let refused = ask(&service, wire, "CreateSession", headers(&key)).await.expect_err("refused");
        assert_eq!((refused.reason.as_str(), refused.http), ("INSUFFICIENT_ACCESS_TYPE", forbidden(wire)));
    }
    let watch = service.watches(Wire::Rest).await;
    assert_eq!(watch.key_role.as_deref(), Some("service"), "so that a guard can say that it needs less");
    let own = service.wires.watch(Wire::Rest, phone.bearer(), "").await.expect("may follow");
    assert_eq!(own.key_role, None);
}

fn forbidden(wire: Wire) -> Option<StatusCode> {
    (wire == Wire::Rest).then_some(StatusCode::FORBIDDEN)
}

#[tokio::test]
async fn impersonation_is_a_privilege_of_its_own() {
    let service = Service::start().await;
    let (plain, admin) = (key_with(&service, Role::Service).await, key_with(&service, Role::Admin).await);
    let request = pb::CreateSessionRequest {
        user_id: "ada".to_owned(),
        is_impersonation: true,
        impersonator_id: Some("support".to_owned()),
        ..pb::CreateSessionRequest::default()
    };
    for wire in Wire::ALL {
        let refused = service.create_as(wire, &plain, request.clone()).await.err().expect("refused");
        assert_eq!((refused.reason.as_str(), refused.http), ("INSUFFICIENT_ACCESS_TYPE", forbidden(wire)), "{wire:?}");
        service.create_as(wire, &service.server_key, request.clone()).await.expect("granted");
        service.create_as(wire, &admin, request.clone()).await.expect("an admin may");
    }
    let own = pb::CreateSessionRequest { user_id: "ada".to_owned(), ..pb::CreateSessionRequest::default() };
    service.create_as(Wire::Rest, &plain, own).await.expect("its own sessions");
}

#[tokio::test]
async fn a_key_expires() {
    let service = Service::start().await;
    let phone = service.sign_in("ada", "phone").await;
    eventually("the first reading", async || service.app.feed().age().is_some()).await;
    let ttl = Duration::from_secs(60);
    let expires_at = Some(service.clock.now() + ttl);
    let key = key_with(&service, Privileges { expires_at, ..Role::Verifier.into() }).await;
    let is_good = async || service.introspect(Wire::Grpc, headers(&key), &phone.access_token).await;
    assert!(is_good().await.expect("not yet").active);
    service.clock.advance(ttl - Duration::from_micros(1));
    assert!(is_good().await.expect("not yet").active, "just before");
    service.clock.advance(Duration::from_micros(1));
    assert_eq!(is_good().await.expect_err("at exactly that time").reason, "INVALID_SERVER_KEY");

    // A stream that it has opened ends with it, by the monotonic clock.
    let expires_at = Some(service.clock.now() + Duration::from_secs(2));
    let key = key_with(&service, Privileges { expires_at, ..Role::Verifier.into() }).await;
    let started = Instant::now();
    let mut watch = service.wires.watch(Wire::Grpc, headers(&key), "").await.expect("may follow");
    watch.snapshot().await;
    assert_eq!(watch.refusal().await.reason, "INVALID_SERVER_KEY");
    assert!(started.elapsed() >= Duration::from_secs(2));
}

/// Narrowing reaches a replica that remembers the key within the time that it remembers it.
#[tokio::test]
async fn a_key_is_narrowed_and_stays_so() {
    let service = Service::start().await;
    let key = service.server_key.clone();
    let create = async || ask(&service, Wire::Rest, "CreateSession", headers(&key)).await;
    create().await.expect("a service");
    let no_impersonation = Narrowing { ends_impersonation: true, ..Narrowing::default() };
    let (before, after) = service.app.server_key_narrow(id_of(&key), no_impersonation).await.expect("narrows");
    assert!(before.allows_impersonation() && !after.allows_impersonation() && after.role == Role::Service);
    let verifier = Narrowing { role: Some(Role::Verifier), ..Narrowing::default() };
    service.app.server_key_narrow(id_of(&key), verifier).await.expect("narrows");
    eventually("it is refused", async || create().await.is_err()).await;
    let watched = service.wires.watch(Wire::Rest, headers(&key), "").await.expect("still follows");
    assert_eq!(watched.key_role.as_deref(), Some("verifier"));
    let admin = Narrowing { role: Some(Role::Admin), ..Narrowing::default() };
    let (before, after) = service.app.server_key_narrow(id_of(&key), admin).await.expect("does nothing");
    assert_eq!((before, after.role), (after, Role::Verifier), "it never gives anything back");
    let unknown = service.app.server_key_narrow(KeyId::from_uuid(clock::new_uuid()), admin).await;
    assert!(matches!(unknown, Err(ProjectError::MissingServerKey(_))));
}
