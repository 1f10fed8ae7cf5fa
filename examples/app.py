"""An application behind a proxy: returns the headers of every request. `python3 examples/app.py`, on port 9000."""

from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Show(BaseHTTPRequestHandler):
    def do_GET(self):
        body = str(self.headers).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


ThreadingHTTPServer(("127.0.0.1", 9000), Show).serve_forever()
