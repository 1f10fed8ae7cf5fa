// What every backend here does when somebody has signed in: checking a password is left out.

const { SESSIOND_URL, SESSIOND_SERVER_KEY } = process.env;

/** Tokens for `client.signIn`; or in cookie mode the values of `Set-Cookie` headers. */
export interface CreatedSession {
    access_token?: string;
    refresh_token?: string;
    set_cookies?: string[];
}

/**
 * Ends the session of a browser's earlier cookies, if there was one: otherwise a slow response could bring them back, and the
 * browser would be the earlier user again.
 */
export async function endSession(cookies: string | undefined): Promise<void> {
    if (cookies === undefined) return;
    // The header says that no other site's page asks.
    const headers = { cookie: cookies, "x-sessiond-csrf": "1" };
    const response = await fetch(`${SESSIOND_URL}/auth/sessions/current`, { method: "DELETE", headers, signal: AbortSignal.timeout(5_000) });
    // 401: there is none.
    if (!response.ok && response.status !== 401) throw new Error(`sessiond did not end the earlier session: ${response.status}`);
}

/** Creates a session at sessiond. With `cookies`, its tokens are to be kept in cookies. */
export async function createSession(userId: string, userAgent = "", cookies?: { persistent: boolean }): Promise<CreatedSession> {
    const response = await fetch(`${SESSIOND_URL}/auth/sessions`, {
        method: "POST",
        headers: { authorization: `Bearer ${SESSIOND_SERVER_KEY}`, "content-type": "application/json" },
        body: JSON.stringify({ user_id: userId, user_agent: userAgent, ...(cookies && { cookies }) }),
        signal: AbortSignal.timeout(5_000),
    });
    if (!response.ok) throw new Error(`sessiond refused to create a session: ${response.status}`);
    return (await response.json()) as CreatedSession;
}
