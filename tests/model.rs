//! Random interleavings of all operations on a user's sessions, compared with a model in memory.
//!
//! Each run has its own user, and actions generated from a seed. In sequential runs, every answer must equal the
//! model's. In concurrent runs, some sequential order of the actions must explain the answers, and afterwards exactly
//! the sessions that this order leaves are live. A failure prints the seed: `MODEL_SEED=… MODEL_RUNS=1` repeats its
//! actions.
//!
//! The suite runs a short version. All ten thousand runs take about eight minutes on two idle cores: `MODEL_RUNS=10000
//! cargo test --release --test sessiond model::`.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet, hash_map::DefaultHasher},
    hash::{Hash as _, Hasher as _},
    time::Duration,
};

use futures_util::future::join_all;
use sessiond::{
    app::{Start, SweepStep, Sweeper},
    pb::{CreateSessionRequest, ListSessionsRequest, RevokeAllSessionsRequest},
    store::Task,
    telemetry::Metrics,
};
use sessiond_core::{
    clock::{self, Timestamp},
    session::retention::RetentionPeriods,
};

use crate::{
    create::claims_of,
    harness::{REFRESH_GRACE, Refused, Service, Wire, bearer, refresh_token},
};

/// The idle limit here: a few clock steps.
const IDLE: Duration = Duration::from_secs(180);
/// From the shortest step that matters to one after which every session has expired.
const STEPS: [Duration; 4] =
    [Duration::from_micros(1), Duration::from_secs(1), REFRESH_GRACE, Duration::from_secs(180)];
const ACTORS: usize = 4;
const ACTIONS_PER_ACTOR: usize = 3;
const TURNS: usize = 24;

fn runs(short: u64) -> u64 {
    std::env::var("MODEL_RUNS").map_or(short, |runs| runs.parse().expect("a number"))
}

fn seed() -> u64 {
    match std::env::var("MODEL_SEED") {
        Ok(seed) => seed.parse().expect("a number"),
        Err(_) => u64::from_be_bytes(clock::random()),
    }
}

/// A reproducible random number generator: SplitMix64.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((bits ^ (bits >> 31)) % u64::try_from(bound).expect("fits")).expect("fits")
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }
}

// Actions and their results.

/// An access token, with what is needed to judge it.
#[derive(Clone)]
struct Access {
    session: String,
    token: String,
    expires_at: Timestamp,
}

impl Access {
    fn new(session: &str, token: String) -> Self {
        let exp = claims_of(&token)["exp"].as_i64().expect("a number");
        Self { session: session.to_owned(), token, expires_at: Timestamp::from_seconds(exp) }
    }
}

/// An action. A new one needs an arm here, in [`act`] and in [`Model::explains`].
#[derive(Clone)]
enum Action {
    Create,
    Refresh { session: String, token: String },
    List,
    EndById { session: String },
    EndOther { own: Access, session: String },
    EndAll,
    EndAllOwn { own: Access, except_current: bool },
    SignOut { own: Access },
    Sweep,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Answer {
    Created { session: String, refresh: String, access: String },
    Refreshed { refresh: String, access: String },
    Listed(BTreeSet<String>),
    Ended { already: bool },
    AllEnded(i32),
    Swept,
    Refused(String),
}

impl Action {
    fn name(&self) -> String {
        let short = |id: &str| id[id.len() - 4..].to_owned();
        match self {
            Self::Create => "create".into(),
            Self::Refresh { session, .. } => format!("refresh {}", short(session)),
            Self::List => "list".into(),
            Self::EndById { session } => format!("a service ends {}", short(session)),
            Self::EndOther { own, session } => format!("{} ends {}", short(&own.session), short(session)),
            Self::EndAll => "a service ends all".into(),
            Self::EndAllOwn { own, except_current } => {
                format!("{} ends all{}", short(&own.session), if *except_current { " others" } else { "" })
            }
            Self::SignOut { own } => format!("{} signs out", short(&own.session)),
            Self::Sweep => "sweep".into(),
        }
    }
}

async fn act(service: &Service, wire: Wire, user: &str, action: Action) -> Answer {
    let refused = |refused: Refused| {
        let fine = [
            "REFRESH_TOKEN_NOT_FOUND_OR_EXPIRED",
            "SESSION_REVOKED",
            "ACCESS_TOKEN_EXPIRED",
            "CANNOT_DELETE_CURRENT_SESSION",
            "SESSION_NOT_FOUND",
        ];
        assert!(fine.contains(&refused.reason.as_str()), "{refused:?}");
        Answer::Refused(refused.reason)
    };
    let all = |user: Option<&str>, except_current| RevokeAllSessionsRequest {
        user_id: user.map(str::to_owned),
        except_current,
        ..RevokeAllSessionsRequest::default()
    };
    let answer = match action {
        Action::Create => {
            let request = CreateSessionRequest {
                user_id: user.to_owned(),
                idle_timeout_millis: Some(IDLE.as_millis().try_into().expect("fits")),
                ..CreateSessionRequest::default()
            };
            service.create(wire, request).await.map(|created| Answer::Created {
                session: created.session.expect("a session").id,
                refresh: created.refresh_token,
                access: created.access_token,
            })
        }
        Action::Refresh { token, .. } => service
            .refresh(wire, refresh_token(&token))
            .await
            .map(|tokens| Answer::Refreshed { refresh: tokens.refresh_token, access: tokens.access_token }),
        Action::List => {
            let request =
                ListSessionsRequest { user_id: Some(user.to_owned()), page_size: Some(1_000), ..Default::default() };
            let page = service.list(wire, service.key(), request).await;
            page.map(|page| Answer::Listed(page.items.into_iter().map(|session| session.id).collect()))
        }
        Action::EndById { session } => {
            let ended = service.revoke_session(wire, service.key(), &session, None).await;
            ended.map(|ended| Answer::Ended { already: ended.already_revoked == Some(true) })
        }
        Action::EndOther { own, session } => {
            let ended = service.revoke_session(wire, bearer(&own.token), &session, None).await;
            ended.map(|ended| Answer::Ended { already: ended.already_revoked == Some(true) })
        }
        Action::EndAll => service.revoke_all(wire, service.key(), all(Some(user), false)).await.map(Answer::AllEnded),
        Action::EndAllOwn { own, except_current } => {
            service.revoke_all(wire, bearer(&own.token), all(None, except_current)).await.map(Answer::AllEnded)
        }
        Action::SignOut { own } => {
            let ended = service.revoke_current(wire, bearer(&own.token)).await;
            ended.map(|ended| Answer::Ended { already: ended.already_revoked == Some(true) })
        }
        Action::Sweep => {
            sweep(service).await;
            Ok(Answer::Swept)
        }
    };
    answer.unwrap_or_else(refused)
}

/// Deletes sessions as soon as they have ended, unless locked.
async fn sweep(service: &Service) {
    let day = Duration::from_secs(86_400);
    let retention = RetentionPeriods { ended_sessions: Duration::ZERO, audit: day, addresses: day };
    let sweeper = Sweeper::new(service.store.clone(), service.clock.clone(), retention, Metrics::default());
    while let SweepStep::Taken(_) = sweeper.step(Task::Sessions, 1_000, Start::AtOnce).await.expect("sweeps") {}
}

// The model.

/// The user's sessions, in the simplest form.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
struct Model {
    epoch: u64,
    sessions: BTreeMap<String, Held>,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Held {
    epoch: u64,
    idle_expires_at: Timestamp,
    ended: bool,
    /// For each generation, the current attempt, and when it was issued.
    chain: Vec<(usize, Timestamp)>,
    /// The place in the chain of every refresh token ever seen.
    places: BTreeMap<String, (usize, usize)>,
}

impl Held {
    fn is_live(&self, epoch: u64, now: Timestamp) -> bool {
        !self.ended && self.epoch == epoch && now < self.idle_expires_at
    }

    /// The place of the token returned for this one; `None` if it is refused, and `Err` if it is an alarm.
    fn successor(&mut self, (generation, attempt): (usize, usize), now: Timestamp) -> Option<(usize, usize)> {
        let head = self.chain.len() - 1;
        if self.chain[generation].0 != attempt {
            return None;
        }
        if generation == head {
            self.chain.push((0, now));
        } else if now >= self.chain[generation + 1].1 + REFRESH_GRACE {
            if generation + 1 != head {
                return None;
            }
            self.chain[head] = (self.chain[head].0 + 1, now);
        }
        Some((generation + 1, self.chain[generation + 1].0))
    }

    /// Records the place of a token: one place per token, and the reverse.
    fn place(&mut self, token: &str, place: (usize, usize)) -> bool {
        let other = self.places.iter().any(|(known, at)| (known == token) != (*at == place));
        self.places.insert(token.to_owned(), place);
        !other
    }
}

impl Model {
    fn live(&self, now: Timestamp) -> BTreeSet<String> {
        let live = self.sessions.iter().filter(|(_, held)| held.is_live(self.epoch, now));
        live.map(|(id, _)| id.clone()).collect()
    }

    fn is_live(&self, id: &str, now: Timestamp) -> bool {
        self.sessions.get(id).is_some_and(|held| held.is_live(self.epoch, now))
    }

    /// Revokes it. Returns whether it had already ended.
    fn end(&mut self, id: &str, now: Timestamp) -> bool {
        let already = !self.is_live(id, now);
        self.sessions.get_mut(id).expect("known").ended = true;
        already
    }

    fn end_all(&mut self, spared: Option<&str>, now: Timestamp) -> usize {
        let ended = self.live(now).iter().filter(|id| Some(id.as_str()) != spared).count();
        self.epoch += 1;
        if let Some(spared) = spared {
            self.sessions.get_mut(spared).expect("known").epoch = self.epoch;
        }
        ended
    }

    /// Why a user's access token is refused, if it is.
    fn refusal(&self, own: &Access, now: Timestamp) -> Option<&'static str> {
        match (own.expires_at <= now, self.is_live(&own.session, now)) {
            (true, _) => Some("ACCESS_TOKEN_EXPIRED"),
            (false, false) => Some("SESSION_REVOKED"),
            (false, true) => None,
        }
    }

    /// Applies the action. Returns whether the answer is right. `exact` also compares counts: two concurrent
    /// revocations of one session may both have counted it.
    fn explains(&mut self, action: &Action, answer: &Answer, now: Timestamp, exact: bool) -> bool {
        let ended = |already: bool| match answer {
            Answer::Ended { already: reported } => !exact || already == *reported,
            _ => false,
        };
        let all_ended = |count: usize| match answer {
            Answer::AllEnded(reported) => !exact || i32::try_from(count) == Ok(*reported),
            _ => false,
        };
        let refused = |reason: &str| *answer == Answer::Refused(reason.to_owned());
        // A swept session had ended.
        let by_id = |model: &mut Self, session: &str| match refused("SESSION_NOT_FOUND") {
            true => model.end(session, now),
            false => ended(model.end(session, now)),
        };
        match action {
            Action::Create => {
                let Answer::Created { session, refresh, .. } = answer else { return false };
                let held = Held {
                    epoch: self.epoch,
                    idle_expires_at: now + IDLE,
                    ended: false,
                    chain: vec![(0, now)],
                    places: BTreeMap::from([(refresh.clone(), (0, 0))]),
                };
                self.sessions.insert(session.clone(), held).is_none()
            }
            Action::Refresh { session, token } => {
                let is_live = self.is_live(session, now);
                let held = self.sessions.get_mut(session).expect("known");
                let Some(place) = held.places.get(token).copied() else { return false };
                if !is_live {
                    return refused("REFRESH_TOKEN_NOT_FOUND_OR_EXPIRED");
                }
                let Some(next) = held.successor(place, now) else {
                    held.ended = true;
                    return refused("REFRESH_TOKEN_NOT_FOUND_OR_EXPIRED");
                };
                held.idle_expires_at = held.idle_expires_at.max(now + IDLE);
                matches!(answer, Answer::Refreshed { refresh, .. } if held.place(refresh, next))
            }
            Action::List => *answer == Answer::Listed(self.live(now)),
            Action::EndById { session } => by_id(self, session),
            Action::EndOther { own, session } => match self.refusal(own, now) {
                Some(reason) => refused(reason),
                None if own.session == *session => refused("CANNOT_DELETE_CURRENT_SESSION"),
                None => by_id(self, session),
            },
            Action::EndAll => all_ended(self.end_all(None, now)),
            Action::EndAllOwn { own, except_current } => match self.refusal(own, now) {
                Some(reason) => refused(reason),
                None => all_ended(self.end_all(except_current.then_some(own.session.as_str()), now)),
            },
            Action::SignOut { own } => ended(self.end(&own.session, now)),
            Action::Sweep => *answer == Answer::Swept,
        }
    }
}

/// All tokens ever issued: what an actor may hold.
#[derive(Default)]
struct Credentials {
    access: Vec<Access>,
    refresh: Vec<(String, String)>,
}

impl Credentials {
    fn take(&mut self, action: &Action, answer: &Answer) {
        let session = match (action, answer) {
            (_, Answer::Created { session, .. }) | (Action::Refresh { session, .. }, _) => session,
            _ => return,
        };
        if let Answer::Created { refresh, access, .. } | Answer::Refreshed { refresh, access } = answer {
            self.access.push(Access::new(session, access.clone()));
            self.refresh.push((session.clone(), refresh.clone()));
        }
    }

    fn choose(&self, dice: &mut Dice) -> Action {
        // Mostly the newest token, as clients do; sometimes an older one, as thieves and bad networks do.
        let refresh = match dice.below(3) {
            0 => dice.pick(&self.refresh),
            _ => {
                let (session, _) = dice.pick(&self.refresh);
                self.refresh.iter().rfind(|(of, _)| of == session).expect("at least this one")
            }
        };
        let own = dice.pick(&self.access).clone();
        match dice.below(17) {
            0..=1 => Action::Create,
            2..=8 => Action::Refresh { session: refresh.0.clone(), token: refresh.1.clone() },
            9..=10 => Action::List,
            11 => Action::EndById { session: refresh.0.clone() },
            12 => Action::EndOther { own, session: refresh.0.clone() },
            13 => Action::SignOut { own },
            14 => Action::EndAllOwn { own, except_current: dice.below(3) > 0 },
            15 => Action::Sweep,
            _ => match dice.below(3) {
                0 => Action::EndAll,
                _ => Action::EndAllOwn { own, except_current: true },
            },
        }
    }
}

// One run.

/// Sequential: each answer equals the model's, counts included.
async fn take_turns(service: &Service, seed: u64, run: u64) {
    let mut dice = Dice(seed.wrapping_add(run));
    let user = format!("turns {seed} {run}");
    let (mut model, mut credentials, mut story) = (Model::default(), Credentials::default(), vec![]);
    for turn in 0..TURNS {
        if turn > 0 && dice.below(4) == 0 {
            service.clock.advance(*dice.pick(&STEPS));
        }
        let action = if turn == 0 { Action::Create } else { credentials.choose(&mut dice) };
        let answer = act(service, *dice.pick(&Wire::ALL), &user, action.clone()).await;
        story.push(action.name());
        let is_explained = model.explains(&action, &answer, service.clock.now(), true);
        assert!(is_explained, "MODEL_SEED={} MODEL_RUNS=1: {story:#?}\nanswered {answer:?}", seed.wrapping_add(run));
        credentials.take(&action, &answer);
    }
    assert_alive(service, &user, &model.live(service.clock.now()), &credentials, seed.wrapping_add(run)).await;
}

/// Concurrent: some order explains every answer, and the sessions that are live afterwards.
async fn act_at_once(service: &Service, seed: u64, run: u64) {
    let mut dice = Dice(seed.wrapping_add(run));
    let user = format!("at once {seed} {run}");
    let (mut model, mut credentials) = (Model::default(), Credentials::default());
    // Start with a few sessions, some of them with a history.
    for turn in 0..5 {
        let action = match turn {
            0..=2 => Action::Create,
            _ => {
                let (session, token) = dice.pick(&credentials.refresh).clone();
                Action::Refresh { session, token }
            }
        };
        let answer = act(service, Wire::Grpc, &user, action.clone()).await;
        assert!(model.explains(&action, &answer, service.clock.now(), true), "the beginning: {answer:?}");
        credentials.take(&action, &answer);
    }
    service.clock.advance(*dice.pick(&STEPS[..3]));

    let plans: Vec<Vec<(Wire, Action)>> = (0..ACTORS)
        .map(|_| (0..ACTIONS_PER_ACTOR).map(|_| (*dice.pick(&Wire::ALL), credentials.choose(&mut dice))).collect())
        .collect();
    let step = (dice.below(2) == 0).then(|| (dice.below(8), *dice.pick(&STEPS[..3])));
    let before = service.clock.now();
    let actors = plans.into_iter().map(|plan| carry_out(service, &user, plan));
    let clock = async {
        if let Some((pause, step)) = step {
            tokio::time::sleep(Duration::from_millis(pause.try_into().expect("fits"))).await;
            service.clock.advance(step);
        }
    };
    let (histories, ()) = futures_util::future::join(join_all(actors), clock).await;
    for (action, answer) in histories.iter().flatten() {
        credentials.take(action, answer);
    }

    let after = service.clock.now();
    let live = act(service, Wire::Grpc, &user, Action::List).await;
    let Answer::Listed(live) = live else { panic!("a service may list") };
    let search = Search { histories: &histories, moments: BTreeSet::from([before, after]), live: &live, after };
    let story: Vec<Vec<String>> =
        histories.iter().map(|one| one.iter().map(|(action, answer)| describe(action, answer)).collect()).collect();
    let is_explained = search.finds(&model, [0; ACTORS], &mut HashSet::new());
    let seed = seed.wrapping_add(run);
    assert!(is_explained, "MODEL_SEED={seed} MODEL_RUNS=1: no order explains {story:#?}\nand then live {live:?}");
    assert_alive(service, &user, &live, &credentials, seed).await;
}

/// The actions of one actor, in order.
async fn carry_out(service: &Service, user: &str, plan: Vec<(Wire, Action)>) -> Vec<(Action, Answer)> {
    let mut history = vec![];
    for (wire, action) in plan {
        let answer = act(service, wire, user, action.clone()).await;
        history.push((action, answer));
    }
    history
}

fn describe(action: &Action, answer: &Answer) -> String {
    let answer = match answer {
        Answer::Created { session, .. } => format!("created {}", &session[session.len() - 4..]),
        Answer::Refreshed { refresh, .. } => format!("refreshed {}", &refresh[refresh.len() - 4..]),
        other => format!("{other:?}"),
    };
    format!("{}: {answer}", action.name())
}

/// Searches for an order of the histories that the model explains.
struct Search<'a> {
    histories: &'a [Vec<(Action, Answer)>],
    /// The times that an action may have seen.
    moments: BTreeSet<Timestamp>,
    live: &'a BTreeSet<String>,
    after: Timestamp,
}

impl Search<'_> {
    fn finds(&self, model: &Model, done: [usize; ACTORS], seen: &mut HashSet<u64>) -> bool {
        let mut hasher = DefaultHasher::new();
        (model, done).hash(&mut hasher);
        if !seen.insert(hasher.finish()) {
            return false;
        }
        if done.iter().zip(self.histories).all(|(done, history)| *done == history.len()) {
            return model.live(self.after) == *self.live;
        }
        for actor in 0..ACTORS {
            let Some((action, answer)) = self.histories[actor].get(done[actor]) else { continue };
            for now in &self.moments {
                let mut next = model.clone();
                let mut done = done;
                done[actor] += 1;
                if next.explains(action, answer, *now, false) && self.finds(&next, done, seen) {
                    return true;
                }
            }
        }
        false
    }
}

/// All paths agree: each accepts the live sessions, and none accepts an ended one.
async fn assert_alive(service: &Service, user: &str, live: &BTreeSet<String>, credentials: &Credentials, seed: u64) {
    let Answer::Listed(listed) = act(service, Wire::Rest, user, Action::List).await else {
        panic!("a service may list")
    };
    assert_eq!(listed, *live, "MODEL_SEED={seed}");
    let tokens: Vec<String> = credentials.access.iter().map(|access| access.token.clone()).collect();
    let worth = service.introspect_batch(Wire::Grpc, service.key(), tokens).await.expect("answers").items;
    for (access, worth) in credentials.access.iter().zip(worth) {
        let expected = live.contains(&access.session) && service.clock.now() < access.expires_at;
        assert_eq!(worth.active, expected, "MODEL_SEED={seed}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sequential_answers_equal_the_models() {
    let (service, seed) = (Service::start().await, seed());
    for run in 0..runs(25) {
        take_turns(&service, seed, run).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn some_order_explains_concurrent_answers() {
    let (service, seed) = (Service::start().await, seed());
    for run in 0..runs(50) {
        act_at_once(&service, seed, run).await;
    }
}
