"""An application with Django whose pages know nothing of sessions: they show the user that the proxy names. Only the login page talks
to sessiond. Served by wsgiref, to which `x_user_id` and `x-user-id` are the same."""

import json
import os
import re
import urllib.request
from socketserver import ThreadingMixIn
from urllib.parse import unquote
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from django.conf import settings

settings.configure(ALLOWED_HOSTS=["*"], ROOT_URLCONF=__name__, SECRET_KEY="unused", DEBUG=False)

from django.core.wsgi import get_wsgi_application  # noqa: E402
from django.http import HttpResponse, HttpResponseRedirect  # noqa: E402
from django.urls import re_path  # noqa: E402
from django.utils.html import escape  # noqa: E402

PAGE = '<!doctype html><meta charset="utf-8"><title>Django</title><link rel="icon" href="data:,">{}'
FORM = (
    '<form method="post"><input name="user" aria-label="user"> '
    '<input name="persistent" type="checkbox" aria-label="remember me"> <button>Sign in</button></form>'
)


def login(request):
    if request.method != "POST":
        return HttpResponse(PAGE.format(FORM))
    # Another site's form would sign the visitor in as somebody else. Every browser of these tests sends this header.
    if request.headers.get("sec-fetch-site") != "same-origin":
        return HttpResponse(PAGE.format("<h1>Not this site's form</h1>"), status=403)
    body = {
        "user_id": request.POST["user"],
        "user_agent": request.headers.get("user-agent"),
        "cookies": {"persistent": request.POST.get("persistent") == "on"},
    }
    created = urllib.request.Request(
        os.environ["SESSIOND_URL"] + "/auth/sessions",
        json.dumps(body).encode(),
        {"authorization": "Bearer " + os.environ["SESSIOND_SERVER_KEY"], "content-type": "application/json"},
    )
    with urllib.request.urlopen(created, timeout=10) as answer:
        cookies = json.load(answer)["set_cookies"]
    path = request.GET.get("return_to", "/")
    response = HttpResponseRedirect(path if re.fullmatch(r"/(?![/\\])[\w\-./?=&%~+]*", path) else "/", status=303)
    for cookie in cookies:
        response.cookies.load(cookie)
    return response


def part(request):
    picture = '<svg xmlns="http://www.w3.org/2000/svg" width="1" height="1"/>'
    return HttpResponse(picture, content_type="image/svg+xml", headers={"cache-control": "no-store"})


def page(request):
    user = escape(unquote(request.headers.get("x-user-id", "")))
    parts = "".join(f'<img src="/part/{n}" alt="">' for n in range(int(request.GET.get("parts", 0))))
    return HttpResponse(PAGE.format(f'<h1>Hello, {user}!</h1><a href="/next">Next page</a>{parts}'))


urlpatterns = [re_path(r"^login$", login), re_path(r"^part/", part), re_path(r"", page)]


class Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class Quiet(WSGIRequestHandler):
    def log_message(self, *_):
        pass


make_server("127.0.0.1", int(os.environ["PORT"]), get_wsgi_application(), Server, Quiet).serve_forever()
