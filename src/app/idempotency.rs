//! Requests that may be repeated safely (AIP-155).

use uuid::Uuid;

use sessiond_core::token;

/// The id under which a request may be repeated, with a digest of its content: a repeat must say the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdempotencyKey {
    /// The client's `request_id`.
    pub id: Uuid,
    /// SHA-256 of the rest of the request.
    pub digest: [u8; 32],
}

impl IdempotencyKey {
    /// Takes the request's id, and all the rest of the request in bytes that are the same for the same request.
    pub fn new(id: Uuid, content: &[u8]) -> Self {
        Self { id, digest: token::fingerprint(content) }
    }
}
