//! The tower layer: works in front of axum, tonic and any other service of `http` requests.

use std::fmt;
use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Context;
use std::task::Poll;
use std::task::ready;

use bytes::Bytes;
use http::HeaderMap;
use http::header;
use http_body::Body;
use http_body::Frame;
use http_body::SizeHint;
use http_body_util::Full;
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use super::guard::Guard;
use super::principal::Principal;
use super::rejection::Rejection;
use super::trace::TraceHeaders;
use sessiond_core::session::policy::StepUp;

/// Passes on requests with a valid `authorization: Bearer <access token>`, with a [`Principal`] in their extensions. Rejects
/// all others; see [`Rejection`].
///
/// A CORS preflight carries no credential, so a CORS layer belongs outside this one.
#[derive(Clone, Debug)]
pub struct GuardLayer {
    guard: Guard,
    is_optional: bool,
    required: Option<Arc<StepUp>>,
}

impl GuardLayer {
    pub(super) const fn new(guard: Guard) -> Self {
        Self { guard, is_optional: false, required: None }
    }

    /// Also passes on requests without a token; they have no [`Principal`]. Still rejects requests with an invalid token.
    #[must_use]
    pub fn optional(self) -> Self {
        Self { is_optional: true, ..self }
    }

    /// Also rejects users who have not authenticated as recently or as strongly as required (RFC 9470), with
    /// [`Rejection::InsufficientUserAuthentication`]. Replaces an earlier requirement. Requests without a token, which
    /// [`GuardLayer::optional`] lets through, have no user to authenticate.
    #[must_use]
    pub fn require(self, required: StepUp) -> Self {
        Self { required: Some(Arc::new(required)).filter(|required| !required.is_empty()), ..self }
    }

    fn check(&self, principal: Principal) -> Result<Principal, Rejection> {
        match &self.required {
            Some(required) => self.guard.check(&principal, required).map(|()| principal),
            None => Ok(principal),
        }
    }
}

impl Guard {
    /// Creates a layer that puts the guard in front of a service.
    pub fn layer(&self) -> GuardLayer {
        GuardLayer::new(self.clone())
    }
}

impl<S> Layer<S> for GuardLayer {
    type Service = GuardService<S>;

    fn layer(&self, inner: S) -> GuardService<S> {
        GuardService { inner, layer: self.clone() }
    }
}

/// A service with a guard in front of it. See [`GuardLayer`].
#[derive(Clone, Debug)]
pub struct GuardService<S> {
    inner: S,
    layer: GuardLayer,
}

impl<S: tonic::server::NamedService> tonic::server::NamedService for GuardService<S> {
    const NAME: &'static str = S::NAME;
}

impl<S, A, B> Service<http::Request<A>> for GuardService<S>
where
    S: Service<http::Request<A>, Response = http::Response<B>> + Clone + Send + 'static,
    S::Future: Send,
    A: Send + 'static,
{
    type Response = http::Response<GuardBody<B>>;
    type Error = S::Error;
    type Future = GuardFuture<S::Future, B, S::Error>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: http::Request<A>) -> Self::Future {
        // Only this layer may set it.
        request.extensions_mut().remove::<Principal>();
        let token = match bearer(request.headers()) {
            Ok(Some(token)) => token,
            Ok(None) if self.layer.is_optional => return GuardFuture::inner(self.inner.call(request)),
            Ok(None) => return GuardFuture::rejected(&self.layer.guard.count(Rejection::CredentialsMissing), &request),
            Err(rejection) => return GuardFuture::rejected(&self.layer.guard.count(rejection), &request),
        };
        match self.layer.guard.verify_locally(token).map(|outcome| outcome.and_then(|it| self.layer.check(it))) {
            Some(Ok(principal)) => {
                request.extensions_mut().insert(principal);
                GuardFuture::inner(self.inner.call(request))
            }
            Some(Err(rejection)) => GuardFuture::rejected(&rejection, &request),
            None => {
                let (layer, token) = (self.layer.clone(), token.to_owned());
                let trace = TraceHeaders::of(request.headers());
                // Calls the service that is ready; its clone has to be polled for readiness first.
                let next = self.inner.clone();
                let mut inner = mem::replace(&mut self.inner, next);
                let response = async move {
                    match layer.guard.ask(&token, &trace).await.and_then(|principal| layer.check(principal)) {
                        Ok(principal) => {
                            request.extensions_mut().insert(principal);
                            Ok(inner.call(request).await?.map(GuardBody::inner))
                        }
                        Err(rejection) => Ok(rejection.response(request.headers()).map(GuardBody::rejection)),
                    }
                };
                GuardFuture { state: FutureState::Verifying { response: Box::pin(response) } }
            }
        }
    }
}

/// The token of a bearer credential (RFC 6750 §2.1); `None` if there is none. Other schemes are ignored.
pub(super) fn bearer(headers: &HeaderMap) -> Result<Option<&str>, Rejection> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => {
            let text = value.to_str().map_err(|_| Rejection::UnparsableAccessToken)?;
            let (scheme, token) = text.split_once(' ').unwrap_or((text, ""));
            Ok(scheme.eq_ignore_ascii_case("bearer").then(|| token.trim_matches(' ')))
        }
        // Ambiguous.
        (Some(_), Some(_)) => Err(Rejection::UnparsableAccessToken),
    }
}

type BoxedResponse<B, E> = Pin<Box<dyn Future<Output = Result<http::Response<GuardBody<B>>, E>> + Send>>;

pin_project! {
    /// The response of the service, or the guard's rejection.
    pub struct GuardFuture<F, B, E> {
        #[pin]
        state: FutureState<F, B, E>,
    }
}

pin_project! {
    #[project = FutureStateProjection]
    enum FutureState<F, B, E> {
        Inner { #[pin] future: F },
        Rejected { response: Option<http::Response<Full<Bytes>>> },
        Verifying { response: BoxedResponse<B, E> },
    }
}

impl<F, B, E> GuardFuture<F, B, E> {
    const fn inner(future: F) -> Self {
        Self { state: FutureState::Inner { future } }
    }

    fn rejected<A>(rejection: &Rejection, request: &http::Request<A>) -> Self {
        Self { state: FutureState::Rejected { response: Some(rejection.response(request.headers())) } }
    }
}

impl<F, B, E> fmt::Debug for GuardFuture<F, B, E> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("GuardFuture").finish_non_exhaustive()
    }
}

impl<F, B, E> Future for GuardFuture<F, B, E>
where
    F: Future<Output = Result<http::Response<B>, E>>,
{
    type Output = Result<http::Response<GuardBody<B>>, E>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().state.project() {
            FutureStateProjection::Inner { future } => {
                let response = ready!(future.poll(context));
                Poll::Ready(response.map(|response| response.map(GuardBody::inner)))
            }
            FutureStateProjection::Rejected { response } => {
                let response = response.take().expect("a future is not polled again after it is ready");
                Poll::Ready(Ok(response.map(GuardBody::rejection)))
            }
            FutureStateProjection::Verifying { response } => response.as_mut().poll(context),
        }
    }
}

pin_project! {
    /// The service's body, or that of the guard's rejection.
    #[derive(Debug)]
    pub struct GuardBody<B> {
        #[pin]
        body: Either<B>,
    }
}

pin_project! {
    #[derive(Debug)]
    #[project = EitherProjection]
    enum Either<B> {
        Inner { #[pin] body: B },
        Rejection { #[pin] body: Full<Bytes> },
    }
}

impl<B> GuardBody<B> {
    const fn inner(body: B) -> Self {
        Self { body: Either::Inner { body } }
    }

    const fn rejection(body: Full<Bytes>) -> Self {
        Self { body: Either::Rejection { body } }
    }
}

impl<B: Body<Data = Bytes>> Body for GuardBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        match self.project().body.project() {
            EitherProjection::Inner { body } => body.poll_frame(context),
            EitherProjection::Rejection { body } => {
                body.poll_frame(context).map(|frame| frame.map(|frame| frame.map_err(|never| match never {})))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.body {
            Either::Inner { body } => body.is_end_stream(),
            Either::Rejection { body } => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.body {
            Either::Inner { body } => body.size_hint(),
            Either::Rejection { body } => body.size_hint(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(values: &[&str]) -> HeaderMap {
        values.iter().map(|value| (header::AUTHORIZATION, value.parse().expect("a value"))).collect()
    }

    #[test]
    fn bearer_credentials_follow_rfc_6750() {
        assert_eq!(bearer(&headers(&[])), Ok(None));
        assert_eq!(bearer(&headers(&["Bearer abc"])), Ok(Some("abc")));
        assert_eq!(bearer(&headers(&["bEARER  abc "])), Ok(Some("abc")));
        assert_eq!(bearer(&headers(&["Bearer"])), Ok(Some("")));
        assert_eq!(bearer(&headers(&["Basic abc"])), Ok(None));
        assert_eq!(bearer(&headers(&["Bearer a", "Bearer a"])), Err(Rejection::UnparsableAccessToken));
        let bytes = [(header::AUTHORIZATION, http::HeaderValue::from_bytes(b"Bearer \xff").expect("a value"))];
        assert_eq!(bearer(&bytes.into_iter().collect()), Err(Rejection::UnparsableAccessToken));
    }
}
