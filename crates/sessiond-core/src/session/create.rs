//! Creates sessions. The bounds that only a new session has are defined here, all others in `violation`; the comments in the
//! proto repeat them.

use std::collections::BTreeMap;
use std::time::Duration;

use super::device::Device;
use super::epoch::Epoch;
use super::lifecycle::Authentication;
use super::lifecycle::Impersonator;
use super::lifecycle::Session;
use super::policy::Policy;
use super::policy::SESSION_TTL_MAX;
use super::policy::SESSION_TTL_MIN;
use super::violation::CLAIMS_BYTES_MAX;
use super::violation::TEXT_BYTES_MAX;
use super::violation::Violation;
use super::violation::Violations;
use super::violation::is_text;
use crate::clock::Timestamp;
use crate::id::ProjectId;
use crate::id::SessionId;
use crate::id::UserId;

/// The most authentication methods of a session.
pub const AMR_MAX: usize = 16;
/// The longest name of an authentication method, in bytes.
pub const AMR_BYTES_MAX: usize = 64;

/// A request for a session, not yet validated; see [`CreateRequest::check`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CreateRequest {
    /// The user.
    pub user_id: String,
    /// The session's lifetime, in milliseconds.
    pub expires_in_millis: Option<i64>,
    /// How long the session may stay unused, in milliseconds.
    pub idle_timeout_millis: Option<i64>,
    /// Whether someone else acts as the user.
    pub is_impersonation: bool,
    /// The impersonator.
    pub impersonator_id: Option<String>,
    /// When and how the user proved who they are.
    pub authentication: Authentication,
    /// A session of the same user that this one replaces.
    pub replaces_session_id: Option<String>,
    /// Claims for the access token.
    pub claims: serde_json::Map<String, serde_json::Value>,
    /// A name for the device.
    pub device_name: Option<String>,
    /// Its `User-Agent`.
    pub user_agent: Option<String>,
    /// Its address.
    pub ip: Option<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
}

/// A validated request for a session.
#[derive(Clone, Debug, PartialEq)]
pub struct NewSession {
    /// The user.
    pub user: UserId,
    /// The session's lifetime.
    pub ttl: Duration,
    /// How long it may stay unused.
    pub idle_ttl: Duration,
    /// Who acts as the user, in an impersonation.
    pub impersonator: Option<Impersonator>,
    /// When and how the user proved who they are.
    pub authentication: Authentication,
    /// A session of the same user that this one replaces.
    pub replaces: Option<SessionId>,
    /// The device.
    pub device: Device,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Claims for the access token.
    pub claims: serde_json::Map<String, serde_json::Value>,
}

impl NewSession {
    /// A session of a user with the policy's defaults.
    pub fn of(user: UserId, policy: &Policy) -> Self {
        Self {
            user,
            ttl: policy.session_ttl,
            idle_ttl: policy.idle_ttl,
            impersonator: None,
            authentication: Authentication::default(),
            replaces: None,
            device: Device::default(),
            labels: BTreeMap::new(),
            claims: serde_json::Map::new(),
        }
    }
}

impl CreateRequest {
    /// Validates the request against all bounds, including the project's. The device has a name only if the request gives
    /// one; see [`Device::named`].
    ///
    /// # Errors
    ///
    /// Returns all violations.
    pub fn check(self, now: Timestamp, policy: &Policy) -> Result<NewSession, Vec<Violation>> {
        let mut found = Violations::default();
        let user = found.require(
            UserId::parse(&self.user_id),
            "user_id",
            "must be 1 to 255 bytes without control characters, and not `me`",
        );
        // Clients send their usual lifetime with an impersonation too, so it is capped instead of refused.
        let ttl_max = if self.is_impersonation { SESSION_TTL_MAX } else { policy.session_ttl_max };
        let ttl = found.ttl(self.expires_in_millis, ttl_max, "expires_in_millis");
        let idle_ttl = found.ttl(self.idle_timeout_millis, policy.idle_ttl_max, "idle_timeout_millis");
        let impersonator = found.impersonator(self.is_impersonation, self.impersonator_id);
        found.authentication(&self.authentication, now);
        let replaces = self
            .replaces_session_id
            .and_then(|id| found.require(SessionId::parse(&id), "replaces_session_id", "must be a session's id"));
        let device = Device::described(self.device_name.as_deref(), self.user_agent.as_deref(), self.ip.as_deref());
        found.labels(&self.labels);
        found.claims(&self.claims, CLAIMS_BYTES_MAX);

        match user {
            Some(user) if found.is_empty() => Ok(NewSession {
                user,
                ttl: match impersonator {
                    Some(_) => {
                        let ttl = ttl.unwrap_or(policy.impersonation_ttl);
                        ttl.min(policy.impersonation_ttl_max).min(policy.session_ttl_max)
                    }
                    None => ttl.unwrap_or(policy.session_ttl),
                },
                idle_ttl: idle_ttl.unwrap_or(policy.idle_ttl),
                impersonator,
                authentication: self.authentication,
                replaces,
                device,
                labels: self.labels,
                claims: self.claims,
            }),
            _ => Err(found.into_vec()),
        }
    }
}

impl Session {
    /// Opens a session under this epoch, at this moment.
    pub fn open(id: SessionId, project: ProjectId, epoch: Epoch, new: NewSession, now: Timestamp) -> Self {
        let (expires_at, idle_ttl) = (now + new.ttl, new.idle_ttl);
        Self {
            id,
            project,
            user: new.user,
            epoch,
            own_epoch: 0,
            created_at: now,
            last_used_at: now,
            used_before_at: None,
            expires_at,
            idle_ttl,
            idle_expires_at: expires_at.min(now + idle_ttl),
            revoked: None,
            impersonator: new.impersonator,
            authentication: new.authentication,
            device: new.device,
            device_before: None,
            labels: new.labels,
            claims: new.claims,
        }
    }
}

// The bounds that only a new session has.
impl Violations {
    fn ttl(&mut self, millis: Option<i64>, max: Duration, field: &'static str) -> Option<Duration> {
        let ttl = Duration::from_millis(millis?.try_into().unwrap_or(0));
        let fits = (SESSION_TTL_MIN..=max).contains(&ttl);
        self.check(fits, field, "must be 1000 (1 s) to the project's limit, which is 31708800000 (367 d) or less");
        Some(ttl)
    }

    fn impersonator(&mut self, is_impersonation: bool, id: Option<String>) -> Option<Impersonator> {
        const FIELD: &str = "impersonator_id";
        self.check(is_impersonation || id.is_none(), FIELD, "must be absent unless `is_impersonation`");
        self.check(!is_impersonation || id.is_some(), FIELD, "must say who acts as the user");
        let id = id?;
        self.check(
            !id.is_empty() && is_text(&id, TEXT_BYTES_MAX),
            FIELD,
            "must be 1 to 255 bytes without control characters",
        );
        Some(Impersonator(id))
    }

    fn authentication(&mut self, authentication: &Authentication, now: Timestamp) {
        // A minute of leeway, because the caller's clock may be ahead.
        let leeway = Duration::from_secs(60);
        let past = |time| Timestamp::from_seconds(0) <= time && time <= now + leeway;
        self.check(authentication.time.is_none_or(past), "auth_time", "must be a past moment since 1970");
        let acr = authentication.acr.as_deref().is_none_or(|acr| is_text(acr, TEXT_BYTES_MAX));
        self.check(acr, "acr", "must be at most 255 bytes without control characters");
        let methods = &authentication.amr;
        let fits = methods.len() <= AMR_MAX
            && methods.iter().all(|method| !method.is_empty() && is_text(method, AMR_BYTES_MAX));
        self.check(fits, "amr", "must be at most 16 names of 1 to 64 bytes");
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const NOW: Timestamp = Timestamp::from_seconds(1_000_000);

    fn check(request: CreateRequest, now: Timestamp) -> Result<NewSession, Vec<Violation>> {
        request.check(now, &Policy::default())
    }

    fn request() -> CreateRequest {
        CreateRequest { user_id: "ada".into(), ..CreateRequest::default() }
    }

    #[track_caller]
    fn assert_refused(request: CreateRequest, field: &str) {
        let violations = check(request, NOW).expect_err(field);
        assert_eq!(violations.iter().map(|violation| violation.field).collect::<Vec<_>>(), [field]);
    }

    #[test]
    fn a_minimal_request_has_the_defaults() {
        assert_eq!(check(request(), NOW), Ok(NewSession::of(UserId::parse("ada").expect("an id"), &Policy::default())));
    }

    #[test]
    fn lifetimes_have_a_minimum_and_a_maximum() {
        for (millis, fits) in
            [(999, false), (1_000, true), (31_708_800_000, true), (31_708_800_001, false), (-1, false)]
        {
            let asked = CreateRequest { expires_in_millis: Some(millis), ..request() };
            assert_eq!(check(asked, NOW).is_ok(), fits, "{millis}");
            let asked = CreateRequest { idle_timeout_millis: Some(millis), ..request() };
            assert_eq!(check(asked, NOW).is_ok(), fits, "idle {millis}");
        }
    }

    #[test]
    fn a_projects_limits_are_bounds_and_defaults() {
        let mut policy = Policy::default();
        policy.preset(crate::session::policy::Preset::Aal2);
        let new = request().check(NOW, &policy).expect("the defaults fit");
        assert_eq!((new.ttl, new.idle_ttl), (policy.session_ttl, policy.idle_ttl));
        for (millis, fits) in [(86_400_000, true), (86_400_001, false)] {
            let asked = CreateRequest { expires_in_millis: Some(millis), ..request() };
            assert_eq!(asked.check(NOW, &policy).is_ok(), fits, "{millis}");
        }
        for (millis, fits) in [(3_600_000, true), (3_600_001, false)] {
            let asked = CreateRequest { idle_timeout_millis: Some(millis), ..request() };
            assert_eq!(asked.check(NOW, &policy).is_ok(), fits, "idle {millis}");
        }
    }

    #[test]
    fn an_impersonation_has_a_lifetime_of_its_own() {
        const HOUR: i64 = 60 * 60 * 1_000;
        let ttl = |millis: Option<i64>, policy: &Policy| {
            let request = CreateRequest {
                is_impersonation: true,
                impersonator_id: Some("root".into()),
                expires_in_millis: millis,
                ..request()
            };
            request.check(NOW, policy).map(|new| new.ttl.as_secs() / 3_600)
        };
        let policy = Policy::default();
        for (asked, hours) in [(None, 1), (Some(2 * HOUR), 2), (Some(24 * HOUR), 24), (Some(365 * 24 * HOUR), 24)] {
            assert_eq!(ttl(asked, &policy), Ok(hours), "{asked:?}");
        }
        assert!(ttl(Some(999), &policy).is_err());
        let mut strict = Policy::default();
        strict.preset(crate::session::policy::Preset::Aal3);
        assert_eq!(ttl(Some(24 * HOUR), &strict), Ok(12), "no longer than any session");
    }

    #[test]
    fn reserved_deep_large_and_broken_claims_are_refused() {
        let deep = (0..9).fold(json!(1), |inner, _| json!([inner]));
        // Text that is not JSON, under a name that makes the library read it as JSON.
        let marked = serde_json::Map::from_iter([("$serde_json::private::RawValue".to_owned(), json!("rubbish"))]);
        let nested = serde_json::Map::from_iter([("x".to_owned(), json!([marked.clone()]))]);
        let broken = [json!({"sub": "eve"}), json!({"x": "x".repeat(4_096)}), json!({"x": deep}), json!({"x": "\0"})];
        let broken = broken.iter().map(|claims| claims.as_object().expect("an object").clone());
        for claims in broken.chain([marked, nested]) {
            assert_refused(CreateRequest { claims, ..request() }, "claims");
        }
    }

    #[test]
    fn every_other_bound_names_its_field() {
        assert_refused(CreateRequest { user_id: "me".into(), ..request() }, "user_id");
        assert_refused(CreateRequest { is_impersonation: true, ..request() }, "impersonator_id");
        assert_refused(CreateRequest { impersonator_id: Some("root".into()), ..request() }, "impersonator_id");
        assert_refused(
            CreateRequest { replaces_session_id: Some("current".into()), ..request() },
            "replaces_session_id",
        );
        let labels = (0..33).map(|n| (n.to_string(), String::new())).collect();
        assert_refused(CreateRequest { labels, ..request() }, "labels");
        let tomorrow = Authentication { time: Some(NOW + Duration::from_secs(86_400)), ..Authentication::default() };
        assert_refused(CreateRequest { authentication: tomorrow, ..request() }, "auth_time");
        let amr = Authentication { amr: vec![String::new()], ..Authentication::default() };
        assert_refused(CreateRequest { authentication: amr, ..request() }, "amr");
    }
}
