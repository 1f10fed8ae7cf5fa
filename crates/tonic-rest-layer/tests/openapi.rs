//! The OpenAPI document of a service that uses all features.

use std::fs;
use std::path::Path;

use http::Method;
use serde_json::Value;
use serde_json::json;
use tonic_rest_layer::Code;
use tonic_rest_layer::ErrorReason;
use tonic_rest_layer::OpenApi;

/// Method, path and operation of each operation.
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

/// The descriptor set of `tests/proto/described.proto`.
fn shelves() -> Vec<u8> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut compiler = protox::Compiler::new([root.join("tests/proto"), root.join("proto")]).expect("opens");
    compiler.include_imports(true).include_source_info(true).open_file("described.proto").expect("compiles");
    compiler.encode_file_descriptor_set()
}

fn reasons() -> [ErrorReason; 3] {
    [
        ErrorReason::new("SHELF_GONE", Code::NotFound, "The shelf is gone."),
        ErrorReason::new("NO_ROOM", Code::FailedPrecondition, "There is no room."),
        ErrorReason::new("BUSY", Code::Unavailable, "Come back later."),
    ]
}

/// Compares the document with `described.json`. Run with `ACCEPT=1` to update it, and review the change.
#[test]
fn the_document_is_as_in_described_json() {
    let document = OpenApi::new("Shelves", "1.2.3")
        .description("Keeps shelves.")
        .server("/")
        .reasons("described.v1.why", reasons())
        .common_reasons(["BUSY"])
        .security_scheme("libraryCard", json!({"type": "http", "scheme": "bearer"}))
        .security("described.v1.shows", [("card", Some("libraryCard")), ("nothing", None)])
        .build(&shelves())
        .expect("builds");
    let text = format!("{document:#}\n");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/described.json");
    if std::env::var_os("ACCEPT").is_some() {
        fs::write(&path, &text).expect("writes");
    }
    assert!(fs::read_to_string(&path).expect("reads") == text, "not as in described.json: {text}");
}

#[test]
fn without_a_table_of_reasons_any_error_may_occur() {
    let document = OpenApi::new("Shelves", "1").build(&shelves()).expect("builds");
    for (_, path, operation) in operations(&document).iter().filter(|(_, path, _)| path != "/pictures") {
        assert_eq!(operation["responses"]["default"]["description"], "Any other error.", "{path}");
        assert!(operation["security"].is_null());
    }
}

/// All errors at once, each with its method.
#[test]
fn unknown_reasons_and_credentials_are_errors() {
    let errors = OpenApi::new("Shelves", "1")
        .reasons("described.v1.why", [])
        .security("described.v1.shows", [("card", None)])
        .build(&shelves())
        .expect_err("unexplained");
    let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
    assert!(texts.iter().any(|text| text.contains("Shelves/MoveShelf") && text.contains("NO_ROOM")), "{texts:#?}");
    assert!(texts.iter().any(|text| text.contains("Shelves/GetShelf") && text.contains("nothing")), "{texts:#?}");

    let errors = OpenApi::new("Shelves", "1").reasons("described.v1.no", []).build(&shelves()).expect_err("no option");
    assert!(errors.to_string().contains("described.v1.no"), "{errors}");
}
