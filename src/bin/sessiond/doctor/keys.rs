//! Checks of the keys in the database.

use std::collections::HashMap;

use sessiond::store::Inventory;
use sessiond::store::SealedKey;
use sessiond::telemetry::chain;
use sessiond_core::clock::Timestamp;
use sessiond_core::id::ProjectId;
use sessiond_core::token::schedule::Stage;
use sessiond_core::token::sealing::Purpose;

use super::finding::Diagnosed;
use super::finding::counted;
use super::patient::Patient;
use crate::secrets;

/// The age at which a key should be replaced, in days: NIST SP 800-57 recommends one to two years for signing keys.
const AGE_MAX_DAYS: u64 = 400;

pub(super) async fn sealing_key(patient: &Patient) -> Diagnosed {
    if let Some(why) = &patient.unsealed {
        return Diagnosed::error(why);
    }
    let (store, app) = patient.app();
    let unopened = match app.keys().reload().await {
        Ok(snapshot) => snapshot.unopened(),
        Err(error) => return Diagnosed::error(chain(&error)),
    };
    let all = match store.inventory().await {
        Ok(inventory) => inventory.signing.len() + inventory.refresh.len(),
        Err(error) => return Diagnosed::error(chain(&error)),
    };
    let lost = "use the sealing key that they were sealed with (--previous-sealing-key-file during a change); if it is lost, \
                revoke the keys, and all users sign in again";
    let has_previous = patient.args.sealing.previous_sealing_key_file.is_some()
        || secrets::in_the_environment().contains(&secrets::PREVIOUS_SEALING_KEY);
    match (all, unopened) {
        (0, _) => Diagnosed::ok("the sealing key can be read; there is no key to open yet"),
        (all, 0) if has_previous => Diagnosed::warning(
            format_args!("all {all} keys open, but a previous sealing key is still configured"),
            "run `sessiond reseal`, then remove the previous sealing key",
        ),
        (all, 0) => Diagnosed::ok(format_args!("opens all {all} keys")),
        (all, unopened) if all == unopened => Diagnosed::failed(format_args!("opens none of {all} keys"), lost),
        (all, unopened) => Diagnosed::failed(format_args!("does not open {unopened} of {all} keys"), lost),
    }
}

pub(super) async fn signing_keys(patient: &Patient) -> Diagnosed {
    of(patient, Purpose::Signing, "signing-key").await
}

pub(super) async fn refresh_keys(patient: &Patient) -> Diagnosed {
    of(patient, Purpose::Refresh, "refresh-key").await
}

async fn of(patient: &Patient, purpose: Purpose, command: &str) -> Diagnosed {
    let (store, app) = patient.app();
    let inventory = match store.inventory().await {
        Ok(inventory) => inventory,
        Err(error) => return Diagnosed::error(chain(&error)),
    };
    let now = app.clock().now();
    let Summary { projects, without, oldest, next } = Summary::of(&inventory, purpose, now);
    if let Some(project) = without {
        return Diagnosed::failed(
            format_args!("project {project} has no active {purpose}"),
            format_args!("run `sessiond {command} rotate --project {project}`"),
        );
    }
    let Some((since, project)) = oldest else { return Diagnosed::ok("there is no project yet") };
    let days = now.since(since).as_secs() / 86_400;
    let next = match next {
        Some((from, project)) => format!("the next rotation is at {from} (project {project})"),
        None => "no rotation is in progress".to_owned(),
    };
    let found = format!(
        "{}; the oldest {purpose} is {} old (project {project}); {next}",
        counted(projects, "project"),
        counted(days, "day")
    );
    if days > AGE_MAX_DAYS {
        return Diagnosed::warning(found, format_args!("run `sessiond {command} rotate --project {project}`"));
    }
    Diagnosed::ok(found)
}

/// The keys of all projects for one purpose.
struct Summary<'a> {
    projects: usize,
    /// A project without an active key.
    without: Option<&'a ProjectId>,
    /// Since when the oldest active key is active, and its project.
    oldest: Option<(Timestamp, &'a ProjectId)>,
    /// When the next key takes over, and its project.
    next: Option<(Timestamp, &'a ProjectId)>,
}

impl<'a> Summary<'a> {
    fn of(inventory: &'a Inventory, purpose: Purpose, now: Timestamp) -> Self {
        let keys = match purpose {
            Purpose::Signing => &inventory.signing,
            Purpose::Refresh => &inventory.refresh,
        };
        let at = |stage| {
            move |(project, key): &'a (ProjectId, SealedKey)| {
                (key.schedule.stage(now) == stage).then_some((key.schedule.signs_from, project))
            }
        };
        let active: HashMap<&ProjectId, Timestamp> =
            keys.iter().filter_map(at(Stage::Signing)).map(|(from, project)| (project, from)).collect();
        let projects = inventory.projects.iter().map(|project| &project.id);
        Self {
            projects: inventory.projects.len(),
            without: projects.clone().find(|project| !active.contains_key(project)),
            oldest: active.iter().map(|(project, from)| (*from, *project)).min(),
            next: keys.iter().filter_map(at(Stage::Waiting)).min(),
        }
    }
}

/// The key that signs for a project now.
pub(super) fn signs_now<'a>(inventory: &'a Inventory, project: &ProjectId, now: Timestamp) -> Option<&'a SealedKey> {
    let of_project = inventory.signing.iter().filter(|(of, _)| of == project).map(|(_, key)| key);
    of_project.into_iter().find(|key| key.schedule.stage(now) == Stage::Signing)
}
