//! Group commit: requests that arrive while a transaction is in progress share the next one.
//!
//! No request waits for a group to fill. A request that finds no transaction in progress starts one at once, alone. While it
//! commits, others queue, and all that have queued go together next. So groups grow with the load. A second group runs beside
//! the first only if many requests wait, or one waits long: two small groups cost more than one large one.
//!
//! In a divided database, each slot has a queue of its own: the node of another one may be down.
//!
//! A group waits for no lock: requests that need a row which another transaction has locked are to be carried out alone, and
//! so are the requests of a group that failed. So each waits and fails for itself. Projects take turns, request by request: a
//! flood of one project delays the requests of another by one group at most, and does not keep them out of a full queue.

use std::collections::HashMap;
use std::collections::VecDeque;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tokio::time::timeout;
use tokio::time::timeout_at;

use crate::store;
use crate::telemetry::Metrics;
use crate::telemetry::request;
use crate::telemetry::trace::Span;
use crate::telemetry::trace::SpanKind;
use sessiond_core::id::ProjectId;

/// How many groups of one kind are in progress at a time: one is prepared while another waits for the disk.
const LEADERS_MAX: usize = 2;

/// A second group starts when this many requests wait. Measured with 16 and with 64 clients: with fewer, the statements of 16
/// clients cost Postgres a third more.
const MANY: usize = 16;

/// A second group starts when a request has waited this long, since the first may be stuck. Several times the duration of a
/// large group.
const LONG: Duration = Duration::from_millis(25);

/// The most requests in a group. Bounds the work of a statement, and how many requests one failure affects.
const GROUP_MAX: usize = 128;

/// The most requests that wait. Then requests of the project with the most waiting are refused.
const WAITING_MAX: usize = 4_096;

/// Carries out requests of one kind, those of each slot in groups of their own. Cheap to clone; clones share state.
pub(super) struct Groups<Q, T>(Arc<GroupsState<Q, T>>);

struct GroupsState<Q, T> {
    operation: &'static str,
    wait_max: Duration,
    metrics: Metrics,
    /// By the number of the slot: at most as many as there are slots.
    by_slot: Mutex<HashMap<i16, Group<Q, T>>>,
}

impl<Q, T> Clone for Groups<Q, T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<Q: Send + 'static, T: Send + 'static> Groups<Q, T> {
    /// Creates empty queues in which a request waits at most `wait_max`.
    pub(super) fn new(operation: &'static str, wait_max: Duration, metrics: Metrics) -> Self {
        Self(Arc::new(GroupsState { operation, wait_max, metrics, by_slot: Mutex::default() }))
    }

    /// The groups of a slot.
    pub(super) fn of(&self, slot: i16) -> Group<Q, T> {
        let GroupsState { operation, wait_max, metrics, by_slot } = &*self.0;
        let mut groups = by_slot.lock().expect("no one panics while holding it");
        groups.entry(slot).or_insert_with(|| Group::new(operation, *wait_max, metrics.clone())).clone()
    }
}

/// Carries out requests of one kind in groups. Cheap to clone; clones share state.
pub(super) struct Group<Q, T>(Arc<GroupState<Q, T>>);

struct GroupState<Q, T> {
    operation: &'static str,
    wait_max: Duration,
    metrics: Metrics,
    queue: Mutex<Queue<Q, T>>,
}

struct Queue<Q, T> {
    /// The waiting requests of each project, in order of arrival. No list is empty.
    waiting: HashMap<ProjectId, VecDeque<Waiting<Q, T>>>,
    /// The projects with waiting requests, in turn.
    turns: VecDeque<ProjectId>,
    count: usize,
    leaders: usize,
}

struct Waiting<Q, T> {
    request: Q,
    caller: oneshot::Sender<Outcome<T>>,
    /// The span of its wait, from the queue to the outcome; `None` if it is not sampled.
    span: Option<Span>,
}

/// The outcome of a request in a group; `None` if the request must be carried out alone.
type Outcome<T> = Result<Option<T>, store::Error>;

impl<Q, T> Clone for Group<Q, T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<Q: Send + 'static, T: Send + 'static> Group<Q, T> {
    /// Creates an empty queue in which a request waits at most `wait_max`.
    pub(super) fn new(operation: &'static str, wait_max: Duration, metrics: Metrics) -> Self {
        let queue = Queue { waiting: HashMap::new(), turns: VecDeque::new(), count: 0, leaders: 0 };
        Self(Arc::new(GroupState { operation, wait_max, metrics, queue: Mutex::new(queue) }))
    }

    /// Queues a request, and waits for its outcome. `None` if the request must be carried out alone.
    ///
    /// `carry_out` gets the context, and returns an outcome for each request, in order. It runs on a task of its own: once it
    /// has begun, it goes on if the caller is dropped.
    ///
    /// # Errors
    ///
    /// Fails if the queue is full, if the wait takes too long, or if the database failed and the group had no other request.
    pub(super) async fn join<C, F, W>(&self, project: &ProjectId, request: Q, context: &C, carry_out: F) -> Outcome<T>
    where
        C: Clone + Send + Sync + 'static,
        F: Fn(C, Vec<Q>) -> W + Copy + Send + 'static,
        W: Future<Output = Result<Vec<Option<T>>, store::Error>> + Send + 'static,
    {
        let (caller, mut outcome) = oneshot::channel();
        let Pushed { needs_leader, refused } = {
            let mut queue = self.queue();
            let span = request::child_span(self.0.operation);
            let before = queue.count;
            let pushed = queue.push(project, Waiting { request, caller, span });
            self.note_waiting(before, queue.count);
            pushed
        };
        if let Some(Waiting { caller, .. }) = refused {
            self.0.metrics.store_refused("line");
            // Perhaps this very caller; one that is gone needs no outcome.
            let _ = caller.send(Err(store::Error::late(self.0.operation)));
        }
        if needs_leader {
            self.begin_leading(context.clone(), carry_out);
        }
        let until = Instant::now() + self.0.wait_max;
        let mut received = timeout(LONG, &mut outcome).await;
        if received.is_err() {
            if self.queue().add_leader() {
                self.begin_leading(context.clone(), carry_out);
            }
            received = timeout_at(until, &mut outcome).await;
        }
        match received {
            Ok(Ok(outcome)) => outcome,
            // A bug, or the end of the runtime, stopped the group. The request may have been carried out.
            Ok(Err(_)) => Ok(None),
            Err(_) => Err(store::Error::late(self.0.operation)),
        }
    }

    /// Carries out group after group on a task of its own, until no request waits.
    fn begin_leading<C, F, W>(&self, context: C, carry_out: F)
    where
        C: Clone + Send + Sync + 'static,
        F: Fn(C, Vec<Q>) -> W + Send + 'static,
        W: Future<Output = Result<Vec<Option<T>>, store::Error>> + Send + 'static,
    {
        // On the heap from the start: to start a task moves its future several times.
        tokio::spawn(Box::pin(self.clone().lead(context, carry_out)));
    }

    /// See [`Group::begin_leading`].
    async fn lead<C, F, W>(self, context: C, carry_out: F)
    where
        C: Clone,
        F: Fn(C, Vec<Q>) -> W,
        W: Future<Output = Result<Vec<Option<T>>, store::Error>>,
    {
        while let Some(group) = self.next() {
            let (mut requests, mut callers, mut spans) = (vec![], vec![], vec![]);
            for Waiting { request, caller, span } in group {
                requests.push(request);
                callers.push(caller);
                spans.extend(span);
            }
            let span = shared_span(self.0.operation, &mut spans, requests.len());
            let started = Instant::now();
            // A panic must not leave the queue without a leader. The callers of the group find their senders dropped.
            let work = AssertUnwindSafe(Box::pin(carry_out(context.clone(), requests))).catch_unwind();
            let done = match &span {
                None => work.await,
                Some(span) => request::handle_group(span.parent(), work).await,
            };
            drop((span, spans));
            let Ok(done) = done else { continue };
            let has_time = started.elapsed() < self.0.wait_max / 2;
            let outcomes: Vec<Outcome<T>> = match done {
                Ok(outcomes) => outcomes.into_iter().map(Ok).collect(),
                Err(error) if callers.len() == 1 => vec![Err(error)],
                // It is unknown which request is the cause: each is retried, if there is time for it.
                Err(_) if has_time => callers.iter().map(|_| Ok(None)).collect(),
                Err(_) => callers.iter().map(|_| Err(store::Error::late(self.0.operation))).collect(),
            };
            for (caller, outcome) in callers.into_iter().zip(outcomes) {
                // A caller that is gone needs no outcome.
                let _ = caller.send(outcome);
            }
        }
    }

    /// The next group for a leader. Without one, it stops leading.
    fn next(&self) -> Option<Vec<Waiting<Q, T>>> {
        let mut queue = self.queue();
        let before = queue.count;
        let group = queue.take();
        self.note_waiting(before, queue.count);
        if group.is_empty() {
            queue.leaders -= 1;
            return None;
        }
        Some(group)
    }

    /// Counts how many more wait than before. All queues of an operation are counted together.
    fn note_waiting(&self, before: usize, after: usize) {
        let more = i64::try_from(after).unwrap_or(i64::MAX) - i64::try_from(before).unwrap_or(i64::MAX);
        self.0.metrics.group_waiting(self.0.operation, more);
    }

    fn queue(&self) -> MutexGuard<'_, Queue<Q, T>> {
        self.0.queue.lock().expect("no one panics while holding it")
    }
}

/// The span of a group's work: a part of the first sampled request, and linked with the waits of the others, in both
/// directions. `None` if no request of the group is sampled.
fn shared_span(operation: &'static str, waits: &mut [Span], requests: usize) -> Option<Span> {
    let (first, others) = waits.split_first_mut()?;
    let mut shared = first.parent().child(operation, SpanKind::Internal);
    shared.set("sessiond.group.size", i64::try_from(requests).unwrap_or(i64::MAX));
    for wait in others {
        shared.link(&wait.parent());
        wait.link(&shared.parent());
    }
    Some(shared)
}

/// The result of queueing a request.
struct Pushed<Q, T> {
    /// Whether the queue needs another leader.
    needs_leader: bool,
    /// The request that is refused because the queue is full.
    refused: Option<Waiting<Q, T>>,
}

impl<Q, T> Queue<Q, T> {
    /// Queues a request. If the queue is full, refuses the newest request of the project with the most waiting, or else this
    /// one.
    fn push(&mut self, project: &ProjectId, one: Waiting<Q, T>) -> Pushed<Q, T> {
        let mut refused = None;
        if self.count >= WAITING_MAX {
            let own = self.waiting.get(project).map_or(0, VecDeque::len);
            match self.waiting.values_mut().max_by_key(|waiting| waiting.len()) {
                // So that another one of its requests still waits, and it keeps its turn.
                Some(largest) if largest.len() > own + 1 => refused = largest.pop_back(),
                Some(_) | None => return Pushed { needs_leader: false, refused: Some(one) },
            }
            self.count -= 1;
        }
        self.count += 1;
        let waiting = self.waiting.entry(project.clone()).or_default();
        if waiting.is_empty() {
            self.turns.push_back(project.clone());
        }
        waiting.push_back(one);
        let needs_leader = (self.leaders == 0 || self.count >= MANY) && self.add_leader();
        Pushed { needs_leader, refused }
    }

    /// Adds a leader, if requests wait and there may be another.
    fn add_leader(&mut self) -> bool {
        let adds = self.count > 0 && self.leaders < LEADERS_MAX;
        self.leaders += usize::from(adds);
        adds
    }

    /// Takes the next group: a request of each project in turn. Drops requests whose callers are gone.
    fn take(&mut self) -> Vec<Waiting<Q, T>> {
        let mut group = vec![];
        while group.len() < GROUP_MAX {
            let Some(project) = self.turns.pop_front() else { break };
            let waiting = self.waiting.get_mut(&project).expect("a project has a turn while its requests wait");
            let one = waiting.pop_front().expect("no list is empty");
            self.count -= 1;
            if waiting.is_empty() {
                self.waiting.remove(&project);
            } else {
                self.turns.push_back(project);
            }
            if !one.caller.is_closed() {
                group.push(one);
            }
        }
        group
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::Semaphore;

    use super::*;

    fn project(name: &str) -> ProjectId {
        ProjectId::parse(name).expect("a name")
    }

    /// Answers each request with the size of its group and its place in it, once the gate admits the group.
    struct Setup {
        group: Group<&'static str, (usize, usize)>,
        gate: Arc<Semaphore>,
        seen: Arc<Mutex<Vec<Vec<&'static str>>>>,
    }

    type Answer = Outcome<(usize, usize)>;

    type Context = (Arc<Semaphore>, Arc<Mutex<Vec<Vec<&'static str>>>>);

    async fn carry_out(
        (gate, seen): Context,
        requests: Vec<&'static str>,
    ) -> Result<Vec<Option<(usize, usize)>>, store::Error> {
        gate.acquire().await.expect("open").forget();
        assert!(!requests.contains(&"bug"), "the bug under test");
        if requests.contains(&"fault") {
            return Err(store::Error::late("test"));
        }
        let size = requests.len();
        seen.lock().expect("no panic").push(requests);
        Ok((0..size).map(|place| Some((size, place))).collect())
    }

    impl Setup {
        fn new() -> Self {
            let group = Group::new("test", Duration::from_secs(10), Metrics::default());
            Self { group, gate: Arc::new(Semaphore::new(0)), seen: Arc::default() }
        }

        fn join(&self, of: &str, request: &'static str) -> impl Future<Output = Answer> + Send + use<> {
            let (group, gate, seen) = (self.group.clone(), Arc::clone(&self.gate), Arc::clone(&self.seen));
            let project = project(of);
            async move { group.join(&project, request, &(gate, seen), carry_out).await }
        }

        /// Occupies every leader with one request.
        async fn occupy(&self, request: &'static str) -> Vec<tokio::task::JoinHandle<Answer>> {
            let mut asked = vec![];
            for leaders in 1..=LEADERS_MAX {
                asked.push(tokio::spawn(self.join("shop", request)));
                // Until a leader has taken it: otherwise the next request would join it. The second leader comes after a while.
                while self.group.queue().leaders < leaders || self.group.queue().count > 0 {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
            asked
        }

        /// Waits until `count` requests are queued.
        async fn queued(&self, count: usize) {
            while self.group.queue().count < count {
                tokio::task::yield_now().await;
            }
        }
    }

    /// The answer of a request that is expected to succeed in its group.
    async fn answered(one: tokio::task::JoinHandle<Answer>) -> (usize, usize) {
        one.await.expect("no panic").expect("no failure").expect("not alone")
    }

    #[tokio::test]
    async fn requests_that_queue_go_together() {
        let setup = Setup::new();
        let first = setup.occupy("first").await;
        let rest: Vec<_> = (0..GROUP_MAX + 1).map(|_| tokio::spawn(setup.join("shop", "rest"))).collect();
        setup.queued(GROUP_MAX + 1).await;
        setup.gate.add_permits(10);
        for one in first {
            assert_eq!(answered(one).await, (1, 0), "no request waits for a group to fill");
        }
        let mut sizes = HashMap::new();
        for one in rest {
            *sizes.entry(answered(one).await.0).or_insert(0) += 1;
        }
        assert_eq!(sizes, HashMap::from([(GROUP_MAX, GROUP_MAX), (1, 1)]), "a group has a bound");
        assert_eq!(setup.group.queue().leaders, 0, "a leader stops when no request waits");
    }

    /// The first group is stuck, and few requests wait: after a while they go without it.
    #[tokio::test]
    async fn a_stuck_group_holds_up_no_other() {
        let setup = Setup::new();
        let stuck = tokio::spawn(setup.join("shop", "stuck"));
        while setup.group.queue().leaders == 0 || setup.group.queue().count > 0 {
            tokio::task::yield_now().await;
        }
        let second = tokio::spawn(setup.join("shop", "second"));
        while setup.group.queue().leaders < 2 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        setup.gate.add_permits(2);
        assert_eq!((answered(stuck).await, answered(second).await), ((1, 0), (1, 0)));
    }

    /// The node of a slot may be down.
    #[tokio::test]
    async fn a_stuck_slot_holds_up_no_other() {
        let groups = Groups::<&'static str, &'static str>::new("test", Duration::from_secs(10), Metrics::default());
        let join = |slot: i16, request: &'static str| {
            let group = groups.of(slot);
            tokio::spawn(async move {
                let carry_out = |(), requests: Vec<&'static str>| async move {
                    if requests.contains(&"stuck") {
                        std::future::pending::<()>().await;
                    }
                    Ok(requests.into_iter().map(Some).collect())
                };
                group.join(&project("shop"), request, &(), carry_out).await
            })
        };
        let stuck: Vec<_> = (0..GROUP_MAX + 1).map(|_| join(1, "stuck")).collect();
        while groups.of(1).queue().leaders < LEADERS_MAX {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(join(2, "other").await.expect("no panic").expect("no failure"), Some("other"));
        stuck.iter().for_each(tokio::task::JoinHandle::abort);
    }

    #[tokio::test]
    async fn a_flood_of_one_project_delays_no_other() {
        let setup = Setup::new();
        let mut all = setup.occupy("first").await;
        all.extend((0..3 * GROUP_MAX).map(|_| tokio::spawn(setup.join("flood", "flood"))));
        setup.queued(3 * GROUP_MAX).await;
        all.push(tokio::spawn(setup.join("shop", "shop")));
        setup.queued(3 * GROUP_MAX + 1).await;
        setup.gate.add_permits(10);
        for one in all {
            answered(one).await;
        }
        let seen = setup.seen.lock().expect("no panic");
        let place = seen.iter().position(|group| group.contains(&"shop")).expect("answered");
        assert!(place <= LEADERS_MAX, "it is in the first group after those in progress");
    }

    #[tokio::test]
    async fn a_request_without_caller_is_dropped_and_a_panic_affects_one_group() {
        let setup = Setup::new();
        let bugs = setup.occupy("bug").await;
        let gone = tokio::spawn(setup.join("shop", "gone"));
        setup.queued(1).await;
        gone.abort();
        assert!(gone.await.is_err());
        let stays = tokio::spawn(setup.join("shop", "stays"));
        setup.queued(2).await;
        setup.gate.add_permits(10);
        for bug in bugs {
            assert!(matches!(bug.await.expect("no panic of the caller"), Ok(None)));
        }
        assert_eq!(answered(stays).await, (1, 0));
    }

    #[tokio::test]
    async fn a_failure_is_the_callers_own_or_leads_to_a_retry_alone() {
        let setup = Setup::new();
        let alone = setup.occupy("fault").await;
        let group = ["fault", "innocent"].map(|request| tokio::spawn(setup.join("shop", request)));
        setup.queued(2).await;
        setup.gate.add_permits(10);
        for one in alone {
            assert!(one.await.expect("no panic").is_err());
        }
        for one in group {
            assert!(matches!(one.await.expect("no panic"), Ok(None)));
        }
    }

    /// Leaders start and stop all the time: no request is left behind, and each gets its own outcome.
    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn a_request_that_arrives_when_a_leader_stops_is_carried_out() {
        let group = Group::<usize, usize>::new("test", Duration::from_secs(10), Metrics::default());
        let one_by_one = |caller: usize| {
            let group = group.clone();
            let project = project(&format!("project-{}", caller % 3));
            tokio::spawn(async move {
                for number in (0..2_000).map(|round| caller * 10_000 + round) {
                    let echo = |(), requests: Vec<usize>| async { Ok(requests.into_iter().map(Some).collect()) };
                    let outcome = group.join(&project, number, &(), echo).await.expect("in time");
                    assert_eq!(outcome, Some(number));
                }
            })
        };
        for caller in (0..8).map(one_by_one).collect::<Vec<_>>() {
            caller.await.expect("no panic");
        }
        while group.queue().leaders > 0 {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn the_queue_has_a_bound() {
        let setup = Setup::new();
        let first = setup.occupy("first").await;
        let waiting: Vec<_> = (0..WAITING_MAX).map(|_| tokio::spawn(setup.join("shop", "waits"))).collect();
        setup.queued(WAITING_MAX).await;
        assert!(setup.join("shop", "late").await.is_err());
        // Another project's requests are admitted until it has as many waiting.
        let other = tokio::spawn(setup.join("other", "other"));
        let (displaced, _, waiting) = futures_util::future::select_all(waiting).await;
        assert!(displaced.expect("no panic").is_err(), "one of the project with the most");
        assert_eq!(setup.group.queue().count, WAITING_MAX);
        setup.gate.add_permits(1_000);
        for one in first.into_iter().chain(waiting).chain([other]) {
            answered(one).await;
        }
    }
}
