//! Credentials in cookies. They count only if a call has no other credential, and only if it comes from a page of the same origin.

use tonic::Extensions;
use tonic::Status;
use tonic::metadata::Ascii;
use tonic::metadata::MetadataMap;
use tonic::metadata::MetadataValue;

use super::caller;
use super::status;
use crate::app::AccessToken;
use crate::app::App;
use crate::app::Caller;
use crate::app::Client;
use crate::app::ClientAuth;
use crate::app::Grant;
use crate::app::TokenHolder;
use crate::cookies;
use crate::cookies::FetchHeaders;
use crate::cookies::Host;
use crate::cookies::Lifetime;
use crate::cookies::RequestCookies;
use crate::cookies::SetCookies;
use crate::store::Role;
use sessiond_core::id::ProjectId;
use sessiond_core::session::Refusal;
use sessiond_core::session::policy::CookiePolicy;
use sessiond_core::token::refresh::RefreshToken;

/// The header that names the project, if there are cookies of several.
const PROJECT: &str = "x-sessiond-project";

/// The most unknown projects that are looked up for a request: a project may be newer than what this replica knows. Anyone can plant
/// cookies with invented names, so a known project never counts against it.
const UNKNOWN_MAX: usize = 8;

/// What a sign-out makes a browser forget, by policy. The cookies themselves are cleared one by one: `cookies` would clear those of
/// every other application on the domain.
const CLEARED_SITE_DATA: &str = r#""cache", "storage""#;

/// The credentials in a call's cookies, all of one project. Not verified yet. Has no `Debug`, because they are secrets.
pub(super) struct CookieCredentials {
    project: ProjectId,
    policy: CookiePolicy,
    access: Vec<String>,
    refresh: Vec<String>,
    /// Whether there were more than these.
    is_cut: bool,
}

impl CookieCredentials {
    /// Reads the credentials in a call's cookies; `None` if it has another credential, or no cookie of a project that uses them.
    ///
    /// # Errors
    ///
    /// Refuses a request from another origin, and cookies of several projects of which none is named.
    pub(super) async fn read(
        app: &App,
        metadata: &MetadataMap,
        extensions: &Extensions,
    ) -> Result<Option<Self>, Status> {
        if !metadata.contains_key("cookie") || caller::has_credential(metadata) {
            return Ok(None);
        }
        let headers: Vec<&[u8]> = metadata.get_all("cookie").iter().map(MetadataValue::as_bytes).collect();
        let headers = headers.iter().copied();
        let too_large = |_| status::refused(Refusal::invalid("cookie", "must be at most 16384 bytes in all"));
        let mut found = RequestCookies::projects(headers.clone()).map_err(too_large)?;
        if let Some(named) = metadata.get(PROJECT) {
            found.retain(|project| named.as_bytes() == project.as_str().as_bytes());
        }
        let is_same_origin = fetch_headers(metadata, extensions).is_same_origin();
        let (known, mut unknown): (Vec<_>, Vec<_>) = found.into_iter().partition(|project| app.knows_project(project));
        let read = |projects: Vec<(ProjectId, CookiePolicy)>| {
            let cookies = |(project, policy): (ProjectId, CookiePolicy)| {
                let cookies = RequestCookies::read(headers.clone(), &project, &policy.scope).map_err(too_large);
                cookies.map(|cookies| (!cookies.is_empty()).then_some((project, policy, cookies))).transpose()
            };
            projects.into_iter().filter_map(cookies).collect::<Result<Vec<_>, Status>>()
        };
        let mut of_projects = read(app.cookie_policies(known))?;
        // Only if nothing else counts: a lookup may wait, and anyone can plant such a cookie. So for the seconds until this replica
        // knows a new project, its cookies do not count beside another's. And another origin's request is refused whatever is found.
        unknown.truncate(UNKNOWN_MAX);
        if of_projects.is_empty() && is_same_origin && !unknown.is_empty() {
            of_projects = read(app.find_cookie_policies(unknown).await.map_err(status::of)?)?;
        }
        if of_projects.is_empty() {
            return Ok(None);
        }
        if !is_same_origin {
            return Err(status::refused(Refusal::CrossOriginRequest));
        }
        let (Some((project, policy, cookies)), true) = (of_projects.pop(), of_projects.is_empty()) else {
            return Err(status::refused(Refusal::AmbiguousCookie));
        };
        let owned = |values: Vec<std::borrow::Cow<'_, str>>| values.into_iter().map(Into::into).collect();
        let (access, refresh) = (owned(cookies.access), owned(cookies.refresh));
        Ok(Some(Self { project, policy, access, refresh, is_cut: cookies.is_cut }))
    }

    /// The user whose access token is in the cookie.
    ///
    /// # Errors
    ///
    /// Fails without an access token, with several, or with one of another project.
    pub(super) async fn caller(self, app: &App) -> Result<Caller, Status> {
        self.refuse_ambiguous()?;
        let access = self.access.into_iter().next().ok_or_else(|| status::refused(Refusal::CredentialsMissing))?;
        let token = AccessToken(access);
        app.check_cookie_project(&self.project, &token).await.map_err(status::of)?;
        Ok(Caller::User(token))
    }

    /// The refresh token, `None` if it is malformed; and how long the browser keeps it.
    ///
    /// # Errors
    ///
    /// Fails without a refresh token, or with several.
    pub(super) fn refresh_token(&self) -> Result<(Option<RefreshToken>, Lifetime), Status> {
        self.refuse_ambiguous()?;
        let value = self.refresh.first().ok_or_else(|| status::refused(Refusal::CredentialsMissing))?;
        let (token, lifetime) = Lifetime::of(value);
        Ok((RefreshToken::parse(token), lifetime))
    }

    /// All tokens, for signing out: each ends its session if it is genuine.
    pub(super) fn token_holder(&self) -> TokenHolder {
        TokenHolder {
            access: self.access.iter().cloned().map(AccessToken).collect(),
            refresh: self.refresh.iter().map(|value| RefreshToken::parse(Lifetime::of(value).0)).collect(),
            server_key: false,
        }
    }

    /// Refuses to say that the browser is signed out if there were more tokens than were looked at.
    ///
    /// # Errors
    ///
    /// [`Refusal::AmbiguousCookie`].
    pub(super) fn check_whole(&self) -> Result<(), Status> {
        if self.is_cut { Err(status::refused(Refusal::AmbiguousCookie)) } else { Ok(()) }
    }

    /// Confines a request to the project that the cookies' names say.
    pub(super) fn client(&self) -> Client {
        Client { project: self.project.clone(), auth: ClientAuth::Unchecked, role: Role::Service }
    }

    /// Adds the cookies with new tokens to a response.
    ///
    /// # Errors
    ///
    /// Fails if a token does not fit.
    pub(super) fn set(
        &self,
        app: &App,
        grant: &Grant,
        lifetime: Lifetime,
        metadata: &mut MetadataMap,
    ) -> Result<(), Status> {
        let set = app.set_cookies(grant, &self.policy, lifetime).map_err(status::refused)?;
        append(metadata, &set);
        Ok(())
    }

    /// Clears the cookies.
    pub(super) fn clear(&self, metadata: &mut MetadataMap) {
        for value in cookies::cleared(&self.project, &self.policy) {
            metadata.append("set-cookie", value.try_into().expect("a name and attributes of plain characters"));
        }
        if self.policy.clear_site_data {
            metadata.insert("clear-site-data", MetadataValue::from_static(CLEARED_SITE_DATA));
        }
    }

    fn refuse_ambiguous(&self) -> Result<(), Status> {
        match self.access.len() > 1 || self.refresh.len() > 1 {
            true => Err(status::refused(Refusal::AmbiguousCookie)),
            false => Ok(()),
        }
    }
}

fn append(metadata: &mut MetadataMap, set: &SetCookies) {
    for value in set.values() {
        let mut value: MetadataValue<Ascii> = value.try_into().expect("tokens and attributes are plain characters");
        value.set_sensitive(true);
        metadata.append("set-cookie", value);
    }
}

/// The headers by which a call's origin is judged.
fn fetch_headers<'m>(metadata: &'m MetadataMap, extensions: &'m Extensions) -> FetchHeaders<'m> {
    let one = |name: &str| {
        let mut values = metadata.get_all(name).iter();
        let value = values.next()?;
        Some(values.next().map_or_else(|| value.to_str().unwrap_or_default(), |_| ""))
    };
    FetchHeaders {
        site: one("sec-fetch-site"),
        origin: one("origin"),
        host: extensions.get::<Host>().map(|Host(host)| host.as_str()),
        has_csrf_header: metadata.contains_key(cookies::CSRF_HEADER),
    }
}
