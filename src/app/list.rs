//! Lists sessions, and reads the caller's own.

use super::App;
use super::Caller;
use super::Client;
use super::Error;
use super::credentials::OwnRow;
use super::credentials::VerifiedCaller;
use super::keys::Snapshot;
use crate::store::PageQuery;
use crate::store::Role;
use crate::store::SessionWithEpochs;
use sessiond_core::clock::Timestamp;
use sessiond_core::id::ProjectId;
use sessiond_core::id::SessionId;
use sessiond_core::id::UserId;
use sessiond_core::session::Refusal;
use sessiond_core::session::Session;
use sessiond_core::session::listing::Filter;
use sessiond_core::token::page;
use sessiond_core::token::page::PageToken;
use sessiond_core::token::verified::VerifiedToken;

/// The most rows that are read for one page. If the filter selects few of them, the page is short rather than slow (AIP-158).
const ROWS_MAX: usize = 2_000;

/// The most rows that are read at a time: a session may have 15 kB.
const ROWS_AT_ONCE_MAX: usize = 512;

/// The size of a page, in bytes, from which it is full whatever its number of sessions (AIP-158). gRPC clients accept responses
/// of 4 MiB by default.
const PAGE_BYTES_MAX: usize = 2 * 1024 * 1024;

/// What to list.
pub struct ListRequest {
    /// Whose sessions: `me`, a user's id, or `None` for every user.
    pub user_id: Option<String>,
    /// Which of them to list.
    pub filter: Filter,
    /// The most sessions on a page.
    pub page_size: usize,
    /// Where to continue; empty for the first page.
    pub page_token: String,
    /// A canonical encoding of the query without the page: a page token is valid only for the same query.
    pub query: Vec<u8>,
}

/// A session as the caller sees it.
pub struct Listed {
    /// The session.
    pub session: Session,
    /// Whether it is the caller's own.
    pub is_current: bool,
}

/// A page of sessions.
pub struct Page {
    /// The sessions, newest first.
    pub items: Vec<Listed>,
    /// The token of the next page; empty on the last one.
    pub next: String,
}

/// Whose sessions are listed, and the caller's own session.
struct Scope {
    project: ProjectId,
    user: Option<UserId>,
    current: Option<SessionId>,
    /// The caller's token if its session is not checked yet: its row is most often on the first page.
    unchecked: Option<VerifiedToken>,
}

/// The sessions of a page.
#[derive(Default)]
struct PageRead {
    items: Vec<Session>,
    /// Where the next page begins; `None` if there is none.
    next: Option<SessionId>,
    /// The caller's own row, if it was among those read.
    own: Option<OwnRow>,
}

impl App {
    /// Lists a page of sessions, newest first; on behalf of a client, only of the client's project.
    ///
    /// # Errors
    ///
    /// Fails if the caller, the client or the request is refused, for example with [`Refusal::NotYourUser`], or if the
    /// database operation fails.
    pub async fn list_sessions(
        &self,
        caller: Caller,
        client: Option<Client>,
        request: ListRequest,
    ) -> Result<Page, Error> {
        let principal = self.principal_within(caller, client, Role::Service).await?;
        let is_user = matches!(principal, VerifiedCaller::User(_));
        let scope = self.scope(principal, request.user_id, request.page_token.is_empty()).await?;
        let now = self.clock.now();
        let query = page::Query { project: &scope.project, user: scope.user.as_ref(), parameters: &request.query };
        let token = match request.page_token.as_str() {
            "" => None,
            text => Some(PageToken::parse(text).ok_or_else(not_of_this_query)?),
        };
        // Another replica may just have created the project, or the key that signed the page token.
        let known = |snapshot: &Snapshot| {
            let key = token.as_ref().map(PageToken::key);
            snapshot.policy(&scope.project).is_some() && key.is_none_or(|key| snapshot.keyring.refresh(key).is_some())
        };
        let snapshot = self.keys.with(known).await?;
        let before = token.map(|token| page_start(&snapshot, &token, &query)).transpose()?;

        let user = match scope.user.clone() {
            Some(user) => {
                let bucket = self.bucket(&scope.project, &user).await?;
                Some((user, bucket))
            }
            None => None,
        };
        let asked = PageQuery { project: scope.project.clone(), user, impersonations: !is_user, before, rows_max: 0 };
        let read = self.read_page(asked, &request.filter, request.page_size, scope.current, now).await?;
        self.check_trusted()?;
        match (&scope.unchecked, read.own) {
            (Some(token), Some(row)) => self.check_own(token, &row, now)?,
            // Older than the rows that were read, or an impersonation.
            (Some(token), None) => drop(self.own_session(token).await?),
            (None, _) => {}
        }
        let next = match read.next {
            Some(last) => snapshot.refreshes_for(&scope.project, now)?.page_token(last, &query),
            None => String::new(),
        };
        let listed = |session: Session| Listed {
            is_current: scope.current == Some(session.id),
            session: if is_user { session.as_shown_to_user(now) } else { session },
        };
        Ok(Page { items: read.items.into_iter().map(listed).collect(), next })
    }

    /// The session that the caller's access token belongs to.
    ///
    /// # Errors
    ///
    /// Fails if the caller is refused, or if the database operation fails.
    pub async fn current_session(&self, caller: Caller) -> Result<Listed, Error> {
        let token = self.user(caller).await?;
        Ok(Listed { session: self.own_session(&token).await?.as_shown_to_user(self.clock.now()), is_current: true })
    }

    async fn scope(
        &self,
        principal: VerifiedCaller,
        user_id: Option<String>,
        is_first_page: bool,
    ) -> Result<Scope, Error> {
        match principal {
            VerifiedCaller::User(token) => {
                let is_own = check_own_user(user_id.as_deref(), token.user());
                // If the caller's session has ended, that is the answer, whatever else is wrong.
                if !is_first_page || is_own.is_err() {
                    self.own_session(&token).await?;
                    is_own?;
                }
                let (project, user, current) = (token.project().clone(), token.user().clone(), token.session());
                let unchecked = is_first_page.then_some(token);
                Ok(Scope { project, user: Some(user), current: Some(current), unchecked })
            }
            VerifiedCaller::Service(service) => {
                let user = user_id.as_deref().map(named_user).transpose()?;
                Ok(Scope { project: service.project, user, current: None, unchecked: None })
            }
        }
    }

    /// Reads the sessions that the filter selects, up to a full page.
    async fn read_page(
        &self,
        mut asked: PageQuery,
        filter: &Filter,
        page_size: usize,
        current: Option<SessionId>,
        now: Timestamp,
    ) -> Result<PageRead, Error> {
        // One more than fits, to learn whether there is a next page.
        let is_user = !asked.impersonations;
        let (mut read, mut looked_at, mut rows_max) = (PageRead::default(), 0, page_size + 1);
        let mut bytes = 0;
        loop {
            asked.rows_max = rows_max.min(ROWS_AT_ONCE_MAX).min(ROWS_MAX - looked_at);
            // If the filter selects few rows, a small page must not cost a query for every few rows.
            rows_max *= 2;
            let rows = self.store.sessions_page(asked.clone()).await?;
            let is_last = rows.len() < asked.rows_max;
            looked_at += rows.len();
            for SessionWithEpochs { stored, present, raised } in rows {
                if current == Some(stored.session.id) {
                    read.own = Some(OwnRow::new(&stored.session, present, now));
                }
                if read.items.len() == page_size || bytes >= PAGE_BYTES_MAX {
                    return Ok(PageRead { next: asked.before, ..read });
                }
                asked.before = Some(stored.session.id);
                // A filter must not reveal what is not shown.
                let device = if is_user { stored.session.device_shown_to_user(now) } else { &stored.session.device };
                if filter.selects(&stored.session, device, now, present) {
                    bytes += stored.session.listed_bytes();
                    read.items.push(stored.session.with_epoch_revocation(present, raised));
                }
            }
            match asked.before {
                Some(_) if is_last => return Ok(read),
                Some(last) if looked_at >= ROWS_MAX => return Ok(PageRead { next: Some(last), ..read }),
                Some(_) => {}
                None => return Ok(read),
            }
        }
    }
}

fn page_start(snapshot: &Snapshot, token: &PageToken, query: &page::Query<'_>) -> Result<SessionId, Refusal> {
    let key = snapshot.keyring.refresh(token.key()).filter(|key| key.project() == query.project);
    key.and_then(|key| key.page_start(token, query)).ok_or_else(not_of_this_query)
}

fn not_of_this_query() -> Refusal {
    Refusal::invalid("page_token", "must be the `next_page_token` of the previous page of the same query")
}

/// Checks that a user names only themselves.
pub(super) fn check_own_user(named: Option<&str>, own: &UserId) -> Result<(), Refusal> {
    match named {
        None | Some("me") => Ok(()),
        Some(other) if other == own.as_str() => Ok(()),
        Some(_) => Err(Refusal::NotYourUser),
    }
}

/// Parses the id of the user that a service names.
pub(super) fn named_user(named: &str) -> Result<UserId, Refusal> {
    const EXPECTED: &str =
        "must be 1 to 255 bytes without control characters, and not `me`, because a service is not a user";
    UserId::parse(named).ok_or_else(|| Refusal::invalid("user_id", EXPECTED))
}
