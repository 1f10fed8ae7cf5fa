//! How much any one caller may ask for: token buckets, asked before any cryptography and before the database.
//!
//! A bucket holds a burst of tokens and gets so many back a second; a request takes one. All that is kept of a bucket is when
//! it will be full again (the generic cell rate algorithm, ITU-T I.371), so a full one need not be kept at all. Each
//! replica has its own.
//!
//! Memory is bounded, and nobody gets more out of a flood of new names. The buckets of a kind are a table of fixed size in
//! sets of eight; a name's hash, under a key of this process, says in which set it is. A newcomer takes the place of the
//! fullest bucket there, *with what is missing in it*. So a place never gives out more than one bucket would, whatever names
//! pass through it; and as a bucket is full again within `burst / rate` seconds, the bound is on the names that are busy
//! within a few seconds, not on those that there are.

use std::hash::BuildHasher as _;
use std::hash::Hash;
use std::hash::RandomState;
use std::net::IpAddr;
use std::net::Ipv6Addr;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use tokio::task::futures::TaskLocalFuture;

use crate::clock::Clock;
use crate::config;
use crate::id::KeyId;
use crate::id::ProjectId;
use crate::id::SessionId;
use crate::id::UserId;
use crate::telemetry::Metrics;

/// The most buckets for addresses, and as many again for their sign-outs: a megabyte each.
pub const ADDRESSES_MAX: usize = 65_536;

/// The most buckets for projects, and the most for server keys.
pub const PROJECTS_MAX: usize = 8_192;

/// The most buckets for users.
pub const USERS_MAX: usize = 65_536;

/// How many places there are for a name.
const WAYS: usize = 8;

/// The bits of an IPv6 address that name the network: a subscriber has at least one whole (RFC 6177), and any number of
/// addresses in it.
const IPV6_NETWORK: u128 = !0 << 64;

/// Whose bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Of<'a> {
    /// A client's address: for everything but signing out.
    Address(IpAddr),
    /// A client's address, for signing out: whatever else comes from there must not stand in its way.
    SignOut(IpAddr),
    /// A client's address, for what proxies and verifiers ask.
    Verify(IpAddr),
    /// A user, whatever address they ask from.
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
    /// After how long there is a token again; never zero.
    pub retry_after: Duration,
}

tokio::task_local! {
    /// The address that a token was taken of for the request that this task answers.
    static PAID_BY: Option<IpAddr>;
}

/// Answers a request for which a token was taken of this address; see [`Limiter::give_back`].
pub fn paid_by<F: Future>(address: Option<IpAddr>, work: F) -> TaskLocalFuture<Option<IpAddr>, F> {
    PAID_BY.scope(address, work)
}

/// The buckets. Clones are one and the same.
#[derive(Clone)]
pub struct Limiter(Option<Arc<Limits>>);

struct Limits {
    clock: Clock,
    metrics: Metrics,
    hasher: RandomState,
    addresses: Option<Buckets>,
    sign_outs: Option<Buckets>,
    verify: Option<Buckets>,
    users: Option<Buckets>,
    sessions: Option<Buckets>,
    projects: Option<Buckets>,
    server_keys: Option<Buckets>,
}

impl Limiter {
    /// Lets everything in.
    pub const fn off() -> Self {
        Self(None)
    }

    /// Limits as configured.
    pub fn new(rates: &config::Rates, clock: Clock, metrics: Metrics) -> Self {
        let addresses = || Buckets::new(rates.address_rate, rates.address_burst, ADDRESSES_MAX);
        let users = || Buckets::new(rates.user_rate, rates.user_burst, USERS_MAX);
        Self(Some(Arc::new(Limits {
            clock,
            metrics,
            hasher: RandomState::new(),
            addresses: addresses(),
            sign_outs: addresses(),
            verify: Buckets::new(rates.verify_rate, rates.verify_burst, ADDRESSES_MAX),
            users: users(),
            sessions: users(),
            projects: Buckets::new(rates.project_rate, rates.project_burst, PROJECTS_MAX),
            server_keys: Buckets::new(rates.server_key_rate, rates.server_key_burst, PROJECTS_MAX),
        })))
    }

    /// Takes a token.
    ///
    /// # Errors
    ///
    /// When there is none; then nothing has changed.
    pub fn take(&self, of: Of<'_>) -> Result<(), Empty> {
        self.ask(of, Buckets::take)
    }

    /// Whether there is a token; takes none.
    ///
    /// For what a credential names before it is known to be genuine: whom it names must not pay for what strangers make up,
    /// and where nothing is left the credential need not be looked at. The token is taken afterwards.
    ///
    /// # Errors
    ///
    /// When there is none.
    pub fn look(&self, of: Of<'_>) -> Result<(), Empty> {
        self.ask(of, Buckets::look)
    }

    /// Gives the address of the request that this task answers its token back: the request has shown a credential that has
    /// a bucket of its own, and one address may have many such to make.
    pub fn give_back(&self) {
        let paid_by = PAID_BY.try_with(|address| *address).ok().flatten();
        if let Some((limits, address)) = self.0.as_ref().zip(paid_by)
            && let Some(buckets) = &limits.addresses
        {
            buckets.give_back(limits.name(network(address)));
        }
    }

    fn ask(&self, of: Of<'_>, question: fn(&Buckets, u64, u64) -> Result<(), Empty>) -> Result<(), Empty> {
        let Some(limits) = &self.0 else { return Ok(()) };
        let (buckets, kind, name) = match of {
            Of::Address(ip) => (&limits.addresses, "address", limits.name(network(ip))),
            Of::SignOut(ip) => (&limits.sign_outs, "sign_out", limits.name(network(ip))),
            Of::Verify(ip) => (&limits.verify, "verify", limits.name(network(ip))),
            Of::User(project, user) => (&limits.users, "user", limits.name((project, user))),
            Of::Session(project, session) => (&limits.sessions, "session", limits.name((project, session))),
            Of::Project(project) => (&limits.projects, "project", limits.name(project)),
            Of::ServerKey(key) => (&limits.server_keys, "server_key", limits.name(key)),
        };
        let Some(buckets) = buckets else { return Ok(()) };
        let now = limits.clock.elapsed().as_nanos().try_into().unwrap_or(u64::MAX);
        question(buckets, name, now).inspect_err(|_| limits.metrics.rate_limited(kind))
    }
}

impl Limits {
    fn name(&self, of: impl Hash) -> u64 {
        self.hasher.hash_one(of)
    }
}

/// What counts as one address: of IPv6, the network.
pub fn network(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() & IPV6_NETWORK).into(),
        ip @ IpAddr::V4(_) => ip,
    }
}

/// The buckets of one kind.
struct Buckets {
    /// The time in which a token comes back. Times are in nanoseconds.
    interval: u64,
    /// How long it may be until a bucket is full for there to be a token in it still.
    tolerance: u64,
    sets: Box<[Mutex<[Bucket; WAYS]>]>,
}

/// A bucket, in 16 bytes.
#[derive(Clone, Copy, Default)]
struct Bucket {
    /// The hash of the name: 64 bits under a secret key, so that no one can find a second name with the same.
    name: u64,
    /// When it is full again.
    full_at: u64,
}

impl Buckets {
    /// `None` when there is no limit.
    fn new(rate: u32, burst: u32, count: usize) -> Option<Self> {
        // Rounded up: never more than the rate says.
        let interval = 1_000_000_000_u64.div_ceil(u64::from(rate).max(1));
        let tolerance = interval.saturating_mul(u64::from(burst.saturating_sub(1)));
        let sets = (0..count / WAYS).map(|_| Mutex::default()).collect();
        (rate > 0).then_some(Self { interval, tolerance, sets })
    }

    fn take(&self, name: u64, now: u64) -> Result<(), Empty> {
        let mut set = self.set(name).lock().expect("no one panics while holding it");
        let at = place(&set, name);
        set[at] = Bucket { name, full_at: self.after(set[at], now)? };
        Ok(())
    }

    fn look(&self, name: u64, now: u64) -> Result<(), Empty> {
        let set = self.set(name).lock().expect("no one panics while holding it");
        self.after(set[place(&set, name)], now).map(|_| ())
    }

    /// A bucket that another has taken over since keeps what it has.
    fn give_back(&self, name: u64) {
        let mut set = self.set(name).lock().expect("no one panics while holding it");
        if let Some(bucket) = set.iter_mut().find(|bucket| bucket.name == name) {
            bucket.full_at = bucket.full_at.saturating_sub(self.interval);
        }
    }

    fn set(&self, name: u64) -> &Mutex<[Bucket; WAYS]> {
        let count = self.sets.len() as u64;
        &self.sets[usize::try_from(name % count).expect("less than the length of a slice")]
    }

    /// When the bucket is full again once a token is taken.
    fn after(&self, bucket: Bucket, now: u64) -> Result<u64, Empty> {
        let missing = bucket.full_at.saturating_sub(now);
        match missing.checked_sub(self.tolerance) {
            Some(wait) if wait > 0 => Err(Empty { retry_after: Duration::from_nanos(wait) }),
            _ => Ok(now + missing + self.interval),
        }
    }
}

/// Where the name's bucket is; when it has none, where the fullest is, which it will take over as it stands.
fn place(set: &[Bucket; WAYS], name: u64) -> usize {
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

    fn v4(address: u32) -> Of<'static> {
        Of::Address(IpAddr::V4(address.into()))
    }

    fn drain(limiter: &Limiter, of: Of<'_>) -> Empty {
        (0..10).find_map(|_| limiter.take(of).err()).expect("ten are more than five")
    }

    #[test]
    fn a_burst_is_let_in_and_then_one_per_interval() {
        let (limiter, clock) = limiter();
        let (tick, interval) = (Duration::from_micros(1), Duration::from_millis(100));
        for _ in 0..5 {
            assert_eq!(limiter.look(v4(1)), Ok(()), "a look takes nothing");
            assert_eq!(limiter.take(v4(1)), Ok(()));
        }
        let empty = Empty { retry_after: interval };
        assert_eq!((limiter.look(v4(1)), limiter.take(v4(1))), (Err(empty), Err(empty)));
        clock.advance(interval - tick);
        assert_eq!(limiter.take(v4(1)), Err(Empty { retry_after: tick }), "refusals take nothing; just before");
        clock.advance(tick);
        assert_eq!((limiter.take(v4(1)), limiter.take(v4(1))), (Ok(()), Err(empty)), "at exactly the time told");
        clock.advance(Duration::from_secs(60));
        assert!((0..5).all(|_| limiter.take(v4(1)).is_ok()) && limiter.take(v4(1)).is_err(), "no more than full");
    }

    #[test]
    fn everyone_has_a_bucket_of_their_own() {
        let (limiter, _) = limiter();
        let (one, two) = (ProjectId::parse("one").expect("a name"), ProjectId::parse("two").expect("a name"));
        let ada = UserId::parse("ada").expect("a name");
        let keys = [KeyId::from_uuid(uuid::Uuid::from_u128(1)), KeyId::from_uuid(uuid::Uuid::from_u128(2))];
        let of = [
            v4(1),
            v4(2),
            Of::SignOut(IpAddr::V4(1.into())),
            Of::Verify(IpAddr::V4(1.into())),
            Of::User(&one, &ada),
            Of::User(&two, &ada),
            Of::Project(&one),
            Of::Project(&two),
            Of::ServerKey(keys[0]),
            Of::ServerKey(keys[1]),
        ];
        for of in of {
            assert_eq!(limiter.take(of), Ok(()), "{of:?}");
            drain(&limiter, of);
        }
    }

    #[test]
    fn an_ipv6_network_is_one_address_and_a_mapped_ipv4_address_is_itself() {
        let (limiter, _) = limiter();
        let ip = |text: &str| Of::Address(text.parse().expect("an address"));
        drain(&limiter, ip("2001:db8:1:2::1"));
        assert!(limiter.take(ip("2001:db8:1:2:ffff::9")).is_err());
        assert!(limiter.take(ip("2001:db8:1:3::1")).is_ok());
        drain(&limiter, ip("192.0.2.1"));
        assert!(limiter.take(ip("::ffff:192.0.2.1")).is_err());
    }

    #[tokio::test]
    async fn what_is_given_back_can_be_taken_again_and_no_more_than_that() {
        let (limiter, _) = limiter();
        let address = IpAddr::V4(1.into());
        limiter.give_back();
        for _ in 0..100 {
            assert_eq!(limiter.take(Of::Address(address)), Ok(()));
            paid_by(Some(address), async { limiter.give_back() }).await;
        }
        for _ in 0..100 {
            paid_by(Some(address), async { limiter.give_back() }).await;
            paid_by(None, async { limiter.give_back() }).await;
        }
        let left = (0..10).filter(|_| limiter.take(Of::Address(address)).is_ok()).count();
        assert_eq!(left, 5, "no bucket holds more than its burst");
    }

    #[test]
    fn none_is_no_limit() {
        let rates = config::Rates { address_rate: 0, ..RATES };
        let limiter = Limiter::new(&rates, Clock::frozen(), Metrics::default());
        assert!((0..1_000).all(|_| limiter.take(v4(1)).is_ok() && Limiter::off().take(v4(1)).is_ok()));
    }

    #[test]
    fn a_flood_of_addresses_takes_no_more_memory_and_gets_no_more_in() {
        let (limiter, clock) = limiter();
        drain(&limiter, v4(0));
        let places =
            limiter.0.as_ref().and_then(|limits| limits.addresses.as_ref()).expect("limited").sets.len() * WAYS;
        assert_eq!((places, size_of::<Bucket>()), (ADDRESSES_MAX, 16));

        // Each asks ten times in the same moment.
        let flood = (1..=100_000).map(|n| (0..10).filter(|_| limiter.take(v4(n)).is_ok()).count());
        let let_in: usize = flood.sum();
        assert!(let_in <= 5 * ADDRESSES_MAX, "{let_in} of what {ADDRESSES_MAX} buckets hold");
        assert!(let_in > 4 * ADDRESSES_MAX, "{let_in}: the places are used");
        assert!(limiter.take(v4(0)).is_err(), "the flood has washed nothing away");

        clock.advance(Duration::from_millis(500));
        assert_eq!(limiter.take(Of::Address(LOCALHOST)), Ok(()), "a burst's time later all are full again");
    }
}
