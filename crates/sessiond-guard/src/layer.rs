//! The guard in front of a service: any of axum's or tonic's, or whatever else speaks `http`.

use std::mem;
use std::pin::Pin;
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

use super::Guard;
use super::Principal;
use super::Refusal;

/// Lets in who shows a good token, `authorization: Bearer <access token>`, and puts a [`Principal`] into the request's
/// extensions. Everyone else is answered here.
///
/// A preflight of CORS carries no credential: a CORS layer belongs outside of this one.
#[derive(Clone)]
pub struct GuardLayer {
    guard: Guard,
    is_optional: bool,
}

impl GuardLayer {
    pub(super) const fn new(guard: Guard) -> Self {
        Self { guard, is_optional: false }
    }

    /// Lets in who shows no token too, without a [`Principal`]. A token that is no good is refused all the same.
    #[must_use]
    pub fn optional(self) -> Self {
        Self { is_optional: true, ..self }
    }
}

impl<S> Layer<S> for GuardLayer {
    type Service = Guarded<S>;

    fn layer(&self, inner: S) -> Guarded<S> {
        Guarded { inner, layer: self.clone() }
    }
}

/// A service with a guard in front of it. See [`GuardLayer`].
#[derive(Clone)]
pub struct Guarded<S> {
    inner: S,
    layer: GuardLayer,
}

impl<S: tonic::server::NamedService> tonic::server::NamedService for Guarded<S> {
    const NAME: &'static str = S::NAME;
}

impl<S, A, B> Service<http::Request<A>> for Guarded<S>
where
    S: Service<http::Request<A>, Response = http::Response<B>> + Clone + Send + 'static,
    S::Future: Send,
    A: Send + 'static,
{
    type Response = http::Response<GuardedBody<B>>;
    type Error = S::Error;
    type Future = GuardedFuture<S::Future, B, S::Error>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: http::Request<A>) -> Self::Future {
        // Nobody but this layer says who it is.
        request.extensions_mut().remove::<Principal>();
        let token = match bearer(request.headers()) {
            Ok(Some(token)) => token,
            Ok(None) if self.layer.is_optional => return GuardedFuture::inner(self.inner.call(request)),
            Ok(None) => return GuardedFuture::refused(&self.layer.guard.count(Refusal::CredentialsMissing), &request),
            Err(refusal) => return GuardedFuture::refused(&self.layer.guard.count(refusal), &request),
        };
        match self.layer.guard.glance(token) {
            Some(Ok(principal)) => {
                request.extensions_mut().insert(principal);
                GuardedFuture::inner(self.inner.call(request))
            }
            Some(Err(refusal)) => GuardedFuture::refused(&refusal, &request),
            None => {
                let (guard, token) = (self.layer.guard.clone(), token.to_owned());
                // The one that is ready; the one that stays is asked anew whether it is.
                let next = self.inner.clone();
                let mut inner = mem::replace(&mut self.inner, next);
                let answer = async move {
                    match guard.verify(&token).await {
                        Ok(principal) => {
                            request.extensions_mut().insert(principal);
                            Ok(inner.call(request).await?.map(GuardedBody::inner))
                        }
                        Err(refusal) => Ok(refusal.answer(request.headers()).map(GuardedBody::own)),
                    }
                };
                GuardedFuture { step: Step::Asking { answer: Box::pin(answer) } }
            }
        }
    }
}

/// The token of a bearer credential (RFC 6750 §2.1); `None` when there is none. Other schemes are other people's business.
fn bearer(headers: &HeaderMap) -> Result<Option<&str>, Refusal> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => {
            let text = value.to_str().map_err(|_| Refusal::UnparsableAccessToken)?;
            let (scheme, token) = text.split_once(' ').unwrap_or((text, ""));
            Ok(scheme.eq_ignore_ascii_case("bearer").then(|| token.trim_matches(' ')))
        }
        // Which of them counts is not for us to guess.
        (Some(_), Some(_)) => Err(Refusal::UnparsableAccessToken),
    }
}

type Answer<B, E> = Pin<Box<dyn Future<Output = Result<http::Response<GuardedBody<B>>, E>> + Send>>;

pin_project! {
    /// The service's answer, or the guard's.
    pub struct GuardedFuture<F, B, E> {
        #[pin]
        step: Step<F, B, E>,
    }
}

pin_project! {
    #[project = StepProjection]
    enum Step<F, B, E> {
        Inner { #[pin] future: F },
        Refused { answer: Option<http::Response<Full<Bytes>>> },
        Asking { answer: Answer<B, E> },
    }
}

impl<F, B, E> GuardedFuture<F, B, E> {
    const fn inner(future: F) -> Self {
        Self { step: Step::Inner { future } }
    }

    fn refused<A>(refusal: &Refusal, request: &http::Request<A>) -> Self {
        Self { step: Step::Refused { answer: Some(refusal.answer(request.headers())) } }
    }
}

impl<F, B, E> Future for GuardedFuture<F, B, E>
where
    F: Future<Output = Result<http::Response<B>, E>>,
{
    type Output = Result<http::Response<GuardedBody<B>>, E>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().step.project() {
            StepProjection::Inner { future } => {
                let answer = ready!(future.poll(context));
                Poll::Ready(answer.map(|answer| answer.map(GuardedBody::inner)))
            }
            StepProjection::Refused { answer } => {
                let answer = answer.take().expect("a future is not polled again after it is ready");
                Poll::Ready(Ok(answer.map(GuardedBody::own)))
            }
            StepProjection::Asking { answer } => answer.as_mut().poll(context),
        }
    }
}

pin_project! {
    /// The service's body as it is, or the guard's own.
    pub struct GuardedBody<B> {
        #[pin]
        body: Either<B>,
    }
}

pin_project! {
    #[project = EitherProjection]
    enum Either<B> {
        Inner { #[pin] body: B },
        Own { #[pin] body: Full<Bytes> },
    }
}

impl<B> GuardedBody<B> {
    const fn inner(body: B) -> Self {
        Self { body: Either::Inner { body } }
    }

    const fn own(body: Full<Bytes>) -> Self {
        Self { body: Either::Own { body } }
    }
}

impl<B: Body<Data = Bytes>> Body for GuardedBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        match self.project().body.project() {
            EitherProjection::Inner { body } => body.poll_frame(context),
            EitherProjection::Own { body } => {
                body.poll_frame(context).map(|frame| frame.map(|frame| frame.map_err(|never| match never {})))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.body {
            Either::Inner { body } => body.is_end_stream(),
            Either::Own { body } => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.body {
            Either::Inner { body } => body.size_hint(),
            Either::Own { body } => body.size_hint(),
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
    fn a_credential_is_read_as_rfc_6750_has_it() {
        assert_eq!(bearer(&headers(&[])), Ok(None));
        assert_eq!(bearer(&headers(&["Bearer abc"])), Ok(Some("abc")));
        assert_eq!(bearer(&headers(&["bEARER  abc "])), Ok(Some("abc")));
        assert_eq!(bearer(&headers(&["Bearer"])), Ok(Some("")));
        assert_eq!(bearer(&headers(&["Basic abc"])), Ok(None));
        assert_eq!(bearer(&headers(&["Bearer a", "Bearer a"])), Err(Refusal::UnparsableAccessToken));
        let bytes = [(header::AUTHORIZATION, http::HeaderValue::from_bytes(b"Bearer \xff").expect("a value"))];
        assert_eq!(bearer(&bytes.into_iter().collect()), Err(Refusal::UnparsableAccessToken));
    }
}
