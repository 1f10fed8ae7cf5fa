//! The state that all requests share.

use std::time::Duration;

use crate::binding::Rules;
use crate::hooks::Hooks;
use crate::schema::Schema;
use crate::status::DetailSchemas;
use crate::status::Refusal;
use crate::status::RestError;

/// The descriptors of `google.rpc`, with the standard types of error details.
pub(crate) const GOOGLE_RPC: &[u8] = include_bytes!("google_rpc.bin");

/// The rules, the schema and the options of a layer. Immutable.
#[derive(Debug)]
pub(crate) struct Transcoder {
    pub schema: Schema,
    pub google_rpc: Schema,
    pub rules: Rules,
    pub ignored: Vec<String>,
    pub body_bytes_max: usize,
    pub body_elements_max: usize,
    pub body_timeout: Duration,
    pub error_domain: String,
    pub event_id_field: Option<String>,
    /// The period after which an idle stream of events gets a comment.
    pub event_heartbeat: Option<Duration>,
    /// Whether requests without a matching rule go to the inner service.
    pub falls_through: bool,
    pub hooks: Hooks,
}

impl Transcoder {
    pub(crate) fn details(&self) -> DetailSchemas<'_> {
        DetailSchemas { google_rpc: &self.google_rpc, service: &self.schema, challenge: &self.hooks.challenge }
    }

    /// The response for a refusal.
    pub(crate) fn refuse(&self, refusal: &Refusal) -> RestError {
        refusal.to_error(&self.error_domain, self.schema.style)
    }
}
