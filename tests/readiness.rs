//! `/readyz` while the database answers, but takes no writes or does not let the feed be read.

use dev_postgres::Cluster;
use http::StatusCode;
use sessiond_core::clock;

use crate::harness::{
    Service,
    database::{Database, disposable},
    eventually,
};

async fn says(service: &Service, why: &str) {
    eventually(why, async || {
        let (status, reasons) = service.readyz().await;
        status == StatusCode::SERVICE_UNAVAILABLE && reasons.contains(why)
    })
    .await;
}

/// By a reload, which open connections follow: reads, heartbeats of the feed, and connections all go on.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_turns_read_only_fails_readiness() {
    let cluster = Cluster::start(disposable("read-only")).await.expect("Postgres starts");
    let database = || Database { url: cluster.database_url("postgres") };
    database().migrate().await;
    let service = Service::start_on(database()).await;
    let phone = service.sign_in("ada", "phone").await;
    service.becomes_ready().await;
    let url = format!("{}?options=-c%20default_transaction_read_only%3Doff", cluster.database_url("postgres"));
    let admin = Database { url };
    let turn = async |to: &str| {
        admin.run(&format!("ALTER SYSTEM SET default_transaction_read_only = {to}")).await;
        admin.run("SELECT pg_reload_conf()").await;
    };
    turn("on").await;
    says(&service, "the database refuses writes: it is read-only").await;
    assert_eq!(service.metric("sessiond_not_ready{condition=\"writes\"}").await, 1);
    assert!(phone.sign_out().await.is_err(), "nothing is acknowledged");
    turn("off").await;
    service.becomes_ready().await;
    phone.sign_out().await.expect("signs out");
    drop(service);
    cluster.stop().await.expect("stops");
}

/// The role may no longer write a table, or no longer read those of the feed.
#[tokio::test(flavor = "multi_thread")]
async fn missing_privileges_fail_readiness() {
    let admin = Database::create().await;
    // A role of its own: on a cluster that was there before, roles outlive their tests.
    let role = format!("serves_{}", clock::new_uuid().simple());
    let grant = format!("GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}");
    admin.run(&format!("CREATE ROLE {role} LOGIN; {grant}")).await;
    let url = admin.url.replace("postgres://postgres@", &format!("postgres://{role}@"));
    let service = Service::start_on(Database { url }).await;
    service.becomes_ready().await;

    admin.run(&format!("REVOKE UPDATE ON sessions FROM {role}; REVOKE INSERT ON users FROM {role}")).await;
    says(&service, "the database refuses writes: the role of sessiond lacks privileges on sessions, users").await;
    admin.run(&grant).await;
    service.becomes_ready().await;

    admin.run(&format!("REVOKE UPDATE ON feed_writers FROM {role}")).await;
    says(&service, "lacks privileges on feed_writers").await;
    admin.run(&grant).await;
    service.becomes_ready().await;

    admin.run(&format!("REVOKE SELECT ON ALL TABLES IN SCHEMA public FROM {role}")).await;
    says(&service, "the feed of revocations is too old").await;
    admin.run(&grant).await;
    service.becomes_ready().await;
}

/// A full disk shows only in the errors of statements that need space.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_fails_readiness_until_writes_find_space_again() {
    let service = Service::start().await;
    let phone = service.sign_in("ada", "phone").await;
    service.becomes_ready().await;
    service.database.refuse("UPDATE ON sessions", "53100", "could not extend file").await;
    let refused = phone.sign_out().await.expect_err("no space");
    assert_eq!(refused.reason, "STORE_UNAVAILABLE");
    says(&service, "the database refuses writes: its disk is full or broken").await;
    service.database.accept("sessions").await;
    phone.sign_out().await.expect("signs out");
    service.becomes_ready().await;
}
