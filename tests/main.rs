//! Everything that runs against more than one module: a file or a folder per capability.

/// HTTP and JSON in front of any tonic service.
mod transcode;
