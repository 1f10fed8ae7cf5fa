//! What a layer can be told, and how it is built.

use std::sync::Arc;
use std::time::Duration;

use crate::descriptors;
use crate::error::BuildError;
use crate::error::BuildErrors;
use crate::error::RuleError;
use crate::layer::RestLayer;
use crate::rule;
use crate::rule::Selection;
use crate::schema::Schema;
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
        }
    }
}

/// Collects what a [`RestLayer`] can be told.
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
    /// An empty message costs three bytes of JSON and hundreds of memory, so the size of a body alone is no bound.
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

    /// Builds the layer from an encoded `google.protobuf.FileDescriptorSet`; see [`RestLayer::new`].
    ///
    /// # Errors
    ///
    /// With every rule that cannot work, every base path, and every name that the set does not have.
    pub fn build(self, descriptor_set: &[u8]) -> Result<RestLayer, BuildErrors> {
        let pool = descriptors::decode(descriptor_set)?;
        let google_rpc = descriptors::decode(GOOGLE_RPC)?;
        let mut schema = Schema::new(&pool);
        schema.snake_case_masks = self.snake_case_masks;
        let unknown = self.field_bounds.into_iter().filter(|(name, most)| !schema.bound_elements(name, *most));
        let unknown: Vec<_> = unknown.map(|(name, _)| BuildError::of_set(RuleError::UnknownList(name))).collect();
        if !unknown.is_empty() {
            return Err(BuildErrors(unknown));
        }
        let rules = rule::read(&pool, &schema, &self.selection)?;
        let transcoder = Transcoder {
            schema,
            google_rpc: Schema::new(&google_rpc),
            rules,
            ignored: self.ignored,
            body_bytes_max: self.body_bytes_max,
            body_elements_max: self.body_elements_max,
            body_timeout: self.body_timeout,
            error_domain: self.error_domain,
            event_id_field: self.event_id_field,
        };
        Ok(RestLayer { transcoder: Arc::new(transcoder) })
    }
}
