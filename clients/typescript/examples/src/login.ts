// What every backend here does when somebody has signed in: checking a password is left out.

const { SESSIOND_URL, SESSIOND_SERVER_KEY } = process.env;

/** Creates a session at sessiond. The response is what the page passes to `client.signIn`. */
export async function createSession(userId: string, userAgent = ""): Promise<unknown> {
    const response = await fetch(`${SESSIOND_URL}/auth/sessions`, {
        method: "POST",
        headers: { authorization: `Bearer ${SESSIOND_SERVER_KEY}`, "content-type": "application/json" },
        body: JSON.stringify({ user_id: userId, user_agent: userAgent }),
        signal: AbortSignal.timeout(5_000),
    });
    if (!response.ok) throw new Error(`sessiond refused to create a session: ${response.status}`);
    return response.json();
}
