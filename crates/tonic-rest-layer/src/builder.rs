//! The options of a layer, and how it is built.

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

/// Bodies up to this size are read unless the builder says otherwise: 1 MiB.
const BODY_BYTES_MAX: usize = 1024 * 1024;

/// No builder can ask for more: a frame's length has four bytes, and a message can take more of them than its JSON. 1 GiB.
const BODY_BYTES_CEILING: usize = 1024 * 1024 * 1024;

/// How many members and elements a body may have unless the builder says otherwise.
const BODY_ELEMENTS_MAX: usize = 65_536;

/// How long a body may take to arrive unless the builder says otherwise.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

impl RestLayer {
    /// Takes all annotated services of an encoded `google.protobuf.FileDescriptorSet`, with the defaults of
    /// [`RestLayer::builder`].
    ///
    /// The bytes must be as the compiler wrote them, imports included: tools that decode and re-encode a set drop the
    /// rules if they do not know them.
    ///
    /// # Errors
    ///
    /// With every rule that cannot work.
    pub fn new(descriptor_set: &[u8]) -> Result<RestLayer, BuildErrors> {
        RestLayer::builder().build(descriptor_set)
    }

    /// Starts from the defaults: base path `/`, every service of the set, bodies of at most 1 MiB and 65,536 members and
    /// elements that arrive within 10 seconds, every query parameter a field, errors in the domain `transcode`.
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

/// The options of a [`RestLayer`].
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
    /// Answers under this path: `/`, or literal segments such as `/api/v1`. May be given several times, and then the
    /// same templates answer under each.
    #[must_use]
    pub fn base_path(mut self, path: impl Into<String>) -> RestLayerBuilder {
        self.selection.base_paths.push(path.into());
        self
    }

    /// Makes routes for this service, by its full name, and for no other. May be given several times. Default: all
    /// services of the set.
    ///
    /// A set holds the services of the files that it imports too. The layer cannot know which of them stand behind it,
    /// and a route to one that does not is answered with 501; so name yours: tonic's `NamedService::NAME` is the full name.
    #[must_use]
    pub fn service(mut self, full_name: impl Into<String>) -> RestLayerBuilder {
        self.selection.services.push(full_name.into());
        self
    }

    /// Leaves out rules that cannot work, instead of failing the build: client streams, templates that break the grammar,
    /// of two rules with the same method and shape the second. [`RestLayer::skipped_rules`] tells which. The build still
    /// fails when no rule is left.
    #[must_use]
    pub fn skip_faulty_rules(mut self) -> RestLayerBuilder {
        self.selection.skips_faulty = true;
        self
    }

    /// Refuses request bodies of more bytes than this, with 413. Default: 1,048,576 (1 MiB); more than 1 GiB is 1 GiB.
    #[must_use]
    pub fn max_body_bytes(mut self, bytes: usize) -> RestLayerBuilder {
        self.body_bytes_max = bytes.min(BODY_BYTES_CEILING);
        self
    }

    /// Refuses JSON bodies with more members, elements and map entries than this in all, with 400. Default: 65,536.
    ///
    /// An empty message costs three bytes of JSON and hundreds of memory, so a bound on bytes alone is not enough.
    #[must_use]
    pub fn max_body_elements(mut self, elements: usize) -> RestLayerBuilder {
        self.body_elements_max = elements;
        self
    }

    /// Refuses bodies in which this repeated field or map, by its full name (`package.Message.field`), has more elements
    /// than this, with 400, as soon as the first beyond it is met. Default: no bound but that of the body.
    #[must_use]
    pub fn max_field_elements(mut self, full_name: impl Into<String>, elements: usize) -> RestLayerBuilder {
        self.field_bounds.push((full_name.into(), elements));
        self
    }

    /// Reads the paths of a FieldMask in the names of the proto too (`device_name`), which is how replies spell fields.
    /// Default: in lowerCamelCase alone, as ProtoJSON has it.
    #[must_use]
    pub fn snake_case_field_masks(mut self) -> RestLayerBuilder {
        self.snake_case_masks = true;
        self
    }

    /// Refuses request bodies that take longer than this to arrive, with 408. Default: 10 seconds. A smaller
    /// `grpc-timeout` of the request counts instead, and what the body used of it is gone for the call.
    ///
    /// The service behind the layer is asked only when the body is there, so no deadline of its own covers the wait.
    #[must_use]
    pub fn body_timeout(mut self, timeout: Duration) -> RestLayerBuilder {
        self.body_timeout = timeout;
        self
    }

    /// Passes over a query parameter of this name, instead of refusing it as unknown. It names no field any more.
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

    /// Writes this string field of a stream's messages as the `id:` of its server-sent event too, where a message has one:
    /// what a browser's `EventSource` sends back as `Last-Event-ID`. Default: events have no id.
    #[must_use]
    pub fn event_id_field(mut self, name: impl Into<String>) -> RestLayerBuilder {
        self.event_id_field = Some(name.into());
        self
    }

    /// Sends a comment on a stream of server-sent events after this much silence, so that no proxy takes it for dead. Default: no
    /// comments.
    ///
    /// A stream without a first message begins with one then, and its status is 200 whatever comes after. A period of 0 is 1 ms.
    /// Needs tokio's timer.
    #[must_use]
    pub fn event_heartbeat(mut self, period: Duration) -> RestLayerBuilder {
        self.event_heartbeat = Some(period.max(Duration::from_millis(1)));
        self
    }

    /// Passes requests to the inner service, unchanged, where no rule has the path: for a router with pages, health checks or
    /// webhooks beside the gRPC services. Default: they are answered with 404.
    ///
    /// A path that a rule has is answered here with every method, with 405 too.
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
    /// // Around the whole router: `Router::layer` would put it around each route, and it panics there.
    /// Ok(Router::new().fallback_service(rest.layer(app)))
    /// # }
    /// ```
    #[must_use]
    pub fn fall_through(mut self) -> RestLayerBuilder {
        self.falls_through = true;
        self
    }

    /// Prints members under their JSON names: lowerCamelCase, or the `json_name` of the proto. Default: under their proto names.
    /// Requests may use either, always.
    ///
    /// ```
    /// # fn layer(descriptor_set: &[u8]) -> Result<tonic_rest_layer::RestLayer, tonic_rest_layer::BuildErrors> {
    /// // {"displayName": "Ada"} in place of {"display_name": "Ada", "age": 0}
    /// tonic_rest_layer::RestLayer::builder().json_names().omit_default_values().build(descriptor_set)
    /// # }
    /// ```
    #[must_use]
    pub fn json_names(mut self) -> RestLayerBuilder {
        self.style.json_names = true;
        self
    }

    /// Omits members with default values (0, `""`, `false`, an enum's first value, an empty list or map) unless the proto tells
    /// them from absence (`optional`, oneofs, messages). Default: they are printed.
    #[must_use]
    pub fn omit_default_values(mut self) -> RestLayerBuilder {
        self.style.omits_defaults = true;
        self
    }

    /// Makes the JSON of each error, of those in a stream too. Default: `google.rpc.Status`.
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

    /// Sets the `WWW-Authenticate` of a 401, unless the service sends its own as metadata. Default: `Bearer`.
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

    /// Changes the status and the headers of successful answers. Default: 200, and the service's metadata as headers.
    ///
    /// The body is left out with 204, 205 and 304.
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
    /// With every rule that cannot work, every base path, and every name that the set does not have.
    pub fn build(self, descriptor_set: &[u8]) -> Result<RestLayer, BuildErrors> {
        let pool = descriptors::decode(descriptor_set)?;
        let google_rpc = descriptors::decode(GOOGLE_RPC)?;
        let mut schema = Schema::new(&pool, self.style);
        schema.snake_case_masks = self.snake_case_masks;
        let unknown = self.field_bounds.into_iter().filter(|(name, most)| !schema.bound_elements(name, *most));
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
