//! The sessions that the clients use. They are written by SQL, as sign-ins would have left them, and their tokens are
//! made with the server's own keys: creating them over the API would take longer than the measurement.

use std::sync::Arc;
use std::thread;

use secrecy::ExposeSecret as _;
use sessiond::app::Snapshot;
use sessiond_core::clock::Clock;
use sessiond_core::id::ProjectId;
use sessiond_core::id::SessionId;
use sessiond_core::token::access::Claims;
use sessiond_core::token::access::Issuer;
use sessiond_core::token::refresh::Link;
use sessiond_core::token::refresh::RowSecret;
use tokio_postgres::Client;
use uuid::Uuid;

use crate::Outcome;
use crate::stage::ISSUER;
use crate::stage::PROJECT;

/// How many sessions exist before the first measurement, and how many are added when they are used up.
pub(crate) const SESSIONS: i64 = 200_000;

/// As many as a list's page shows.
const SESSIONS_PER_USER: i64 = 10;

/// How many threads sign tokens.
const THREADS: usize = 2;

/// A client's tokens of one session.
#[derive(Clone)]
pub(crate) struct Tokens {
    pub(crate) session: String,
    pub(crate) user: String,
    pub(crate) access: String,
    pub(crate) refresh: String,
}

/// A session that no client has used.
struct Row {
    id: Uuid,
    user: String,
    secret: RowSecret,
}

/// What the server acknowledged.
#[derive(Default)]
pub(crate) struct Acknowledged {
    pub(crate) sign_outs: u64,
    pub(crate) refreshes: u64,
    pub(crate) creations: u64,
    /// Requests without a certain answer: each may have been done, or not.
    pub(crate) uncertain: u64,
}

/// See the module.
pub(crate) struct Sessions {
    pub(crate) acknowledged: Acknowledged,
    database: Client,
    keys: Arc<Snapshot>,
    clock: Clock,
    unused: Vec<Row>,
    written: i64,
    named: u64,
}

impl Sessions {
    /// Writes the first sessions.
    pub(crate) async fn write(database: Client, keys: Arc<Snapshot>, clock: Clock) -> Outcome<Self> {
        let (acknowledged, unused) = (Acknowledged::default(), vec![]);
        let mut sessions = Self { acknowledged, database, keys, clock, unused, written: 0, named: 0 };
        sessions.write_more().await?;
        sessions.database.batch_execute("VACUUM ANALYZE").await?;
        Ok(sessions)
    }

    async fn write_more(&mut self) -> Outcome<()> {
        let (from, to) = (self.written, self.written + SESSIONS);
        let now = self.clock.now().as_millis();
        let insert = format!(
            "INSERT INTO sessions (project_id, id, user_id, project_epoch, user_epoch, created_at, last_used_at,
                 expires_at, idle_ttl_ms, idle_expires_at, access_expires_at, refresh_secret, refresh_generation,
                 refresh_attempts, refresh_issued_at, amr, device_name, user_agent, ip, labels, claims)
             SELECT '{PROJECT}',
                 (lpad(to_hex(at), 12, '0') || '7' || substr(hash, 1, 3) || '8' || substr(hash, 4, 15))::uuid,
                 'user-' || i / {SESSIONS_PER_USER}, epoch, 0, opened, opened, opened + interval '365 days',
                 7776000000, opened + interval '90 days', opened + interval '10 minutes',
                 decode(hash || md5(hash), 'hex'), 0, '{{0}}', ARRAY[opened], '{{pwd}}', 'Chrome on Linux', '{AGENT}',
                 '198.51.100.7', '{{}}', '{{\"role\": \"member\"}}'
             FROM (SELECT i, at, md5(i::text) AS hash, timestamptz 'epoch' + at * interval '1 millisecond' AS opened
                 FROM (SELECT i, {now} - 1 - ({to} - i) / 100 AS at
                     FROM generate_series({from}::bigint, {to} - 1) AS i) AS times) AS rows, projects
             WHERE projects.id = '{PROJECT}'
             RETURNING id::text, user_id, refresh_secret"
        );
        self.database
            .batch_execute(&format!(
                "INSERT INTO users (project_id, user_id, epoch)
                 SELECT '{PROJECT}', 'user-' || i, 0
                 FROM generate_series({from} / {SESSIONS_PER_USER}, {to} / {SESSIONS_PER_USER}) AS i
                 ON CONFLICT DO NOTHING"
            ))
            .await?;
        for row in self.database.query(&insert, &[]).await? {
            let secret = RowSecret::from_bytes(row.get(2)).ok_or("a secret has 32 bytes")?;
            self.unused.push(Row { id: Uuid::try_parse(row.get(0))?, user: row.get(1), secret });
        }
        self.written = to;
        // In random order, as pgbench picks rows: the lower half of the id is random.
        self.unused.sort_by_key(|row| row.id.as_u64_pair().1);
        Ok(())
    }

    /// Tokens of sessions that nobody has used.
    pub(crate) async fn take(&mut self, count: usize) -> Outcome<Vec<Tokens>> {
        while self.unused.len() < count {
            self.write_more().await?;
        }
        let rows = self.unused.split_off(self.unused.len() - count);
        let (keys, clock) = (&self.keys, &self.clock);
        let mint = |rows: &[Row]| rows.iter().map(|row| mint(keys, clock, row)).collect::<Outcome<Vec<_>>>();
        thread::scope(|scope| {
            let chunks = rows.chunks(count.div_ceil(THREADS).max(1));
            let signers: Vec<_> = chunks.map(|rows| scope.spawn(move || mint(rows))).collect();
            let signed = signers.into_iter().map(|signer| signer.join().map_err(|_| "a signer panicked")?);
            Ok(signed.collect::<Outcome<Vec<_>>>()?.concat())
        })
    }

    /// Users without sessions, to sign in.
    pub(crate) fn users(&mut self, count: usize) -> Vec<Tokens> {
        let named = self.named;
        self.named += count as u64;
        let name = |n| Tokens {
            session: String::new(),
            user: format!("new-{n}"),
            access: String::new(),
            refresh: String::new(),
        };
        (named..self.named).map(name).collect()
    }

    /// Compares what the database holds with what the server acknowledged.
    ///
    /// # Errors
    ///
    /// Fails if they differ by more than the requests without a certain answer.
    pub(crate) async fn compare_with_database(&self) -> Outcome<()> {
        let asked = "SELECT count(*), count(*) FILTER (WHERE revoked_at IS NOT NULL),
                 count(*) FILTER (WHERE refresh_generation > 0), (SELECT count(*) FROM revocations)
             FROM sessions";
        let row = self.database.query_one(asked, &[]).await?;
        let Acknowledged { sign_outs, refreshes, creations, uncertain } = self.acknowledged;
        let mut differences = vec![];
        println!("\nacknowledged, and in the database:");
        for (at, name, acknowledged) in [
            (0, "sessions created", creations + u64::try_from(self.written)?),
            (1, "sessions ended", sign_outs),
            (2, "sessions refreshed", refreshes),
            (3, "revocations in the feed", sign_outs),
        ] {
            let found = u64::try_from(row.get::<_, i64>(at))?;
            println!("  {name:<24} {acknowledged:>9} {found:>9}");
            if !(acknowledged..=acknowledged + uncertain).contains(&found) {
                differences.push(name);
            }
        }
        if uncertain > 0 {
            println!("  {uncertain} requests had no certain answer, and may be in addition");
        }
        if differences.is_empty() { Ok(()) } else { Err(format!("they differ: {}", differences.join(", ")).into()) }
    }

    /// What a row of a table takes on disk, in words; `None` if the table is empty.
    pub(crate) async fn size(&self, table: &str) -> Outcome<Option<String>> {
        let query = format!(
            "SELECT CASE WHEN count(*) > 0 THEN pg_table_size('{table}') / count(*) || ' bytes and '
                 || pg_indexes_size('{table}') / count(*) || ' of indexes' END
             FROM {table}"
        );
        Ok(self.database.query_one(&query, &[]).await?.get(0))
    }

    /// Runs SQL.
    pub(crate) async fn run(&self, sql: &str) -> Outcome<()> {
        Ok(self.database.batch_execute(sql).await?)
    }

    /// The first column of a query's only row.
    pub(crate) async fn text(&self, query: &str) -> Outcome<String> {
        Ok(self.database.query_one(query, &[]).await?.get(0))
    }
}

const AGENT: &str =
    "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0.0.0 Safari/537.36";

fn mint(keys: &Snapshot, clock: &Clock, row: &Row) -> Outcome<Tokens> {
    let (now, project) = (clock.now(), ProjectId::parse(PROJECT).ok_or("a name")?);
    let signing = keys.signs_for(&project, now)?;
    let refreshing = keys.refreshes_for(&project, now)?;
    let session = row.id.to_string();
    let claims = Claims {
        iss: Issuer::new(ISSUER).of(PROJECT),
        sub: row.user.clone(),
        aud: PROJECT.to_owned(),
        client_id: PROJECT.to_owned(),
        iat: now.as_seconds(),
        exp: now.as_seconds() + 600,
        jti: session.clone(),
        sid: session.clone(),
        epoch: [0, 0],
        session_epoch: 0,
        project_id: PROJECT.to_owned(),
        refresh_token_id: session.clone(),
        auth_time: None,
        acr: None,
        amr: vec!["pwd".to_owned()],
        act: None,
        own: serde_json::Map::from_iter([("role".to_owned(), "member".into())]),
    };
    let first = Link { generation: 0, attempt: 0 };
    Ok(Tokens {
        access: signing.sign(&claims)?.expose_secret().to_owned(),
        refresh: refreshing.mint(SessionId::from_uuid(row.id), first, &row.secret).expose_secret().to_owned(),
        user: row.user.clone(),
        session,
    })
}
