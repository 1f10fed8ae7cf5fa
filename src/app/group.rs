//! Group commit: requests that arrive while a transaction is in progress share the next one.
//!
//! No request waits for a group to fill. A request that finds no transaction in progress starts one at once, alone. While it
//! commits, others queue, and all that have queued go together next. So groups grow with the load.
//!
//! Projects take turns, request by request: a flood of one project delays the requests of another by one group at most.

use std::collections::HashMap;
use std::collections::VecDeque;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;

use futures_util::FutureExt as _;
use tokio::sync::oneshot;

use sessiond_core::id::ProjectId;

/// How many groups are in progress at a time: one is prepared while another waits for the disk.
const LEADERS_MAX: usize = 2;

/// The most requests in a group. Bounds the work of a statement, and how many requests one failure affects.
const GROUP_MAX: usize = 128;

/// The most requests that wait. Further ones are refused.
const WAITING_MAX: usize = 4_096;

/// Why a request has no outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoOutcome {
    /// The queue is full. Nothing was done.
    Full,
    /// A bug, or the end of the runtime, stopped the group. The request may have been carried out.
    Lost,
}

/// Carries out requests of one kind in groups. Cheap to clone; clones share state.
pub(super) struct Group<Q, A>(Arc<Mutex<Queue<Q, A>>>);

struct Queue<Q, A> {
    /// The waiting requests of each project, in order of arrival. No list is empty.
    waiting: HashMap<ProjectId, VecDeque<Waiting<Q, A>>>,
    /// The projects with waiting requests, in turn.
    turns: VecDeque<ProjectId>,
    count: usize,
    leaders: usize,
}

struct Waiting<Q, A> {
    request: Q,
    caller: oneshot::Sender<A>,
}

impl<Q, A> Clone for Group<Q, A> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<Q, A> Default for Group<Q, A> {
    fn default() -> Self {
        let queue = Queue { waiting: HashMap::new(), turns: VecDeque::new(), count: 0, leaders: 0 };
        Self(Arc::new(Mutex::new(queue)))
    }
}

impl<Q: Send + 'static, A: Send + 'static> Group<Q, A> {
    /// Queues a request, and waits for its outcome. `carry_out` returns an outcome for each request, in order. It runs on a
    /// task of its own: once it has begun, it goes on if the caller is dropped.
    ///
    /// # Errors
    ///
    /// See [`NoOutcome`].
    pub(super) async fn join<F, W>(&self, project: ProjectId, request: Q, carry_out: F) -> Result<A, NoOutcome>
    where
        F: Fn(Vec<Q>) -> W + Send + 'static,
        W: Future<Output = Vec<A>> + Send + 'static,
    {
        let (caller, outcome) = oneshot::channel();
        if self.queue().push(project, Waiting { request, caller })? {
            tokio::spawn(self.clone().lead(carry_out));
        }
        outcome.await.map_err(|_| NoOutcome::Lost)
    }

    /// Carries out group after group, until no request waits.
    async fn lead<F, W>(self, carry_out: F)
    where
        F: Fn(Vec<Q>) -> W,
        W: Future<Output = Vec<A>>,
    {
        while let Some(group) = self.next() {
            let (requests, callers): (Vec<Q>, Vec<oneshot::Sender<A>>) =
                group.into_iter().map(|one| (one.request, one.caller)).unzip();
            // A panic must not leave the queue without a leader. The callers of the group find their senders dropped.
            let outcomes = AssertUnwindSafe(carry_out(requests)).catch_unwind().await.unwrap_or_default();
            for (caller, outcome) in callers.into_iter().zip(outcomes) {
                // A caller that is gone needs no outcome.
                let _ = caller.send(outcome);
            }
        }
    }

    /// The next group for a leader. Without one, it stops leading.
    fn next(&self) -> Option<Vec<Waiting<Q, A>>> {
        let mut queue = self.queue();
        let group = queue.take();
        if group.is_empty() {
            queue.leaders -= 1;
            return None;
        }
        Some(group)
    }

    fn queue(&self) -> MutexGuard<'_, Queue<Q, A>> {
        self.0.lock().expect("no one panics while holding it")
    }
}

impl<Q, A> Queue<Q, A> {
    /// Queues a request. Returns whether it needs another leader.
    fn push(&mut self, project: ProjectId, one: Waiting<Q, A>) -> Result<bool, NoOutcome> {
        if self.count >= WAITING_MAX {
            return Err(NoOutcome::Full);
        }
        self.count += 1;
        let waiting = self.waiting.entry(project.clone()).or_default();
        if waiting.is_empty() {
            self.turns.push_back(project);
        }
        waiting.push_back(one);
        let needs_leader = self.leaders < LEADERS_MAX;
        self.leaders += usize::from(needs_leader);
        Ok(needs_leader)
    }

    /// Takes the next group: a request of each project in turn. Drops requests whose callers are gone.
    fn take(&mut self) -> Vec<Waiting<Q, A>> {
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

    impl Setup {
        fn new() -> Self {
            Self { group: Group::default(), gate: Arc::new(Semaphore::new(0)), seen: Arc::default() }
        }

        fn join(
            &self,
            of: &str,
            request: &'static str,
        ) -> impl Future<Output = Result<(usize, usize), NoOutcome>> + Send + use<> {
            let (group, gate, seen) = (self.group.clone(), Arc::clone(&self.gate), Arc::clone(&self.seen));
            let project = project(of);
            async move {
                let carry_out = move |requests: Vec<&'static str>| {
                    let (gate, seen) = (Arc::clone(&gate), Arc::clone(&seen));
                    async move {
                        gate.acquire().await.expect("open").forget();
                        assert!(!requests.contains(&"bug"), "the bug under test");
                        let size = requests.len();
                        seen.lock().expect("no panic").push(requests);
                        (0..size).map(|place| (size, place)).collect()
                    }
                };
                group.join(project, request, carry_out).await
            }
        }

        /// Occupies every leader with one request.
        async fn occupy(
            &self,
            request: &'static str,
        ) -> Vec<tokio::task::JoinHandle<Result<(usize, usize), NoOutcome>>> {
            let mut asked = vec![];
            for leaders in 1..=LEADERS_MAX {
                asked.push(tokio::spawn(self.join("shop", request)));
                // Until a leader has taken it: otherwise the next request would join it.
                while self.group.queue().leaders < leaders || self.group.queue().count > 0 {
                    tokio::task::yield_now().await;
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

    #[tokio::test]
    async fn requests_that_queue_go_together() {
        let setup = Setup::new();
        let first = setup.occupy("first").await;
        let rest: Vec<_> = (0..GROUP_MAX + 1).map(|_| tokio::spawn(setup.join("shop", "rest"))).collect();
        setup.queued(GROUP_MAX + 1).await;
        setup.gate.add_permits(10);
        for one in first {
            assert_eq!(one.await.expect("no panic"), Ok((1, 0)), "no request waits for a group to fill");
        }
        let mut sizes = HashMap::new();
        for one in rest {
            *sizes.entry(one.await.expect("no panic").expect("an answer").0).or_insert(0) += 1;
        }
        assert_eq!(sizes, HashMap::from([(GROUP_MAX, GROUP_MAX), (1, 1)]), "a group has a bound");
        assert_eq!(setup.group.queue().leaders, 0, "a leader stops when no request waits");
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
            one.await.expect("no panic").expect("an answer");
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
            assert_eq!(bug.await.expect("no panic of the caller"), Err(NoOutcome::Lost));
        }
        assert_eq!(stays.await.expect("no panic"), Ok((1, 0)));
    }

    #[tokio::test]
    async fn the_queue_has_a_bound() {
        let setup = Setup::new();
        let first = setup.occupy("first").await;
        let waiting: Vec<_> = (0..WAITING_MAX).map(|_| tokio::spawn(setup.join("shop", "waits"))).collect();
        setup.queued(WAITING_MAX).await;
        assert_eq!(setup.join("shop", "late").await, Err(NoOutcome::Full));
        setup.gate.add_permits(1_000);
        for one in first.into_iter().chain(waiting) {
            one.await.expect("no panic").expect("an answer");
        }
    }
}
