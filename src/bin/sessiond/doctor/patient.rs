//! What the checks examine, and what they have learnt on the way.

use std::sync::OnceLock;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;

use sessiond::app::App;
use sessiond::app::KeyCache;
use sessiond::store::Diagnosis;
use sessiond::store::RequiredDurability;
use sessiond::store::Store;
use sessiond::telemetry::Metrics;
use sessiond::telemetry::chain;
use sessiond_core::clock::Clock;
use sessiond_core::token::access::Issuer;

use super::DoctorArgs;
use super::Needs;
use crate::setup;

pub(super) struct Patient {
    pub(super) args: DoctorArgs,
    /// The app over the database, or why there is none. Its sealing key is the configured one, if that can be read.
    pub(super) app: Result<(Store, App), String>,
    /// Why the sealing key cannot be read.
    pub(super) unsealed: Option<String>,
    diagnosis: OnceLock<Diagnosis>,
    has_schema: AtomicBool,
    is_lost: AtomicBool,
}

impl Patient {
    pub(super) fn new(args: DoctorArgs) -> Self {
        let (sealer, unsealed) = match setup::sealer(&args.sealing) {
            Ok(sealer) => (sealer, None),
            Err(error) => (setup::no_sealer(), Some(chain(&*error))),
        };
        let url = args.database.database_url.clone();
        // Servers that may lose commits are examined too.
        let store = setup::store(url, &args.database.pool, RequiredDurability::Any, &Metrics::default());
        let app = |store: Store| {
            let app = App::new(store.clone(), KeyCache::new(store.clone(), sealer), Issuer::new(""), Clock::system());
            (store, app)
        };
        Self {
            app: store.map(app).map_err(|error| chain(&*error)),
            args,
            unsealed,
            diagnosis: OnceLock::new(),
            has_schema: AtomicBool::new(false),
            is_lost: AtomicBool::new(false),
        }
    }

    /// What is missing for a check; `None` if it can run.
    pub(super) fn lacks(&self, needs: Needs) -> Option<&'static str> {
        if needs == Needs::Nothing {
            return None;
        }
        if self.diagnosis.get().is_none() {
            return Some("the database cannot be used");
        }
        if self.is_lost.load(Ordering::Relaxed) {
            return Some("the database has stopped answering");
        }
        (needs == Needs::Schema && !self.has_schema.load(Ordering::Relaxed)).then_some("the database lacks migrations")
    }

    /// The facts about the database. For checks that need it.
    pub(super) fn diagnosis(&self) -> &Diagnosis {
        self.diagnosis.get().expect("checks that need the database run only with it")
    }

    /// The store and the app. For checks that need the database.
    pub(super) fn app(&self) -> &(Store, App) {
        self.app.as_ref().expect("checks that need the database run only with it")
    }

    pub(super) fn note_diagnosis(&self, diagnosis: Diagnosis) {
        self.diagnosis.get_or_init(|| diagnosis);
    }

    pub(super) fn note_schema(&self) {
        self.has_schema.store(true, Ordering::Relaxed);
    }

    pub(super) fn note_lost(&self) {
        self.is_lost.store(true, Ordering::Relaxed);
    }
}
