//! Checks of the database.

use std::time::Duration;

use sessiond::app::Rehearsal;
use sessiond::store::Durability;
use sessiond::store::TableFacts;
use sessiond::store::Unlisted;
use sessiond::store::VacuumFacts;
use sessiond::store::WritesRefused;
use sessiond::telemetry::chain;
use sessiond_core::clock::AGREEMENT;
use tokio::time::Instant;

use super::finding::Diagnosed;
use super::patient::Patient;

/// How far this machine's clock may differ from the database's: as in the server's log.
const SKEW_WARNED: Duration = Duration::from_secs(1);

/// The age at which an open transaction gets a warning. Nothing in sessiond takes longer than minutes.
const TRANSACTION_AGE_MAX: Duration = Duration::from_secs(60 * 60);

/// The age of the oldest transaction id at which the server stops taking writes is two thousand million; autovacuum acts at two
/// hundred million.
const FROZEN_AGE_MAX: u64 = 1_000_000_000;

/// A sign-out that takes longer is slow: a user notices it.
const SIGN_OUT_MAX: Duration = Duration::from_millis(100);

pub(super) async fn reachable(patient: &Patient) -> Diagnosed {
    let (store, _) = match &patient.app {
        Ok(app) => app,
        Err(why) => return Diagnosed::failed(why, "correct DATABASE_URL and the files that belong to it"),
    };
    let started = Instant::now();
    if let Err(error) = store.reach().await {
        return Diagnosed::failed(error, "see \"Connecting to the database\" in docs/operating/database.md");
    }
    let elapsed = started.elapsed();
    match store.diagnose().await {
        Ok(diagnosis) => {
            let version = diagnosis.version.clone();
            patient.note_diagnosis(diagnosis);
            Diagnosed::ok(format_args!("PostgreSQL {version}, connected in {}", millis(elapsed)))
        }
        Err(error) => Diagnosed::error(chain(&error)),
    }
}

pub(super) async fn pooler(patient: &Patient) -> Diagnosed {
    let has_listen_url = patient.args.database.pool.database_listen_url.is_some();
    if patient.diagnosis().is_worker && !has_listen_url {
        return Diagnosed::warning(
            "a worker: replicas ring at the coordinator, and revocations of other replicas are found by a poll every 50 to 250 ms",
            "set --database-listen-url to the URL of the coordinator",
        );
    }
    match (patient.diagnosis().is_pooled, has_listen_url) {
        (false, _) => Diagnosed::ok("none in between, or one in session mode"),
        (true, true) => {
            Diagnosed::ok("one in transaction mode, which keeps prepared statements; --database-listen-url is set")
        }
        (true, false) => Diagnosed::warning(
            "one in transaction mode: LISTEN does not work, and revocations of other replicas are found by a poll every 50 ms",
            "set --database-listen-url to a URL that bypasses the pooler",
        ),
    }
}

pub(super) async fn durability(patient: &Patient) -> Diagnosed {
    let (store, _) = patient.app();
    let unanswered = match store.check_membership().await {
        Ok(true) => None,
        Ok(false) => {
            return Diagnosed::failed(
                "the coordinator does not list this node: it has left the cluster, and what is written here could be lost",
                format!("give the server another node, or {}", Unlisted::WAY_BACK),
            );
        }
        Err(error) => Some(chain(&error)),
    };
    let lost = match store.read_durability().await {
        Ok(Durability::Kept) => {
            return match unanswered {
                None => Diagnosed::ok("fsync is on, and commits are synchronous"),
                Some(why) => Diagnosed::warning(
                    format!("the coordinator does not say whether this node belongs to the cluster: {why}"),
                    "start the coordinator, and let the role of this server log in there from each node",
                ),
            };
        }
        Ok(lost) => lost,
        Err(error) => return Diagnosed::error(chain(&error)),
    };
    let setting = lost.setting();
    let found = match lost {
        Durability::FsyncOff => "fsync is off: a crash of the machine loses sign-outs, and may corrupt the database",
        _ => {
            "synchronous_commit is off, or local although there are standbys: a crash or a failover loses the last sign-outs"
        }
    };
    let advice = format!("turn {setting} on (ALTER SYSTEM SET {setting} = on; SELECT pg_reload_conf())");
    match patient.args.allow_unsafe_durability {
        true => Diagnosed::warning(found, advice),
        false => Diagnosed::failed(found, advice + "; `serve` refuses to start without it"),
    }
}

pub(super) async fn full_page_writes(patient: &Patient) -> Diagnosed {
    match patient.diagnosis().full_page_writes {
        true => Diagnosed::ok("on"),
        false => Diagnosed::warning(
            "off: a crash of the machine may corrupt pages that were half written",
            "turn it on, unless the file system writes 8 KiB atomically",
        ),
    }
}

/// What a commit waits for.
pub(super) async fn standbys(patient: &Patient) -> Diagnosed {
    let diagnosis = patient.diagnosis();
    let (commit, standbys) = (diagnosis.synchronous_commit.as_str(), diagnosis.standbys);
    if diagnosis.standby_names.is_empty() {
        return match standbys {
            0 => Diagnosed::ok("no standby is connected: a commit is on this server's disk"),
            count => Diagnosed::warning(
                format_args!("{count} are connected, but commits wait for none: a failover loses the last sign-outs"),
                "set synchronous_standby_names (see docs/operating/availability.md)",
            ),
        };
    }
    let waits = match commit {
        "remote_apply" => "until a standby has applied it",
        "remote_write" => "until a standby has received it, not until it is on its disk",
        "on" => "until it is on a standby's disk",
        _ => "for no standby",
    };
    let found = format!("synchronous_commit is {commit}: a commit waits {waits}");
    match (diagnosis.standbys_synchronous, standbys) {
        (Some(0), _) | (None, 0) => Diagnosed::failed(
            format_args!("{found}, but no such standby is connected, and commits hang"),
            "start a standby that synchronous_standby_names names",
        ),
        (Some(count), _) => {
            Diagnosed::ok(format_args!("{found}; {count} of {standbys} connected standbys are synchronous"))
        }
        (None, count) => Diagnosed::ok(format_args!("{found}; {count} standbys are connected")),
    }
}

pub(super) async fn clock(patient: &Patient) -> Diagnosed {
    let (store, app) = patient.app();
    if let Err(error) = store.correct(app.clock()).await {
        return Diagnosed::error(chain(&error));
    }
    let Some(skew) = app.clock().skew() else { return Diagnosed::skipped("the clock cannot be compared") };
    let apart = Duration::from_micros(skew.micros.unsigned_abs());
    let side = if skew.micros > 0 { "ahead of" } else { "behind" };
    let found = format!("this machine is {} {side} the database", millis(apart));
    let advice = "let chrony or systemd-timesyncd set the clock of both; sessions follow the database's";
    if apart > AGREEMENT {
        Diagnosed::failed(format_args!("{found}: the sweep and `restored` refuse to run"), advice)
    } else if apart > SKEW_WARNED {
        Diagnosed::warning(found, advice)
    } else {
        Diagnosed::ok(found)
    }
}

pub(super) async fn migrations(patient: &Patient) -> Diagnosed {
    let (store, _) = patient.app();
    let pending = match store.pending_migrations().await {
        Ok(pending) => pending,
        Err(error) => return Diagnosed::error(chain(&error)),
    };
    let advice = "run `sessiond migrate`";
    match pending.as_slice() {
        [] => {
            patient.note_schema();
            Diagnosed::ok("up to date")
        }
        [one] => Diagnosed::failed(format_args!("the database lacks {one}"), advice),
        [first, .., last] => Diagnosed::failed(
            format_args!("the database lacks {} migrations, {first} to {last}", pending.len()),
            advice,
        ),
    }
}

/// The privileges, and whatever else lets the database refuse writes.
pub(super) async fn writes(patient: &Patient) -> Diagnosed {
    let (store, _) = patient.app();
    match store.writes_refused().await {
        Ok(None) => Diagnosed::ok("the role has all privileges that a server needs, and the database takes writes"),
        Ok(Some(refused)) => match &refused {
            WritesRefused::Privileges(tables) => Diagnosed::failed(
                &refused,
                format_args!(
                    "GRANT SELECT, INSERT, UPDATE, DELETE ON {tables} to it, or run `migrate` as the same role"
                ),
            ),
            WritesRefused::ReadOnly => {
                Diagnosed::failed(&refused, "connect to the primary: name every host in DATABASE_URL")
            }
            WritesRefused::Distributed(_) => {
                Diagnosed::failed(&refused, "make the tables local (see docs/operating/database.md)")
            }
            WritesRefused::Disk => Diagnosed::failed(&refused, "free or replace the disk"),
        },
        Err(error) => Diagnosed::error(chain(&error)),
    }
}

/// Extensions and properties of tables that break what sessiond relies on. Distributed tables of Citus are refused earlier.
pub(super) async fn tables(patient: &Patient) -> Diagnosed {
    let TableFacts { unlogged, row_security, triggers, subscribed, multi_writer_extensions } =
        &patient.diagnosis().tables;
    let list = |tables: &[String]| tables.join(", ");
    if !unlogged.is_empty() {
        return Diagnosed::failed(
            format_args!("unlogged tables: {}; a crash empties them", list(unlogged)),
            "ALTER TABLE … SET LOGGED for each",
        );
    }
    if !row_security.is_empty() {
        return Diagnosed::failed(
            format_args!("row security hides rows of {}", list(row_security)),
            "ALTER TABLE … DISABLE ROW LEVEL SECURITY for each",
        );
    }
    let several = "several servers then write the same tables, and a sign-out can be undone when they are merged";
    if !subscribed.is_empty() {
        return Diagnosed::failed(
            format_args!("a subscription writes to {}: {several}", list(subscribed)),
            "drop the subscription; use a standby (physical replication)",
        );
    }
    if !multi_writer_extensions.is_empty() {
        return Diagnosed::warning(
            format_args!("extensions for several writers: {}; {several}", list(multi_writer_extensions)),
            "send all connections to one server",
        );
    }
    if !triggers.is_empty() {
        return Diagnosed::warning(
            format_args!("triggers that sessiond did not create: {}", list(triggers)),
            "check that they neither change rows nor fail; each runs with every sign-in or sign-out",
        );
    }
    Diagnosed::ok("no extension, trigger or setting that breaks sessiond")
}

pub(super) async fn connections(patient: &Patient) -> Diagnosed {
    let facts = patient.diagnosis().connections;
    let needed = patient.args.database.pool.database_connections_max;
    let found = format!("{} of {} are left", facts.left, facts.max);
    let advice = format!(
        "raise max_connections (or the limit of the role or the database), or lower --database-connections-max, which is {needed} \
         for each replica"
    );
    match usize::try_from(facts.left).unwrap_or(usize::MAX) {
        0 => Diagnosed::failed(found, advice),
        left if left < needed => Diagnosed::warning(format_args!("{found}: too few for one more replica"), advice),
        _ => Diagnosed::ok(found),
    }
}

/// What keeps vacuum from removing dead rows: every refresh leaves one.
pub(super) async fn vacuum(patient: &Patient) -> Diagnosed {
    let facts = &patient.diagnosis().vacuum;
    let VacuumFacts { sees_all, oldest_transaction, oldest_prepared, idle_slots, frozen_age, .. } = facts;
    let old = |age: &Duration| *age > TRANSACTION_AGE_MAX;
    if let Some(age) = oldest_prepared.as_ref().filter(|age| old(age)) {
        return Diagnosed::failed(
            format_args!("a prepared transaction has been open for {}: vacuum removes nothing newer", long(*age)),
            "end it: SELECT gid FROM pg_prepared_xacts, then ROLLBACK PREPARED",
        );
    }
    if let Some((age, process)) = oldest_transaction.as_ref().filter(|(age, _)| old(age)) {
        return Diagnosed::warning(
            format_args!(
                "process {process} has had a transaction open for {}: vacuum removes nothing newer",
                long(*age)
            ),
            format_args!("find out whose it is, and end it: SELECT pg_terminate_backend({process})"),
        );
    }
    if !idle_slots.is_empty() {
        return Diagnosed::warning(
            format_args!(
                "replication slots without a consumer: {}; they keep the log until the disk is full",
                idle_slots.join(", ")
            ),
            "start the consumer, or drop them: SELECT pg_drop_replication_slot(NAME)",
        );
    }
    if *frozen_age > FROZEN_AGE_MAX {
        return Diagnosed::failed(
            format_args!(
                "the oldest transaction id is {frozen_age} transactions old; at 2000000000 the database takes no writes"
            ),
            "run VACUUM (FREEZE) on the tables with the greatest age(relfrozenxid)",
        );
    }
    match sees_all {
        true => Diagnosed::ok("no old transaction and no unused replication slot holds it back"),
        false => Diagnosed::ok(
            "no old transaction of this role and no unused replication slot holds it back; transactions of others are not visible \
             (GRANT pg_read_all_stats shows them)",
        ),
    }
}

pub(super) async fn autovacuum(patient: &Patient) -> Diagnosed {
    let facts = &patient.diagnosis().vacuum;
    if !facts.autovacuum {
        return Diagnosed::failed(
            "autovacuum or track_counts is off: tables grow with every refresh",
            "turn both on (ALTER SYSTEM SET …; SELECT pg_reload_conf())",
        );
    }
    if !facts.skipped_tables.is_empty() {
        return Diagnosed::warning(
            format_args!("it skips {}", facts.skipped_tables.join(", ")),
            "ALTER TABLE … RESET (autovacuum_enabled) for each",
        );
    }
    if !facts.bloated_tables.is_empty() {
        return Diagnosed::warning(
            format_args!("more dead rows than live ones in {}", facts.bloated_tables.join(", ")),
            "run VACUUM on them, and lower autovacuum_vacuum_cost_delay",
        );
    }
    Diagnosed::ok("on, and keeps up")
}

pub(super) async fn sign_out(patient: &Patient) -> Diagnosed {
    let (_, app) = patient.app();
    let Rehearsal { revoke, commit } = match app.rehearse_sign_out().await {
        Ok(rehearsal) => rehearsal,
        Err(error) => return Diagnosed::failed(chain(&error), "no one can sign out: see the other findings"),
    };
    let total = revoke + commit;
    let found = format!(
        "{} ({} for the statement, {} for the commit; rehearsed and rolled back)",
        millis(total),
        millis(revoke),
        millis(commit)
    );
    if total > SIGN_OUT_MAX {
        let slow = if commit > revoke {
            "the disk or the standby that commits wait for"
        } else {
            "the database or the network"
        };
        return Diagnosed::warning(found, format_args!("look for what slows down {slow}"));
    }
    Diagnosed::ok(found)
}

fn millis(time: Duration) -> String {
    let millis = time.as_secs_f64() * 1_000.0;
    if millis < 1_000.0 { format!("{millis:.1} ms") } else { format!("{:.1} s", millis / 1_000.0) }
}

/// Whole minutes.
fn long(time: Duration) -> humantime::FormattedDuration {
    humantime::format_duration(Duration::from_secs(time.as_secs() / 60 * 60))
}
