//! The reference of the API, generated from the proto: `docs/reference/api.md`. Run with `ACCEPT=1` to accept a change.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    path::Path,
};

use prost_reflect::{
    Cardinality, DescriptorPool, DynamicMessage, EnumDescriptor, FieldDescriptor, Kind, MessageDescriptor,
    MethodDescriptor, Value,
};
use sessiond::pb;

const INTRODUCTION: &str = "\
# API

Generated from `proto/sessiond/v1/session_service.proto`, whose comments these are. Over gRPC and grpc-web the service is
`sessiond.v1.SessionService`; over REST every path is served under `/` and under `/api/v1`. JSON has the field names below; it also
accepts them in `lowerCamelCase`. Times are RFC 3339; 64-bit numbers are
written as strings.

The OpenAPI 3.1 document is generated from the same proto: `/openapi.json` of a running server, or `sessiond openapi`. Each error that a
method may return is explained in [Errors](errors.md); any method may also return `SCHEMA_ERROR`, `RATE_LIMITED`,
`STORE_UNAVAILABLE`, `DEADLINE_EXCEEDED` and `INTERNAL`.

The same port also serves:

| path | |
|---|---|
| `/projects/{project_id}/.well-known/jwks.json` | the project's public keys (RFC 7517) |
| `/projects/{project_id}/auth/verify` | an access token, for [proxies](../guides/proxies.md); Envoy asks `envoy.service.auth.v3.Authorization/Check` |
| `/oauth2/token`, `/oauth2/revoke`, `/oauth2/introspect` | [OAuth 2.0](../guides/oauth.md) |
| `/.well-known/oauth-authorization-server/projects/{project_id}` | metadata (RFC 8414) |
| `/projects/{project_id}/.well-known/openid-configuration` | the same, for verifiers that look where OpenID Connect Discovery says |
| `/healthz`, `/readyz`, `grpc.health.v1` | alive; [ready](../operating/readiness.md) |
| `grpc.reflection.v1` | the schema, for tools |
";

/// Comments by the full name of what they are about.
struct Comments(BTreeMap<String, String>);

impl Comments {
    fn of(pool: &DescriptorPool) -> Self {
        let mut found = BTreeMap::new();
        let mut add = |name: String, file: prost_reflect::FileDescriptor, path: &[i32]| {
            let locations = file.file_descriptor_proto().source_code_info.clone().unwrap_or_default().location;
            if let Some(location) = locations.iter().find(|location| location.path == path) {
                found.insert(name, location.leading_comments().trim().to_owned());
            }
        };
        for message in pool.all_messages().filter(|message| message.package_name() == "sessiond.v1") {
            add(message.full_name().to_owned(), message.parent_file(), message.path());
            for field in message.fields() {
                add(field.full_name().to_owned(), message.parent_file(), field.path());
            }
        }
        for choice in pool.all_enums().filter(|choice| choice.package_name() == "sessiond.v1") {
            add(choice.full_name().to_owned(), choice.parent_file(), choice.path());
            for value in choice.values() {
                add(value.full_name().to_owned(), choice.parent_file(), value.path());
            }
        }
        for method in pool.services().flat_map(|service| service.methods().collect::<Vec<_>>()) {
            add(method.full_name().to_owned(), method.parent_file(), method.path());
        }
        Self(found)
    }

    /// As paragraphs.
    fn text(&self, name: &str) -> String {
        let lines = self.0.get(name).unwrap_or_else(|| panic!("{name} has no comment")).lines().map(str::trim);
        lines.collect::<Vec<_>>().join("\n")
    }

    /// As one line, for a cell of a table.
    fn cell(&self, name: &str) -> String {
        self.text(name).replace('\n', " ").replace('|', "\\|")
    }
}

/// The values of an option of a method.
fn option(pool: &DescriptorPool, method: &MethodDescriptor, name: &str) -> Value {
    let extension = pool.get_extension_by_name(name).expect("is there");
    method.options().get_extension(&extension).into_owned()
}

/// Such as `DELETE /auth/sessions/{id}`.
fn route(pool: &DescriptorPool, method: &MethodDescriptor) -> String {
    let Value::Message(rule) = option(pool, method, "google.api.http") else { panic!("not a rule") };
    let verbs = ["get", "put", "post", "delete", "patch"];
    let of = |rule: &DynamicMessage, verb| rule.get_field_by_name(verb)?.as_str().map(str::to_owned);
    let set = verbs.iter().find(|verb| rule.has_field_by_name(verb)).expect("a verb");
    format!("`{} {}`", set.to_uppercase(), of(&rule, set).expect("a path"))
}

fn credentials(pool: &DescriptorPool, method: &MethodDescriptor) -> String {
    let Value::List(accepted) = option(pool, method, "sessiond.v1.credentials") else { panic!("not a list") };
    let name = |value: &Value| match value.as_enum_number().expect("an enum") {
        1 => "an access token",
        2 => "a server key",
        3 => "a refresh token",
        4 => "a refresh token in `refresh_token`",
        5 => "an access cookie",
        6 => "a refresh cookie",
        other => panic!("{other} is not explained"),
    };
    accepted.iter().map(name).collect::<Vec<_>>().join(", or ")
}

/// The least role of a server key, if the method takes one.
fn role(pool: &DescriptorPool, method: &MethodDescriptor) -> &'static str {
    match option(pool, method, "sessiond.v1.least_role").as_enum_number().expect("an enum") {
        0 => "",
        1 => "`verifier`",
        2 => "`service`",
        3 => "`admin`",
        other => panic!("{other} is not explained"),
    }
}

fn anchor(name: &str) -> String {
    format!("[{name}](#{})", name.to_lowercase())
}

/// The type of a field, in the words of protos.
fn kind(field: &FieldDescriptor) -> String {
    let named = |name: &str, full: &str| match full.starts_with("sessiond.v1.") {
        true => anchor(name),
        false => name.to_owned(),
    };
    let one = |field: &FieldDescriptor| match field.kind() {
        Kind::Message(message) => named(message.name(), message.full_name()),
        Kind::Enum(choice) => named(choice.name(), choice.full_name()),
        scalar => format!("{scalar:?}").to_lowercase(),
    };
    if field.is_map() {
        let Kind::Message(entry) = field.kind() else { panic!("a map has entries") };
        return format!("map of {} to {}", one(&entry.map_entry_key_field()), one(&entry.map_entry_value_field()));
    }
    match field.cardinality() {
        Cardinality::Repeated => format!("list of {}", one(field)),
        _ => one(field),
    }
}

fn fields(comments: &Comments, pool: &DescriptorPool, message: &MessageDescriptor, page: &mut String) {
    if message.fields().len() == 0 {
        return;
    }
    page.push_str("| field | type | |\n|---|---|---|\n");
    let behavior = pool.get_extension_by_name("google.api.field_behavior").expect("is there");
    for field in message.fields() {
        let options = field.options();
        let required = options.get_extension(&behavior).as_list().is_some_and(|list| !list.is_empty());
        let required = if required { "**Required.** " } else { "" };
        let text = comments.cell(field.full_name());
        writeln!(page, "| `{}` | {} | {required}{text} |", field.name(), kind(&field)).expect("writes");
    }
    page.push('\n');
}

/// Adds the messages and enums of these fields, and of theirs.
fn mentioned(message: &MessageDescriptor, messages: &mut BTreeSet<String>, enums: &mut BTreeSet<String>) {
    for field in message.fields() {
        match field.kind() {
            Kind::Message(inner)
                if inner.package_name() == "sessiond.v1"
                    && !inner.is_map_entry()
                    && messages.insert(inner.full_name().to_owned()) =>
            {
                mentioned(&inner, messages, enums);
            }
            Kind::Enum(choice) => {
                enums.insert(choice.full_name().to_owned());
            }
            _ => {}
        }
    }
}

fn values(comments: &Comments, choice: &EnumDescriptor, page: &mut String) {
    page.push_str("| value | |\n|---|---|\n");
    for value in choice.values() {
        writeln!(page, "| `{}` | {} |", value.name(), comments.cell(value.full_name())).expect("writes");
    }
    page.push('\n');
}

fn published() -> String {
    let pool = DescriptorPool::decode(pb::DESCRIPTOR_SET).expect("decodes");
    let comments = Comments::of(&pool);
    let service = pool.get_service_by_name("sessiond.v1.SessionService").expect("is there");
    let mut page = INTRODUCTION.to_owned();
    page.push_str("\n## Methods\n\n| method | REST | caller presents | least [role](privileges.md) of a server key |\n|---|---|---|---|\n");
    for method in service.methods() {
        let (route, credentials) = (route(&pool, &method), credentials(&pool, &method));
        let role = role(&pool, &method);
        writeln!(page, "| {} | {route} | {credentials} | {role} |", anchor(method.name())).expect("writes");
    }
    let (mut messages, mut enums) = (BTreeSet::new(), BTreeSet::new());
    for method in service.methods() {
        let (input, output) = (method.input(), method.output());
        writeln!(page, "\n## {}\n\n{}\n", method.name(), route(&pool, &method)).expect("writes");
        writeln!(page, "{}\n", comments.text(method.full_name())).expect("writes");
        writeln!(page, "**Request.** {}\n", comments.text(input.full_name())).expect("writes");
        fields(&comments, &pool, &input, &mut page);
        let stream = if method.is_server_streaming() { " A stream of these." } else { "" };
        writeln!(page, "**Response.** {}{stream}\n", comments.text(output.full_name())).expect("writes");
        fields(&comments, &pool, &output, &mut page);
        let Value::List(reasons) = option(&pool, &method, "sessiond.v1.reasons") else { panic!("not a list") };
        let reasons = reasons.iter().filter_map(Value::as_str);
        let links: Vec<_> =
            reasons.map(|reason| format!("[`{reason}`](errors.md#{})", reason.to_lowercase())).collect();
        writeln!(page, "**Errors.** {}.", links.join(", ")).expect("writes");
        mentioned(&input, &mut messages, &mut enums);
        mentioned(&output, &mut messages, &mut enums);
    }
    page.push_str("\n# Types\n");
    for name in &messages {
        let message = pool.get_message_by_name(name).expect("is there");
        writeln!(page, "\n## {}\n\n{}\n", message.name(), comments.text(name)).expect("writes");
        fields(&comments, &pool, &message, &mut page);
    }
    for name in &enums {
        let choice = pool.get_enum_by_name(name).expect("is there");
        writeln!(page, "\n## {}\n\n{}\n", choice.name(), comments.text(name)).expect("writes");
        values(&comments, &choice, &mut page);
    }
    while page.contains("\n\n\n") {
        page = page.replace("\n\n\n", "\n\n");
    }
    format!("{}\n", page.trim_end())
}

#[test]
fn the_reference_is_what_the_proto_says() {
    let page = published();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/reference/api.md");
    if std::env::var_os("ACCEPT").is_some() {
        fs::write(&path, &page).expect("writes");
    }
    assert!(
        fs::read_to_string(&path).unwrap_or_default() == page,
        "docs/reference/api.md is out of date: run with ACCEPT=1: {page}"
    );
}
