"""A service behind the guard, with FastAPI: it knows the signed-in user, and refuses a signed-out one at once. With `./run` in
another shell:

    . .sessiond/dev.env && export SESSIOND_URL SESSIOND_PROJECT_ID SESSIOND_VERIFIER_KEY
    uvicorn --app-dir clients/python/examples fastapi_app:app --port 8082

    curl -i localhost:8082/ -H "Authorization: Bearer $SESSIOND_ACCESS_TOKEN"      # 200: who you are
    curl -X DELETE $SESSIOND_URL/auth/sessions/current -H "Authorization: Bearer $SESSIOND_ACCESS_TOKEN"
    curl -i localhost:8082/ -H "Authorization: Bearer $SESSIOND_ACCESS_TOKEN"      # 401: SESSION_REVOKED
"""

import os

from fastapi import Depends, FastAPI, Request

from sessiond_guard import Guard, Refusal
from sessiond_guard.asgi import SessiondMiddleware, refused, requires

guard = Guard.connect(
    url=os.environ["SESSIOND_URL"].split(","),
    project=os.environ["SESSIOND_PROJECT_ID"],
    issuer=os.environ.get("SESSIOND_ISSUER", os.environ["SESSIOND_URL"]),
    server_key=os.environ["SESSIOND_VERIFIER_KEY"],
)

app = FastAPI()
app.add_middleware(SessiondMiddleware, guard=guard)
app.add_exception_handler(Refusal, refused)


@app.get("/")
async def hello(request: Request) -> str:
    return f"Hello, {request.state.principal.user_id}!"


@app.post("/pay", dependencies=[Depends(requires(guard, acr=["aal2"], max_age=300))])
def pay() -> str:
    return "Paid."
