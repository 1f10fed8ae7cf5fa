"""As fastapi_app.py, with Flask: `flask --app clients/python/examples/flask_app.py run --port 8082`."""

import os

from flask import Flask, request

from sessiond_guard import Guard, Refusal
from sessiond_guard.wsgi import SessiondMiddleware, refused

guard = Guard.connect(
    url=os.environ["SESSIOND_URL"].split(","),
    project=os.environ["SESSIOND_PROJECT_ID"],
    issuer=os.environ.get("SESSIOND_ISSUER", os.environ["SESSIOND_URL"]),
    server_key=os.environ["SESSIOND_VERIFIER_KEY"],
)

app = Flask(__name__)
app.wsgi_app = SessiondMiddleware(app.wsgi_app, guard)
app.register_error_handler(Refusal, refused)


@app.get("/")
def hello():
    return f"Hello, {request.environ['sessiond.principal'].user_id}!\n"


@app.post("/pay")
def pay():
    guard.require(request.environ["sessiond.principal"], acr=["aal2"], max_age=300)
    return "Paid.\n"
