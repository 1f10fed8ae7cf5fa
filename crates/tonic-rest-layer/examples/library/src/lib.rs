//! A tonic service over REST and JSON. Run `cargo run -p library`, then:
//!
//! ```sh
//! curl -d '{"title": "Emma", "authors": ["Austen"]}' -H 'content-type: application/json' localhost:8081/shelves/1/books
//! curl localhost:8081/shelves/1/books/1
//! curl localhost:8081/shelves/1:read                                  # a line per book
//! curl -H 'accept: text/event-stream' localhost:8081/shelves/1:read   # server-sent events
//! curl -i localhost:8081/shelves/1/books/1:download
//! curl -i localhost:8081/shelves/1/books/9                            # 404, as google.rpc.Status
//! ```
//!
//! The same port serves gRPC and grpc-web. The layer is one line of [`serve`].

use std::pin::Pin;
use std::sync::Mutex;

use axum::Router;
use futures_util::Stream;
use futures_util::stream;
use google::api::HttpBody;
use library::v1::Book;
use library::v1::CreateBookRequest;
use library::v1::GetBookRequest;
use library::v1::ReadShelfRequest;
use library::v1::library_service_server::LibraryService;
use library::v1::library_service_server::LibraryServiceServer;
use tokio::net::TcpListener;
use tonic::Request;
use tonic::Response;
use tonic::Status;
use tonic::service::Routes;
use tonic_rest_layer::BoxError;
use tonic_rest_layer::RestLayer;
use tonic_web::GrpcWebLayer;
use tower::Layer;

/// The output of `build.rs`: messages, service, and the descriptor set for the layer.
#[allow(missing_docs, unreachable_pub, clippy::all, reason = "generated")]
mod library {
    pub mod v1 {
        tonic::include_proto!("library.v1");
        pub const DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/library.bin"));
    }
}
#[allow(dead_code, missing_docs, unreachable_pub, clippy::all, reason = "generated")]
mod google {
    pub mod api {
        tonic::include_proto!("google.api");
    }
}

/// Serves REST, gRPC and grpc-web on one listener.
///
/// # Errors
///
/// Fails if a rule of the proto is invalid, or if the listener fails.
pub async fn serve(listener: TcpListener) -> Result<(), BoxError> {
    let routes = Routes::new(LibraryServiceServer::new(Library::default()));
    let service = RestLayer::new(library::v1::DESCRIPTOR_SET)?.layer(GrpcWebLayer::new().layer(routes));

    println!("listening on http://{}", listener.local_addr()?);
    Ok(axum::serve(listener, Router::new().fallback_service(service)).await?)
}

/// A plain tonic service, without HTTP or JSON.
#[derive(Default)]
struct Library {
    books: Mutex<Vec<Book>>,
}

impl Library {
    fn find(&self, name: &str) -> Result<Book, Status> {
        let books = self.books.lock().map_err(|_| Status::internal("poisoned lock"))?;
        books.iter().find(|book| book.name == name).cloned().ok_or_else(|| Status::not_found("no such book"))
    }
}

#[tonic::async_trait]
impl LibraryService for Library {
    async fn create_book(&self, request: Request<CreateBookRequest>) -> Result<Response<Book>, Status> {
        let CreateBookRequest { parent, book } = request.into_inner();
        let mut book = book.ok_or_else(|| Status::invalid_argument("no book"))?;
        let mut books = self.books.lock().map_err(|_| Status::internal("poisoned lock"))?;
        book.name = format!("{parent}/books/{}", books.len() + 1);
        books.push(book.clone());
        Ok(Response::new(book))
    }

    async fn get_book(&self, request: Request<GetBookRequest>) -> Result<Response<Book>, Status> {
        self.find(&request.into_inner().name).map(Response::new)
    }

    type ReadShelfStream = Pin<Box<dyn Stream<Item = Result<Book, Status>> + Send>>;

    async fn read_shelf(&self, request: Request<ReadShelfRequest>) -> Result<Response<Self::ReadShelfStream>, Status> {
        let shelf = format!("{}/", request.into_inner().name);
        let books = self.books.lock().map_err(|_| Status::internal("poisoned lock"))?;
        let books: Vec<_> = books.iter().filter(|book| book.name.starts_with(&shelf)).cloned().map(Ok).collect();
        Ok(Response::new(Box::pin(stream::iter(books))))
    }

    async fn download_book(&self, request: Request<GetBookRequest>) -> Result<Response<HttpBody>, Status> {
        let book = self.find(&request.into_inner().name)?;
        let text = format!("{}\nby {}\n", book.title, book.authors.join(", "));
        Ok(Response::new(HttpBody { content_type: "text/plain".to_owned(), data: text.into(), extensions: vec![] }))
    }
}
