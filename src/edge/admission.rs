//! What a request passes before anything is done for it, cheapest first: its address's bucket, its address's share of the
//! requests under way, and the arrival of its message, with a deadline and within a budget of bytes. Only a request that is
//! there whole goes on to take a slot, parse JSON, check a signature or ask the database.
//!
//! A refusal is not rendered here. The request goes on without its body and with an [`EarlyRefusal`] in its extensions, and is
//! answered where every call is counted, as a gRPC status, which every wire renders in its own way.

use std::collections::HashMap;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::extract::State;
use axum::middleware::Next;
use axum::response::Response;
use http::Extensions;
use tokio::time::timeout;
use tonic::Status;

use super::answer::answer;
use super::arrival;
use super::arrival::Arrived;
use super::arrival::Budget;
use super::class;
use super::media;
use super::origin::TrustedPeer;
use crate::config;
use crate::rates::Bucket;
use crate::rates::Limiter;
use crate::rates::network;
use crate::rpc::status;
use crate::telemetry::Metrics;
use crate::telemetry::RequestClass;
use sessiond_core::session::Origin;
use tonic_rest_layer::RestLayer;
use tonic_rest_layer::grpc_timeout;

/// Which of an address's tokens a request has used: the one that a service with a genuine key gets back.
#[derive(Clone, Copy)]
pub(super) struct PaidBy(pub(super) IpAddr);

/// The request was refused on its way in; the answer.
#[derive(Clone)]
pub(super) struct EarlyRefusal(Status);

impl EarlyRefusal {
    /// The refusal of a request, if it was refused.
    pub(super) fn of(extensions: &Extensions) -> Option<Status> {
        extensions.get::<Self>().map(|Self(status)| status.clone())
    }
}

/// See the module.
#[derive(Clone)]
pub(super) struct AdmissionControl(Arc<AdmissionLimits>);

struct AdmissionLimits {
    rates: Limiter,
    metrics: Metrics,
    arrival_timeout: Duration,
    body_bytes_max: usize,
    budget: Budget,
    under_way: UnderWay,
    rest: RestLayer,
}

impl AdmissionControl {
    /// As configured.
    pub(super) fn new(rates: Limiter, limits: &config::Limits, metrics: Metrics, rest: RestLayer) -> Self {
        Self(Arc::new(AdmissionLimits {
            rest,
            rates,
            metrics,
            arrival_timeout: limits.request_timeout,
            body_bytes_max: limits.body_bytes_max,
            budget: Budget::new(limits.arriving_bytes_max),
            under_way: UnderWay::new(limits.address_requests_max()),
        }))
    }
}

impl AdmissionLimits {
    /// Whether a request has a message that somebody will read. What is refused for its path is refused before its body.
    fn has_message(&self, request: &Request, class: RequestClass, is_grpc: bool) -> bool {
        let path = request.uri().path();
        let is_read = || is_grpc || class::is_form(path) || self.rest.has_route(request.method(), path);
        class::has_message(request.method(), class) && is_read()
    }

    /// Takes a token of the address that a request comes from.
    fn charge(&self, class: RequestClass, ip: IpAddr, extensions: &mut Extensions) -> Result<(), Status> {
        let refused = |empty: crate::rates::Empty| status::refused(empty.into());
        match class {
            // Costs nothing, and a prober that is refused takes the replica out.
            RequestClass::Probe => Ok(()),
            RequestClass::SignOut => self.rates.charge(Bucket::SignOut(ip)).map_err(refused),
            RequestClass::Verify | RequestClass::Public => self.rates.charge(Bucket::Verify(ip)).map_err(refused),
            RequestClass::Reflection | RequestClass::Other => {
                self.rates.charge(Bucket::Address(ip)).map_err(refused)?;
                extensions.insert(PaidBy(ip));
                Ok(())
            }
        }
    }

    fn overloaded(&self, class: RequestClass, reason: &'static str) -> Status {
        self.metrics.request_refused(class, reason);
        status::overloaded()
    }
}

/// Lets a request in, or has it refused.
pub(super) async fn admit(
    State(AdmissionControl(shared)): State<AdmissionControl>,
    mut request: Request,
    next: Next,
) -> Response {
    let class = class::of(request.method(), request.uri().path());
    let trusted = request.extensions().get::<TrustedPeer>().is_some();
    // All of a proxy's clients ask from the proxy's address, and one of them must not use it up for the others. But their
    // messages have to arrive as any: it may hand on a call whose message never comes.
    let is_for_many = trusted && matches!(class, RequestClass::Verify | RequestClass::Public | RequestClass::Probe);
    // Requests of unknown origin share a bucket: no way around it.
    let nowhere = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    let ip = request.extensions().get::<Origin>().and_then(|origin| origin.ip).unwrap_or(nowhere);
    let _share = if is_for_many {
        None
    } else {
        if let Err(status) = shared.charge(class, ip, request.extensions_mut()) {
            return refuse(status, request, next).await;
        }
        let share = shared.under_way.enter(ip, class);
        if share.is_none() {
            let status = shared.overloaded(class, "address");
            return refuse(status, request, next).await;
        }
        share
    };
    let is_grpc = media::is_grpc(request.headers());
    if !shared.has_message(&request, class, is_grpc) {
        return next.run(request).await;
    }
    let (parts, body) = request.into_parts();
    // A message takes more bytes in protobuf than in JSON at times, and has a head of its own.
    let bytes_max = if is_grpc { 2 * shared.body_bytes_max + 5 } else { shared.body_bytes_max };
    let asked = grpc_timeout(&parts.headers).map_or(shared.arrival_timeout, |asked| asked.min(shared.arrival_timeout));
    let mut lease = if is_for_many { shared.budget.lease_for_many() } else { shared.budget.lease(ip) };
    let mut arriving = arrival::Arriving::new(body);
    let outcome = timeout(asked, arriving.gather(bytes_max, &mut lease)).await;
    match outcome {
        // tonic waits for all that was announced before it says so, and holds a place meanwhile.
        Ok(Arrived::TooLarge) if is_grpc => {
            refuse(status::undecodable(), Request::from_parts(parts, Body::empty()), next).await
        }
        Ok(Arrived::Whole | Arrived::TooLarge | Arrived::CutOff) => {
            next.run(Request::from_parts(parts, arriving.into_body())).await
        }
        Ok(Arrived::OverBudget) => {
            let status = shared.overloaded(class, "bytes");
            refuse(status, Request::from_parts(parts, Body::empty()), next).await
        }
        Err(_) if is_grpc => {
            shared.metrics.request_refused(class, "arrival");
            refuse(status::late(), Request::from_parts(parts, Body::empty()), next).await
        }
        // Read on by the layer that answers, which waits no longer and says 408 in its own words.
        Err(_) => {
            shared.metrics.request_refused(class, "arrival");
            next.run(Request::from_parts(parts, arriving.into_body())).await
        }
    }
}

/// Passes on a request that is refused, without its body.
async fn refuse(status: Status, mut request: Request, next: Next) -> Response {
    *request.body_mut() = Body::empty();
    request.extensions_mut().insert(EarlyRefusal(status));
    next.run(request).await
}

/// Answers a refused request for a document, which is no call.
pub(super) async fn refuse_document(request: Request, next: Next) -> Response {
    let is_document = class::of(request.method(), request.uri().path()) == RequestClass::Public;
    let Some(status) = EarlyRefusal::of(request.extensions()).filter(|_| is_document) else {
        return next.run(request).await;
    };
    answer(&status)
}

/// How many requests each address has under way, from the head to the answer's head: HTTP/2 bounds the streams of one
/// connection only. Sign-outs are counted by themselves.
struct UnderWay {
    max: usize,
    counts: Arc<Mutex<HashMap<(IpAddr, bool), usize>>>,
}

impl UnderWay {
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

/// One request of an address. Given back when dropped.
struct Share {
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
