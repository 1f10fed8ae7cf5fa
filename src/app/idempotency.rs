//! Requests that may be repeated safely (AIP-155).

use uuid::Uuid;

use sessiond_core::token;

/// The id under which a request may be repeated, and a digest of its content: a repeat must have the same content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdempotencyKey {
    /// The client's `request_id`.
    pub id: Uuid,
    /// SHA-256 of the rest of the request.
    pub digest: [u8; 32],
}

impl IdempotencyKey {
    /// Takes the request's id, and a canonical encoding of the rest of the request.
    pub fn new(id: Uuid, content: &[u8]) -> Self {
        Self { id, digest: token::fingerprint(content) }
    }
}
