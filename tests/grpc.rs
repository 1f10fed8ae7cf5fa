//! What gRPC clients expect besides the service itself: health, reflection, deadlines, and clear errors.

use std::time::Duration;

use diesel_async::SimpleAsyncConnection as _;
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use sessiond::pb::{RevokeCurrentRequest, RevokeCurrentResponse, session_service_client::SessionServiceClient};
use tonic::{Code, Request};
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};
use tonic_reflection::pb::{v1, v1alpha};

use crate::harness::{Service, eventually};

macro_rules! client {
    ($client:ident, $service:expr) => {
        $client::with_origin(
            Client::builder(TokioExecutor::new()).http2_only(true).build_http::<tonic::body::Body>(),
            format!("http://{}", $service.addr).parse().expect("a URI"),
        )
    };
}

#[tokio::test]
async fn health_is_reported_per_service() {
    let service = Service::start().await;
    let mut health = client!(HealthClient, service);
    for name in ["", "sessiond.v1.SessionService"] {
        // The first check of the database may still be in progress.
        let mut answers =
            health.watch(HealthCheckRequest { service: name.to_owned() }).await.expect("answers").into_inner();
        while answers.message().await.expect("streams").expect("still works").status() != ServingStatus::Serving {}
    }
    let unknown = health.check(HealthCheckRequest { service: "nobody".to_owned() }).await.expect_err("unknown");
    assert_eq!(unknown.code(), Code::NotFound);
}

/// The service names, by this version of the reflection API.
macro_rules! services_by_reflection {
    ($version:ident, $service:expr) => {{
        use $version::{
            ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
            server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
        };
        let ask = ServerReflectionRequest {
            host: String::new(),
            message_request: Some(MessageRequest::ListServices(String::new())),
        };
        let mut reflection = client!(ServerReflectionClient, $service);
        let answers = reflection.server_reflection_info(futures_util::stream::iter([ask])).await;
        let answer = answers.expect("answers").into_inner().message().await.expect("streams").expect("one answer");
        let Some(MessageResponse::ListServicesResponse(list)) = answer.message_response else { panic!("a list") };
        list.service.into_iter().map(|service| service.name).collect::<Vec<_>>()
    }};
}

/// Under both names: some clients know only the older one.
#[tokio::test]
async fn reflection_lists_the_services() {
    let service = Service::start().await;
    for names in [services_by_reflection!(v1, service), services_by_reflection!(v1alpha, service)] {
        assert!(names.contains(&"sessiond.v1.SessionService".to_owned()), "{names:?}");
        assert!(names.contains(&"grpc.health.v1.Health".to_owned()), "{names:?}");
    }
}

/// The deadline is answered in time, and the mutation finishes: it is not cancelled half-way.
#[tokio::test]
async fn an_exceeded_deadline_is_reported_and_the_mutation_finishes() {
    let service = Service::start().await;
    let mut sessions = client!(SessionServiceClient, service);
    let phone = service.sign_in("ada", "phone").await;
    let mut holder = service.database.hold("sessions", "true").await;

    let mut request = Request::new(RevokeCurrentRequest {});
    request.metadata_mut().insert("authorization", format!("Bearer {}", phone.access_token).parse().expect("a value"));
    request.set_timeout(Duration::from_millis(100));
    let late = sessions.revoke_current(request).await.expect_err("late");
    assert_eq!(late.code(), Code::DeadlineExceeded);
    assert!(phone.is_signed_in().await);

    holder.batch_execute("COMMIT").await.expect("lets go");
    eventually("the sign-out is finished", async || !phone.is_signed_in().await).await;
}

#[tokio::test]
async fn an_unknown_method_is_unimplemented() {
    let service = Service::start().await;
    let call = service.wires.call::<_, RevokeCurrentResponse>(
        crate::harness::Wire::Grpc,
        "Nothing",
        http::HeaderMap::new(),
        &RevokeCurrentRequest {},
    );
    assert_eq!(call.await.expect_err("unknown").code, Code::Unimplemented);
}
