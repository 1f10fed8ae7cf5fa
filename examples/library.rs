//! A tonic service of your own over HTTP and JSON: `cargo run --example library`, and then
//!
//! ```sh
//! curl -d '{"title": "Emma", "authors": ["Austen"]}' -H 'content-type: application/json' localhost:8081/shelves/1/books
//! curl localhost:8081/shelves/1/books/1
//! curl localhost:8081/shelves/1:read                                  # a line per book, as they come
//! curl -H 'accept: text/event-stream' localhost:8081/shelves/1:read   # the same as server-sent events
//! curl -i localhost:8081/shelves/1/books/1:download
//! curl -i localhost:8081/shelves/1/books/9                            # 404, as google.rpc.Status
//! ```
//!
//! gRPC and grpc-web answer on the same port. All that is the layer's is one line of `serve`.

use std::pin::Pin;
use std::sync::Mutex;

use futures_util::Stream;
use futures_util::stream;
use google::api::HttpBody;
use hyper_util::rt::TokioExecutor;
use hyper_util::rt::TokioIo;
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use library::v1::Book;
use library::v1::CreateBookRequest;
use library::v1::GetBookRequest;
use library::v1::ReadShelfRequest;
use library::v1::library_service_server::LibraryService;
use library::v1::library_service_server::LibraryServiceServer;
use sessiond::transcode::BoxError;
use sessiond::transcode::RestLayer;
use tokio::net::TcpListener;
use tonic::Request;
use tonic::Response;
use tonic::Status;
use tonic::service::Routes;
use tonic_web::GrpcWebLayer;
use tower::Layer;

/// What `tonic_prost_build` made of `library.proto`, and what `protox` made of it for the layer: see `build.rs`.
#[allow(dead_code, missing_docs, unreachable_pub, clippy::all, reason = "generated")]
mod library {
    pub mod v1 {
        include!(concat!(env!("OUT_DIR"), "/library/library.v1.rs"));
        pub const DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/library/library.bin"));
    }
}
#[allow(dead_code, missing_docs, unreachable_pub, clippy::all, reason = "generated")]
mod google {
    pub mod api {
        include!(concat!(env!("OUT_DIR"), "/library/google.api.rs"));
    }
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    serve(TcpListener::bind("127.0.0.1:8081").await?).await
}

/// The layer, and then what any hyper server does. A test calls this too.
pub(crate) async fn serve(listener: TcpListener) -> Result<(), BoxError> {
    let routes = Routes::new(LibraryServiceServer::new(Library::default()));
    let service = RestLayer::new(library::v1::DESCRIPTOR_SET)?.layer(GrpcWebLayer::new().layer(routes));

    println!("listening on http://{}", listener.local_addr()?);
    loop {
        let (connection, _) = listener.accept().await?;
        let service = TowerToHyperService::new(service.clone());
        tokio::spawn(async move {
            // A connection that breaks is its client's business.
            drop(auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(connection), service).await);
        });
    }
}

/// The service, as tonic has it. Nothing in it knows of HTTP or JSON.
#[derive(Default)]
struct Library {
    books: Mutex<Vec<Book>>,
}

impl Library {
    fn find(&self, name: &str) -> Result<Book, Status> {
        let books = self.books.lock().map_err(|_| Status::internal("a panic before"))?;
        books.iter().find(|book| book.name == name).cloned().ok_or_else(|| Status::not_found("no such book"))
    }
}

#[tonic::async_trait]
impl LibraryService for Library {
    async fn create_book(&self, request: Request<CreateBookRequest>) -> Result<Response<Book>, Status> {
        let CreateBookRequest { parent, book } = request.into_inner();
        let mut book = book.ok_or_else(|| Status::invalid_argument("no book"))?;
        let mut books = self.books.lock().map_err(|_| Status::internal("a panic before"))?;
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
        let books = self.books.lock().map_err(|_| Status::internal("a panic before"))?;
        let books: Vec<_> = books.iter().filter(|book| book.name.starts_with(&shelf)).cloned().map(Ok).collect();
        Ok(Response::new(Box::pin(stream::iter(books))))
    }

    async fn download_book(&self, request: Request<GetBookRequest>) -> Result<Response<HttpBody>, Status> {
        let book = self.find(&request.into_inner().name)?;
        let text = format!("{}\nby {}\n", book.title, book.authors.join(", "));
        Ok(Response::new(HttpBody { content_type: "text/plain".to_owned(), data: text.into(), extensions: vec![] }))
    }
}
