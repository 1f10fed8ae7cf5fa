//! Calls of a service and its users, other than signing in and out: the same on every protocol.

use http::HeaderMap;
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::Value;
use sessiond::{
    pb::{
        BatchIntrospectRequest, BatchIntrospectResponse, CreateSessionRequest, EraseUserRequest, EraseUserResponse,
        GetCurrentSessionRequest, GetCurrentSessionResponse, IntrospectTokenRequest, IntrospectTokenResponse,
        ListSessionsRequest, ListSessionsResponse, RevokeAllSessionsRequest, RevokeAllSessionsResponse,
        RevokeSessionRequest, RevokeSessionResponse, Session, SessionState, UpdateSessionRequest,
        UpdateSessionResponse,
    },
    store::{RecordQuery, RevocationRecord, Role},
};
use sessiond_core::{
    id::{ProjectId, SessionId, UserId},
    session::Policy,
};

use super::{Device, PROJECT, Refused, Service, Wire, bearer};

impl Service {
    /// Calls a method by name, with ProtoJSON in both directions.
    pub async fn ask(&self, wire: Wire, method: &str, headers: HeaderMap, request: &Value) -> Result<Value, Refused> {
        self.wires.ask(wire, method, headers, request).await
    }

    /// The server key of the project's service.
    pub fn key(&self) -> HeaderMap {
        bearer(self.server_key.expose_secret())
    }

    /// A server key with the role `admin`.
    pub async fn admin_key(&self) -> SecretString {
        let project = ProjectId::parse(PROJECT).expect("a name");
        self.app.server_key_create(project, Role::Admin).await.expect("makes a key").1
    }

    /// Changes the project's policy, for every server on this database that reloads it.
    pub async fn set_policy(&self, change: impl FnOnce(&mut Policy)) {
        let project = ProjectId::parse(PROJECT).expect("a name");
        let mut policy = self.app.keys().snapshot().policy(&project).expect("is there").clone();
        change(&mut policy);
        policy.check().expect("holds together");
        self.app.project_update(project, move |present| *present = policy).await.expect("updates");
        self.app.keys().reload().await.expect("reads the policy");
    }

    /// Creates an impersonation session of a user.
    pub async fn impersonate(&self, user: &str, by: &str) -> Device<'_> {
        let request = CreateSessionRequest {
            user_id: user.to_owned(),
            is_impersonation: true,
            impersonator_id: Some(by.to_owned()),
            ..CreateSessionRequest::default()
        };
        self.device(self.create(Wire::Grpc, request).await.expect("signs in"))
    }

    pub async fn list(
        &self,
        wire: Wire,
        headers: HeaderMap,
        request: ListSessionsRequest,
    ) -> Result<ListSessionsResponse, Refused> {
        self.wires.call(wire, "ListSessions", headers, &request).await
    }

    /// All sessions of all pages, in order.
    pub async fn list_all(&self, headers: HeaderMap, mut request: ListSessionsRequest) -> Vec<Session> {
        let mut found = vec![];
        for _ in 0..10_000 {
            let page = self.list(Wire::Grpc, headers.clone(), request.clone()).await.expect("lists");
            found.extend(page.items);
            if page.next_page_token.is_empty() {
                return found;
            }
            request.page_token = page.next_page_token;
        }
        panic!("the walk does not end");
    }

    pub async fn current(&self, wire: Wire, headers: HeaderMap) -> Result<Session, Refused> {
        let answer = self.wires.call(wire, "GetCurrentSession", headers, &GetCurrentSessionRequest {}).await;
        answer.map(|answer: GetCurrentSessionResponse| answer.session.expect("a session"))
    }

    pub async fn revoke_session(
        &self,
        wire: Wire,
        headers: HeaderMap,
        id: &str,
        user_id: Option<&str>,
    ) -> Result<RevokeSessionResponse, Refused> {
        let request = RevokeSessionRequest { id: id.to_owned(), user_id: user_id.map(str::to_owned) };
        self.wires.call(wire, "RevokeSession", headers, &request).await
    }

    /// Returns how many sessions were revoked.
    pub async fn revoke_all(
        &self,
        wire: Wire,
        headers: HeaderMap,
        request: RevokeAllSessionsRequest,
    ) -> Result<i32, Refused> {
        let answer = self.wires.call(wire, "RevokeAllSessions", headers, &request).await;
        answer.map(|answer: RevokeAllSessionsResponse| answer.revoked_count)
    }

    pub async fn update(
        &self,
        wire: Wire,
        headers: HeaderMap,
        request: UpdateSessionRequest,
    ) -> Result<Session, Refused> {
        let answer = self.wires.call(wire, "UpdateSession", headers, &request).await;
        answer.map(|answer: UpdateSessionResponse| answer.session.expect("a session"))
    }

    /// Changes the claim `role` of a session, and supersedes its earlier access tokens.
    pub async fn supersede(&self, device: &Device<'_>, role: &str) {
        let role = prost_types::Value { kind: Some(prost_types::value::Kind::StringValue(role.to_owned())) };
        let claims = prost_types::Struct { fields: [("role".to_owned(), role)].into() };
        let session = Session { id: device.session.clone(), claims: Some(claims), ..Session::default() };
        let request = UpdateSessionRequest { session: Some(session), update_mask: None, supersede_tokens: true };
        self.update(Wire::Grpc, self.key(), request).await.expect("changes the claims");
    }

    /// Returns how many sessions were deleted.
    pub async fn erase(&self, wire: Wire, headers: HeaderMap, user: &str) -> Result<i32, Refused> {
        let request = EraseUserRequest { user_id: user.to_owned() };
        let answer = self.wires.call(wire, "EraseUser", headers, &request).await;
        answer.map(|answer: EraseUserResponse| answer.erased_session_count)
    }

    pub async fn introspect(
        &self,
        wire: Wire,
        headers: HeaderMap,
        token: &str,
    ) -> Result<IntrospectTokenResponse, Refused> {
        self.wires.call(wire, "IntrospectToken", headers, &IntrospectTokenRequest { token: token.to_owned() }).await
    }

    pub async fn introspect_batch(
        &self,
        wire: Wire,
        headers: HeaderMap,
        tokens: Vec<String>,
    ) -> Result<BatchIntrospectResponse, Refused> {
        self.wires.call(wire, "BatchIntrospect", headers, &BatchIntrospectRequest { tokens }).await
    }

    pub async fn is_active(&self, token: &str) -> bool {
        self.introspect(Wire::Grpc, self.key(), token).await.expect("answers").active
    }

    /// The audit log of the project, or of one of its users: newest first.
    pub async fn audit(&self, user: Option<&str>) -> Vec<RevocationRecord> {
        let user = user.map(|user| UserId::parse(user).expect("an id"));
        let asked = RecordQuery::newest(ProjectId::parse(PROJECT).expect("a name"), user, 1_000);
        self.store.revocations(asked).await.expect("reads")
    }
}

impl Device<'_> {
    pub fn bearer(&self) -> HeaderMap {
        bearer(&self.access_token)
    }

    pub fn id(&self) -> SessionId {
        SessionId::parse(&self.session).expect("an id")
    }

    /// The user's live sessions, as this device lists them.
    pub async fn list(&self) -> Result<Vec<Session>, Refused> {
        let request = ListSessionsRequest::default();
        self.service.list(Wire::Rest, self.bearer(), request).await.map(|page| page.items)
    }

    /// Revokes another of the user's sessions.
    pub async fn revoke(&self, other: &Self) -> Result<RevokeSessionResponse, Refused> {
        self.service.revoke_session(Wire::Rest, self.bearer(), &other.session, None).await
    }

    /// Revokes all of the user's sessions but this one.
    pub async fn revoke_others(&self) -> Result<i32, Refused> {
        let request = RevokeAllSessionsRequest { except_current: true, ..RevokeAllSessionsRequest::default() };
        self.service.revoke_all(Wire::Rest, self.bearer(), request).await
    }

    /// Revokes all of the user's sessions.
    pub async fn revoke_all(&self) -> Result<i32, Refused> {
        self.service.revoke_all(Wire::Rest, self.bearer(), RevokeAllSessionsRequest::default()).await
    }
}

/// All sessions of a user, in every state, as a service lists them.
pub fn any_of(user: &str) -> ListSessionsRequest {
    ListSessionsRequest {
        user_id: Some(user.to_owned()),
        state: SessionState::Any.into(),
        ..ListSessionsRequest::default()
    }
}
