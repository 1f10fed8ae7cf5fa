//! Admission control, cheapest check first: the address's bucket, the address's share of the requests in progress, and the
//! arrival of the message, with a deadline and within a budget of bytes. Only a request that was received completely takes a
//! slot, parses JSON, checks a signature or queries the database.
//!
//! A refusal is not rendered here. The request continues without its body and with an [`EarlyRefusal`] in its extensions, and
//! is answered where every call is counted, with a gRPC status, which every wire renders in its own way.

use std::collections::HashMap;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::Once;
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use http::Extensions;
use http_body_util::Limited;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::Semaphore;
use tokio::time::sleep;
use tokio::time::timeout;
use tonic::Status;

use super::answer::answer;
use super::arrival;
use super::arrival::Arrived;
use super::arrival::Budget;
use super::arrival::ByteLease;
use super::class;
use super::media;
use super::message;
use super::message::MessageLimits;
use super::message::OpenError;
use crate::config;
use crate::forwarded::ForMany;
use crate::forwarded::TrustedPeer;
use crate::rates::Bucket;
use crate::rates::Limiter;
use crate::rates::network;
use crate::rpc::status;
use crate::telemetry::Metrics;
use crate::telemetry::RequestClass;
use sessiond_core::session::Origin;
use tonic_rest_layer::RestLayer;
use tonic_rest_layer::grpc_timeout;

/// The address that was charged for a request, and is refunded if the request has a genuine server key.
#[derive(Clone, Copy)]
pub(super) struct PaidBy(pub(super) IpAddr);

/// The status of a request that was refused by admission control.
#[derive(Clone)]
pub(super) struct EarlyRefusal(Status);

impl EarlyRefusal {
    /// The status, if the request was refused.
    pub(super) fn of(extensions: &Extensions) -> Option<Status> {
        extensions.get::<Self>().map(|Self(status)| status.clone())
    }
}

/// Admission control. Cheap to clone; clones share state.
#[derive(Clone)]
pub(super) struct AdmissionControl(Arc<AdmissionLimits>);

struct AdmissionLimits {
    rates: Limiter,
    metrics: Metrics,
    arrival_timeout: Duration,
    body_bytes_max: usize,
    budget: Budget,
    in_progress: InProgress,
    /// The responses without an end.
    endless: InProgress,
    endless_slots: Arc<Semaphore>,
    /// The refused requests that wait for their answer.
    delayed: InProgress,
    rest: RestLayer,
}

/// The largest form: several times what a refresh token and the credentials of a client take.
const FORM_BYTES_MAX: usize = 64 * 1024;

/// A request about a token that is larger than this, in bytes, is charged as several. With the headers of a browser it is smaller.
const VERIFY_BYTES: usize = 16 * 1024;

/// How long a request that the address's bucket refuses waits for its answer. A client that repeats at once would otherwise
/// cost the server, and itself, as much as the machine can do.
const REFUSAL_DELAY: Duration = Duration::from_millis(100);

/// How many responses without an end may be open: as many as connections, and at least this many; and of an address a sixty-fourth
/// of that, and at least this many. Each takes some 10 kB.
const ENDLESS_MIN: usize = 1_024;
const ADDRESS_ENDLESS_MIN: usize = 64;

/// The most bytes of questions in one reflection stream: enough to ask about every file of ours by name. The answer to one may be a
/// thousand times as long.
const REFLECTION_BYTES_MAX: usize = 8 * 1024;

/// How many refused requests of an address wait for their answer. More are answered at once: each takes memory.
const DELAYED_MAX: usize = 64;

impl AdmissionControl {
    /// Limits as configured.
    pub(super) fn new(rates: Limiter, limits: &config::Limits, metrics: Metrics, rest: RestLayer) -> Self {
        Self(Arc::new(AdmissionLimits {
            rest,
            rates,
            metrics,
            arrival_timeout: limits.request_timeout,
            body_bytes_max: limits.body_bytes_max,
            budget: Budget::new(limits.arriving_bytes_max),
            in_progress: InProgress::new(limits.address_requests_max()),
            endless: InProgress::new((limits.connections_max / 64).max(ADDRESS_ENDLESS_MIN)),
            endless_slots: Arc::new(Semaphore::new(limits.connections_max.max(ENDLESS_MIN))),
            delayed: InProgress::new(DELAYED_MAX),
        }))
    }
}

impl AdmissionLimits {
    /// What will be read of a request's message; `None` if nothing. A request for an unknown path is refused before its body is
    /// read.
    fn message(&self, request: &Request, class: RequestClass, is_for_many: bool) -> Option<Expected> {
        let path = request.uri().path();
        if !class::has_message(request.method(), class) {
            None
        } else if media::is_grpc(request.headers()) {
            // A message may take more bytes in protobuf than in JSON, and has a frame header.
            let limits = MessageLimits::of(path, 2 * self.body_bytes_max + 5, is_for_many)?;
            Some(Expected { bytes_max: limits.bytes_max, limits: Some(limits) })
        } else if class::is_form(path) {
            Some(Expected { bytes_max: self.body_bytes_max.min(FORM_BYTES_MAX), limits: None })
        } else {
            let is_read = self.rest.has_route(request.method(), path);
            is_read.then_some(Expected { bytes_max: self.body_bytes_max, limits: None })
        }
    }

    /// Charges the address that a request comes from.
    fn charge(
        &self,
        class: RequestClass,
        is_endless: bool,
        ip: IpAddr,
        extensions: &mut Extensions,
    ) -> Result<(), Status> {
        let refused = |empty: crate::rates::Empty| status::refused(empty.into());
        match class {
            // Probes cost nothing, and a refused probe would take the replica out of service.
            RequestClass::Probe if !is_endless => Ok(()),
            RequestClass::SignOut => self.rates.charge(Bucket::SignOut(ip)).map_err(refused),
            RequestClass::Verify | RequestClass::Public => self.rates.charge(Bucket::Verify(ip)).map_err(refused),
            RequestClass::Probe | RequestClass::Reflection | RequestClass::Other => {
                self.rates.charge(Bucket::Address(ip)).map_err(refused)?;
                extensions.insert(PaidBy(ip));
                Ok(())
            }
        }
    }

    /// A share of the responses without an end; `None` if there is none left.
    fn endless(&self, ip: IpAddr, class: RequestClass) -> Option<EndlessShare> {
        let slot = Arc::clone(&self.endless_slots).try_acquire_owned().ok()?;
        Some(EndlessShare { _share: self.endless.enter(ip, class)?, _slot: slot })
    }

    fn overloaded(&self, class: RequestClass, reason: &'static str) -> Status {
        self.metrics.request_refused(class, reason);
        status::overloaded()
    }
}

/// What is read of a request before it passes on.
struct Expected {
    bytes_max: usize,
    /// `None` if it is not a message of gRPC or grpc-web.
    limits: Option<MessageLimits>,
}

/// A request that may pass on, admitted or marked as refused.
pub(super) struct Admitted {
    pub(super) request: Request,
    /// Released when dropped: after the response's head.
    pub(super) held: (Option<Share>, Option<ByteLease>),
    /// Released when dropped: after a response without an end of its own.
    pub(super) endless: Option<EndlessShare>,
}

/// A share of the responses without an end.
pub(super) struct EndlessShare {
    _share: Share,
    _slot: OwnedSemaphorePermit,
}

impl AdmissionControl {
    /// Admits a request, or marks it as refused.
    pub(super) async fn admit(&self, mut request: Request) -> Admitted {
        let Self(shared) = self;
        let class = class::of(request.method(), request.uri().path());
        // A proxy that does not say for whom it asks asks for everybody, and one of them must not use up its limits for the others.
        // But their messages must arrive like any other: a proxy may forward a call whose message never arrives.
        let is_of_proxy = request.extensions().get::<ForMany>().is_some();
        if !is_of_proxy && request.extensions().get::<TrustedPeer>().is_some() && class::is_check(request.uri().path())
        {
            warn_of_named_client();
        }
        let is_for_many =
            is_of_proxy && matches!(class, RequestClass::Verify | RequestClass::Public | RequestClass::Probe);
        // Requests of unknown origin share one bucket.
        let unknown = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        let ip = request.extensions().get::<Origin>().and_then(|origin| origin.ip).unwrap_or(unknown);
        let is_endless = class::is_endless(request.uri().path());
        let share = if is_for_many {
            None
        } else {
            if let Err(status) = shared.charge(class, is_endless, ip, request.extensions_mut()) {
                if let Some(_delayed) = shared.delayed.enter(ip, class) {
                    sleep(REFUSAL_DELAY).await;
                }
                return refused(status, request, None);
            }
            let share = shared.in_progress.enter(ip, class);
            if share.is_none() {
                return refused(shared.overloaded(class, "address"), request, None);
            }
            share
        };
        let mut endless = None;
        if is_endless {
            endless = shared.endless(ip, class);
            if endless.is_none() {
                return refused(shared.overloaded(class, "endless"), request, share);
            }
            if class == RequestClass::Reflection {
                request = request.map(|body| Body::new(Limited::new(body, REFLECTION_BYTES_MAX)));
            }
        }
        let Some(Expected { bytes_max, limits }) = shared.message(&request, class, is_for_many) else {
            return Admitted { request, held: (share, None), endless };
        };
        let (mut parts, body) = request.into_parts();
        let asked =
            grpc_timeout(&parts.headers).map_or(shared.arrival_timeout, |asked| asked.min(shared.arrival_timeout));
        let mut lease = if is_for_many { shared.budget.lease_for_many() } else { shared.budget.lease(ip) };
        let mut arriving = arrival::Arriving::new(body);
        let outcome = timeout(asked, arriving.gather(bytes_max, &mut lease)).await;
        let without_body = |parts| Request::from_parts(parts, Body::empty());
        match (outcome, limits) {
            (Ok(Arrived::OverBudget), _) => refused(shared.overloaded(class, "bytes"), without_body(parts), share),
            // Refused here, because tonic would wait for the whole announced length first, and hold a slot meanwhile.
            (Ok(Arrived::TooLarge | Arrived::CutOff), Some(_)) => {
                refused(status::undecodable(), without_body(parts), share)
            }
            (Ok(Arrived::Whole), Some(limits)) => {
                let data = arriving.take_data();
                let opened = message::open(&limits, &mut parts.headers, data, &mut lease);
                if class == RequestClass::Verify && !is_for_many {
                    shared.rates.charge_also(Bucket::Verify(ip), lease.bytes() / VERIFY_BYTES);
                }
                match opened {
                    Ok(message) => {
                        let request = Request::from_parts(parts, message.into());
                        Admitted { request, held: (share, Some(lease)), endless }
                    }
                    Err(OpenError::Undecodable) => refused(status::undecodable(), without_body(parts), share),
                    Err(OpenError::OverBudget) => {
                        refused(shared.overloaded(class, "bytes"), without_body(parts), share)
                    }
                }
            }
            (Ok(Arrived::Whole | Arrived::TooLarge | Arrived::CutOff), None) => {
                let request = Request::from_parts(parts, arriving.into_body());
                Admitted { request, held: (share, Some(lease)), endless }
            }
            (Err(_), limits) => {
                shared.metrics.request_refused(class, "arrival");
                if limits.is_some() {
                    return refused(status::late(), without_body(parts), share);
                }
                // The layer that answers reads the rest, waits no longer, and returns its own 408.
                let request = Request::from_parts(parts, arriving.into_body());
                Admitted { request, held: (share, Some(lease)), endless }
            }
        }
    }
}

/// Only a proxy makes this call, and its clients are named in the message.
fn warn_of_named_client() {
    static NAMED: Once = Once::new();
    NAMED.call_once(|| {
        tracing::warn!(
            "a Check of a --trusted-proxy names an address in X-Forwarded-For that is not a trusted one, so all its clients count as \
             one: if that is the proxy's own, name it too, or use --proxy-listen (logged once)"
        );
    });
}

/// A refused request, which passes on without its body.
fn refused(status: Status, mut request: Request, share: Option<Share>) -> Admitted {
    *request.body_mut() = Body::empty();
    request.extensions_mut().insert(EarlyRefusal(status));
    Admitted { request, held: (share, None), endless: None }
}

/// The answer to a refused request for a document, which is not a call of the API; `None` for any other request.
pub(super) fn document_refusal(request: &Request) -> Option<Response> {
    let status = EarlyRefusal::of(request.extensions())?;
    (class::of(request.method(), request.uri().path()) == RequestClass::Public).then(|| answer(&status))
}

/// How many requests each address has in progress, until the response's head: HTTP/2 limits only the streams of one
/// connection. Sign-outs are counted separately.
struct InProgress {
    max: usize,
    counts: Arc<Mutex<HashMap<(IpAddr, bool), usize>>>,
}

impl InProgress {
    fn new(max: usize) -> Self {
        Self { max, counts: Arc::default() }
    }

    fn enter(&self, ip: IpAddr, class: RequestClass) -> Option<Share> {
        let key = (network(ip), class == RequestClass::SignOut);
        let mut counts = self.counts.lock().expect("no one panics while holding it");
        let count = counts.entry(key).or_default();
        if *count >= self.max {
            return None;
        }
        *count += 1;
        Some(Share { key, counts: Arc::clone(&self.counts) })
    }
}

/// One request of an address. Released when dropped.
pub(super) struct Share {
    key: (IpAddr, bool),
    counts: Arc<Mutex<HashMap<(IpAddr, bool), usize>>>,
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut counts = self.counts.lock().expect("no one panics while holding it");
        if let Some(count) = counts.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.key);
            }
        }
    }
}
