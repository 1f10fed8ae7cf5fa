//! The OpenAPI document.

use std::{collections::BTreeSet, process::Command};

use http::{HeaderMap, Method, StatusCode};
use prost_reflect::{DescriptorPool, Value as Reflected};
use serde_json::{Value, json};
use sessiond::{pb, rpc::status::COMMON_REASONS};
use sessiond_core::reason::Reason;

use crate::harness::Service;

/// The document printed by the command.
fn printed() -> (String, Value) {
    let output = Command::new(env!("CARGO_BIN_EXE_sessiond"))
        .arg("openapi")
        .env_remove("SESSIOND_BASE_PATHS")
        .output()
        .expect("runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("text");
    let document = serde_json::from_str(&text).expect("JSON");
    (text, document)
}

/// Method, path and operation of each entry.
fn operations(document: &Value) -> Vec<(Method, String, &Value)> {
    let paths = document["paths"].as_object().expect("an object");
    let operations = paths.iter().flat_map(|(path, item)| {
        let item = item.as_object().expect("an object");
        item.iter().map(|(method, operation)| {
            let method = method.to_ascii_uppercase().parse().expect("a method");
            (method, path.clone(), operation)
        })
    });
    operations.collect()
}

/// The values of a repeated string option, by `Service_Method`.
fn options(name: &str) -> Vec<(String, BTreeSet<String>)> {
    let pool = DescriptorPool::decode(pb::DESCRIPTOR_SET).expect("decodes");
    let extension = pool.get_extension_by_name(name).expect("is there");
    let methods = pool.services().flat_map(|service| service.methods().collect::<Vec<_>>());
    let read = |method: prost_reflect::MethodDescriptor| {
        let options = method.options();
        let values = options.get_extension(&extension);
        let values = values.as_list().expect("repeated").iter().filter_map(Reflected::as_str).map(str::to_owned);
        (format!("{}_{}", method.parent_service().name(), method.name()), values.collect())
    };
    methods.map(read).collect()
}

#[tokio::test]
async fn the_server_serves_what_the_command_prints() {
    let service = Service::start().await;
    let (text, _) = printed();
    for path in ["/openapi.json", "/api/v1/openapi.json"] {
        let response = service.wires.http(Method::GET, path, HeaderMap::new(), "").await;
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["content-type"], "application/json");
        assert_eq!(response.headers()["cache-control"], "public, max-age=3600");
        assert_eq!(response.body(), text.as_bytes());
    }
}

/// The layer has a route for each rule of the proto, and the document has the same ones.
#[tokio::test]
async fn every_operation_is_described_and_routed() {
    let service = Service::start().await;
    let (_, document) = printed();
    let operations = operations(&document);
    let ids: BTreeSet<&str> =
        operations.iter().filter_map(|(_, _, operation)| operation["operationId"].as_str()).collect();
    assert_eq!(ids.len(), operations.len(), "each has an id of its own");
    let methods = options("sessiond.v1.reasons");
    for (method, _) in &methods {
        assert!(ids.contains(method.as_str()), "{method} is described");
    }
    for (method, path, _) in &operations {
        for base in document["servers"].as_array().expect("a list") {
            let path = format!("{}{path}", base["url"].as_str().expect("text").trim_end_matches('/'));
            let response = service.wires.http(method.clone(), &path, HeaderMap::new(), "").await;
            let body = String::from_utf8_lossy(response.body());
            let unknown = ["ROUTE_NOT_FOUND", "METHOD_NOT_ALLOWED"].iter().any(|reason| body.contains(reason));
            assert!(!unknown, "{method} {path}: {body}");
        }
    }
}

#[test]
fn every_operation_lists_its_reasons() {
    let (_, document) = printed();
    let operations = operations(&document);
    let common: BTreeSet<String> = COMMON_REASONS.iter().map(|reason| reason.name().to_owned()).collect();
    let of_the_layer =
        ["BAD_REPLY", "BODY_TIMEOUT", "BODY_TOO_LARGE", "BODY_UNREADABLE", "METHOD_NOT_ALLOWED", "ROUTE_NOT_FOUND"];
    for (method, own) in options("sessiond.v1.reasons") {
        for reason in &own {
            assert!(Reason::ALL.iter().any(|known| known.name() == reason), "{method}: {reason} is in the table");
            assert!(!common.contains(reason), "{method}: {reason} goes without saying");
        }
        for (_, _, operation) in
            operations.iter().filter(|(_, _, operation)| operation["operationId"] == method.as_str())
        {
            let responses = operation["responses"].as_object().expect("an object").values();
            let listed: BTreeSet<String> = responses
                .filter_map(|response| resolve(&document, response)["x-reasons"].as_array())
                .flatten()
                .filter_map(|reason| Some(reason.as_str()?.to_owned()))
                .filter(|reason| !of_the_layer.contains(&reason.as_str()) && reason != "UNSUPPORTED_MEDIA_TYPE")
                .collect();
            assert_eq!(listed, own.union(&common).cloned().collect(), "{method}");
        }
    }
}

fn resolve<'d>(document: &'d Value, value: &'d Value) -> &'d Value {
    match value["$ref"].as_str() {
        Some(reference) => document.pointer(reference.trim_start_matches('#')).expect("leads somewhere"),
        None => value,
    }
}

#[test]
fn every_operation_lists_its_credentials() {
    let (_, document) = printed();
    let security = |id: &str| {
        let operations = operations(&document);
        let found = operations.iter().find(|(_, _, operation)| operation["operationId"] == id);
        found.expect("is there").2["security"].clone()
    };
    let all = json!([{"bearer": []}, {"refreshToken": []}, {"accessCookie": []}, {"refreshCookie": []}]);
    assert_eq!(security("SessionService_RevokeCurrent"), all);
    assert_eq!(security("SessionService_ListSessions"), json!([{"bearer": []}, {"accessCookie": []}]));
    assert_eq!(security("SessionService_CreateSession"), json!([{"bearer": []}]));
    assert_eq!(security("SessionService_RefreshSession"), json!([{"refreshToken": []}, {}, {"refreshCookie": []}]));
}
