import type { Client, Session, SessiondError } from "@sessiond/client";
import { DeviceList } from "./list.js";

/** The texts of the element. Replace them to translate it. */
export interface DeviceLabels {
    title: string;
    unnamed: string;
    current: string;
    end: string;
    endCurrent: string;
    endOthers: string;
    more: string;
    empty: string;
    ended: (name: string) => string;
    endedOthers: string;
    lastUsed: (day: string) => string;
    error: (error: SessiondError) => string;
}

export const englishLabels: DeviceLabels = {
    title: "Signed-in devices",
    unnamed: "Unnamed device",
    current: "This device",
    end: "Sign out",
    endCurrent: "Sign out here",
    endOthers: "Sign out everywhere else",
    more: "Show more",
    empty: "Not signed in.",
    ended: (name) => `${name} is signed out.`,
    endedOthers: "All other devices are signed out.",
    lastUsed: (day) => `Last used ${day}`,
    error: (error) => {
        if (error.reason === "INSUFFICIENT_USER_AUTHENTICATION") return "Confirm that it is you first, by signing in again.";
        return error.isTransient ? "The server cannot be reached. Try again." : "That did not work.";
    },
};

// System colours follow the page's `color-scheme`, and forced colours.
const STYLE = `
:host { display: block; font: inherit; color: var(--sessiond-text, CanvasText); }
:host([hidden]) { display: none; }
* { box-sizing: border-box; }
header, li { display: flex; align-items: center; gap: .25rem 1rem; }
header { flex-wrap: wrap; justify-content: space-between; margin-bottom: .5rem; }
h2, p, ul { margin: 0; padding: 0; font: inherit; }
h2 { font-weight: 600; font-size: 1.1em; }
ul { list-style: none; border-top: 1px solid var(--line); }
li { padding: .65rem 0; border-bottom: 1px solid var(--line); }
:host { --line: var(--sessiond-line, color-mix(in srgb, CanvasText 18%, Canvas)); --soft: var(--sessiond-soft-text, color-mix(in srgb, CanvasText 68%, Canvas)); }
.what { flex: 1 1 9rem; min-width: 0; }
.name { font-weight: 500; overflow-wrap: anywhere; }
.name span { margin-inline-start: .5rem; padding: .05rem .45rem; border-radius: 99px; font-size: .75em; font-weight: 600;
    color: var(--sessiond-accent-text, Canvas); background: var(--sessiond-accent, CanvasText); white-space: nowrap; }
.detail, .status { color: var(--soft); font-size: .875em; }
.status { min-height: 1.5em; margin-top: .35rem; }
.status[data-kind=error] { color: var(--sessiond-error, light-dark(#b42318, #ff8b7b)); }
button { min-height: 2.75rem; padding: 0 .9rem; border: 1px solid var(--sessiond-button-line, color-mix(in srgb, CanvasText 45%, Canvas));
    border-radius: var(--sessiond-radius, .4rem); background: var(--sessiond-button, Canvas); color: inherit; font: inherit; font-size: .875em;
    cursor: pointer; white-space: nowrap; }
button:hover { border-color: currentColor; }
button:focus-visible, h2:focus-visible { outline: 2px solid currentColor; outline-offset: 2px; }
button[aria-disabled=true] { cursor: default; color: var(--soft); border-color: var(--line); }
`;

function create<Name extends keyof HTMLElementTagNameMap>(
    name: Name, part: string, text = "", ...children: Node[]
): HTMLElementTagNameMap[Name] {
    const element = document.createElement(name);
    if (part) element.setAttribute("part", part);
    element.className = part;
    if (text) element.textContent = text;
    element.append(...children);
    return element;
}

const days = new Intl.RelativeTimeFormat(undefined, { numeric: "auto" });

/** The server gives users the day only (UTC): the time would tell a thief when the owner refreshes. */
const day = (time: string): string => days.format(-Math.max(0, Math.floor((Date.now() - Date.parse(time)) / 86_400_000)), "day");

/**
 * Lists the user's sessions, and ends them. Set `client`; set `labels` to translate.
 *
 * Parts to style: `header`, `title`, `list`, `device`, `name`, `badge`, `detail`, `button`, `status`. Custom properties:
 * `--sessiond-text`, `--sessiond-soft-text`, `--sessiond-line`, `--sessiond-accent`, `--sessiond-accent-text`,
 * `--sessiond-button`, `--sessiond-button-line`, `--sessiond-error`, `--sessiond-radius`.
 *
 * Events: `sessiond-end`, cancelable, before a session is ended, with its `id`, or without one for all others;
 * `sessiond-error` with the `SessiondError`, for example to ask the user to authenticate again. Both bubble.
 */
export class SessiondDevices extends (globalThis.HTMLElement ?? (class {} as typeof HTMLElement)) {
    #client: Client | undefined;
    #list: DeviceList | undefined;
    #labels = englishLabels;
    #stop: (() => void) | undefined;
    #rows = new Map<string, HTMLLIElement>();
    readonly #title = create("h2", "title");
    readonly #others = create("button", "button");
    readonly #devices = create("ul", "list");
    readonly #more = create("button", "button");
    readonly #status = create("p", "status");

    constructor() {
        super();
        const root = this.attachShadow({ mode: "open" });
        const style = new CSSStyleSheet();
        style.replaceSync(STYLE);
        root.adoptedStyleSheets = [style];
        this.#title.tabIndex = -1;
        this.#title.id = "title";
        this.#devices.setAttribute("role", "list");
        this.#devices.setAttribute("aria-labelledby", "title");
        this.#status.setAttribute("role", "status");
        for (const button of [this.#others, this.#more]) button.type = "button";
        this.#others.addEventListener("click", () => void this.#end(this.#others));
        this.#more.addEventListener("click", () => void this.#showMore());
        root.append(create("header", "header", "", this.#title, this.#others), this.#devices, this.#more, this.#status);
        this.#label();
    }

    get client(): Client | undefined {
        return this.#client;
    }

    set client(client: Client | undefined) {
        this.disconnectedCallback();
        this.#client = client;
        this.#list = client && new DeviceList(client);
        if (this.isConnected) this.connectedCallback();
    }

    get labels(): DeviceLabels {
        return this.#labels;
    }

    set labels(labels: Partial<DeviceLabels>) {
        this.#labels = { ...englishLabels, ...labels };
        this.#label();
    }

    /** Loads the list again. Needed only if the client does not follow the user's stream. */
    async reload(): Promise<void> {
        await this.#list?.load();
    }

    connectedCallback(): void {
        // Set before the element was defined, they hide its own properties.
        for (const name of ["client", "labels"] as const) {
            const given = Object.getOwnPropertyDescriptor(this, name);
            if (!given) continue;
            delete (this as { client?: unknown; labels?: unknown })[name];
            Object.assign(this, { [name]: given.value });
        }
        this.#stop ??= this.#list?.subscribe(() => this.#render());
        this.#render();
    }

    disconnectedCallback(): void {
        this.#stop?.();
        this.#stop = undefined;
    }

    #label(): void {
        this.#title.textContent = this.#labels.title;
        this.#others.textContent = this.#labels.endOthers;
        this.#more.textContent = this.#labels.more;
        this.#rows.clear();
        this.#render();
    }

    #say(text: string, kind = ""): void {
        this.#status.textContent = text;
        this.#status.dataset.kind = kind;
    }

    #render(): void {
        const { devices = [], hasMore = false, isLoading = false, error } = this.#list?.state ?? {};
        const focused = this.shadowRoot!.activeElement;
        const rows = devices.map((device) => this.#row(device));
        if (rows.length !== this.#devices.children.length || rows.some((row, at) => row !== this.#devices.children[at])) {
            this.#devices.replaceChildren(...rows);
        }
        for (const id of this.#rows.keys()) if (!devices.some((device) => device.id === id)) this.#rows.delete(id);
        this.#devices.hidden = devices.length === 0;
        this.#others.hidden = devices.length < 2 && !hasMore;
        this.#more.hidden = !hasMore;
        this.#devices.setAttribute("aria-busy", String(isLoading));
        if (!this.#client || this.#client.state.status === "signed-out") this.#say(this.#labels.empty, "empty");
        else if (error) this.#say(this.#labels.error(error), "error");
        else if (this.#status.dataset.kind) this.#say("");
        // The focus stays where it is, or goes to the title when its row is gone.
        if (focused && focused !== this.shadowRoot!.activeElement) {
            if (focused.isConnected) (focused as HTMLElement).focus({ preventScroll: true });
            else this.#title.focus({ preventScroll: true });
        }
    }

    #row(device: Session): HTMLLIElement {
        const known = this.#rows.get(device.id);
        const detail = [this.#labels.lastUsed(day(device.last_used_at)), device.ip].filter(Boolean).join(" · ");
        if (known) {
            known.querySelector(".detail")!.textContent = detail;
            return known;
        }
        const { current, end, endCurrent, unnamed } = this.#labels;
        const name = create("p", "name", device.device_name || unnamed);
        if (device.is_current_session) name.append(create("span", "badge", current));
        const button = create("button", "button", device.is_current_session ? endCurrent : end);
        button.type = "button";
        button.setAttribute("aria-label", `${button.textContent}: ${device.device_name || unnamed}, ${detail}`);
        button.addEventListener("click", () => void this.#end(button, device));
        const row = create("li", "device", "", create("div", "what", "", name, create("p", "detail", detail)), button);
        this.#rows.set(device.id, row);
        return row;
    }

    async #end(button: HTMLButtonElement, device?: Session): Promise<void> {
        if (button.ariaDisabled === "true" || !this.#list) return;
        const detail = device ? { id: device.id } : {};
        if (!this.dispatchEvent(new CustomEvent("sessiond-end", { detail, bubbles: true, composed: true, cancelable: true }))) return;
        button.ariaDisabled = "true";
        try {
            await (device ? this.#list.end(device.id) : this.#list.endOthers());
            if (this.#client?.state.status === "signed-out") return;
            this.#say(device ? this.#labels.ended(device.device_name || this.#labels.unnamed) : this.#labels.endedOthers);
        } catch (error) {
            this.dispatchEvent(new CustomEvent("sessiond-error", { detail: error, bubbles: true, composed: true }));
        } finally {
            button.ariaDisabled = "false";
        }
    }

    async #showMore(): Promise<void> {
        const count = this.#devices.children.length;
        await this.#list?.more();
        if (this.#more.hidden) this.#devices.children[count]?.querySelector("button")?.focus({ preventScroll: true });
    }
}

if (globalThis.customElements && !customElements.get("sessiond-devices")) customElements.define("sessiond-devices", SessiondDevices);

declare global {
    interface HTMLElementTagNameMap {
        "sessiond-devices": SessiondDevices;
    }
}
