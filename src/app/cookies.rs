//! Tokens in cookies: the project's setting, and what a session's cookies are.

use super::AccessToken;
use super::App;
use super::Error;
use super::Grant;
use super::keys::Snapshot;
use crate::cookies;
use crate::cookies::Lifetime;
use crate::cookies::SetCookies;
use sessiond_core::clock::Timestamp;
use sessiond_core::id::ProjectId;
use sessiond_core::session::Epoch;
use sessiond_core::session::Refusal;
use sessiond_core::session::Session;
use sessiond_core::session::policy::CookiePolicy;

/// The refusal of a session whose access token does not fit into a cookie.
pub(super) fn does_not_fit() -> Refusal {
    Refusal::invalid("claims", "must be smaller: the access token does not fit into a cookie, which holds 4096 bytes")
}

fn cookie_policy(snapshot: &Snapshot, project: &ProjectId) -> Option<CookiePolicy> {
    let policy = snapshot.policy(project).map(|policy| &policy.cookies);
    policy.filter(|cookies| cookies.scope.is_on()).cloned()
}

fn cookie_policies(snapshot: &Snapshot, projects: Vec<ProjectId>) -> Vec<(ProjectId, CookiePolicy)> {
    let policy = |project: ProjectId| cookie_policy(snapshot, &project).map(|policy| (project, policy));
    projects.into_iter().filter_map(policy).collect()
}

impl App {
    /// A project's setting; `None` if it is unknown or uses no cookies.
    ///
    /// # Errors
    ///
    /// Fails if the policy had to be loaded and the database operation fails.
    pub async fn cookie_policy(&self, project: &ProjectId) -> Result<Option<CookiePolicy>, Error> {
        let snapshot = self.keys.find(project, |snapshot| snapshot.policy(project).is_some()).await?;
        Ok(cookie_policy(&snapshot, project))
    }

    /// Whether this replica knows a project.
    pub fn knows_project(&self, project: &ProjectId) -> bool {
        self.keys.snapshot().policy(project).is_some()
    }

    /// The settings of those of the projects that this replica knows, and that use cookies.
    pub fn cookie_policies(&self, projects: Vec<ProjectId>) -> Vec<(ProjectId, CookiePolicy)> {
        cookie_policies(&self.keys.snapshot(), projects)
    }

    /// As [`App::cookie_policies`], and looks up those that this replica does not know, all at once.
    ///
    /// # Errors
    ///
    /// Fails if the database operation fails.
    pub async fn find_cookie_policies(
        &self,
        projects: Vec<ProjectId>,
    ) -> Result<Vec<(ProjectId, CookiePolicy)>, Error> {
        let snapshot = self.keys.find_all(&projects, |snapshot, project| snapshot.policy(project).is_some()).await?;
        Ok(cookie_policies(&snapshot, projects))
    }

    /// The cookies with the tokens of a grant.
    ///
    /// # Errors
    ///
    /// [`Refusal::Schema`] if the access token does not fit, which is logged, because its user is not at fault.
    pub fn set_cookies(&self, grant: &Grant, policy: &CookiePolicy, lifetime: Lifetime) -> Result<SetCookies, Refusal> {
        let session = &grant.session;
        let expires_in = session.expires_at.min(session.idle_expires_at).since(self.clock.now());
        let tokens = (&grant.access_token, &grant.refresh_token);
        SetCookies::new(&session.project, policy, tokens, lifetime, expires_in).map_err(|_| {
            let (project, session) = (&session.project, session.id);
            tracing::warn!(
                %project, %session,
                "the access token does not fit into a cookie: make the session's claims or the project's default claims smaller"
            );
            does_not_fit()
        })
    }

    /// Checks that an access token from a cookie belongs to the project that the cookie's name says. Whether it is valid is checked
    /// where it is used.
    ///
    /// # Errors
    ///
    /// [`Refusal::UnparsableAccessToken`]; [`Refusal::WrongProject`] for a genuine one of another project; or if the keys had to be
    /// reloaded and the database operation fails.
    pub async fn check_cookie_project(&self, project: &ProjectId, token: &AccessToken) -> Result<(), Error> {
        let (actual, _) = self.session_of_access(token).await?;
        if actual == *project {
            return Ok(());
        }
        Err(Refusal::WrongProject { expected: project.to_string(), actual: actual.to_string() }.into())
    }

    /// Whether the access tokens of a session fit into a cookie.
    ///
    /// # Errors
    ///
    /// Fails if the project has no usable key.
    pub(super) fn fits_cookie(&self, snapshot: &Snapshot, session: &Session, now: Timestamp) -> Result<bool, Error> {
        let Some(policy) = snapshot.policy(&session.project) else { return Ok(false) };
        // As long as it can be: the epochs may have any number of digits.
        let epoch = Epoch { project: i64::MAX, user: i64::MAX };
        let longest = Session { epoch, own_epoch: i64::MAX, ..session.clone() };
        let bytes = self.access_token_bytes(snapshot, &longest, now)?;
        Ok(cookies::fits(&session.project, &policy.cookies.scope, bytes))
    }
}
