"""djangorestframework-simplejwt with its blacklist on Postgres, in production's mode.

python app.py serve PORT    serves with two processes of eight threads, by gunicorn
python app.py seed COUNT    creates refresh tokens, and prints them

The database is libpq's: PGHOST, PGDATABASE, PGUSER.
"""

import os
import sys

import django
from django.conf import settings
from django.urls import path

settings.configure(
    ALLOWED_HOSTS=["*"],
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.postgresql",
            "HOST": os.environ["PGHOST"],
            "NAME": os.environ["PGDATABASE"],
            "USER": os.environ["PGUSER"],
            # Without this, Django connects for each request.
            "CONN_MAX_AGE": None,
        }
    },
    DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
    INSTALLED_APPS=[
        "django.contrib.auth",
        "django.contrib.contenttypes",
        "rest_framework",
        "rest_framework_simplejwt",
        "rest_framework_simplejwt.token_blacklist",
    ],
    REST_FRAMEWORK={"DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"]},
    ROOT_URLCONF=__name__,
    SECRET_KEY="a secret of more than thirty-two characters, for a benchmark",
    USE_TZ=True,
)
django.setup()

from django.contrib.auth.models import User  # noqa: E402
from django.core.management import call_command  # noqa: E402
from django.core.wsgi import get_wsgi_application  # noqa: E402
from django.db import transaction  # noqa: E402
from rest_framework_simplejwt.tokens import RefreshToken  # noqa: E402
from rest_framework_simplejwt.views import TokenBlacklistView  # noqa: E402

urlpatterns = [path("token/blacklist/", TokenBlacklistView.as_view())]
application = get_wsgi_application()

if __name__ == "__main__":
    command, argument = sys.argv[1:]
    if command == "seed":
        user, _ = User.objects.get_or_create(username="ada")
        with transaction.atomic():
            for _ in range(int(argument)):
                print(RefreshToken.for_user(user))
    else:
        call_command("migrate", verbosity=0)
        here = os.path.dirname(os.path.abspath(__file__))
        gunicorn = ["-m", "gunicorn", "--chdir", here, "--bind", f"127.0.0.1:{argument}", "--workers", "2"]
        gunicorn += ["--worker-class", "gthread", "--threads", "8", "--keep-alive", "75", "--log-level", "warning"]
        os.execv(sys.executable, [sys.executable, *gunicorn, "app:application"])
