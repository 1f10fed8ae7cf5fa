//! HTTP/JSON in front of any tonic service.
