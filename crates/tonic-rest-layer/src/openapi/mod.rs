//! An OpenAPI 3.1 document of the rules, from the same descriptors as the layer.

mod comments;
mod errors;
mod operations;
mod paths;
mod schemas;

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::collections::HashSet;

use http::Method;
use prost_reflect::DescriptorPool;
use prost_reflect::MethodDescriptor;
use prost_reflect::ServiceDescriptor;
use serde_json::Map;
use serde_json::Value;
use serde_json::json;

pub use self::errors::ErrorReason;

use self::comments::Comments;
use self::errors::ErrorBody;
use self::errors::Errors;
use self::errors::SharedResponses;
use self::operations::DescribedBinding;
use self::paths::Paths;
use self::schemas::Schemas;
use crate::binding::Binding;
use crate::binding::Body;
use crate::descriptors;
use crate::descriptors::enum_values;
use crate::error::BuildError;
use crate::error::BuildErrors;
use crate::error::RuleError;
use crate::route::MethodPattern;
use crate::rule;
use crate::rule::Selection;
use crate::schema::PrintStyle;
use crate::schema::Schema;
use crate::status::Refusal;
use crate::template::Template;

/// Describes the rules of a descriptor set as an OpenAPI 3.1 document.
///
/// Comments become descriptions if the set was compiled with source information (`protox`'s `include_source_info`,
/// `protoc --include_source_info`).
///
/// ```
/// use tonic_rest_layer::{BuildErrors, Code, ErrorReason, OpenApi};
///
/// fn describe(descriptor_set: &[u8]) -> Result<serde_json::Value, BuildErrors> {
///     OpenApi::new("Library", "1.0")
///         .server("/api/v1")
///         // `extend google.protobuf.MethodOptions { repeated string reasons = …; }`
///         .reasons("library.v1.reasons", [ErrorReason::new("SHELF_FULL", Code::FailedPrecondition, "No room left.")])
///         .build(descriptor_set)
/// }
///
/// assert!(describe(b"not a descriptor set").is_err());
/// ```
///
/// # Limitations
///
/// - The schemas have the canonical form of ProtoJSON; the layer also accepts the other forms.
/// - OpenAPI 3.1 has eight methods. Rules with other methods are under `x-additional-operations`. A rule for every method is
///   listed under the methods that have no other rule.
/// - Paths that differ only in the names of their variables are one path, with the names of the first.
/// - The document cannot derive what [`RestLayerBuilder::error_body`](crate::RestLayerBuilder::error_body) or
///   [`on_success`](crate::RestLayerBuilder::on_success) return. Describe error bodies with [`error_body`](OpenApi::error_body).
#[derive(Debug, Clone)]
pub struct OpenApi {
    title: String,
    version: String,
    description: Option<String>,
    servers: Vec<String>,
    reasons: Option<ReasonTable>,
    common_reasons: Vec<String>,
    security_schemes: Map<String, Value>,
    security: Option<Security>,
    headers: Map<String, Value>,
    responses: BTreeMap<u16, String>,
    error_body: ErrorBody,
    selection: Selection,
    style: PrintStyle,
}

/// The method option that lists reasons, and the meaning of each.
#[derive(Debug, Clone)]
struct ReasonTable {
    option: String,
    table: HashMap<String, ErrorReason>,
}

/// The method option that lists credentials, and the security scheme of each.
#[derive(Debug, Clone)]
struct Security {
    option: String,
    schemes: HashMap<String, Option<String>>,
}

impl OpenApi {
    /// Creates a document without servers and security, and with the layer's own errors only.
    pub fn new(title: impl Into<String>, version: impl Into<String>) -> OpenApi {
        OpenApi {
            title: title.into(),
            version: version.into(),
            description: None,
            servers: Vec::new(),
            reasons: None,
            common_reasons: Vec::new(),
            security_schemes: Map::new(),
            security: None,
            headers: Map::new(),
            responses: BTreeMap::new(),
            error_body: ErrorBody::default(),
            selection: Selection::default(),
            style: PrintStyle::default(),
        }
    }

    /// Describes the rules of the service with this full name only. Call it several times to add services. Default: all services of
    /// the set. See [`RestLayerBuilder::service`](crate::RestLayerBuilder::service).
    #[must_use]
    pub fn service(mut self, full_name: impl Into<String>) -> OpenApi {
        self.selection.services.push(full_name.into());
        self
    }

    /// Skips invalid rules, as [`RestLayerBuilder::skip_faulty_rules`](crate::RestLayerBuilder::skip_faulty_rules) does.
    #[must_use]
    pub fn skip_faulty_rules(mut self) -> OpenApi {
        self.selection.skips_faulty = true;
        self
    }

    /// Uses JSON names, as [`RestLayerBuilder::json_names`](crate::RestLayerBuilder::json_names) does.
    #[must_use]
    pub fn json_names(mut self) -> OpenApi {
        self.style.json_names = true;
        self
    }

    /// Makes those members of replies optional that
    /// [`RestLayerBuilder::omit_default_values`](crate::RestLayerBuilder::omit_default_values) omits.
    #[must_use]
    pub fn omit_default_values(mut self) -> OpenApi {
        self.style.omits_defaults = true;
        self
    }

    /// Sets the JSON Schema of the body of each error. Required for a layer with
    /// [`RestLayerBuilder::error_body`](crate::RestLayerBuilder::error_body): its function is code, so the document cannot
    /// derive the schema. Default: `google.rpc.Status`.
    ///
    /// The reasons of each status are then in descriptions and in `x-reasons`, but not in the schemas.
    ///
    /// ```
    /// use serde_json::json;
    /// use tonic_rest_layer::OpenApi;
    ///
    /// // Problem details (RFC 9457).
    /// let api = OpenApi::new("Library", "1.0")
    ///     .error_body(json!({
    ///         "type": "object",
    ///         "required": ["status", "title"],
    ///         "properties": {"status": {"type": "integer"}, "title": {"type": "string"}},
    ///     }))
    ///     .error_content_type("application/problem+json");
    /// # let _ = api;
    /// ```
    #[must_use]
    pub fn error_body(mut self, schema: Value) -> OpenApi {
        self.error_body.custom = Some(schema);
        self
    }

    /// Sets the content type of errors, as
    /// [`RestLayerBuilder::error_content_type`](crate::RestLayerBuilder::error_content_type) does. Default: `application/json`.
    #[must_use]
    pub fn error_content_type(mut self, content_type: impl Into<String>) -> OpenApi {
        self.error_body.content_type = content_type.into();
        self
    }

    /// Sets the description of the API, in Markdown.
    #[must_use]
    pub fn description(mut self, text: impl Into<String>) -> OpenApi {
        self.description = Some(text.into());
        self
    }

    /// Adds a base path or URL of the API. Call it several times to add more.
    #[must_use]
    pub fn server(mut self, url: impl Into<String>) -> OpenApi {
        self.servers.push(url.into());
        self
    }

    /// Reads each method's reasons from a method option: a `repeated string` extension with this full name. Each reason must be in
    /// `table`.
    ///
    /// The document then states that no other errors occur, and that each error has an `ErrorInfo` with one of the reasons of its
    /// status. Default: any error may occur.
    #[must_use]
    pub fn reasons(mut self, option: impl Into<String>, table: impl IntoIterator<Item = ErrorReason>) -> OpenApi {
        let table = table.into_iter().map(|reason| (reason.name.clone(), reason)).collect();
        self.reasons = Some(ReasonTable { option: option.into(), table });
        self
    }

    /// Adds reasons of the table to every method.
    #[must_use]
    pub fn common_reasons<'n>(mut self, names: impl IntoIterator<Item = &'n str>) -> OpenApi {
        self.common_reasons.extend(names.into_iter().map(str::to_owned));
        self
    }

    /// Adds an OpenAPI Security Scheme Object with this name.
    #[must_use]
    pub fn security_scheme(mut self, name: impl Into<String>, scheme: Value) -> OpenApi {
        self.security_schemes.insert(name.into(), scheme);
        self
    }

    /// Reads the credentials that a method accepts from a method option, a repeated string or enum with this full name. Any one of
    /// them is enough. `schemes` maps each credential to its security scheme, or to `None` if it needs none. A method without the
    /// option requires no credentials.
    #[must_use]
    pub fn security<'n>(
        mut self,
        option: impl Into<String>,
        schemes: impl IntoIterator<Item = (&'n str, Option<&'n str>)>,
    ) -> OpenApi {
        let owned = |(value, scheme): (&str, Option<&str>)| (value.to_owned(), scheme.map(str::to_owned));
        self.security = Some(Security { option: option.into(), schemes: schemes.into_iter().map(owned).collect() });
        self
    }

    /// Adds an OpenAPI Header Object to every response.
    #[must_use]
    pub fn response_header(mut self, name: impl Into<String>, header: Value) -> OpenApi {
        self.headers.insert(name.into(), header);
        self
    }

    /// Adds a response to every operation, for example of a proxy in front of the layer.
    #[must_use]
    pub fn response(mut self, status: u16, description: impl Into<String>) -> OpenApi {
        self.responses.insert(status, description.into());
        self
    }

    /// Builds the document from the encoded `google.protobuf.FileDescriptorSet` that the layer is built from.
    ///
    /// # Errors
    ///
    /// Fails with all invalid rules, and with all reasons and credentials that are not in the tables.
    pub fn build(self, descriptor_set: &[u8]) -> Result<Value, BuildErrors> {
        let pool = descriptors::decode(descriptor_set)?;
        let schema = Schema::new(&pool, self.style);
        let rules = rule::read(&pool, &schema, &self.selection)?;
        let comments = Comments::new(&pool);
        let schemas = Schemas::new(&pool, &schema, &comments);
        let mut document = Document {
            options: &self,
            pool: &pool,
            schema: &schema,
            comments: &comments,
            schemas,
            ids: HashSet::new(),
            paths: Map::new(),
            shared: BTreeMap::new(),
            errors: Vec::new(),
        };
        document.describe(&rules.bindings);
        document.finish()
    }
}

/// A document under construction.
struct Document<'d> {
    options: &'d OpenApi,
    pool: &'d DescriptorPool,
    schema: &'d Schema,
    comments: &'d Comments,
    schemas: Schemas<'d>,
    ids: HashSet<String>,
    paths: Map<String, Value>,
    shared: SharedResponses,
    errors: Vec<BuildError>,
}

impl Document<'_> {
    fn describe(&mut self, bindings: &[Binding]) {
        let methods: Vec<MethodDescriptor> =
            self.pool.services().flat_map(|service| service.methods().collect::<Vec<_>>()).collect();
        let methods: HashMap<String, &MethodDescriptor> = methods
            .iter()
            .map(|method| (format!("/{}/{}", method.parent_service().full_name(), method.name()), method))
            .collect();
        let mut described: Vec<DescribedBinding<'_>> = bindings
            .iter()
            .filter_map(|binding| {
                let method = methods.get(binding.matched.grpc_path.path())?;
                Some(DescribedBinding { schema: self.schema, comments: self.comments, binding, method })
            })
            .collect();
        described.iter().for_each(|described| described.mark_direction(&mut self.schemas));
        // A rule for every method gets the methods that have no other rule.
        described.sort_by_key(|described| described.binding.method == MethodPattern::Any);
        let mut paths = Paths::default();
        for described in &described {
            self.operations(described, &mut paths);
        }
    }

    /// Adds a binding: one operation, or for `*` one for every method without another rule.
    fn operations(&mut self, described: &DescribedBinding<'_>, paths: &mut Paths) {
        // `rule::read` has parsed it.
        let Ok(template) = Template::parse(&described.binding.matched.template) else { return };
        let path = paths.add(&template);
        let tag = self.tag(described.method.parent_service());
        let mut operation = described.operation(&mut self.schemas, &path, &tag);
        let responses = self.responses(described, !path.wildcards.is_empty());
        operation.insert("responses".to_owned(), responses.into());
        operation.extend(self.security(described.method).map(|security| ("security".to_owned(), security)));
        let methods = match &described.binding.method {
            MethodPattern::Exact(method) => vec![method.clone()],
            MethodPattern::Any if described.binding.body == Body::None => {
                vec![Method::GET, Method::PUT, Method::POST, Method::DELETE, Method::PATCH]
            }
            MethodPattern::Any => vec![Method::PUT, Method::POST, Method::PATCH],
        };
        for method in methods {
            let mut operation = operation.clone();
            if method == Method::HEAD {
                without_content(&mut operation);
            }
            let item = self.paths.entry(path.text.clone()).or_insert_with(|| json!({}));
            let key = method.as_str().to_ascii_lowercase();
            let place = match key.as_str() {
                "get" | "put" | "post" | "delete" | "options" | "head" | "patch" | "trace" => &mut item[key],
                _ => &mut item["x-additional-operations"][method.as_str()],
            };
            if place.is_null() {
                operation.insert("operationId".to_owned(), id(&mut self.ids, &tag, described.method.name()).into());
                *place = operation.into();
            }
        }
    }

    fn responses(&mut self, described: &DescribedBinding<'_>, has_parameters: bool) -> Map<String, Value> {
        let mut errors = Errors::default();
        if let Some(reasons) = &self.options.reasons {
            let own = option_values(self.pool, described.method, &reasons.option).unwrap_or_default();
            let own = own.iter().map(|name| (name, Errors::add as fn(&mut Errors, &ErrorReason)));
            let common = self.options.common_reasons.iter().map(|name| (name, Errors::add_common as _));
            for (name, add) in own.chain(common) {
                match reasons.table.get(name) {
                    Some(reason) => add(&mut errors, reason),
                    None => self.errors.push(method_error(described.method, RuleError::UnknownReason(name.clone()))),
                }
            }
        }
        let mut refusals = vec![
            Refusal::Schema(vec![]),
            Refusal::BodyUnreadable,
            Refusal::BodyTooSlow,
            Refusal::BodyTooLarge(0),
            Refusal::BadReply(""),
        ];
        if described.binding.body != Body::None {
            refusals.push(Refusal::UnsupportedMediaType);
        }
        if has_parameters {
            refusals.extend([Refusal::RouteNotFound, Refusal::MethodNotAllowed(vec![])]);
        }
        refusals.iter().for_each(|refusal| errors.add_refusal(refusal));

        let header = |name: &String| (name.clone(), json!({"$ref": format!("#/components/headers/{name}")}));
        let headers: Map<String, Value> = self.options.headers.keys().map(header).collect();
        let mut responses =
            errors.responses(&headers, self.options.reasons.is_some(), &self.options.error_body, &mut self.shared);
        for (status, description) in &self.options.responses {
            responses.insert(status.to_string(), json!({"description": description}));
        }
        responses.insert("200".to_owned(), described.success(&mut self.schemas, &headers, &self.options.error_body));
        responses
    }

    fn security(&mut self, method: &MethodDescriptor) -> Option<Value> {
        let security = self.options.security.as_ref()?;
        let mut alternatives = Vec::new();
        for credential in option_values(self.pool, method, &security.option).unwrap_or_default() {
            let alternative = match security.schemes.get(&credential) {
                Some(Some(scheme)) => json!({ (scheme): [] }),
                Some(None) => json!({}),
                None => {
                    self.errors.push(method_error(method, RuleError::UnknownCredential(credential)));
                    continue;
                }
            };
            if !alternatives.contains(&alternative) {
                alternatives.push(alternative);
            }
        }
        Some(alternatives.into())
    }

    /// The service's name; its full name if another service has the same name.
    fn tag(&self, service: &ServiceDescriptor) -> String {
        let same = self.pool.services().filter(|other| other.name() == service.name()).count();
        if same > 1 { service.full_name().to_owned() } else { service.name().to_owned() }
    }

    fn finish(mut self) -> Result<Value, BuildErrors> {
        let options = self.options;
        let extensions = [
            options.reasons.as_ref().map(|reasons| &reasons.option),
            options.security.as_ref().map(|security| &security.option),
        ];
        for option in extensions.into_iter().flatten() {
            if self.pool.get_extension_by_name(option).is_none() {
                self.errors.push(BuildError::of_set(RuleError::UnknownExtension(option.clone())));
            }
        }
        if !self.errors.is_empty() {
            return Err(BuildErrors(self.errors));
        }
        let used: HashSet<&str> = self.paths.values().flat_map(tags_of).collect();
        let tags: Vec<Value> = self
            .pool
            .services()
            .map(|service| (self.tag(&service), self.comments.of(&service.parent_file(), service.path())))
            .filter(|(tag, _)| used.contains(tag.as_str()))
            .map(|(tag, comment)| match comment {
                Some(comment) => json!({"name": tag, "description": comment}),
                None => json!({"name": tag}),
            })
            .collect();
        let mut components = self.schemas.into_components();
        components.extend(options.error_body.components(options.style)?);

        let mut info = json!({"title": options.title, "version": options.version});
        if let Some(description) = &options.description {
            info["description"] = description.as_str().into();
        }
        let mut document = json!({
            "openapi": "3.1.0",
            "info": info,
            "tags": tags,
            "paths": self.paths,
            "components": {"schemas": components, "responses": self.shared, "headers": options.headers},
        });
        if !options.servers.is_empty() {
            document["servers"] = options.servers.iter().map(|url| json!({"url": url})).collect();
        }
        if !options.security_schemes.is_empty() {
            document["components"]["securitySchemes"] = options.security_schemes.clone().into();
        }
        Ok(document)
    }
}

/// The tags of the operations of a path.
fn tags_of(item: &Value) -> impl Iterator<Item = &str> {
    let custom = item["x-additional-operations"].as_object();
    let operations = item.as_object().into_iter().chain(custom).flat_map(Map::values);
    operations.filter_map(|operation| operation["tags"][0].as_str())
}

/// A response to HEAD has no content.
fn without_content(operation: &mut Map<String, Value>) {
    let responses = operation.get_mut("responses").and_then(Value::as_object_mut);
    for response in responses.into_iter().flat_map(Map::values_mut).filter_map(Value::as_object_mut) {
        response.remove("content");
    }
}

/// `Service_Method`, with a number for each additional binding.
fn id(ids: &mut HashSet<String>, tag: &str, method: &str) -> String {
    let first = format!("{tag}_{method}");
    let id = std::iter::once(first.clone())
        .chain((2..).map(|number| format!("{first}_{number}")))
        .find(|id| !ids.contains(id))
        .unwrap_or(first);
    ids.insert(id.clone());
    id
}

fn method_error(method: &MethodDescriptor, reason: RuleError) -> BuildError {
    let service = method.parent_service().full_name().to_owned();
    BuildError { service, method: method.name().to_owned(), reason }
}

/// The values of a method option: strings, or the names of enum values. `None` if the method does not have the option.
fn option_values(pool: &DescriptorPool, method: &MethodDescriptor, option: &str) -> Option<Vec<String>> {
    let extension = pool.get_extension_by_name(option)?;
    let options = method.options();
    if !options.has_extension(&extension) {
        return None;
    }
    let values = options.get_extension(&extension);
    let kind = extension.kind();
    let name = |value: &prost_reflect::Value| match (value, &kind) {
        (prost_reflect::Value::EnumNumber(number), prost_reflect::Kind::Enum(item)) => {
            enum_values(item).iter().find(|value| value.number() == *number).map(|value| value.name().to_owned())
        }
        _ => value.as_str().map(str::to_owned),
    };
    Some(values.as_list().unwrap_or_default().iter().filter_map(name).collect())
}
