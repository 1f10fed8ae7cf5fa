//! Unusual and invalid descriptor sets: editions, aliases, services of imported files, a rule for `/`.

use prost_reflect::prost::Message;
use prost_reflect::prost_types::FileDescriptorSet;
use tonic_rest_layer::OpenApi;
use tonic_rest_layer::RestLayer;
use tonic_rest_layer::RuleError;

use super::harness::descriptor_set;

/// A file of `edition = "2023"`, as written by protoc. It is the first of the set, because another file imports it.
fn with_an_edition() -> Vec<u8> {
    let mut set = FileDescriptorSet::decode(descriptor_set("foreign").as_slice()).unwrap();
    set.file[0].syntax = Some("editions".to_owned());
    let mut bytes = vec![];
    for (position, file) in set.file.iter().enumerate() {
        let mut file = file.encode_to_vec();
        if position == 0 {
            // `edition`, field 14: EDITION_2023 is 1000.
            file.extend_from_slice(&[0x70, 0xe8, 0x07]);
        }
        prost_reflect::prost::encoding::encode_key(
            1,
            prost_reflect::prost::encoding::WireType::LengthDelimited,
            &mut bytes,
        );
        prost_reflect::prost::encoding::encode_varint(file.len() as u64, &mut bytes);
        bytes.extend_from_slice(&file);
    }
    bytes
}

/// prost-reflect panics on such sets.
#[test]
fn an_edition_is_an_error() {
    let set = with_an_edition();
    let layer = RestLayer::new(&set).unwrap_err();
    let lenient = RestLayer::builder().skip_faulty_rules().build(&set).unwrap_err();
    let description = OpenApi::new("x", "1").build(&set).unwrap_err();
    for errors in [layer, lenient, description] {
        assert!(matches!(errors.iter().next().unwrap().reason, RuleError::Syntax { .. }), "{errors}");
        assert!(errors.to_string().contains("editions are not yet"), "{errors}");
    }
}

/// prost-reflect panics on some of these.
#[test]
fn an_invalid_set_is_an_error() {
    let whole = FileDescriptorSet::decode(descriptor_set("foreign").as_slice()).unwrap();
    let mut twice = whole.clone();
    twice.file.push(FileDescriptorSet::decode(descriptor_set("lists").as_slice()).unwrap().file.pop().unwrap());
    twice.file.last_mut().unwrap().name = whole.file[0].name.clone();
    let mut incomplete = whole.clone();
    incomplete.file.remove(0);
    let mut odd = whole.clone();
    odd.file.last_mut().unwrap().syntax = Some("proto4".to_owned());
    for set in [twice.encode_to_vec(), incomplete.encode_to_vec(), odd.encode_to_vec(), b"\x0a\xff".to_vec()] {
        RestLayer::new(&set).unwrap_err();
        OpenApi::new("x", "1").build(&set).unwrap_err();
    }
    RestLayer::new(&[]).expect_err("no rules");
}

#[test]
fn skipped_rules_are_reported() {
    let layer = RestLayer::builder().skip_faulty_rules().build(&descriptor_set("foreign")).unwrap();
    let mut skipped: Vec<_> = layer.skipped_rules().iter().map(|error| error.method.as_str()).collect();
    skipped.sort_unstable();
    assert_eq!(skipped, ["Partly", "RestFirst", "Root", "Upload"], "{:?}", layer.skipped_rules());
    let layer = RestLayer::builder().service("foreign.v1.ForeignService").build(&descriptor_set("foreign")).unwrap();
    assert!(layer.skipped_rules().is_empty());
}

/// A skipped rule has no route, under any base path.
#[test]
fn skipped_rules_have_no_route() {
    let layer = RestLayer::builder().base_path("/").base_path("/rest").skip_faulty_rules();
    let layer = layer.build(&descriptor_set("foreign")).unwrap();
    let clashing = |error: &&tonic_rest_layer::BuildError| matches!(error.reason, RuleError::Ambiguous { .. });
    assert!(layer.skipped_rules().iter().any(|error| clashing(&error)));
}

#[test]
fn openapi_has_named_services_only_and_a_path_for_the_root() {
    let set = descriptor_set("foreign");
    OpenApi::new("x", "1").build(&set).unwrap_err();
    let named = OpenApi::new("x", "1").service("foreign.v1.ForeignService").build(&set).unwrap();
    let paths = named["paths"].as_object().unwrap();
    assert!(paths.contains_key("/") && !paths.contains_key(""), "{:?}", paths.keys());
    assert!(!paths.contains_key("/neighbour"));
    let lenient = OpenApi::new("x", "1").skip_faulty_rules().build(&set).unwrap();
    assert!(lenient["paths"].as_object().unwrap().contains_key("/neighbour"));
    // Aliases are in the order of their declaration.
    let states = &named["components"]["schemas"]["State"]["enum"];
    assert_eq!(*states, serde_json::json!(["A_ZERO", "A_RUNNING", "A_STARTED", "A_DONE", "A_FINISHED"]));
}
