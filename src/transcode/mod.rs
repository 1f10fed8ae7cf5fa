//! HTTP/JSON in front of any tonic service.

mod bind;
mod body;
mod frame;
mod guard;
mod headers;
mod layer;
mod print;
mod read;
mod reply;
mod route;
mod rule;
mod scalar;
mod schema;
mod status;
mod stream;
mod strict;
mod template;
mod violation;
mod well_known;
mod wire;

pub use body::{BoxError, RequestBody, ResponseBody};
pub use layer::{Matched, ResponseFuture, RestLayer, RestLayerBuilder, RestService};
pub use rule::{BuildError, BuildErrors, RuleError};
pub use status::Code;
