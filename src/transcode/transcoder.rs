//! What all requests share.

use std::time::Duration;

use super::binding::Rules;
use super::schema::Schema;
use super::status::Details;

/// The descriptors of `google.rpc`: the types of error details that every service may use.
pub(super) const GOOGLE_RPC: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/google_rpc.bin"));

/// The rules, the schema and the options of a layer. Built once, and only read afterwards.
#[derive(Debug)]
pub(super) struct Transcoder {
    pub schema: Schema,
    pub google_rpc: Schema,
    pub rules: Rules,
    pub ignored: Vec<String>,
    pub body_bytes_max: usize,
    pub body_elements_max: usize,
    pub body_timeout: Duration,
    pub error_domain: String,
    pub event_id_field: Option<String>,
}

impl Transcoder {
    pub(super) fn details(&self) -> Details<'_> {
        Details { google_rpc: &self.google_rpc, service: &self.schema }
    }
}
