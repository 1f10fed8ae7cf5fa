//! Statements by hand. Diesel prepares an `update` or a `sql_query` anew on every call, because it cannot tell that the
//! text is always the same; these have a fixed text and a static id, so each connection prepares them once.

use diesel::pg::Pg;
use diesel::pg::data_types::PgTimestamp;
use diesel::query_builder::AstPass;
use diesel::query_builder::Query;
use diesel::query_builder::QueryFragment;
use diesel::query_builder::QueryId;
use diesel::result::QueryResult;
use diesel::sql_types::Array;
use diesel::sql_types::BigInt;
use diesel::sql_types::Binary;
use diesel::sql_types::Bool;
use diesel::sql_types::Integer;
use diesel::sql_types::Jsonb;
use diesel::sql_types::Nullable;
use diesel::sql_types::SmallInt;
use diesel::sql_types::Text;
use diesel::sql_types::Timestamptz;
use diesel::sql_types::Uuid as SqlUuid;
use serde_json::Value;
use uuid::Uuid;

/// Declares a statement: its text, with a bound field between one piece and the next, and what its rows hold.
macro_rules! statement {
    (
        $(#[$doc:meta])*
        $name:ident -> $rows:ty =
        $first:literal $([$field:ident: $rust:ty as $sql:ty] $text:literal)*
    ) => {
        $(#[$doc])*
        pub(super) struct $name {
            $(pub(super) $field: $rust,)*
        }

        impl QueryFragment<Pg> for $name {
            fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
                out.push_sql($first);
                $(
                    out.push_bind_param::<$sql, $rust>(&self.$field)?;
                    out.push_sql($text);
                )*
                Ok(())
            }
        }

        impl QueryId for $name {
            type QueryId = Self;
            const HAS_STATIC_QUERY_ID: bool = true;
        }

        impl Query for $name {
            type SqlType = $rows;
        }
    };
}

statement! {
    /// Ends those of the sessions that nobody has ended yet, writes down who did and whom to tell, and says of each whether
    /// it was live until now, and whether there is anybody to tell: the sign-outs of many callers share one statement.
    ///
    /// A session that ran out, or fell to a raised epoch, is ended all the same: a refresh under way may have read an
    /// earlier time, and must not bring it back to life. The rows are locked in one order, whatever the plan, so that no
    /// two such statements wait for each other. Endpoints are few to a project: the limit has its own looked up, however
    /// many there are in all.
    ///
    /// What it answers with is what the feed tells; then whether the session was live until now, and whether anything was
    /// queued.
    SessionsRevoke -> (
        Text, SqlUuid, Text, Bool, Timestamptz, SmallInt, SqlUuid, Timestamptz, BigInt, (Bool, Bool)
    ) =
    "WITH asked (project_id, id, at, reason, record, actor, actor_id, ip) AS MATERIALIZED (
         SELECT s.project_id, s.id, a.at, a.reason, a.record, a.actor, a.actor_id, a.ip FROM unnest("
    [projects: Vec<String> as Array<Text>]
    ", "
    [ids: Vec<Uuid> as Array<SqlUuid>]
    ", "
    [at: Vec<PgTimestamp> as Array<Timestamptz>]
    ", "
    [reasons: Vec<i16> as Array<SmallInt>]
    ", "
    [records: Vec<Uuid> as Array<SqlUuid>]
    ", "
    [actors: Vec<i16> as Array<SmallInt>]
    ", "
    [actor_ids: Vec<Option<Uuid>> as Array<Nullable<SqlUuid>>]
    ", "
    [ips: Vec<Option<String>> as Array<Nullable<Text>>]
    ") AS a (project_id, id, at, reason, record, actor, actor_id, ip)
         JOIN sessions AS s ON s.project_id = a.project_id AND s.id = a.id
         WHERE s.revoked_at IS NULL ORDER BY s.project_id, s.id FOR UPDATE OF s
     ), ended AS (
         UPDATE sessions AS s SET revoked_at = asked.at, revoke_reason = asked.reason FROM asked
         WHERE s.project_id = asked.project_id AND s.id = asked.id AND s.revoked_at IS NULL
         RETURNING s.project_id, s.id, s.user_id, s.impersonator_id IS NOT NULL AS is_impersonation, s.access_expires_at,
           asked.at, asked.reason, asked.record, asked.actor,
           asked.actor_id, asked.ip, s.expires_at > asked.at AND s.idle_expires_at > asked.at
             AND NOT EXISTS (SELECT FROM users AS u
                 WHERE u.project_id = s.project_id AND u.user_id = s.user_id AND u.epoch > s.user_epoch)
             AND NOT EXISTS (SELECT FROM projects AS p WHERE p.id = s.project_id AND p.epoch > s.project_epoch) AS was_live
     ), recorded AS (
         INSERT INTO revocations (project_id, id, at, reason, session_id, user_id, is_impersonation, access_expires_at,
           actor, actor_id, ip)
         SELECT project_id, record, at, reason, id, user_id, is_impersonation, access_expires_at, actor, actor_id, ip
         FROM ended
     ), queued AS (
         INSERT INTO backchannel_deliveries (project_id, id, endpoint_id, revocation_id, session_id, user_id, at, reason,
           actor, actor_id, queued_at, due_at)
         SELECT e.project_id, overlay(gen_random_uuid()::text PLACING left(ended.record::text, 15) FROM 1)::uuid, e.id,
           ended.record, ended.id, ended.user_id, ended.at, ended.reason, ended.actor, ended.actor_id, ended.at, ended.at
         FROM ended CROSS JOIN LATERAL (SELECT project_id, id FROM backchannel_endpoints
             WHERE project_id = ended.project_id AND removed_at IS NULL LIMIT 100) AS e
         RETURNING id
     )
     SELECT project_id, id, user_id, is_impersonation, at, reason, record, access_expires_at,
       pg_current_xact_id()::text::bigint, was_live, EXISTS (SELECT FROM queued) FROM ended"
}

statement! {
    /// Writes down whom to tell that all of a user's sessions were ended: of each session that is named, or of the user
    /// where one of them is null. Says whether there is anybody.
    ///
    /// A delivery's id is a UUIDv7 like that of the line it tells of: the time is taken from there, the rest is drawn.
    CutOffQueue -> Bool =
    "WITH queued AS (
         INSERT INTO backchannel_deliveries (project_id, id, endpoint_id, revocation_id, session_id, user_id, at, reason,
           actor, actor_id, queued_at, due_at)
         SELECT e.project_id, overlay(gen_random_uuid()::text PLACING left(c.record::text, 15) FROM 1)::uuid, e.id,
           c.record, s.id, c.user_id, c.at, c.reason, c.actor, c.actor_id, c.at, c.at
         FROM (SELECT "
    [record: Uuid as SqlUuid]
    ", "
    [user: String as Text]
    ", "
    [at: PgTimestamp as Timestamptz]
    ", "
    [reason: i16 as SmallInt]
    ", "
    [actor: i16 as SmallInt]
    ", "
    [actor_id: Option<Uuid> as Nullable<SqlUuid>]
    ") AS c (record, user_id, at, reason, actor, actor_id) CROSS JOIN backchannel_endpoints AS e CROSS JOIN unnest("
    [sessions: Vec<Option<Uuid>> as Array<Nullable<SqlUuid>>]
    ") AS s (id) WHERE e.project_id = "
    [project: String as Text]
    " AND e.removed_at IS NULL RETURNING id
     )
     SELECT EXISTS (SELECT FROM queued)"
}

statement! {
    /// Takes deliveries that are due, at most so many for each endpoint less those that we have under way there, and puts off
    /// the moment at which they are due until an attempt counts as lost.
    ///
    /// From one endpoint that something waits for to the next, and not along what is due: a hundred thousand deliveries for
    /// one that does not answer are stepped over. What another replica takes at this moment is passed over.
    DeliveriesClaim -> (
        Text, SqlUuid, SqlUuid, SqlUuid, Nullable<SqlUuid>, Nullable<Text>, Timestamptz, SmallInt, SmallInt,
        Nullable<SqlUuid>, Timestamptz, Integer, SmallInt, Text, Text, Bool
    ) =
    "WITH RECURSIVE waiting (project_id, endpoint_id) AS (
         (SELECT project_id, endpoint_id FROM backchannel_deliveries
          WHERE due_at IS NOT NULL AND (project_id, endpoint_id) > ("
    [after_project: String as Text]
    ", "
    [after_endpoint: Uuid as SqlUuid]
    ") ORDER BY project_id, endpoint_id LIMIT 1)
         UNION ALL
         SELECT next.project_id, next.endpoint_id FROM waiting AS w CROSS JOIN LATERAL (
             SELECT d.project_id, d.endpoint_id FROM backchannel_deliveries AS d
             WHERE d.due_at IS NOT NULL AND (d.project_id, d.endpoint_id) > (w.project_id, w.endpoint_id)
             ORDER BY d.project_id, d.endpoint_id LIMIT 1) AS next
     ), taken AS MATERIALIZED (
         SELECT d.project_id, d.endpoint_id, d.id FROM waiting AS w CROSS JOIN LATERAL (
             SELECT q.project_id, q.endpoint_id, q.id FROM backchannel_deliveries AS q
             WHERE q.project_id = w.project_id AND q.endpoint_id = w.endpoint_id AND q.due_at <= "
    [now: PgTimestamp as Timestamptz]
    " ORDER BY q.due_at LIMIT greatest(0, "
    [each_max: i64 as BigInt]
    " - (SELECT count(*) FROM unnest("
    [under_way: Vec<Uuid> as Array<SqlUuid>]
    ") AS u (id) WHERE u.id = w.endpoint_id)) FOR UPDATE OF q SKIP LOCKED) AS d LIMIT "
    [rows_max: i64 as BigInt]
    "
     )
     UPDATE backchannel_deliveries AS d SET attempts = d.attempts + 1, due_at = "
    [lost_at: PgTimestamp as Timestamptz]
    " FROM taken CROSS JOIN LATERAL (SELECT kind, url, audience, removed_at FROM backchannel_endpoints
         WHERE project_id = taken.project_id AND id = taken.endpoint_id LIMIT 1) AS e
     WHERE d.project_id = taken.project_id AND d.id = taken.id
     RETURNING d.project_id, d.id, d.endpoint_id, d.revocation_id, d.session_id, d.user_id, d.at, d.reason, d.actor,
         d.actor_id, d.queued_at, d.attempts, e.kind, e.url, e.audience, e.removed_at IS NOT NULL"
}

statement! {
    /// Writes down that a receiver has what it was sent, whoever sent it. The user's name goes.
    DeliveryDone -> () =
    "UPDATE backchannel_deliveries SET delivered_at = "
    [at: PgTimestamp as Timestamptz]
    ", due_at = NULL, dead_at = NULL, last_error = NULL, user_id = NULL WHERE project_id = "
    [project: String as Text]
    " AND id = "
    [id: Uuid as SqlUuid]
    " AND delivered_at IS NULL"
}

statement! {
    /// Writes down that an attempt failed and when the next one is due, or that none is; unless another attempt has begun.
    DeliveryFailed -> () =
    "UPDATE backchannel_deliveries SET due_at = f.due_at, dead_at = f.dead_at, last_error = f.last_error,
         user_id = CASE WHEN f.dead_at IS NULL OR NOT user_erased THEN user_id END
     FROM (SELECT "
    [due_at: Option<PgTimestamp> as Nullable<Timestamptz>]
    ", "
    [dead_at: Option<PgTimestamp> as Nullable<Timestamptz>]
    ", "
    [error: String as Text]
    ") AS f (due_at, dead_at, last_error) WHERE project_id = "
    [project: String as Text]
    " AND id = "
    [id: Uuid as SqlUuid]
    " AND attempts = "
    [attempt: i32 as Integer]
    " AND backchannel_deliveries.due_at IS NOT NULL"
}

statement! {
    /// How much waits, by the kind of endpoint, counted up to a bound for each endpoint.
    DeliveriesCount -> (SmallInt, BigInt) =
    "WITH RECURSIVE waiting (project_id, endpoint_id) AS (
         (SELECT project_id, endpoint_id FROM backchannel_deliveries
          WHERE due_at IS NOT NULL AND (project_id, endpoint_id) > ('', '00000000-0000-0000-0000-000000000000')
          ORDER BY project_id, endpoint_id LIMIT 1)
         UNION ALL
         SELECT next.project_id, next.endpoint_id FROM waiting AS w CROSS JOIN LATERAL (
             SELECT d.project_id, d.endpoint_id FROM backchannel_deliveries AS d
             WHERE d.due_at IS NOT NULL AND (d.project_id, d.endpoint_id) > (w.project_id, w.endpoint_id)
             ORDER BY d.project_id, d.endpoint_id LIMIT 1) AS next
     )
     SELECT e.kind, sum(c.count)::bigint FROM waiting AS w
         CROSS JOIN LATERAL (SELECT kind FROM backchannel_endpoints
             WHERE project_id = w.project_id AND id = w.endpoint_id LIMIT 1) AS e
         CROSS JOIN LATERAL (SELECT count(*) FROM (SELECT FROM backchannel_deliveries AS d
             WHERE d.project_id = w.project_id AND d.endpoint_id = w.endpoint_id AND d.due_at IS NOT NULL LIMIT "
    [each_max: i64 as BigInt]
    ") AS counted) AS c GROUP BY e.kind"
}

statement! {
    /// Has deliveries forget a user who is erased: those that wait once they are over, all others now. In the order in which
    /// a sweep locks them.
    DeliveriesForget -> () =
    "UPDATE backchannel_deliveries AS d SET user_erased = true, user_id = CASE WHEN d.due_at IS NOT NULL THEN d.user_id END
     FROM (SELECT project_id, id FROM backchannel_deliveries WHERE project_id = "
    [project: String as Text]
    " AND user_id = "
    [user: String as Text]
    " AND NOT user_erased ORDER BY id LIMIT "
    [rows_max: i64 as BigInt]
    " FOR UPDATE) AS named WHERE d.project_id = named.project_id AND d.id = named.id"
}

statement! {
    /// Raises a user's epoch, which ends every session opened under a smaller one.
    EpochRaise -> BigInt =
    "UPDATE users SET epoch = epoch + 1, epoch_raised_at = "
    [at: PgTimestamp as Timestamptz]
    " WHERE project_id = "
    [project: String as Text]
    " AND user_id = "
    [user: String as Text]
    " RETURNING epoch"
}

statement! {
    /// Takes a session over into its user's present epoch.
    SessionSpare -> () =
    "UPDATE sessions SET user_epoch = "
    [epoch: i64 as BigInt]
    " WHERE project_id = "
    [project: String as Text]
    " AND id = "
    [id: Uuid as SqlUuid]
    ""
}

statement! {
    /// Changes what the host application keeps with a session.
    SessionChange -> () =
    "UPDATE sessions SET claims = "
    [claims: Value as Jsonb]
    ", labels = "
    [labels: Value as Jsonb]
    ", device_name = "
    [device_name: Option<String> as Nullable<Text>]
    ", device_before = "
    [device_before: Option<Value> as Nullable<Jsonb>]
    " WHERE project_id = "
    [project: String as Text]
    " AND id = "
    [id: Uuid as SqlUuid]
    ""
}

statement! {
    /// Notes when sessions were last used, and on the first use of a day (UTC) when that was before. A row that somebody is
    /// writing is passed over: it is in use anyway.
    SessionsTouch -> () =
    "WITH used (project_id, id, at) AS MATERIALIZED (
         SELECT s.project_id, s.id, a.at FROM unnest("
    [projects: Vec<String> as Array<Text>]
    ", "
    [ids: Vec<Uuid> as Array<SqlUuid>]
    ", "
    [at: Vec<PgTimestamp> as Array<Timestamptz>]
    ") AS a (project_id, id, at) JOIN sessions AS s ON s.project_id = a.project_id AND s.id = a.id
         WHERE s.revoked_at IS NULL AND s.last_used_at < a.at FOR UPDATE OF s SKIP LOCKED
     )
     UPDATE sessions AS s SET last_used_at = used.at, used_before_at = CASE
         WHEN date_trunc('day', s.last_used_at, 'UTC') < date_trunc('day', used.at, 'UTC') THEN s.last_used_at
         ELSE s.used_before_at END
     FROM used WHERE s.project_id = used.project_id AND s.id = used.id"
}

statement! {
    /// Lets those that sign the same user in take turns, where their number is limited. Released with the transaction.
    ///
    /// Not the user's row: whoever refreshes a session of the user holds that session while waiting for the row, and to
    /// make room we would wait for the session. Two users whose names hash alike take turns too, which does no harm.
    UserQueue -> Bool =
    "SELECT pg_advisory_xact_lock(hashtextextended("
    [user: String as Text]
    ", hashtextextended("
    [project: String as Text]
    ", 7305504))) IS NOT NULL"
}

statement! {
    /// Records what a refresh did to a session: its chain, its last use and the device then, and how long its newest access
    /// token lasts.
    SessionRotate -> () =
    "UPDATE sessions SET last_used_at = "
    [last_used_at: PgTimestamp as Timestamptz]
    ", used_before_at = "
    [used_before_at: Option<PgTimestamp> as Nullable<Timestamptz>]
    ", refresh_repeats = "
    [repeats: i16 as SmallInt]
    ", refresh_repeated_elsewhere = "
    [repeated_elsewhere: bool as Bool]
    ", idle_expires_at = "
    [idle_expires_at: PgTimestamp as Timestamptz]
    ", access_expires_at = greatest(access_expires_at, "
    [access_expires_at: PgTimestamp as Timestamptz]
    "), refresh_generation = "
    [generation: i64 as BigInt]
    ", refresh_attempts = "
    [attempts: Vec<i64> as Array<BigInt>]
    ", refresh_issued_at = "
    [issued_at: Vec<PgTimestamp> as Array<Timestamptz>]
    ", device_name = "
    [device_name: Option<String> as Nullable<Text>]
    ", user_agent = "
    [user_agent: Option<String> as Nullable<Text>]
    ", ip = "
    [ip: Option<String> as Nullable<Text>]
    ", device_changed_at = "
    [device_changed_at: Option<PgTimestamp> as Nullable<Timestamptz>]
    ", device_before = "
    [device_before: Option<Value> as Nullable<Jsonb>]
    " WHERE project_id = "
    [project: String as Text]
    " AND id = "
    [id: Uuid as SqlUuid]
    ""
}

statement! {
    /// Sees to it that a user has an epoch; no row when there was one.
    UserEnsure -> BigInt =
    "INSERT INTO users (project_id, user_id, epoch) SELECT id, "
    [user: String as Text]
    ", users_epoch_base FROM projects WHERE id = "
    [project: String as Text]
    " ON CONFLICT ON CONSTRAINT users_pkey DO NOTHING RETURNING epoch"
}

statement! {
    /// Lifts a new user to where new users of the project begin at this moment.
    UserBegin -> () =
    "UPDATE users AS u SET epoch = p.users_epoch_base FROM projects AS p WHERE u.project_id = "
    [project: String as Text]
    " AND u.user_id = "
    [user: String as Text]
    " AND p.id = u.project_id AND u.epoch < p.users_epoch_base"
}

statement! {
    /// Forgets a user, and has every new one begin above that epoch.
    UserDelete -> () =
    "WITH gone AS (
         DELETE FROM users WHERE project_id = "
    [project: String as Text]
    " AND user_id = "
    [user: String as Text]
    " RETURNING project_id, epoch
     )
     UPDATE projects SET users_epoch_base = greatest(users_epoch_base, gone.epoch + 1) FROM gone WHERE id = gone.project_id"
}

statement! {
    /// Reads the present epochs of a project and a user. Whoever raises the user's waits for us, and the other way round.
    ///
    /// The project's row is read without a lock: every session of the project would queue for it. A session that slips
    /// through while the project's epoch is raised carries the smaller one, and so is ended all the same.
    EpochShare -> (BigInt, BigInt) =
    "SELECT p.epoch, u.epoch FROM users AS u JOIN projects AS p ON p.id = u.project_id WHERE u.project_id = "
    [project: String as Text]
    " AND u.user_id = "
    [user: String as Text]
    " FOR SHARE OF u"
}

statement! {
    /// Reads the present epochs of a project and a user, and waits for nobody: they may be raised at any time.
    EpochRead -> (BigInt, BigInt) =
    "SELECT p.epoch, u.epoch FROM users AS u JOIN projects AS p ON p.id = u.project_id WHERE u.project_id = "
    [project: String as Text]
    " AND u.user_id = "
    [user: String as Text]
    ""
}

statement! {
    /// Writes an empty message to the log, and so to no table: whatever snapshot another application holds, it leaves nothing
    /// behind. Says which transaction that was, and on which server.
    FeedBeat -> (BigInt, Nullable<SqlUuid>, Text) =
    "SELECT pg_current_xact_id()::text::bigint,
         (SELECT md5(concat_ws(' ', id, (SELECT system_identifier FROM pg_control_system()),
           (SELECT oid FROM pg_database WHERE datname = current_database())))::uuid
           FROM feed_histories ORDER BY began_at DESC, id LIMIT 1),
         left(pg_walfile_name(pg_current_wal_lsn()), 8)
     FROM pg_logical_emit_message(true, 'sessiond', ''::text)"
}

/// Where a reading of the feed stands: the snapshot that it is of; the history that the database tells, told apart from that
/// of every copy; which branch of it, as its write-ahead log has it; when that is.
pub(super) type Present = (Text, Nullable<SqlUuid>, Text, Timestamptz);

/// Where a reading of the feed stands, and a row of it.
pub(super) type FeedRow = (Present, NewsRow);

/// What a row of the feed holds, where there is one.
pub(super) type NewsRow = (
    (Nullable<BigInt>, Nullable<SqlUuid>, Nullable<Text>, Nullable<Text>, Nullable<Timestamptz>, Nullable<SmallInt>),
    (Nullable<SqlUuid>, Nullable<Bool>, Nullable<BigInt>, Nullable<SqlUuid>, Nullable<BigInt>),
    (Nullable<SqlUuid>, Nullable<SqlUuid>, Nullable<Timestamptz>),
);

statement! {
    /// What still matters, a page of it, in the order in which it will cease to.
    FeedPage -> NewsRow =
    "SELECT r.xid, r.id, r.project_id, r.user_id, r.at, r.reason, r.session_id, r.is_impersonation, r.user_epoch,
         r.spared_session_id, r.project_epoch, r.signing_key_id, r.server_key_id, r.access_expires_at
     FROM revocations AS r WHERE (r.access_expires_at, r.id) > ("
    [after: PgTimestamp as Timestamptz]
    ", "
    [after_id: Uuid as SqlUuid]
    ") ORDER BY r.access_expires_at, r.id LIMIT "
    [rows_max: i64 as BigInt]
    ""
}

statement! {
    /// Where the database stands; its row with the greatest number; and whether the row that was asked about is there.
    ///
    /// Rows that came with a dump of another server have that server's numbers, which may be greater than any here.
    FeedPosition -> (Present, (Nullable<BigInt>, Nullable<SqlUuid>, Nullable<Timestamptz>), Bool) =
    "WITH present AS MATERIALIZED (SELECT pg_current_snapshot()::text AS snapshot,
         (SELECT md5(concat_ws(' ', id, (SELECT system_identifier FROM pg_control_system()),
           (SELECT oid FROM pg_database WHERE datname = current_database())))::uuid
           FROM feed_histories ORDER BY began_at DESC, id LIMIT 1) AS history,
         left(pg_walfile_name(pg_current_wal_lsn()), 8) AS timeline, now() AS at)
     SELECT present.snapshot, present.history, present.timeline, present.at, r.xid, r.id, r.access_expires_at,
         EXISTS (SELECT FROM revocations WHERE xid = "
    [xid: Option<i64> as Nullable<BigInt>]
    " AND id = "
    [id: Option<Uuid> as Nullable<SqlUuid>]
    ")
     FROM present LEFT JOIN (SELECT xid, id, access_expires_at FROM revocations
         WHERE xid < pg_snapshot_xmax(pg_current_snapshot())::text::bigint ORDER BY xid DESC LIMIT 1) AS r ON true"
}

statement! {
    /// What is unseen: each row as soon as its transaction has committed, in whatever order they do. From some number on, the
    /// smallest numbers first; and earlier ones that were under way: few, whatever is held open.
    ///
    /// No later than the present snapshot shows: rows that came with a dump of another server have that server's numbers.
    FeedNext -> FeedRow =
    "WITH present AS MATERIALIZED (SELECT pg_current_snapshot()::text AS snapshot,
         (SELECT md5(concat_ws(' ', id, (SELECT system_identifier FROM pg_control_system()),
           (SELECT oid FROM pg_database WHERE datname = current_database())))::uuid
           FROM feed_histories ORDER BY began_at DESC, id LIMIT 1) AS history,
         left(pg_walfile_name(pg_current_wal_lsn()), 8) AS timeline, now() AS at)
     SELECT present.snapshot, present.history, present.timeline, present.at, r.xid, r.id, r.project_id, r.user_id, r.at,
         r.reason, r.session_id, r.is_impersonation, r.user_epoch, r.spared_session_id, r.project_epoch, r.signing_key_id,
         r.server_key_id, r.access_expires_at
     FROM present LEFT JOIN ((SELECT * FROM revocations WHERE xid >= "
    [from: i64 as BigInt]
    " AND xid < pg_snapshot_xmax(pg_current_snapshot())::text::bigint ORDER BY xid LIMIT "
    [rows_max: i64 as BigInt]
    ") UNION ALL (SELECT * FROM revocations WHERE xid = ANY("
    [under_way: Vec<i64> as Array<BigInt>]
    ") LIMIT "
    [under_way_rows_max: i64 as BigInt]
    ")) AS r ON true"
}

statement! {
    /// Claims a request id; no row when it is taken.
    RequestClaim -> SqlUuid =
    "INSERT INTO session_requests (project_id, request_id, session_id, revoked_count, digest, created_at) VALUES ("
    [project: String as Text]
    ", "
    [request: Uuid as SqlUuid]
    ", "
    [session: Option<Uuid> as Nullable<SqlUuid>]
    ", "
    [revoked_count: Option<i32> as Nullable<Integer>]
    ", "
    [digest: Vec<u8> as Binary]
    ", "
    [created_at: PgTimestamp as Timestamptz]
    ") ON CONFLICT ON CONSTRAINT session_requests_pkey DO NOTHING RETURNING request_id"
}

statement! {
    /// Takes the row of a sweep's task until the end of the transaction; no row when another replica has it.
    SweepClaim -> (Text, Text, Nullable<Timestamptz>) =
    "SELECT project_id, key, completed_at FROM sweeps WHERE task = "
    [task: &'static str as Text]
    " FOR UPDATE SKIP LOCKED"
}

statement! {
    /// Writes down how far a sweep has come.
    SweepNote -> () =
    "UPDATE sweeps SET project_id = "
    [project: String as Text]
    ", key = "
    [key: String as Text]
    ", completed_at = coalesce("
    [completed_at: Option<PgTimestamp> as Nullable<Timestamptz>]
    ", completed_at) WHERE task = "
    [task: &'static str as Text]
    ""
}

statement! {
    /// The next sessions in the order of their keys, with all that tells when they were over.
    ///
    /// The limits within keep the planner from joining whole tables for a thousand rows: how many there will be, it cannot
    /// know.
    SessionsWalk -> (
        Text, SqlUuid, Timestamptz, Nullable<Timestamptz>, Timestamptz, Timestamptz,
        BigInt, BigInt, BigInt, BigInt, Nullable<Timestamptz>, Nullable<Timestamptz>
    ) =
    "SELECT s.project_id, s.id, s.created_at, s.revoked_at, s.expires_at, s.idle_expires_at, s.project_epoch, s.user_epoch,
         coalesce(p.epoch, s.project_epoch), coalesce(u.epoch, s.user_epoch), p.epoch_raised_at, u.epoch_raised_at
     FROM (SELECT project_id, id, user_id, created_at, revoked_at, expires_at, idle_expires_at, project_epoch, user_epoch
         FROM sessions WHERE (project_id, id) > ("
    [project: String as Text]
    ", "
    [id: Uuid as SqlUuid]
    ") ORDER BY project_id, id LIMIT "
    [rows_max: i64 as BigInt]
    ") AS s
     LEFT JOIN LATERAL (SELECT epoch, epoch_raised_at FROM projects WHERE id = s.project_id LIMIT 1) AS p ON true
     LEFT JOIN LATERAL (SELECT epoch, epoch_raised_at FROM users
         WHERE project_id = s.project_id AND user_id = s.user_id LIMIT 1) AS u ON true"
}

statement! {
    /// Deletes sessions that are as they were judged. A row that somebody is writing is left for the next pass.
    SessionsSweep -> () =
    "WITH gone (project_id, id) AS MATERIALIZED (
         SELECT s.project_id, s.id FROM unnest("
    [projects: Vec<String> as Array<Text>]
    ", "
    [ids: Vec<Uuid> as Array<SqlUuid>]
    ", "
    [idle_expires_at: Vec<PgTimestamp> as Array<Timestamptz>]
    ", "
    [user_epochs: Vec<i64> as Array<BigInt>]
    ") AS a (project_id, id, idle_expires_at, user_epoch)
         JOIN sessions AS s ON s.project_id = a.project_id AND s.id = a.id
         WHERE s.idle_expires_at = a.idle_expires_at AND s.user_epoch = a.user_epoch FOR UPDATE OF s SKIP LOCKED
     )
     DELETE FROM sessions AS s USING gone WHERE s.project_id = gone.project_id AND s.id = gone.id"
}

statement! {
    /// The next requests, each project's oldest first.
    RequestsWalk -> (Text, SqlUuid, Timestamptz) =
    "SELECT project_id, request_id, created_at FROM session_requests WHERE (project_id, created_at) > ("
    [project: String as Text]
    ", "
    [created_at: PgTimestamp as Timestamptz]
    ") ORDER BY project_id, created_at LIMIT "
    [rows_max: i64 as BigInt]
    ""
}

statement! {
    /// Forgets requests.
    RequestsSweep -> () =
    "DELETE FROM session_requests AS r USING unnest("
    [projects: Vec<String> as Array<Text>]
    ", "
    [ids: Vec<Uuid> as Array<SqlUuid>]
    ") AS a (project_id, request_id) WHERE r.project_id = a.project_id AND r.request_id = a.request_id"
}

statement! {
    /// The next lines of the audit in the order of their keys.
    RevocationsWalk -> (Text, SqlUuid, Timestamptz, Timestamptz, Bool) =
    "SELECT project_id, id, at, access_expires_at, ip IS NOT NULL FROM revocations WHERE (project_id, id) > ("
    [project: String as Text]
    ", "
    [id: Uuid as SqlUuid]
    ") ORDER BY project_id, id LIMIT "
    [rows_max: i64 as BigInt]
    ""
}

statement! {
    /// Deletes lines of the audit.
    RevocationsSweep -> () =
    "DELETE FROM revocations AS r USING unnest("
    [projects: Vec<String> as Array<Text>]
    ", "
    [ids: Vec<Uuid> as Array<SqlUuid>]
    ") AS a (project_id, id) WHERE r.project_id = a.project_id AND r.id = a.id"
}

statement! {
    /// Takes the addresses out of lines of the audit.
    AddressesSweep -> () =
    "UPDATE revocations AS r SET ip = NULL FROM unnest("
    [projects: Vec<String> as Array<Text>]
    ", "
    [ids: Vec<Uuid> as Array<SqlUuid>]
    ") AS a (project_id, id) WHERE r.project_id = a.project_id AND r.id = a.id"
}

statement! {
    /// The next lines of the audit's other part, in the order of their keys.
    EventsWalk -> (Text, SqlUuid, Timestamptz, Bool) =
    "SELECT project_id, id, at, ip IS NOT NULL FROM audit_events WHERE (project_id, id) > ("
    [project: String as Text]
    ", "
    [id: Uuid as SqlUuid]
    ") ORDER BY project_id, id LIMIT "
    [rows_max: i64 as BigInt]
    ""
}

statement! {
    /// Deletes lines of the audit's other part.
    EventsSweep -> () =
    "DELETE FROM audit_events AS e USING unnest("
    [projects: Vec<String> as Array<Text>]
    ", "
    [ids: Vec<Uuid> as Array<SqlUuid>]
    ") AS a (project_id, id) WHERE e.project_id = a.project_id AND e.id = a.id"
}

statement! {
    /// Takes the addresses out of lines of the audit's other part.
    EventAddressesSweep -> () =
    "UPDATE audit_events AS e SET ip = NULL FROM unnest("
    [projects: Vec<String> as Array<Text>]
    ", "
    [ids: Vec<Uuid> as Array<SqlUuid>]
    ") AS a (project_id, id) WHERE e.project_id = a.project_id AND e.id = a.id"
}

statement! {
    /// The next users in the order of their keys, and whether they have sessions.
    UsersWalk -> (Text, Text, Nullable<Timestamptz>, Bool) =
    "SELECT u.project_id, u.user_id, u.epoch_raised_at, s.id IS NOT NULL
     FROM (SELECT project_id, user_id, epoch_raised_at FROM users WHERE (project_id, user_id) > ("
    [project: String as Text]
    ", "
    [user: String as Text]
    ") ORDER BY project_id, user_id LIMIT "
    [rows_max: i64 as BigInt]
    ") AS u
     LEFT JOIN LATERAL (SELECT id FROM sessions
         WHERE project_id = u.project_id AND user_id = u.user_id LIMIT 1) AS s ON true"
}

statement! {
    /// Locks users; one whom somebody is signing in, or out everywhere, is left for the next pass.
    UsersHold -> (Text, Text) =
    "SELECT u.project_id, u.user_id FROM unnest("
    [projects: Vec<String> as Array<Text>]
    ", "
    [users: Vec<String> as Array<Text>]
    ") AS a (project_id, user_id) JOIN users AS u ON u.project_id = a.project_id AND u.user_id = a.user_id
     FOR UPDATE OF u SKIP LOCKED"
}

statement! {
    /// Forgets users who are locked and have no session, and has every new one begin above the epochs that were raised.
    /// Answers with how many there were.
    UsersSweep -> BigInt =
    "WITH gone AS (
         DELETE FROM users AS u USING unnest("
    [projects: Vec<String> as Array<Text>]
    ", "
    [users: Vec<String> as Array<Text>]
    ") AS a (project_id, user_id) WHERE u.project_id = a.project_id AND u.user_id = a.user_id
             AND NOT EXISTS (SELECT FROM sessions AS s WHERE s.project_id = a.project_id AND s.user_id = a.user_id)
         RETURNING u.project_id, u.epoch, u.epoch_raised_at
     ), base AS (
         SELECT project_id, max(epoch) + 1 AS base FROM gone WHERE epoch_raised_at IS NOT NULL GROUP BY project_id
     ), raised AS (
         UPDATE projects SET users_epoch_base = base.base FROM base
         WHERE id = base.project_id AND users_epoch_base < base.base
     )
     SELECT count(*) FROM gone"
}

statement! {
    /// The next deliveries in the order of their keys, and when they were over.
    DeliveriesWalk -> (Text, SqlUuid, Timestamptz, Nullable<Timestamptz>, Nullable<Timestamptz>) =
    "SELECT project_id, id, at, delivered_at, dead_at FROM backchannel_deliveries WHERE (project_id, id) > ("
    [project: String as Text]
    ", "
    [id: Uuid as SqlUuid]
    ") ORDER BY project_id, id LIMIT "
    [rows_max: i64 as BigInt]
    ""
}

statement! {
    /// Deletes deliveries that are over.
    DeliveriesSweep -> () =
    "DELETE FROM backchannel_deliveries AS d USING unnest("
    [projects: Vec<String> as Array<Text>]
    ", "
    [ids: Vec<Uuid> as Array<SqlUuid>]
    ") AS a (project_id, id) WHERE d.project_id = a.project_id AND d.id = a.id AND d.due_at IS NULL"
}
