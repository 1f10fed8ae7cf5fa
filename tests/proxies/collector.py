"""An OpenTelemetry collector for the tests, with OpenTelemetry's own messages: over gRPC and over HTTP. Prints its two ports,
and appends a line of JSON to the file for each request: the spans, and the bytes in hexadecimal."""

import json
import sys
import threading
from concurrent import futures
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc
from google.protobuf.json_format import MessageToDict
from google.protobuf.unknown_fields import UnknownFieldSet
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as pb

lock = threading.Lock()
file = open(sys.argv[1], "a", encoding="utf-8")


def check(message):
    """Every field is one that OpenTelemetry knows."""
    assert not len(UnknownFieldSet(message)), message
    for field, value in message.ListFields():
        if field.type == field.TYPE_MESSAGE:
            for one in value if field.is_repeated else [value]:
                check(one)


def receive(body):
    request = pb.ExportTraceServiceRequest.FromString(body)
    check(request)
    with lock:
        json.dump({"spans": MessageToDict(request), "bytes": body.hex()}, file)
        file.write("\n")
        file.flush()
    return pb.ExportTraceServiceResponse().SerializeToString()


class Http(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        assert self.path == "/v1/traces" and self.headers["content-type"] == "application/x-protobuf", self.path
        answer = receive(self.rfile.read(int(self.headers["content-length"])))
        self.send_response(200)
        self.send_header("content-type", "application/x-protobuf")
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_):
        pass


# The bytes as they arrive.
export = grpc.unary_unary_rpc_method_handler(lambda body, _: receive(body))
service = "opentelemetry.proto.collector.trace.v1.TraceService"
server = grpc.server(futures.ThreadPoolExecutor(max_workers=2))
server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {"Export": export}),))
port = server.add_insecure_port("127.0.0.1:0")
server.start()
http = ThreadingHTTPServer(("127.0.0.1", 0), Http)
threading.Thread(target=http.serve_forever, daemon=True).start()
print(port, http.server_port, flush=True)
server.wait_for_termination()
