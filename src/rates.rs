//! Rate limits: token buckets, checked before any cryptography and before the database.
//!
//! A bucket holds up to `burst` tokens and refills at `rate` tokens per second; a request is charged one. Only the time at
//! which the bucket will be full again is stored (the generic cell rate algorithm, ITU-T I.371), so a full bucket takes no
//! memory. Each replica has its own buckets.
//!
//! Memory is bounded, and a flood of new names gains nothing. The buckets of one kind are a table of fixed size, in sets of
//! eight; the hash of a name, under a key of this process, selects the set. A new name takes over the fullest bucket of its
//! set, *with the tokens that are missing from it*. So a slot never gives out more than one bucket would, whatever names
//! pass through it. A bucket is full again within `burst / rate` seconds, so the bound is on the names that are active
//! within a few seconds, not on all names. A table takes memory only for its parts that are in use.

use std::hash::BuildHasher as _;
use std::hash::Hash;
use std::hash::RandomState;
use std::net::IpAddr;
use std::net::Ipv6Addr;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::OnceLock;
use std::time::Duration;

use tokio::task::futures::TaskLocalFuture;

use crate::config;
use crate::telemetry::Metrics;
use sessiond_core::clock::Clock;
use sessiond_core::id::KeyId;
use sessiond_core::id::ProjectId;
use sessiond_core::id::SessionId;
use sessiond_core::id::UserId;
use sessiond_core::session::Refusal;

/// The most buckets for addresses, and the most for their sign-outs: a megabyte each.
pub const ADDRESSES_MAX: usize = 65_536;

/// The most buckets for projects, and the most for server keys.
pub const PROJECTS_MAX: usize = 8_192;

/// The most buckets for users.
pub const USERS_MAX: usize = 65_536;

/// How many connections a second an address may open at least, and how many at once: far more than clients do, and few enough that
/// their handshakes leave the processors free.
const CONNECTION_RATE: u32 = 2_000;
const CONNECTION_BURST: u32 = 4_000;

/// How many slots a name can be in.
const WAYS: usize = 8;

/// How many sets are allocated at a time: about a page of memory.
const CHUNK_SETS: usize = 32;

/// The bits of an IPv6 address that name the network: a subscriber has at least one /64 (RFC 6177), and any number of
/// addresses in it.
const IPV6_NETWORK: u128 = !0 << 64;

/// A bucket, by its owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bucket<'a> {
    /// A client's address: for everything but signing out.
    Address(IpAddr),
    /// A client's address, for signing out: other requests from there must not block it.
    SignOut(IpAddr),
    /// A client's address, for requests of proxies and verifiers.
    Verify(IpAddr),
    /// A client's address, for new connections: at least as many as requests of the widest kind.
    Connection(IpAddr),
    /// A user, at any address.
    User(&'a ProjectId, &'a UserId),
    /// A session, where its user is not known yet.
    Session(&'a ProjectId, SessionId),
    /// A project.
    Project(&'a ProjectId),
    /// A server key.
    ServerKey(KeyId),
}

/// The bucket is empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Empty {
    /// When the next token is available; never zero.
    pub retry_after: Duration,
}

impl From<Empty> for Refusal {
    fn from(Empty { retry_after }: Empty) -> Self {
        Self::RateLimited { retry_after }
    }
}

tokio::task_local! {
    /// The address that was charged for the request that this task answers.
    static PAID_BY: Option<IpAddr>;
}

/// Runs the work for a request for which this address was charged; see [`Limiter::refund`].
pub fn paid_by<F: Future>(address: Option<IpAddr>, work: F) -> TaskLocalFuture<Option<IpAddr>, F> {
    PAID_BY.scope(address, work)
}

/// All buckets. Cheap to clone; clones share state.
#[derive(Clone)]
pub struct Limiter(Option<Arc<Inner>>);

struct Inner {
    clock: Clock,
    metrics: Metrics,
    hasher: RandomState,
    addresses: Option<Buckets>,
    sign_outs: Option<Buckets>,
    verify: Option<Buckets>,
    connections: Option<Buckets>,
    users: Option<Buckets>,
    sessions: Option<Buckets>,
    projects: Option<Buckets>,
    server_keys: Option<Buckets>,
}

impl Limiter {
    /// A limiter without limits.
    pub const fn off() -> Self {
        Self(None)
    }

    /// Limits as configured.
    pub fn new(rates: &config::Rates, clock: Clock, metrics: Metrics) -> Self {
        let addresses = || Buckets::new(rates.address_rate, rates.address_burst, ADDRESSES_MAX);
        let users = || Buckets::new(rates.user_rate, rates.user_burst, USERS_MAX);
        Self(Some(Arc::new(Inner {
            clock,
            metrics,
            hasher: RandomState::new(),
            addresses: addresses(),
            sign_outs: addresses(),
            verify: Buckets::new(rates.verify_rate, rates.verify_burst, ADDRESSES_MAX),
            // A tight limit on requests must not close connections, which other requests need.
            connections: match rates.verify_rate {
                0 => None,
                rate => {
                    let burst = rates.verify_burst.max(CONNECTION_BURST);
                    Buckets::new(rate.max(CONNECTION_RATE), burst, ADDRESSES_MAX)
                }
            },
            users: users(),
            sessions: users(),
            projects: Buckets::new(rates.project_rate, rates.project_burst, PROJECTS_MAX),
            server_keys: Buckets::new(rates.server_key_rate, rates.server_key_burst, PROJECTS_MAX),
        })))
    }

    /// Takes a token out of the bucket.
    ///
    /// # Errors
    ///
    /// [`Empty`] if it holds none; the bucket is unchanged then.
    pub fn charge(&self, bucket: Bucket<'_>) -> Result<(), Empty> {
        self.apply(bucket, Buckets::charge)
    }

    /// Takes more tokens out of a bucket that has just been charged, also more than it holds: what costs so much is paid for before
    /// the next.
    pub fn charge_also(&self, bucket: Bucket<'_>, tokens: usize) {
        if tokens == 0 {
            return;
        }
        let owe = |buckets: &Buckets, name, now| {
            buckets.owe(name, tokens as u64, now);
            Ok(())
        };
        // It refuses nothing.
        let _ = self.apply(bucket, owe);
    }

    /// Checks that the bucket holds a token, and takes none.
    ///
    /// For the owner that a credential names before it is verified: the owner must not be charged for forgeries, and with an
    /// empty bucket the credential need not be verified at all. Charge the bucket after the verification.
    ///
    /// # Errors
    ///
    /// [`Empty`] if it holds none.
    pub fn check(&self, bucket: Bucket<'_>) -> Result<(), Empty> {
        self.apply(bucket, Buckets::check)
    }

    /// Returns its token to the address that was charged for the request of this task: the request has shown a credential
    /// with a bucket of its own, and one address may send many such requests.
    pub fn refund(&self) {
        let paid_by = PAID_BY.try_with(|address| *address).ok().flatten();
        if let Some((inner, address)) = self.0.as_ref().zip(paid_by)
            && let Some(buckets) = &inner.addresses
        {
            buckets.refund(inner.name(network(address)));
        }
    }

    fn apply(
        &self,
        bucket: Bucket<'_>,
        operation: impl FnOnce(&Buckets, u64, u64) -> Result<(), Empty>,
    ) -> Result<(), Empty> {
        let Some(inner) = &self.0 else { return Ok(()) };
        let (buckets, kind, name) = match bucket {
            Bucket::Address(ip) => (&inner.addresses, "address", inner.name(network(ip))),
            Bucket::SignOut(ip) => (&inner.sign_outs, "sign_out", inner.name(network(ip))),
            Bucket::Verify(ip) => (&inner.verify, "verify", inner.name(network(ip))),
            Bucket::Connection(ip) => (&inner.connections, "connection", inner.name(network(ip))),
            Bucket::User(project, user) => (&inner.users, "user", inner.name((project, user))),
            Bucket::Session(project, session) => (&inner.sessions, "session", inner.name((project, session))),
            Bucket::Project(project) => (&inner.projects, "project", inner.name(project)),
            Bucket::ServerKey(key) => (&inner.server_keys, "server_key", inner.name(key)),
        };
        let Some(buckets) = buckets else { return Ok(()) };
        let now = inner.clock.elapsed().as_nanos().try_into().unwrap_or(u64::MAX);
        operation(buckets, name, now).inspect_err(|_| inner.metrics.rate_limited(kind))
    }
}

impl Inner {
    fn name(&self, owner: impl Hash) -> u64 {
        self.hasher.hash_one(owner)
    }
}

/// The part of an address that limits count by: an IPv4 address whole, the /64 network of an IPv6 address.
pub fn network(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() & IPV6_NETWORK).into(),
        ip @ IpAddr::V4(_) => ip,
    }
}

/// The buckets of one kind.
struct Buckets {
    /// The time that one token takes to refill. All times are in nanoseconds.
    interval: u64,
    /// A bucket that is full within this time still holds a token.
    tolerance: u64,
    /// Allocated on first use: most servers see few addresses and users at a time.
    chunks: Box<[OnceLock<Box<[Set; CHUNK_SETS]>>]>,
}

/// The buckets that a name can be in.
type Set = Mutex<[BucketState; WAYS]>;

/// The state of a bucket, in 16 bytes.
#[derive(Clone, Copy, Default)]
struct BucketState {
    /// The hash of the owner's name: 64 bits under a secret key, so that nobody can find a second name with the same hash.
    name: u64,
    /// When it is full again.
    full_at: u64,
}

impl Buckets {
    /// `None` for no limit.
    fn new(rate: u32, burst: u32, count: usize) -> Option<Self> {
        // Rounded up, so that the rate is never exceeded.
        let interval = 1_000_000_000_u64.div_ceil(u64::from(rate).max(1));
        let tolerance = interval.saturating_mul(u64::from(burst.saturating_sub(1)));
        let chunks = (0..count / WAYS / CHUNK_SETS).map(|_| OnceLock::new()).collect();
        (rate > 0).then_some(Self { interval, tolerance, chunks })
    }

    fn charge(&self, name: u64, now: u64) -> Result<(), Empty> {
        let mut set = self.set(name).lock().expect("no one panics while holding it");
        let at = place(&set, name);
        set[at] = BucketState { name, full_at: self.after(set[at], now)? };
        Ok(())
    }

    fn owe(&self, name: u64, tokens: u64, now: u64) {
        let mut set = self.set(name).lock().expect("no one panics while holding it");
        let at = place(&set, name);
        let full_at = set[at].full_at.max(now).saturating_add(self.interval.saturating_mul(tokens));
        set[at] = BucketState { name, full_at };
    }

    fn check(&self, name: u64, now: u64) -> Result<(), Empty> {
        let set = self.set(name).lock().expect("no one panics while holding it");
        self.after(set[place(&set, name)], now).map(|_| ())
    }

    /// Does nothing if another name has taken the bucket over since.
    fn refund(&self, name: u64) {
        let mut set = self.set(name).lock().expect("no one panics while holding it");
        if let Some(bucket) = set.iter_mut().find(|bucket| bucket.name == name) {
            bucket.full_at = bucket.full_at.saturating_sub(self.interval);
        }
    }

    fn set(&self, name: u64) -> &Set {
        let count = (self.chunks.len() * CHUNK_SETS) as u64;
        let at = usize::try_from(name % count).expect("less than a length");
        let chunk = self.chunks[at / CHUNK_SETS].get_or_init(|| Box::new(std::array::from_fn(|_| Mutex::default())));
        &chunk[at % CHUNK_SETS]
    }

    /// When the bucket is full again after one more charge.
    fn after(&self, bucket: BucketState, now: u64) -> Result<u64, Empty> {
        let missing = bucket.full_at.saturating_sub(now);
        match missing.checked_sub(self.tolerance) {
            Some(wait) if wait > 0 => Err(Empty { retry_after: Duration::from_nanos(wait) }),
            _ => Ok(now + missing + self.interval),
        }
    }
}

/// The index of the name's bucket; if it has none, the index of the fullest, which it takes over as it is.
fn place(set: &[BucketState; WAYS], name: u64) -> usize {
    let own = set.iter().position(|bucket| bucket.name == name);
    let fullest = || (0..WAYS).min_by_key(|at| set[*at].full_at).expect("there are eight");
    own.unwrap_or_else(fullest)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOCALHOST: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
    const RATES: config::Rates = config::Rates {
        address_rate: 10,
        address_burst: 5,
        project_rate: 10,
        project_burst: 5,
        server_key_rate: 10,
        server_key_burst: 5,
        verify_rate: 10,
        verify_burst: 5,
        user_rate: 10,
        user_burst: 5,
    };

    fn limiter() -> (Limiter, Clock) {
        let clock = Clock::frozen();
        (Limiter::new(&RATES, clock.clone(), Metrics::default()), clock)
    }

    fn v4(address: u32) -> Bucket<'static> {
        Bucket::Address(IpAddr::V4(address.into()))
    }

    fn drain(limiter: &Limiter, bucket: Bucket<'_>) -> Empty {
        (0..10).find_map(|_| limiter.charge(bucket).err()).expect("ten are more than five")
    }

    #[test]
    fn a_burst_is_admitted_and_then_one_request_per_interval() {
        let (limiter, clock) = limiter();
        let (tick, interval) = (Duration::from_micros(1), Duration::from_millis(100));
        for _ in 0..5 {
            assert_eq!(limiter.check(v4(1)), Ok(()), "a check charges nothing");
            assert_eq!(limiter.charge(v4(1)), Ok(()));
        }
        let empty = Empty { retry_after: interval };
        assert_eq!((limiter.check(v4(1)), limiter.charge(v4(1))), (Err(empty), Err(empty)));
        clock.advance(interval - tick);
        assert_eq!(limiter.charge(v4(1)), Err(Empty { retry_after: tick }), "refusals take nothing; just before");
        clock.advance(tick);
        assert_eq!((limiter.charge(v4(1)), limiter.charge(v4(1))), (Ok(()), Err(empty)), "at exactly the stated time");
        clock.advance(Duration::from_secs(60));
        assert!((0..5).all(|_| limiter.charge(v4(1)).is_ok()) && limiter.charge(v4(1)).is_err(), "no more than full");
    }

    #[test]
    fn each_owner_has_its_own_bucket() {
        let (limiter, _) = limiter();
        let (one, two) = (ProjectId::parse("one").expect("a name"), ProjectId::parse("two").expect("a name"));
        let ada = UserId::parse("ada").expect("a name");
        let keys = [KeyId::from_uuid(uuid::Uuid::from_u128(1)), KeyId::from_uuid(uuid::Uuid::from_u128(2))];
        let buckets = [
            v4(1),
            v4(2),
            Bucket::SignOut(IpAddr::V4(1.into())),
            Bucket::Verify(IpAddr::V4(1.into())),
            Bucket::User(&one, &ada),
            Bucket::User(&two, &ada),
            Bucket::Project(&one),
            Bucket::Project(&two),
            Bucket::ServerKey(keys[0]),
            Bucket::ServerKey(keys[1]),
        ];
        for bucket in buckets {
            assert_eq!(limiter.charge(bucket), Ok(()), "{bucket:?}");
            drain(&limiter, bucket);
        }
    }

    #[test]
    fn an_ipv6_network_is_one_address_and_a_mapped_ipv4_address_is_itself() {
        let (limiter, _) = limiter();
        let ip = |text: &str| Bucket::Address(text.parse().expect("an address"));
        drain(&limiter, ip("2001:db8:1:2::1"));
        assert!(limiter.charge(ip("2001:db8:1:2:ffff::9")).is_err());
        assert!(limiter.charge(ip("2001:db8:1:3::1")).is_ok());
        drain(&limiter, ip("192.0.2.1"));
        assert!(limiter.charge(ip("::ffff:192.0.2.1")).is_err());
    }

    #[tokio::test]
    async fn a_refund_restores_one_token_and_never_exceeds_the_burst() {
        let (limiter, _) = limiter();
        let address = IpAddr::V4(1.into());
        limiter.refund();
        for _ in 0..100 {
            assert_eq!(limiter.charge(Bucket::Address(address)), Ok(()));
            paid_by(Some(address), async { limiter.refund() }).await;
        }
        for _ in 0..100 {
            paid_by(Some(address), async { limiter.refund() }).await;
            paid_by(None, async { limiter.refund() }).await;
        }
        let left = (0..10).filter(|_| limiter.charge(Bucket::Address(address)).is_ok()).count();
        assert_eq!(left, 5, "no bucket holds more than its burst");
    }

    #[test]
    fn a_rate_of_zero_is_no_limit() {
        let rates = config::Rates { address_rate: 0, ..RATES };
        let limiter = Limiter::new(&rates, Clock::frozen(), Metrics::default());
        assert!((0..1_000).all(|_| limiter.charge(v4(1)).is_ok() && Limiter::off().charge(v4(1)).is_ok()));
    }

    #[test]
    fn a_flood_of_addresses_takes_no_more_memory_and_admits_no_more_requests() {
        let (limiter, clock) = limiter();
        drain(&limiter, v4(0));
        let places = limiter.0.as_ref().and_then(|inner| inner.addresses.as_ref()).expect("limited").chunks.len()
            * CHUNK_SETS
            * WAYS;
        assert_eq!((places, size_of::<BucketState>()), (ADDRESSES_MAX, 16));

        // Each sends ten requests at the same moment.
        let flood = (1..=100_000).map(|n| (0..10).filter(|_| limiter.charge(v4(n)).is_ok()).count());
        let admitted: usize = flood.sum();
        assert!(admitted <= 5 * ADDRESSES_MAX, "{admitted}: more than {ADDRESSES_MAX} buckets hold");
        assert!(admitted > 4 * ADDRESSES_MAX, "{admitted}: not all buckets are used");
        assert!(limiter.charge(v4(0)).is_err(), "the flood has not replaced the state of a used bucket");

        clock.advance(Duration::from_millis(500));
        assert_eq!(limiter.charge(Bucket::Address(LOCALHOST)), Ok(()), "after the time of a burst, all are full again");
    }
}
