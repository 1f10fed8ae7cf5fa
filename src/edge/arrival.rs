//! Receives a request's message completely, within a budget of bytes, before the request costs anything else.

use std::collections::HashMap;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::Mutex;
use std::task::Context;
use std::task::Poll;

use axum::body::Body;
use bytes::Bytes;
use bytes::BytesMut;
use http::HeaderMap;
use http_body::Body as _;
use http_body::Frame;
use http_body::SizeHint;
use http_body_util::BodyExt as _;

use crate::rates::network;

/// One address may hold one part in this many of the budget.
const SHARE_OF_ADDRESS: usize = 4;

/// The requests of proxies that do not name their clients may hold one part in this many.
const SHARE_OF_MANY: usize = 2;

/// The bytes of messages that may be in memory at once.
#[derive(Clone)]
pub(super) struct Budget(Arc<ByteBudget>);

struct ByteBudget {
    max: usize,
    held: Mutex<HeldBytes>,
}

#[derive(Default)]
struct HeldBytes {
    all: usize,
    for_many: usize,
    addresses: HashMap<IpAddr, usize>,
}

impl Budget {
    /// At most `max` bytes in total, and a quarter of them for one address.
    pub(super) fn new(max: usize) -> Self {
        Self(Arc::new(ByteBudget { max, held: Mutex::default() }))
    }

    /// An empty lease for a request from this address.
    pub(super) fn lease(&self, ip: IpAddr) -> ByteLease {
        ByteLease { budget: self.clone(), ip: Some(network(ip)), bytes: 0 }
    }

    /// An empty lease for a request that a proxy makes for clients it does not name.
    pub(super) fn lease_for_many(&self) -> ByteLease {
        ByteLease { budget: self.clone(), ip: None, bytes: 0 }
    }
}

/// The bytes that one request holds. Released when dropped.
pub(super) struct ByteLease {
    budget: Budget,
    /// The address whose share it uses.
    ip: Option<IpAddr>,
    bytes: usize,
}

impl ByteLease {
    /// Takes more bytes; `false` if too few are left.
    pub(super) fn extend(&mut self, bytes: usize) -> bool {
        // An entry of no bytes would never be removed.
        if bytes == 0 {
            return true;
        }
        let Budget(ledger) = &self.budget;
        let mut held = ledger.held.lock().expect("no one panics while holding it");
        if held.all + bytes > ledger.max {
            return false;
        }
        match self.ip {
            Some(ip) => {
                let of_address = held.addresses.get(&ip).copied().unwrap_or_default() + bytes;
                if of_address > ledger.max / SHARE_OF_ADDRESS {
                    return false;
                }
                held.addresses.insert(ip, of_address);
            }
            None if held.for_many + bytes > ledger.max / SHARE_OF_MANY => return false,
            None => held.for_many += bytes,
        }
        held.all += bytes;
        self.bytes += bytes;
        true
    }

    /// How many it holds.
    pub(super) const fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for ByteLease {
    fn drop(&mut self) {
        if self.bytes == 0 {
            return;
        }
        let mut held = self.budget.0.held.lock().expect("no one panics while holding it");
        held.all -= self.bytes;
        let Some(ip) = self.ip else {
            held.for_many -= self.bytes;
            return;
        };
        if let Some(of_address) = held.addresses.get_mut(&ip) {
            *of_address -= self.bytes;
            if *of_address == 0 {
                held.addresses.remove(&ip);
            }
        }
    }
}

/// The result of waiting for a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arrived {
    /// It was received completely.
    Whole,
    /// It is too large; the reader of the body reports that.
    TooLarge,
    /// It ended early; the reader of the body reports that.
    CutOff,
    /// The budget has no room for it.
    OverBudget,
}

/// A body that is being received.
pub(super) struct Arriving {
    first: Bytes,
    more: BytesMut,
    trailers: Option<HeaderMap>,
    error: Option<axum::Error>,
    rest: Option<Body>,
}

impl Arriving {
    pub(super) fn new(body: Body) -> Self {
        Self { first: Bytes::new(), more: BytesMut::new(), trailers: None, error: None, rest: Some(body) }
    }

    /// Reads until the body ends or exceeds `bytes_max`. Cancel-safe: what was read is kept.
    pub(super) async fn gather(&mut self, bytes_max: usize, lease: &mut ByteLease) -> Arrived {
        let Some(body) = &mut self.rest else { return Arrived::Whole };
        let announced = body.size_hint();
        // A body that announces too large a length is refused before any of it is read, so that it need not be sent.
        if announced.lower() > bytes_max as u64 {
            return Arrived::TooLarge;
        }
        let mut gathered = 0;
        let outcome = loop {
            if body.is_end_stream() {
                break Arrived::Whole;
            }
            match body.frame().await {
                None => break Arrived::Whole,
                Some(Err(error)) => {
                    self.error = Some(error);
                    break Arrived::CutOff;
                }
                Some(Ok(frame)) => {
                    let data = match frame.into_data() {
                        Ok(data) => data,
                        Err(other) => {
                            self.trailers = other.into_trailers().ok();
                            continue;
                        }
                    };
                    if !lease.extend(data.len()) {
                        return Arrived::OverBudget;
                    }
                    gathered += data.len();
                    if self.first.is_empty() {
                        self.first = data;
                    } else {
                        self.more.extend_from_slice(&data);
                    }
                    if gathered > bytes_max {
                        return Arrived::TooLarge;
                    }
                }
            }
        };
        self.rest = None;
        // A lost connection sometimes ends a body without an error: the announced length shows whether it is complete.
        match announced.exact() {
            Some(length) if outcome == Arrived::Whole && length != gathered as u64 => {
                self.error = Some(axum::Error::new(std::io::Error::from(std::io::ErrorKind::UnexpectedEof)));
                Arrived::CutOff
            }
            _ => outcome,
        }
    }

    /// What was read.
    pub(super) fn take_data(&mut self) -> Bytes {
        let (first, more) = (std::mem::take(&mut self.first), std::mem::take(&mut self.more));
        match more.is_empty() {
            true => first,
            false => {
                let mut all = BytesMut::with_capacity(first.len() + more.len());
                all.extend_from_slice(&first);
                all.extend_from_slice(&more);
                all.freeze()
            }
        }
    }

    /// The whole body: what was read, followed by the rest.
    pub(super) fn into_body(mut self) -> Body {
        let data = self.take_data();
        let Self { trailers, error, rest, .. } = self;
        match (trailers, error, rest) {
            (None, None, None) => Body::from(data),
            (trailers, error, rest) => Body::new(Pieces { data, trailers, error, rest }),
        }
    }
}

/// A body in pieces.
struct Pieces {
    data: Bytes,
    trailers: Option<HeaderMap>,
    error: Option<axum::Error>,
    rest: Option<Body>,
}

impl http_body::Body for Pieces {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if !self.data.is_empty() {
            return Poll::Ready(Some(Ok(Frame::data(std::mem::take(&mut self.data)))));
        }
        if let Some(trailers) = self.trailers.take() {
            return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
        }
        if let Some(error) = self.error.take() {
            return Poll::Ready(Some(Err(error)));
        }
        match &mut self.rest {
            Some(rest) => Pin::new(rest).poll_frame(context),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.data.is_empty()
            && self.trailers.is_none()
            && self.error.is_none()
            && self.rest.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        let rest = self.rest.as_ref().map_or(SizeHint::with_exact(0), Body::size_hint);
        let mut hint = SizeHint::new();
        hint.set_lower(self.data.len() as u64 + rest.lower());
        hint
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
    const OTHER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2));

    #[test]
    fn an_address_holds_at_most_a_quarter_and_releases_it() {
        let budget = Budget::new(100);
        let mut first = budget.lease(ONE);
        assert!(first.extend(20));
        let mut second = budget.lease(ONE);
        assert!(!second.extend(6), "25 is all that one address may hold");
        assert!(second.extend(5));
        let mut other = budget.lease(OTHER);
        assert!(other.extend(25), "another address has its own");
        drop(first);
        assert!(second.extend(20));
        let mut proxy = budget.lease_for_many();
        assert!(proxy.extend(50), "those of proxies have half of it");
        assert!(!proxy.extend(1));
        drop(other);
        assert!(!proxy.extend(1));
        let mut other = budget.lease(OTHER);
        assert!(other.extend(25), "which leaves the other half to clients");
        drop((second, other, proxy));
        assert_eq!(budget.0.held.lock().expect("no panic").addresses.len(), 0, "nothing is left");
    }

    #[tokio::test]
    async fn a_body_is_whole_too_large_or_over_budget() {
        let budget = Budget::new(1_000);
        let mut lease = budget.lease(ONE);
        let mut whole = Arriving::new(Body::from("abc"));
        assert_eq!(whole.gather(10, &mut lease).await, Arrived::Whole);
        assert_eq!(whole.into_body().collect().await.expect("whole").to_bytes(), "abc");
        let mut large = Arriving::new(Body::from("abc"));
        assert_eq!(large.gather(2, &mut lease).await, Arrived::TooLarge);
        let mut much = Arriving::new(Body::from(vec![0; 400]));
        assert_eq!(much.gather(500, &mut lease).await, Arrived::OverBudget);
    }
}
