//! `examples/library`, over a socket.

use http::Request;
use serde_json::json;
use tokio::net::TcpListener;

use super::harness::WIRES;
use super::harness::send;

#[tokio::test]
async fn the_example_works_as_documented() {
    for wire in WIRES {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(library::serve(listener));
        let get = |path: &str| Request::get(path.to_owned()).body("".into()).unwrap();

        let emma = json!({"name": "shelves/1/books/1", "title": "Emma", "authors": ["Austen"]});
        let body = r#"{"title": "Emma", "authors": ["Austen"]}"#;
        let create = Request::post("/shelves/1/books").header("content-type", "application/json");
        assert_eq!(send(address, wire, create.body(body.into()).unwrap()).await.json(), emma);
        assert_eq!(send(address, wire, get("/shelves/1/books/1")).await.json(), emma);
        let lines = send(address, wire, get("/shelves/1:read")).await;
        assert_eq!((&lines.headers["content-type"], lines.json()), (&"application/x-ndjson".parse().unwrap(), emma));
        let text = send(address, wire, get("/shelves/1/books/1:download")).await;
        assert_eq!(
            (&text.headers["content-type"], &text.body[..]),
            (&"text/plain".parse().unwrap(), &b"Emma\nby Austen\n"[..])
        );
        assert_eq!(send(address, wire, get("/shelves/1/books/9")).await.status, 404);
    }
}
