//! The builder of a layer: its options and their defaults.

use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;
use http::response;
use serde_json::Value;

use crate::binding::MatchedRoute;
use crate::descriptors;
use crate::error::BuildError;
use crate::error::BuildErrors;
use crate::error::RuleError;
use crate::hooks::Hook;
use crate::hooks::Hooks;
use crate::layer::RestLayer;
use crate::rule;
use crate::rule::Selection;
use crate::schema::PrintStyle;
use crate::schema::Schema;
use crate::status::RestError;
use crate::transcoder::GOOGLE_RPC;
use crate::transcoder::Transcoder;

/// The default of [`RestLayerBuilder::max_body_bytes`]: 1 MiB.
const BODY_BYTES_MAX: usize = 1024 * 1024;

/// The maximum of [`RestLayerBuilder::max_body_bytes`]: 1 GiB. The length field of a gRPC frame has 4 bytes, and a message can be larger
/// than its JSON.
const BODY_BYTES_CEILING: usize = 1024 * 1024 * 1024;

/// The default of [`RestLayerBuilder::max_body_elements`].
const BODY_ELEMENTS_MAX: usize = 65_536;

/// The default of [`RestLayerBuilder::body_timeout`].
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

impl RestLayer {
    /// Builds a layer for all annotated services of an encoded `google.protobuf.FileDescriptorSet`, with the defaults of
    /// [`RestLayer::builder`].
    ///
    /// The bytes must be the compiler's output, imports included. Tools that decode and re-encode a set drop the rules if they do
    /// not know `google.api.http`.
    ///
    /// # Errors
    ///
    /// Fails with all invalid rules.
    pub fn new(descriptor_set: &[u8]) -> Result<RestLayer, BuildErrors> {
        RestLayer::builder().build(descriptor_set)
    }

    /// Returns a builder with the defaults: base path `/`, all services of the set, bodies of up to 1 MiB and 65,536 members and
    /// elements that arrive within 10 seconds, no ignored query parameters, error domain `transcode`.
    pub fn builder() -> RestLayerBuilder {
        RestLayerBuilder {
            selection: Selection::default(),
            ignored: Vec::new(),
            field_bounds: Vec::new(),
            snake_case_masks: false,
            body_bytes_max: BODY_BYTES_MAX,
            body_elements_max: BODY_ELEMENTS_MAX,
            body_timeout: BODY_TIMEOUT,
            error_domain: "transcode".to_owned(),
            event_id_field: None,
            event_heartbeat: None,
            falls_through: false,
            style: PrintStyle::default(),
            hooks: Hooks::default(),
        }
    }
}

/// Builds a [`RestLayer`]. Created with [`RestLayer::builder`].
#[derive(Debug, Clone)]
pub struct RestLayerBuilder {
    selection: Selection,
    ignored: Vec<String>,
    field_bounds: Vec<(String, usize)>,
    snake_case_masks: bool,
    body_bytes_max: usize,
    body_elements_max: usize,
    body_timeout: Duration,
    error_domain: String,
    event_id_field: Option<String>,
    event_heartbeat: Option<Duration>,
    falls_through: bool,
    style: PrintStyle,
    hooks: Hooks,
}

impl RestLayerBuilder {
    /// Serves all rules under this path: `/`, or literal segments such as `/api/v1`. Call it several times to serve them under each
    /// path. Default: `/`.
    #[must_use]
    pub fn base_path(mut self, path: impl Into<String>) -> RestLayerBuilder {
        self.selection.base_paths.push(path.into());
        self
    }

    /// Serves the rules of the service with this full name only. Call it several times to add services. Default: all services of
    /// the set.
    ///
    /// A set also has the services of the files that it imports. The layer cannot know which of them the inner service has, and a
    /// call to a missing one returns 501. tonic's `NamedService::NAME` is the full name.
    ///
    /// ```
    /// # fn layer(descriptor_set: &[u8]) -> Result<tonic_rest_layer::RestLayer, tonic_rest_layer::BuildErrors> {
    /// // Or `LibraryServiceServer::<Library>::NAME`, with the trait `tonic::server::NamedService`.
    /// tonic_rest_layer::RestLayer::builder().service("library.v1.LibraryService").build(descriptor_set)
    /// # }
    /// ```
    #[must_use]
    pub fn service(mut self, full_name: impl Into<String>) -> RestLayerBuilder {
        self.selection.services.push(full_name.into());
        self
    }

    /// Skips invalid rules instead of failing the build: rules of client streams, templates with syntax errors, and the second of
    /// two rules with the same method and path. [`RestLayer::skipped_rules`] returns them. The build still fails if no rule is
    /// left. Default: the build fails.
    ///
    /// ```
    /// # fn layer(descriptor_set: &[u8]) -> Result<tonic_rest_layer::RestLayer, tonic_rest_layer::BuildErrors> {
    /// let layer = tonic_rest_layer::RestLayer::builder().skip_faulty_rules().build(descriptor_set)?;
    /// for error in layer.skipped_rules() {
    ///     eprintln!("skipped {error}");
    /// }
    /// # Ok(layer)
    /// # }
    /// ```
    #[must_use]
    pub fn skip_faulty_rules(mut self) -> RestLayerBuilder {
        self.selection.skips_faulty = true;
        self
    }

    /// Rejects larger request bodies, with 413. Default: 1,048,576 (1 MiB). Maximum: 1 GiB; larger values mean 1 GiB.
    #[must_use]
    pub fn max_body_bytes(mut self, bytes: usize) -> RestLayerBuilder {
        self.body_bytes_max = bytes.min(BODY_BYTES_CEILING);
        self
    }

    /// Rejects JSON bodies with more members, elements and map entries in total, with 400. Default: 65,536.
    ///
    /// An empty message is 3 bytes of JSON and hundreds of bytes of memory, so a bound on bytes alone is not enough.
    #[must_use]
    pub fn max_body_elements(mut self, elements: usize) -> RestLayerBuilder {
        self.body_elements_max = elements;
        self
    }

    /// Rejects bodies in which the repeated field or map with this full name (`package.Message.field`) has more elements, with 400.
    /// The layer stops reading at the first element beyond the bound. Default: no bound other than that of the body.
    #[must_use]
    pub fn max_field_elements(mut self, full_name: impl Into<String>, elements: usize) -> RestLayerBuilder {
        self.field_bounds.push((full_name.into(), elements));
        self
    }

    /// Accepts proto names (`device_name`) in the paths of a FieldMask, because replies use these names. Default: lowerCamelCase
    /// only, as in ProtoJSON.
    #[must_use]
    pub fn snake_case_field_masks(mut self) -> RestLayerBuilder {
        self.snake_case_masks = true;
        self
    }

    /// Rejects request bodies that take longer to arrive, with 408. Default: 10 seconds. A shorter `grpc-timeout` of the request
    /// applies instead; the time that the body took is subtracted from it before the call.
    ///
    /// The layer calls the inner service after the body has arrived, so a deadline of the service does not include that time.
    #[must_use]
    pub fn body_timeout(mut self, timeout: Duration) -> RestLayerBuilder {
        self.body_timeout = timeout;
        self
    }

    /// Ignores the query parameter with this name, even if a field has the name. Default: an unknown parameter is rejected.
    #[must_use]
    pub fn ignore_query_parameter(mut self, name: impl Into<String>) -> RestLayerBuilder {
        self.ignored.push(name.into());
        self
    }

    /// Sets the `ErrorInfo.domain` of the layer's own errors. Default: `transcode`.
    #[must_use]
    pub fn error_domain(mut self, domain: impl Into<String>) -> RestLayerBuilder {
        self.error_domain = domain.into();
        self
    }

    /// Sets the string field whose value is the `id:` of a message's server-sent event. A browser's `EventSource` sends the last id
    /// back as `Last-Event-ID`. A message without the field, or with an empty value, gets no id. Default: events have no id.
    #[must_use]
    pub fn event_id_field(mut self, name: impl Into<String>) -> RestLayerBuilder {
        self.event_id_field = Some(name.into());
        self
    }

    /// Sends a comment on a stream of server-sent events after each period without a message, so that no proxy closes it as idle.
    /// Default: no comments.
    ///
    /// If the first message takes longer than the period, the response starts with a comment, and its status is 200 even if the call
    /// fails later. Other streams (NDJSON, `google.api.HttpBody`) get no comments. A period of 0 means 1 ms. Needs tokio's timer.
    ///
    /// ```
    /// # fn layer(descriptor_set: &[u8]) -> Result<tonic_rest_layer::RestLayer, tonic_rest_layer::BuildErrors> {
    /// use std::time::Duration;
    /// use tonic_rest_layer::RestLayer;
    ///
    /// // nginx closes a proxied connection after 60 seconds without data.
    /// RestLayer::builder().event_heartbeat(Duration::from_secs(25)).build(descriptor_set)
    /// # }
    /// ```
    #[must_use]
    pub fn event_heartbeat(mut self, period: Duration) -> RestLayerBuilder {
        self.event_heartbeat = Some(period.max(Duration::from_millis(1)));
        self
    }

    /// Passes requests to the inner service, unchanged, if no rule matches their path: for a router with pages, health checks or
    /// webhooks beside the gRPC services. Default: the layer responds with 404.
    ///
    /// If a rule matches the path, the layer responds to every method, if necessary with 405.
    ///
    /// ```
    /// # fn layer(descriptor_set: &[u8]) -> Result<axum::Router, tonic_rest_layer::BoxError> {
    /// use axum::Router;
    /// use axum::routing::get;
    /// use tonic::service::Routes;
    /// use tonic_rest_layer::RestLayer;
    /// use tower::Layer;
    ///
    /// let grpc = Routes::default().into_axum_router();
    /// let app = Router::new().route("/healthz", get("ok")).merge(grpc);
    /// let rest = RestLayer::builder().fall_through().build(descriptor_set)?;
    /// // Wraps the whole router. `Router::layer` would wrap each route, where the layer panics.
    /// Ok(Router::new().fallback_service(rest.layer(app)))
    /// # }
    /// ```
    #[must_use]
    pub fn fall_through(mut self) -> RestLayerBuilder {
        self.falls_through = true;
        self
    }

    /// Prints fields under their JSON names: lowerCamelCase, or the `json_name` of the proto. Default: proto names. Requests may
    /// always use either.
    ///
    /// ```
    /// # fn layer(descriptor_set: &[u8]) -> Result<tonic_rest_layer::RestLayer, tonic_rest_layer::BuildErrors> {
    /// // {"displayName": "Ada"} instead of {"display_name": "Ada", "age": 0}
    /// tonic_rest_layer::RestLayer::builder().json_names().omit_default_values().build(descriptor_set)
    /// # }
    /// ```
    #[must_use]
    pub fn json_names(mut self) -> RestLayerBuilder {
        self.style.json_names = true;
        self
    }

    /// Omits fields with default values (0, `""`, `false`, an enum's first value, an empty list or map) unless they have presence
    /// (`optional`, oneofs, messages). Default: they are printed.
    #[must_use]
    pub fn omit_default_values(mut self) -> RestLayerBuilder {
        self.style.omits_defaults = true;
        self
    }

    /// Sets the function that returns the JSON of each error, including errors in streams. Default: `google.rpc.Status`.
    ///
    /// Describe the result with [`OpenApi::error_body`](crate::OpenApi::error_body).
    ///
    /// ```
    /// # fn layer(descriptor_set: &[u8]) -> Result<tonic_rest_layer::RestLayer, tonic_rest_layer::BuildErrors> {
    /// use http::HeaderValue;
    /// use serde_json::json;
    /// use tonic_rest_layer::RestLayer;
    ///
    /// // Problem details (RFC 9457).
    /// RestLayer::builder()
    ///     .error_body(|error| json!({"status": error.status().as_u16(), "title": error.message()}))
    ///     .error_content_type(HeaderValue::from_static("application/problem+json"))
    ///     .build(descriptor_set)
    /// # }
    /// ```
    #[must_use]
    pub fn error_body(mut self, body: impl Fn(&RestError) -> Value + Send + Sync + 'static) -> RestLayerBuilder {
        self.hooks.error_body = Some(Hook(Arc::new(body)));
        self
    }

    /// Sets the content type of errors. Default: `application/json`.
    #[must_use]
    pub fn error_content_type(mut self, content_type: HeaderValue) -> RestLayerBuilder {
        self.hooks.error_content_type = content_type;
        self
    }

    /// Sets the `WWW-Authenticate` header of a 401. The service can replace it by metadata of that name. Default: `Bearer`.
    ///
    /// ```
    /// # fn layer(descriptor_set: &[u8]) -> Result<tonic_rest_layer::RestLayer, tonic_rest_layer::BuildErrors> {
    /// use http::HeaderValue;
    ///
    /// let challenge = HeaderValue::from_static(r#"Bearer realm="library""#);
    /// tonic_rest_layer::RestLayer::builder().challenge(challenge).build(descriptor_set)
    /// # }
    /// ```
    #[must_use]
    pub fn challenge(mut self, challenge: HeaderValue) -> RestLayerBuilder {
        self.hooks.challenge = challenge;
        self
    }

    /// Sets a function that changes the status and the headers of successful responses. Default: 200, and the service's metadata as
    /// headers.
    ///
    /// With 204, 205 and 304, the response has no body.
    ///
    /// ```
    /// # fn layer(descriptor_set: &[u8]) -> Result<tonic_rest_layer::RestLayer, tonic_rest_layer::BuildErrors> {
    /// use http::StatusCode;
    /// use tonic_rest_layer::RestLayer;
    ///
    /// RestLayer::builder()
    ///     .on_success(|route, parts| match route.grpc_path.path() {
    ///         "/library.v1.LibraryService/CreateBook" => parts.status = StatusCode::CREATED,
    ///         "/library.v1.LibraryService/DeleteBook" => parts.status = StatusCode::NO_CONTENT,
    ///         _ => {}
    ///     })
    ///     .build(descriptor_set)
    /// # }
    /// ```
    #[must_use]
    pub fn on_success(
        mut self,
        change: impl Fn(&MatchedRoute, &mut response::Parts) + Send + Sync + 'static,
    ) -> RestLayerBuilder {
        self.hooks.success = Some(Hook(Arc::new(change)));
        self
    }

    /// Builds the layer from an encoded `google.protobuf.FileDescriptorSet`; see [`RestLayer::new`].
    ///
    /// # Errors
    ///
    /// Fails with all invalid rules, invalid base paths, and names that the set does not have.
    pub fn build(self, descriptor_set: &[u8]) -> Result<RestLayer, BuildErrors> {
        let pool = descriptors::decode(descriptor_set)?;
        let google_rpc = descriptors::decode(GOOGLE_RPC)?;
        let mut schema = Schema::new(&pool, self.style);
        schema.snake_case_masks = self.snake_case_masks;
        let unknown = self.field_bounds.into_iter().filter(|(name, max)| !schema.bound_elements(name, *max));
        let unknown: Vec<_> =
            unknown.map(|(name, _)| BuildError::of_set(RuleError::UnknownRepeatedField(name))).collect();
        if !unknown.is_empty() {
            return Err(BuildErrors(unknown));
        }
        let rules = rule::read(&pool, &schema, &self.selection)?;
        let transcoder = Transcoder {
            schema,
            google_rpc: Schema::new(&google_rpc, self.style),
            rules,
            ignored: self.ignored,
            body_bytes_max: self.body_bytes_max,
            body_elements_max: self.body_elements_max,
            body_timeout: self.body_timeout,
            error_domain: self.error_domain,
            event_id_field: self.event_id_field,
            event_heartbeat: self.event_heartbeat,
            falls_through: self.falls_through,
            hooks: self.hooks,
        };
        Ok(RestLayer { transcoder: Arc::new(transcoder) })
    }
}
