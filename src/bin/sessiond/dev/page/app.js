// The demo page. It talks only to this server: to the API with its devices' tokens, and to the demo's backend, which
// holds the server key. Each device is a client of its own, as apps use it (clients/typescript), with its tokens in memory; the
// laptop's, if the visitor says so, in cookies.
// Sign-outs are plain calls, because the page measures them, over two protocols.

import { Client } from "./sessiond.js";

const { basePath } = document.documentElement.dataset;
const $ = (selector, within = document) => within.querySelector(selector);

/** The timeout of every request but the feed, in milliseconds. */
const ANSWER_MS = 10_000;

/** How long the guarded service may still accept a revoked token before the page reports a failure, in milliseconds. */
const REFUSAL_MS = 3_000;

/** How long the feed may be silent: it has a heartbeat every second. In milliseconds. */
const SILENCE_MS = 3_500;

/** The longest delay before the feed is reopened, in milliseconds. */
const RETRY_MS = 4_000;

/** The page size of the list. */
const PAGE_SIZES = [50, 250];

/** The most lines of the feed that are shown. */
const LINES_MAX = 200;

/** The longest line of the feed that is read, in characters. */
const LINE_MAX = 1 << 20;

// Requests, over both protocols

/** An error response of the API. */
class Refused extends Error {
    constructor(status, reason, message) {
        super(message);
        Object.assign(this, { status, reason });
    }
}

/** A refusal over REST: `google.rpc.Status` as JSON, whose details have the reason. */
async function refusal(response) {
    const text = await response.text();
    try {
        const { message, details = [] } = JSON.parse(text);
        return new Refused(response.status, details.find((detail) => detail.reason)?.reason ?? "", message);
    } catch {
        return new Refused(response.status, "", text.trim() || response.statusText);
    }
}

function asked(url, method, headers, body) {
    return fetch(url, { method, headers, body, cache: "no-store", signal: AbortSignal.timeout(ANSWER_MS) });
}

/** Calls over REST. `at` is the time of the response, `took` its delay. */
async function rest(method, path, headers, body) {
    const began = performance.now();
    if (body) headers = { ...headers, "content-type": "application/json" };
    const response = await asked(path, method, headers, body && JSON.stringify(body));
    const at = performance.now();
    if (!response.ok) throw await refusal(response);
    const answer = await response.json();
    return { answer, at, took: at - began, call: `${method} ${path.split("?")[0]}` };
}

/** The credential of a call; without a token it is in the cookies, and the header tells the page's own calls from a form's. */
const bearer = (token) => (token ? { authorization: `Bearer ${token}` } : { "x-sessiond-csrf": "1" });

/** A protobuf message's fields, those that are numbers and those that are bytes (Protocol Buffers Encoding). */
function* fields(bytes) {
    let at = 0;
    const varint = () => {
        for (let value = 0, shift = 1; ; shift *= 128) {
            const byte = bytes[at++];
            value += (byte & 127) * shift;
            if (byte < 128 || byte === undefined) return value;
        }
    };
    while (at < bytes.length) {
        const tag = varint();
        const value = varint();
        if ((tag & 7) === 0) yield [tag >> 3, value];
        else yield [tag >> 3, bytes.subarray(at, (at += value))];
    }
}

/** A message with one short string. */
const textField = (number, text) => [(number << 3) | 2, text.length, ...new TextEncoder().encode(text)];

/** The reason in a `google.rpc.Status`: that of the `ErrorInfo` among its details. */
function reasonOf(base64) {
    const bytes = Uint8Array.from(atob(base64.replaceAll("-", "+").replaceAll("_", "/")), (letter) => letter.charCodeAt(0));
    const text = (value) => new TextDecoder().decode(value);
    for (const [field, any] of fields(bytes)) {
        const { 1: type, 2: value } = field === 3 ? Object.fromEntries(fields(any)) : {};
        if (value && text(type).endsWith("/google.rpc.ErrorInfo")) return text(Object.fromEntries(fields(value))[1]);
    }
    return "";
}

/** Calls over grpc-web: a frame is a flag, a length, and a message; the last frame is the trailers (grpc/PROTOCOL-WEB.md). */
async function grpcWeb(method, token, message) {
    const began = performance.now();
    const path = `/sessiond.v1.SessionService/${method}`;
    const headers = { ...bearer(token), "content-type": "application/grpc-web+proto", "x-grpc-web": "1" };
    const response = await asked(path, "POST", headers, new Uint8Array([0, 0, 0, 0, message.length, ...message]));
    const bytes = new Uint8Array(await response.arrayBuffer());
    const at = performance.now();
    // A response without messages has its trailers as headers.
    let trailers = response.headers;
    let answer = {};
    for (let start = 0; start + 5 <= bytes.length; ) {
        const end = start + 5 + new DataView(bytes.buffer).getUint32(start + 1);
        const frame = bytes.subarray(start + 5, end);
        if (bytes[start] & 128) trailers = new Headers(new TextDecoder().decode(frame).trim().split("\r\n").map(pair));
        else answer = Object.fromEntries(fields(frame));
        start = end;
    }
    const status = trailers.get("grpc-status");
    if (status !== "0") {
        const details = trailers.get("grpc-status-details-bin");
        const words = decodeURIComponent(trailers.get("grpc-message") ?? "") || "the response was cut short";
        throw new Refused(`grpc-status ${status ?? "missing"}`, details ? reasonOf(details) : "", words);
    }
    return { answer, at, took: at - began, call: `grpc-web ${method}` };
}

const pair = (line) => [line.slice(0, line.indexOf(":")), line.slice(line.indexOf(":") + 1).trim()];

/** The three ways to revoke sessions, over each protocol. Each returns whether it had already ended, or how many were revoked. */
const WIRES = {
    rest: {
        async current(token) {
            const reply = await rest("DELETE", `${basePath}/auth/sessions/current`, bearer(token));
            return { ...reply, before: reply.answer.already_revoked };
        },
        async byId(token, id) {
            const reply = await rest("DELETE", `${basePath}/auth/sessions/${id}`, bearer(token));
            return { ...reply, before: reply.answer.already_revoked };
        },
        async others(token) {
            const reply = await rest("POST", `${basePath}/auth/sessions:revokeAll`, bearer(token), { except_current: true });
            return { ...reply, count: reply.answer.revoked_count };
        },
    },
    "grpc-web": {
        async current(token) {
            const reply = await grpcWeb("RevokeCurrent", token, []);
            return { ...reply, before: Boolean(reply.answer[2]) };
        },
        async byId(token, id) {
            const reply = await grpcWeb("RevokeSession", token, textField(1, id));
            return { ...reply, before: Boolean(reply.answer[2]) };
        },
        async others(token) {
            const reply = await grpcWeb("RevokeAllSessions", token, [2 << 3, 1]);
            return { ...reply, count: reply.answer[1] ?? 0 };
        },
    },
};

const wire = () => WIRES[$("input[name=wire]:checked").value];

// Messages

/** Announces a message to screen readers, and shows it beside the button that was pressed. */
function say(text, kind = "", beside = null) {
    const status = $("#message");
    for (const shown of [status, beside]) {
        if (!shown) continue;
        shown.textContent = text;
        shown.dataset.kind = kind;
    }
    status.classList.toggle("unseen", Boolean(beside));
}

/** Shows an error as the API reported it. */
function sayError(what, error, beside = null) {
    const { status, reason, message } = error;
    if (status) say(`${what}: ${[status, reason, message].filter(Boolean).join(" · ")}`, "bad", beside);
    else say(`${what}: no answer from the server (${message})`, "bad", beside);
}

const milliseconds = (value) => (value < 100 ? value.toFixed(1) : Math.round(value).toLocaleString("en"));

/** The element that shows the outcome of a button. */
const outcomeOf = (button) => $(".outcome", button.closest(".device, .sessions") ?? document.createElement("i"));

/** Runs a button's action, one at a time, and shows errors. The action gets a function to show its outcome. */
async function doing(button, what, action) {
    if (button.ariaBusy === "true" || button.ariaDisabled === "true") return;
    button.ariaBusy = "true";
    const beside = outcomeOf(button);
    try {
        await action((text) => say(text, "", beside));
    } catch (error) {
        sayError(what, error, beside);
    } finally {
        button.ariaBusy = "false";
    }
}

// Devices

/** The current device, with whose token the page acts. */
let acting = null;

/** Where the page remembers that the laptop uses cookies, and what the browser was told about them: no secrets. */
const REMEMBERED = "sessiond.demo.cookies";

const usesCookies = () => $("input[name=tokens]:checked").value === "cookies";

class Device {
    /** The tokens of its session, which are `null` themselves if they are in cookies; `null` if it is not signed in. */
    tokens = null;
    claims = null;
    /** The names and attributes of the cookies with its tokens, if they are in cookies. */
    cookies = null;
    /** Whether the page is revoking the session now, and polls the service anyway. */
    isEnding = false;
    /** Keeps the tokens signed in. Its storage is this object, because the page shows them. */
    #ofTokens = this.#newClient({
        storage: {
            getItem: (key) => (key === "sessiond" && this.tokens ? JSON.stringify(this.tokens) : null),
            setItem: (key, text) => key === "sessiond" && this.hold(JSON.parse(text)),
            removeItem() {},
        },
    });
    /** Keeps the cookies signed in. Made when it is needed: it asks at once whose they are. */
    #ofCookies = null;
    client = this.#ofTokens;

    #newClient(options) {
        // The page follows the whole project.
        const client = new Client({ url: location.origin + basePath, watch: false, ...options });
        // A revocation is shown when the service rejects the token, and not when a list happens to find it.
        client.onSignedOut((reason) => {
            if (reason === "REFRESH_TOKEN_NOT_FOUND_OR_EXPIRED" && this.tokens && !this.isEnding) this.drop(401, reason);
        });
        return client;
    }

    /** Whether the visitor's browser stands for it: it may keep its tokens in cookies. */
    get isBrowser() {
        return this.id === "laptop";
    }

    /** Whether the visitor's shell holds the same tokens. */
    get isShared() {
        return this.id === "terminal";
    }

    constructor(card) {
        card.append($("#device").content.cloneNode(true));
        this.card = card;
        this.id = card.dataset.device;
        this.name = $("h3", card).textContent;
        this.button = $(".act", card);
        this.use = $(".use input", card);
        this.use.ariaLabel = `current device: ${this.name}`;
        this.use.title = "Its token lists the sessions, and ends others";
        this.button.addEventListener("click", () => this.tokens ? signOut(this) : signIn([this]));
        this.use.addEventListener("change", () => act(this));
        this.show("out", "–", "no token to show");
    }

    get sessionId() {
        return this.claims?.sid;
    }

    hold(tokens) {
        // The shell keeps its own refresh token. Two holders that adopt successors of one token look like theft.
        const isRenewal = this.isShared && this.claims?.sid === claimsOf(tokens).sid;
        this.tokens = isRenewal ? { ...tokens, refresh_token: this.tokens.refresh_token } : tokens;
        this.claims = claimsOf(tokens);
        if (acting === this) showToken();
    }

    /** Gets a session from the backend, and begins to use it. Returns it. */
    async begin() {
        const inCookies = this.isBrowser && usesCookies();
        const { answer } = await rest("POST", "/demo/sign-in", {}, { device: this.id, cookies: inCookies });
        this.ip = answer.session.ip;
        if (inCookies) {
            localStorage.setItem(REMEMBERED, JSON.stringify(answer.cookies));
            await this.adopt(answer.cookies);
            if (!this.tokens) throw new Refused("", "", "this browser keeps no Secure cookie over plain HTTP; open the page at localhost");
        } else {
            this.client = this.#ofTokens;
            await this.client.signIn(answer);
        }
        return answer.session;
    }

    /** Uses the session of the browser's cookies, if there is one. */
    async adopt(cookies) {
        this.client = this.#ofCookies ??= this.#newClient({ cookies: true, project: document.documentElement.dataset.project });
        await this.client.signIn().catch(() => {});
        const { state } = this.client;
        if (state.status !== "signed-in") return;
        this.tokens = { access_token: null };
        this.claims = { sub: state.userId, sid: state.sessionId };
        this.cookies = cookies;
        if (acting === this) showToken();
    }

    /** An access token that does not expire soon: refreshes if needed. The last one if the session has ended; none if it is in a cookie. */
    async token() {
        if (this.cookies) return null;
        return this.client.state.status === "signed-out" ? this.tokens.access_token : this.client.accessToken();
    }

    /** Calls the guarded service with a token; the API itself by cookie. Returns the status, and a text. */
    static async ask(token, fetching = asked) {
        const path = token ? "/demo/service" : `${basePath}/auth/sessions/current`;
        const response = await fetching(path, "GET", bearer(token));
        if (response.ok) {
            const { hello, user_id } = await response.json();
            return { status: response.status, words: `hello, ${hello ?? user_id}` };
        }
        const { reason, message } = await refusal(response);
        return { status: response.status, words: reason || message };
    }

    /** Calls the guarded service, and shows the result. */
    async check() {
        if (!this.tokens || this.isEnding) return;
        let tokens = this.tokens;
        const isOver = () => this.tokens !== tokens || this.isEnding;
        try {
            const token = await this.token();
            tokens = this.tokens;
            // An access cookie that has expired is no reason to be out: the client renews it.
            const renewing = (path, method, headers) => this.client.fetch(path, { method, headers });
            const { status, words } = await (token ? Device.ask(token) : Device.ask(token, renewing));
            if (isOver()) return;
            if (status === 401) this.drop(status, words);
            else this.show(status === 200 ? "in" : "unknown", status, words);
        } catch (error) {
            if (!isOver()) this.show("unknown", "?", `no answer: ${error.message}`);
        }
    }

    /**
     * Asks again and again until the service turns the device away: how long that was after `since`, in milliseconds. Without
     * it, nothing is measured.
     */
    async refused(since) {
        const { access_token: token } = this.tokens;
        const began = performance.now();
        for (;;) {
            const { status, words } = await Device.ask(token);
            const now = performance.now();
            if (status === 401) {
                this.drop(status, words, since && now - since);
                return now - since;
            }
            this.show(status === 200 ? "in" : "unknown", status, words);
            if (now - began > REFUSAL_MS) throw new Refused(status, "", `${this.name} is still accepted after ${REFUSAL_MS} ms`);
        }
    }

    /** The feed reports the revocation; the service may get it a moment later than the page. */
    async isOver() {
        if (!this.tokens || this.isEnding) return;
        this.isEnding = true;
        try {
            await this.refused();
        } catch (error) {
            sayError(this.name, error, $(".outcome", this.card));
        } finally {
            this.isEnding = false;
        }
    }

    /** All sessions were revoked that began in an earlier epoch. If the token with its epoch is in a cookie, the API knows. */
    cutOff(isEarlier) {
        if (this.cookies) this.check();
        else if (this.claims && isEarlier(this.claims.epoch)) this.isOver();
    }

    /** Signed out, as confirmed by the service. */
    drop(status, words, after) {
        this.tokens = this.claims = this.cookies = null;
        this.show("refused", status, words, after);
        if (acting === this) act(devices.find((device) => device.tokens) ?? null);
    }

    show(state, status, words, after) {
        const { card } = this;
        card.dataset.state = state;
        $(".where", card).textContent = !this.tokens ? "signed out" : this.cookies ? "in cookies" : this.ip;
        $(".code", card).textContent = status;
        const took = $(".took", card);
        took.textContent = after === undefined ? "" : milliseconds(after);
        if (after !== undefined) took.append(Object.assign(document.createElement("small"), { textContent: "ms" }));
        took.title = after === undefined ? "" : "from the sign-out's response to the first 401";
        $(".why", card).textContent = words;
        this.button.textContent = this.tokens ? "Sign out" : "Sign in";
        this.button.ariaLabel = `${this.button.textContent}: ${this.name}`;
        const hadFocus = document.activeElement === this.use;
        this.use.disabled = !this.tokens;
        if (hadFocus && this.use.disabled) this.button.focus();
    }
}

const claimsOf = (tokens) => JSON.parse(atobUrl(tokens.access_token.split(".")[1]));

const atobUrl = (text) => {
    const bytes = atob(text.replaceAll("-", "+").replaceAll("_", "/"));
    return new TextDecoder().decode(Uint8Array.from(bytes, (letter) => letter.charCodeAt(0)));
};

/** Uses this device's token from now on, to list and to revoke other sessions. */
function act(device) {
    acting = device;
    for (const { use } of devices) use.checked = use === device?.use;
    const element = $("sessiond-devices");
    if (element.client !== device?.client) element.client = device?.client;
    showToken();
    markCurrent();
    if (device && !listed) load();
}

async function signIn(those) {
    const busy = those.length === 1 ? those[0].button : $("#sign-in-all");
    await doing(busy, `Sign in on ${those.map(({ name }) => name).join(", ")}`, async (tell) => {
        const began = performance.now();
        const grants = await Promise.allSettled(those.map(async (device) => {
            const session = await device.begin();
            device.show("in", "…", "asking the service");
            return session;
        }));
        const took = performance.now() - began;
        const opened = grants.filter(({ value }) => value).map(({ value }) => value);
        // All at once, so that the list moves once; in the order of the list.
        if (acting && !those.includes(acting)) reloadElement();
        if (listed) for (const session of opened.sort((a, b) => (a.id < b.id ? -1 : 1))) addFirst(session);
        showCount();
        if (!acting || those.length === 1) act(those.find((device) => device.tokens) ?? acting);
        else markCurrent();
        const failed = grants.find(({ reason }) => reason);
        if (failed) throw failed.reason;
        tell(`${names(those)} signed in, in ${milliseconds(took)} ms.`);
        await Promise.all(those.map((device) => device.check()));
    });
}

const names = (those) => (those.length > 2 ? `${those.length} devices` : those.map(({ name }) => name).join(" and "));

/** Signs a device out, with its own token. */
const signOut = (device) => doing(device.button, `Sign out on ${device.name}`, (tell) => endingOwn(device, tell));

function endingOwn(device, tell) {
    return ending([device], tell, async () => {
        const reply = await wire().current(device.tokens.access_token);
        markEnded(device.sessionId, "signed out");
        return { words: answered(reply), at: reply.at };
    });
}

const answered = ({ call, took, before }) =>
    `${call} answered 200 in ${milliseconds(took)} ms${before ? ", for it had ended before" : ""}`;

/** Revokes the sessions of these devices, and measures how long the service still accepted one of them. */
async function ending(those, tell, end) {
    for (const device of those) device.isEnding = true;
    try {
        const { words, at } = await end();
        if (those.length === 0) return tell(`${words}.`);
        const after = Math.max(...(await Promise.all(those.map((device) => device.refused(at)))));
        tell(`${words}; the service refused ${those.length > 1 ? "them" : "it"} ${milliseconds(after)} ms later.`);
    } finally {
        for (const device of those) device.isEnding = false;
    }
}

/** Adopts the shell's session, from `sessiond dev` or a later `sessiond demo-session`. */
async function followTerminal() {
    const terminal = devices.find((device) => device.isShared);
    if (terminal.tokens || terminal.isEnding || terminal.button.ariaBusy === "true") return;
    const response = await asked("/demo/terminal", "GET", {});
    if (response.status !== 200) return;
    const grant = await response.json();
    if (terminal.tokens || terminal.isEnding) return;
    terminal.ip = grant.session.ip;
    await terminal.client.signIn(grant);
    terminal.show("in", "…", "asking the service");
    // Not while the list is being read: that has it too, and in its place.
    if (rows.size > 0 && !rows.has(grant.session.id)) addFirst(grant.session);
    if (acting) markCurrent();
    else act(terminal);
    await terminal.check();
}

const devices = [...document.querySelectorAll(".device")].map((card) => new Device(card));

$("#sign-in-all").addEventListener("click", () => {
    const those = devices.filter((device) => !device.tokens);
    if (those.length === 0) say("All five devices are signed in already.");
    else signIn(those);
});

const browser = devices.find((device) => device.isBrowser);

for (const choice of document.querySelectorAll("input[name=tokens]")) {
    choice.addEventListener("change", () => {
        const where = usesCookies() ? "in cookies, which no script sees" : "in script";
        if (!usesCookies()) localStorage.removeItem(REMEMBERED);
        say(`From its next sign-in on, the laptop keeps its tokens ${where}.`);
    });
}

/** What cookies are for: the laptop is still signed in after a reload. */
async function followCookies() {
    const remembered = JSON.parse(localStorage.getItem(REMEMBERED) ?? "null");
    if (!remembered) return;
    $("input[name=tokens][value=cookies]").checked = true;
    await browser.adopt(remembered);
    if (!browser.tokens) return;
    browser.show("in", "…", "asking the service");
    if (!acting) act(browser);
    await browser.check();
}

$("#sign-out-others").addEventListener("click", ({ currentTarget }) => {
    if (!acting) return say("Sign in on a device first: it is the one that stays.", "bad");
    doing(currentTarget, "Sign out everywhere else", async (tell) => {
        const stays = acting;
        await ending(devices.filter((device) => device.tokens && device !== stays), tell, async () => {
            const reply = await wire().others(await stays.token());
            for (const id of rows.keys()) if (id !== stays.sessionId) markEnded(id, "signed out");
            const sessions = reply.count === 1 ? "1 session" : `${reply.count.toLocaleString("en")} sessions`;
            return { words: `${sessions} ended, and ${stays.name} stays. ${answered(reply)}`, at: reply.at };
        });
    });
});

// The list

/** Each session shown, by id: its row and data. */
const rows = new Map();
let listed = false;
let nextPage = "";
let ended = 0;

/** Creates a row, or returns the existing one. */
function rowOf(session) {
    const known = rows.get(session.id);
    if (known) {
        known.session = session;
        return known;
    }
    const element = $("#row").content.cloneNode(true).firstElementChild;
    const row = { session, element, used: $(".used", element), shown: "" };
    const name = session.device_name || "a device without a name";
    element.dataset.id = session.id;
    $(".name", element).textContent = name;
    $(".ip", element).textContent = session.ip || "no address";
    const button = $("button", element);
    button.ariaLabel = `Sign out: ${name}, ${session.ip || "no address"}`;
    showUsed(row, Date.now());
    rows.set(session.id, row);
    return row;
}

function showUsed(row, now) {
    const text = row.element.dataset.ended ?? day(now - Date.parse(row.session.last_used_at));
    if (text !== row.shown) row.used.textContent = row.shown = text;
}

/** Users get the day of a session's last use (UTC), not the time: a thief would see when its owner refreshes. */
function day(millis) {
    const days = Math.floor(millis / 86_400_000);
    return days < 1 ? "today" : days < 2 ? "yesterday" : `${days} days ago`;
}

/** A part of the list that the browser renders only when visible. */
function chunk(elements) {
    const part = document.createElement("div");
    part.className = "chunk";
    part.role = "presentation";
    part.style.setProperty("--rows", elements.length);
    part.append(...elements);
    return part;
}

function addFirst(session) {
    const list = $("#sessions");
    if (!list.firstChild) list.append(chunk([]));
    const part = list.firstChild;
    part.prepend(rowOf(session).element);
    part.style.setProperty("--rows", part.childElementCount);
    list.hidden = false;
}

async function page(token, size) {
    const { items, next_page_token } = await acting.client.listSessions({ pageSize: size, pageToken: token });
    nextPage = next_page_token;
    $("#more").hidden = !nextPage;
    return items;
}

/** Reloads the list. Existing rows stay, and so does the focus. */
async function load() {
    listed = true;
    try {
        const sessions = await page("", PAGE_SIZES[0]);
        const listedNow = new Set(sessions.map(({ id }) => id));
        for (const id of rows.keys()) if (!listedNow.has(id)) rows.delete(id);
        ended = 0;
        const elements = sessions.map((session) => rowOf(session).element);
        const list = $("#sessions");
        const first = list.firstChild;
        if (first && same([...first.children], elements)) while (first.nextSibling) first.nextSibling.remove();
        else keepFocus(() => list.replaceChildren(chunk(elements)));
        list.hidden = false;
        $("#no-sessions").hidden = true;
        markCurrent();
        showCount();
    } catch (error) {
        listed = rows.size > 0;
        sayError("List sessions", error, $("#list-outcome"));
    }
}

const same = (some, others) => some.length === others.length && some.every((one, at) => one === others[at]);

/** Restores the focus, or moves it to the list's title. */
function keepFocus(change) {
    const focused = document.activeElement;
    change();
    if (focused.isConnected) focused.focus({ preventScroll: true });
    else $("#sessions-title").focus({ preventScroll: true });
}

function markCurrent() {
    const before = $("#sessions .name i");
    const row = rows.get(acting?.sessionId);
    if (before && before.closest(".row") !== row?.element) before.remove();
    if (row && !$("i", row.element)) {
        const tag = Object.assign(document.createElement("i"), { textContent: "current" });
        $(".name", row.element).append(tag);
    }
    // Another session, for the command that revokes by id: neither the current one nor the shell's own.
    const shell = devices.find((device) => device.isShared).sessionId;
    for (const [id, { element }] of rows) {
        if (element.dataset.ended || id === acting?.sessionId || id === shell) continue;
        $("#some-id").textContent = id;
        break;
    }
}

/** Fades an ended session. It stays in place until the list is cleared, so that nothing moves under the pointer. */
function markEnded(id, words) {
    const row = rows.get(id);
    if (!row || row.element.dataset.ended) return;
    row.element.dataset.ended = words;
    showUsed(row, 0);
    const button = $("button", row.element);
    button.ariaDisabled = "true";
    button.textContent = "Ended";
    button.ariaLabel = button.ariaLabel.replace("Sign out", "Ended");
    ended += 1;
    showCount();
}

let counting = false;

/** Once per frame, however many sessions end at once. */
function showCount() {
    if (counting) return;
    counting = true;
    requestAnimationFrame(() => {
        counting = false;
        $("#clear").ariaDisabled = String(ended === 0);
        $("#clear").textContent = ended ? `Clear ${ended.toLocaleString("en")} ended` : "Clear ended";
    });
}

$("#sessions").addEventListener("click", ({ target }) => {
    const button = target.closest("button");
    if (!button || button.ariaDisabled === "true") return;
    const { id } = button.closest(".row").dataset;
    const holder = devices.find((device) => device.sessionId === id);
    if (!acting) return say("Sign in on a device first: its token may end the other sessions of its user.", "bad", outcomeOf(button));
    if (holder && holder === acting) return doing(button, `Sign out on ${holder.name}`, (tell) => endingOwn(holder, tell));
    doing(button, "Sign out by id", (tell) => ending(holder ? [holder] : [], tell, async () => {
        const by = acting;
        const reply = await wire().byId(await by.token(), id);
        markEnded(id, "signed out");
        return { words: `By ${by.name}: ${answered(reply)}`, at: reply.at };
    }));
});

$("#more").addEventListener("click", ({ currentTarget }) => {
    doing(currentTarget, "Show more", async (tell) => {
        if (!acting) return tell("Sign in on a device to see more.");
        const elements = (await page(nextPage, PAGE_SIZES[1])).map((session) => rowOf(session).element);
        $("#sessions").append(chunk(elements));
        // The button disappears after the last page: keep the reader's place.
        if (currentTarget.hidden) $("button", elements[0] ?? $("#sessions"))?.focus({ preventScroll: true });
        tell(`${rows.size.toLocaleString("en")} sessions shown${nextPage ? ", and there are more" : ""}.`);
    });
});

$("#reload").addEventListener("click", ({ currentTarget }) => {
    if (!acting) return say("Sign in on a device first: listing takes a token.", "bad", outcomeOf(currentTarget));
    doing(currentTarget, "Reload", load);
});

$("#clear").addEventListener("click", ({ currentTarget }) => {
    if (currentTarget.ariaDisabled === "true") return;
    for (const [id, { element }] of rows) {
        if (element.dataset.ended) {
            rows.delete(id);
            element.remove();
        }
    }
    for (const part of $("#sessions").children) part.style.setProperty("--rows", part.childElementCount);
    ended = 0;
    showCount();
    say(`${rows.size.toLocaleString("en")} sessions shown.`, "", outcomeOf(currentTarget));
});

// The feed

const link = $("#link");
let cursor = "";
let pending = [];

/** The time of the last line. The system clock may be set back; the log's times never decrease. */
let heard = 0;

/** Revocations older than this are shown with their time, in milliseconds. */
const LONG_AGO_MS = 5_000;

/**
 * A line in the feed's own words, the newest last, with the moment at which it was heard. `ended` is when what it tells of
 * was over. Written once a frame, however many come at once.
 */
function line(words, aside, kind = "", ended = null) {
    heard = Math.max(heard, Date.now());
    if (ended && heard - ended > LONG_AGO_MS) aside = `${aside} at ${clock(ended).slice(0, 8)}`;
    pending.push([new Date(heard), words, aside, kind]);
    if (pending.length > LINES_MAX) pending.shift();
    if (pending.length === 1) requestAnimationFrame(writeLines);
}

function writeLines() {
    const feed = $("#feed");
    const atEnd = feed.scrollHeight - feed.scrollTop - feed.clientHeight < 40;
    feed.append(...pending.map(([time, words, aside, kind]) => {
        const line = document.createElement("p");
        line.dataset.kind = kind;
        line.append(...[clock(time), words, aside].map((text) => {
            return Object.assign(document.createElement("span"), { textContent: text });
        }));
        return line;
    }));
    pending = [];
    while (feed.childElementCount > LINES_MAX) feed.firstChild.remove();
    if (atEnd) feed.scrollTop = feed.scrollHeight;
}

const clock = (time) => {
    const two = (number) => String(number).padStart(2, "0");
    const millis = String(time.getMilliseconds()).padStart(3, "0");
    return `${two(time.getHours())}:${two(time.getMinutes())}:${two(time.getSeconds())}.${millis}`;
};

function showLink(state) {
    if (link.dataset.state === state) return;
    link.dataset.state = state;
    $("#link-state").textContent = `feed ${state}`;
}

let reloading = 0;

/** The element follows its user's own stream, if its client does; here it follows the page's. */
function reloadElement() {
    clearTimeout(reloading);
    reloading = setTimeout(() => acting?.tokens && !acting.isEnding && $("sessiond-devices").reload(), 300);
}

function tell({ snapshot_begin, revocations, snapshot_complete, heartbeat, cursor: next }) {
    if (next) cursor = next;
    if (snapshot_begin) line("snapshot begins", short(snapshot_begin.reason));
    for (const revocation of revocations?.revocations ?? []) ends(revocation);
    if (revocations) reloadElement();
    if (snapshot_complete) {
        line("snapshot complete", "");
        // Earlier revocations are known now; new sessions are not.
        if (acting) load();
    }
    if (heartbeat) {
        showLink("live");
        $("#feed-age").textContent = `up to date ${(heartbeat.age_ms / 1000).toFixed(1)} s ago`;
        link.firstElementChild.classList.remove("beat");
        requestAnimationFrame(() => requestAnimationFrame(() => link.firstElementChild.classList.add("beat")));
    }
}

const short = (name) => name.replace(/^(SNAPSHOT|REVOKE)_REASON_/, "");

/** Shows a revocation, and updates each device that it concerns. */
function ends({ session_id, user_cut_off, project_cut_off, signing_key_id, revoked_at, reason }) {
    const time = new Date(revoked_at);
    if (session_id) {
        const name = rows.get(session_id)?.session.device_name ?? "session";
        line(`${name} …${session_id.slice(-6)}`, short(reason), "end", time);
        markEnded(session_id, words(reason));
        devices.find((device) => device.sessionId === session_id)?.isOver();
    } else if (user_cut_off) {
        const { user_id, epoch, spared_session_id: spared } = user_cut_off;
        line(`every session of ${user_id}${spared ? ` but …${spared.slice(-6)}` : ""}`, short(reason), "end", time);
        for (const [id, { session }] of rows) {
            const concerned = session.user_id === user_id && id !== spared && new Date(session.created_at) < time;
            if (concerned) markEnded(id, words(reason));
        }
        for (const device of devices) {
            const { sub, sid } = device.claims ?? {};
            if (sub === user_id && sid !== spared) device.cutOff(([, own]) => own < Number(epoch));
        }
    } else if (project_cut_off) {
        line("every session of the project", short(reason), "end", time);
        for (const [id, { session }] of rows) if (new Date(session.created_at) < time) markEnded(id, words(reason));
        for (const device of devices) device.cutOff(([own]) => own < Number(project_cut_off.epoch));
    } else {
        line(`every token of key ${signing_key_id}`, short(reason), "end", time);
        // The sessions continue, with tokens of another key.
        for (const device of devices) {
            if (device.tokens) device.client.refresh().then(() => device.check(), (error) => sayError(`Refresh on ${device.name}`, error, $(".outcome", device.card)));
        }
    }
}

const words = (reason) => short(reason).toLowerCase().replaceAll("_", " ");

/** The lines of a stream, as they arrive. */
async function* lines(stream) {
    const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
    for (let rest = ""; ; ) {
        const { done, value } = await reader.read();
        if (done) return;
        const complete = (rest + value).split("\n");
        rest = complete.pop();
        if (rest.length > LINE_MAX) throw new Error("a line without an end");
        yield* complete.filter(Boolean).map((text) => JSON.parse(text));
    }
}

/** Follows the feed while the page is open; resumes after a break. */
async function follow() {
    for (let delay = 250; ; delay = Math.min(2 * delay, RETRY_MS)) {
        const silence = new AbortController();
        const silent = () => silence.abort(new Error("nothing was received for too long"));
        let timer = setTimeout(silent, SILENCE_MS);
        // Do not wait for the timeout. A server on this machine answers again at once.
        addEventListener("offline", () => silence.abort(new Error("the network is down")), { once: true, signal: silence.signal });
        try {
            const query = cursor && `?${new URLSearchParams({ cursor })}`;
            const response = await fetch(`/demo/feed${query}`, { cache: "no-store", signal: silence.signal });
            if (!response.ok) throw await refusal(response);
            if (cursor) {
                line("resumed where it broke off", "", "link");
                for (const device of devices) device.check();
            }
            for await (const message of lines(response.body)) {
                clearTimeout(timer);
                timer = setTimeout(silent, SILENCE_MS);
                if (message.error) throw new Refused("", message.error.details?.[0]?.reason ?? "", message.error.message);
                delay = 250;
                // A fault of this page is not one of the feed: it is reported, and the feed goes on.
                try {
                    tell(message);
                } catch (error) {
                    reportError(error);
                }
            }
            throw new Error("the stream ended");
        } catch (error) {
            const why = silence.signal.aborted ? silence.signal.reason : error;
            if (link.dataset.state === "live") line(`broke off: ${why.reason || why.message}`, "", "link");
            showLink("reconnecting");
            $("#feed-age").textContent = "no updates";
        } finally {
            clearTimeout(timer);
            silence.abort();
        }
        await pause(delay);
    }
}

/** Waits, but not longer than until the browser is online again. */
function pause(millis) {
    return new Promise((go) => {
        const timer = setTimeout(end, millis);
        addEventListener("online", end);
        function end() {
            clearTimeout(timer);
            removeEventListener("online", end);
            go();
        }
    });
}

// The token

const TIMES = new Set(["iat", "exp", "nbf", "auth_time"]);

function showToken() {
    const list = $("#token");
    list.hidden = !acting;
    $("#no-token").hidden = Boolean(acting);
    $("#token-of").textContent = acting?.name ?? "";
    if (!acting) return list.replaceChildren();
    if (acting.cookies) return list.replaceChildren(...cookieLines());
    const [head, , signature] = acting.tokens.access_token.split(".");
    const entries = (object) => Object.entries(object).flatMap(([name, value]) => {
        const term = Object.assign(document.createElement("dt"), { textContent: name });
        const text = typeof value === "string" ? value : JSON.stringify(value);
        const description = Object.assign(document.createElement("dd"), { textContent: text });
        if (TIMES.has(name)) {
            const human = Object.assign(document.createElement("small"), { textContent: new Date(value * 1000).toLocaleString() });
            if (name === "exp") human.id = "expiry";
            description.append(human);
        }
        return [term, description];
    });
    const part = (name) => Object.assign(document.createElement("dt"), { textContent: name, className: "part" });
    list.replaceChildren(
        part("Header"), ...entries(JSON.parse(atobUrl(head))),
        part("Payload"), ...entries(acting.claims),
        part("Signature"), ...entries({ bytes: `${signature.slice(0, 6)}… (64 bytes; the rest is not shown)` }),
    );
    showExpiry();
}

/** In place of a token that script does not see: what the browser was told about its cookies. */
function cookieLines() {
    const element = (name, textContent, className = "") => Object.assign(document.createElement(name), { textContent, className });
    const lines = acting.cookies.flatMap((cookie) => {
        const [name, ...attributes] = cookie.split("; ");
        return [element("dt", name, "part"), ...attributes.flatMap((attribute) => {
            const [key, value = "yes"] = attribute.split("=");
            return [element("dt", key), element("dd", value)];
        })];
    });
    return [...lines, element("dt", "Script", "part"), element("dt", "document.cookie"), element("dd", JSON.stringify(document.cookie))];
}

function showExpiry() {
    const expiry = $("#expiry");
    if (!expiry || !acting) return;
    const left = Math.max(0, Math.round(acting.claims.exp - Date.now() / 1000));
    expiry.textContent = left ? `in ${Math.floor(left / 60)} min ${String(left % 60).padStart(2, "0")} s` : "expired";
}

// The commands

for (const command of document.querySelectorAll(".commands li")) {
    command.append($("#command").content.cloneNode(true));
    const [button, title] = [$("button", command), $("h3", command).textContent];
    button.ariaLabel = `Copy: ${title}`;
    button.addEventListener("click", async () => {
        try {
            await navigator.clipboard.writeText($("pre", command).textContent);
            say(`Copied: ${title}.`, "", $(".outcome", command));
            button.textContent = "Copied";
            setTimeout(() => (button.textContent = "Copy"), 1_500);
        } catch (error) {
            // Not every browser lets a page copy; the reader can.
            getSelection().selectAllChildren($("pre", command));
            button.textContent = "Selected";
            say(`Selected, to be copied by hand: ${error.message}`, "", $(".outcome", command));
        }
    });
}

// Time

setInterval(showExpiry, 1_000);
setInterval(() => {
    followTerminal().catch(() => {});
    const now = Date.now();
    for (const row of rows.values()) showUsed(row, now);
    // Refresh early, so that the service never sees an expired token.
    for (const device of devices) if (device.tokens && !device.isEnding) device.token().catch((error) => sayError(`Refresh on ${device.name}`, error, $(".outcome", device.card)));
}, 5_000);

followCookies().catch((error) => sayError("Laptop", error));
addEventListener("focus", () => followTerminal().catch(() => {}));
followTerminal().catch((error) => sayError("Terminal", error));
follow();
