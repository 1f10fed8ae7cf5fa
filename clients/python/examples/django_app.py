"""As fastapi_app.py, with Django: `python clients/python/examples/django_app.py runserver --noreload 8082`. Also an ASGI application:
`uvicorn --app-dir clients/python/examples django_app:asgi --port 8082`."""

import os
import sys

from django.conf import settings

settings.configure(
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF=__name__,
    SECRET_KEY=os.urandom(32).hex(),
    MIDDLEWARE=["sessiond_guard.django.SessiondMiddleware"],
    SESSIOND_GUARD={
        "url": os.environ["SESSIOND_URL"].split(","),
        "project": os.environ["SESSIOND_PROJECT_ID"],
        "issuer": os.environ.get("SESSIOND_ISSUER", os.environ["SESSIOND_URL"]),
        "server_key": os.environ["SESSIOND_VERIFIER_KEY"],
    },
)

from django.core.asgi import get_asgi_application  # noqa: E402
from django.core.management import execute_from_command_line  # noqa: E402
from django.http import HttpResponse  # noqa: E402
from django.urls import path  # noqa: E402

from sessiond_guard.django import requires  # noqa: E402


def hello(request):
    return HttpResponse(f"Hello, {request.principal.user_id}!\n")


@requires(acr=["aal2"], max_age=300)
def pay(request):
    return HttpResponse("Paid.\n")


urlpatterns = [path("", hello), path("pay", pay)]

if __name__ == "__main__":
    execute_from_command_line(sys.argv)
else:
    asgi = get_asgi_application()
