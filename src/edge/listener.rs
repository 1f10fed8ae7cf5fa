//! What a listener serves: a router, behind what every request passes first, outermost first.
//!
//! Plain functions, called one after the other. As layers of axum, each would copy the request several times and box what is
//! inside it, and together they would cost more than all the rest of a cheap request.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Context;
use std::task::Poll;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use bytes::Bytes;
use http::Version;
use http_body::Frame;
use http_body::SizeHint;
use tower::Service as _;

use super::activity::ReceivingRequest;
use super::admission::AdmissionControl;
use super::admission::Admitted;
use super::class;
use super::connection;
use super::grpc::GrpcService;
use super::hosts;
use super::identify;
use super::media;
use super::origin;
use super::stack_auth;
use super::verify::Verify;
use crate::forwarded::Trust;
use crate::telemetry::Wire;
use crate::telemetry::request;
use crate::telemetry::request::RequestObserver;
use crate::telemetry::request::RequestRecord;
use sessiond_core::session::Origin;

/// What a listener serves. Cheap to clone; clones share state.
#[derive(Clone)]
pub(super) struct ListenerService {
    parts: Arc<ListenerParts>,
    observer: RequestObserver,
}

/// The parts of a [`ListenerService`].
pub(super) struct ListenerParts {
    /// Which proxies are trusted.
    pub(super) trust: Trust,
    /// The accepted host names.
    pub(super) allowed: hosts::Allowed,
    /// Admission control: the address's bucket, the address's share, and the message's arrival. `None` on a listener that only
    /// proxies reach, where no address is limited.
    pub(super) admission: Option<AdmissionControl>,
    /// Verifies requests for proxies. Beside CORS, which would answer a preflight in a verify request with a 200: the proxy would
    /// let it pass.
    pub(super) verify: Arc<Verify>,
    /// Answers calls over gRPC without the layers that translate for the other wires; `None` if a layer of the router must see
    /// them too.
    pub(super) grpc: Option<GrpcService>,
    /// Answers all other requests.
    pub(super) router: Router,
}

impl ListenerService {
    pub(super) fn new(parts: ListenerParts) -> Self {
        Self { parts: Arc::new(parts), observer: RequestObserver::default() }
    }

    /// Logs and traces requests.
    pub(super) fn observed_by(self, observer: RequestObserver) -> Self {
        Self { observer, ..self }
    }

    /// Answers a request. It is received once its message is complete.
    pub(super) async fn answer(&self, mut request: Request, receiving: ReceivingRequest) -> Response {
        // Every request gets an id, which every response returns.
        let id = identify::identify(&self.parts.trust, &mut request);
        let record = self.record(&id, &request).map(OpenRecord);
        let current = record.as_ref().map(|OpenRecord(record)| Arc::clone(record));
        let mut response = request::handle(Arc::clone(&id), current, self.answer_identified(request, receiving)).await;
        identify::complete(response.headers_mut(), &id);
        match record {
            None => response,
            Some(record) => {
                record.0.note_status(response.status());
                response.map(|body| Body::new(BodyWith { body, _held: record }))
            }
        }
    }

    /// The record of a request; `None` if it is neither logged nor traced.
    fn record(&self, id: &Arc<str>, request: &Request) -> Option<Arc<RequestRecord>> {
        let wire = request.extensions().get().copied().unwrap_or(Wire::Rest);
        let route = || class::route(request.method(), request.uri().path());
        self.observer.begin(id, request.method(), request.headers(), wire, route)
    }

    async fn answer_identified(&self, mut request: Request, receiving: ReceivingRequest) -> Response {
        let parts = &*self.parts;
        // First of all: a request for another host is not for this server.
        if let Some(refusal) = hosts::refusal(&parts.allowed, &request) {
            receiving.received();
            return refusal;
        }
        // Where the request comes from, for what limits or records it.
        origin::note(&parts.trust, &mut request);
        if let Some(record) = request::current_record() {
            record.note_ip(request.extensions().get::<Origin>().and_then(|origin| origin.ip));
        }
        // `Connection` must not remove `Origin`, which shows that the request comes from a browser.
        connection::keep_origin(request.headers_mut());
        // What is held is released after the answer.
        let Admitted { request, held: _held, endless } = match &parts.admission {
            Some(admission) => admission.admit(request).await,
            None => Admitted { request, held: (None, None), endless: None },
        };
        receiving.received();
        let response = parts.dispatch(request).await;
        match endless {
            None => response,
            Some(share) => response.map(|body| Body::new(BodyWith { body, _held: share })),
        }
    }
}

/// The record of a request in progress. Ends when dropped: with the response's body, or when the client disconnects.
struct OpenRecord(Arc<RequestRecord>);

impl Drop for OpenRecord {
    fn drop(&mut self) {
        self.0.finish();
    }
}

/// A response's body, with what ends with it.
struct BodyWith<T> {
    // First, so that the call in it ends before the record of the request does.
    body: Body,
    _held: T,
}

impl<T: Unpin> http_body::Body for BodyWith<T> {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl ListenerParts {
    async fn dispatch(&self, mut request: Request) -> Response {
        if let Some(project) = self.verify.project(request.uri().path()) {
            return self.verify.answer(project, request).await;
        }
        hosts::note(&mut request);
        match self.grpc.as_ref().filter(|_| is_grpc_call(&request)) {
            Some(grpc) => {
                stack_auth::rename_refresh_token(request.headers_mut());
                let Ok(response) = grpc.clone().call(request.map(tonic::body::Body::new)).await;
                response.map(Body::new)
            }
            None => {
                let answer: Result<Response, Infallible> = self.router.clone().call(request).await;
                let Ok(response) = answer;
                response
            }
        }
    }
}

/// Whether a request is a call of our services over gRPC itself, with the media type in the one spelling that inner layers
/// know.
fn is_grpc_call(request: &Request) -> bool {
    request.version() == Version::HTTP_2
        && media::is_plain_grpc(request)
        && class::is_of_our_services(request.uri().path())
}
