import { isSameOrigin } from "@sessiond/server";

const { SESSIOND_URL, SESSIOND_SERVER_KEY } = process.env;

export function GET() {
    const form = `<!doctype html><title>Sign in</title><form method="post"><input name="user" aria-label="user" value="ada"> <button>Sign in</button></form>`;
    return new Response(form, { headers: { "content-type": "text/html; charset=utf-8" } });
}

/** A real one checks a password first. */
export async function POST(request: Request) {
    // Another site's form would sign the visitor in as somebody else.
    if (!isSameOrigin((name) => request.headers.get(name) ?? undefined)) return new Response("The form was not sent by this site.", { status: 403 });
    const user = String((await request.formData()).get("user"));
    const created = await fetch(`${SESSIOND_URL}/auth/sessions`, {
        method: "POST",
        headers: { authorization: `Bearer ${SESSIOND_SERVER_KEY}`, "content-type": "application/json" },
        body: JSON.stringify({ user_id: user, user_agent: request.headers.get("user-agent") ?? "", cookies: {} }),
        cache: "no-store",
    });
    if (!created.ok) return new Response("Try again.", { status: 503 });
    const { set_cookies } = (await created.json()) as { set_cookies: string[] };
    const headers = new Headers({ location: "/" });
    for (const cookie of set_cookies) headers.append("set-cookie", cookie);
    return new Response(null, { status: 303, headers });
}
