//! Serves the library on port 8081.

use tokio::net::TcpListener;
use tonic_rest_layer::BoxError;

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    library::serve(TcpListener::bind("127.0.0.1:8081").await?).await
}
