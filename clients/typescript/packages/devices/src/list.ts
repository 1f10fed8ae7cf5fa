import type { Client, Session, SessiondError } from "@sessiond/client";

/** What a list of devices shows. Replaced on every change, never modified. */
export interface DeviceListState {
    /** The user's live sessions, the current one first, then newest first. */
    readonly devices: readonly Session[];
    readonly hasMore: boolean;
    readonly isLoading: boolean;
    /** Why the last load or the last ending failed. */
    readonly error?: SessiondError;
}

const EMPTY: DeviceListState = { devices: [], hasMore: false, isLoading: false };

/** How long to collect changes before the list is loaded again, in milliseconds. */
const SETTLE_MS = 150;

/** The most sessions that are loaded again after a change. A longer list shrinks to them. */
const RELOADED_MAX = 200;

/** The user's sessions, kept up to date while it has subscribers. Headless: for frameworks, and for the element. */
export class DeviceList {
    readonly #client: Client;
    readonly #pageSize: number;
    readonly #listeners = new Set<() => void>();
    #state = EMPTY;
    #nextPage = "";
    /** Grows with each load: the result of an earlier one is discarded. */
    #load = 0;
    #reading: Promise<void> | undefined;
    #timer: ReturnType<typeof setTimeout> | undefined;
    #stops: (() => void)[] = [];
    #shownSession: string | undefined;
    #user: string | undefined;
    /** Why the last ending failed, and what stays after it: a load in the background does not take that from the user's eyes. */
    #notEnded: { error: SessiondError; stays: (device: Session) => boolean } | undefined;

    constructor(client: Client, pageSize = 50) {
        this.#client = client;
        this.#pageSize = pageSize;
    }

    get state(): DeviceListState {
        return this.#state;
    }

    /** Calls back on every change. The first subscriber loads the list, the last one's end stops the updates. */
    readonly subscribe = (listener: () => void): (() => void) => {
        this.#listeners.add(listener);
        if (this.#listeners.size === 1) this.#follow();
        return () => {
            this.#listeners.delete(listener);
            if (this.#listeners.size > 0) return;
            for (const stop of this.#stops.splice(0)) stop();
            clearTimeout(this.#timer);
            // What changes from now on is not noticed.
            this.#shownSession = undefined;
        };
    };

    #follow(): void {
        const changed = () => {
            clearTimeout(this.#timer);
            this.#timer = setTimeout(() => void this.load(), SETTLE_MS);
        };
        const follow = () => {
            const { state } = this.#client;
            if (state.status === "signed-out") this.#clear();
            else if (state.status === "signed-in" && state.sessionId !== this.#shownSession) void this.load();
        };
        this.#stops = [this.#client.onSessionsChanged(changed), this.#client.subscribe(follow)];
        follow();
    }

    #clear(): void {
        this.#load++;
        this.#shownSession = this.#notEnded = undefined;
        this.#nextPage = "";
        this.#show(EMPTY);
    }

    #show(state: DeviceListState): void {
        this.#state = state;
        for (const listener of [...this.#listeners]) listener();
    }

    /** Loads the list again, as far as it was shown. Never rejects: `state.error` says why it failed. */
    async load(): Promise<void> {
        const { state } = this.#client;
        if (state.status === "signed-in") {
            // Nobody sees the sessions of the user before.
            if (this.#user !== undefined && this.#user !== state.userId) this.#clear();
            this.#user = state.userId;
        }
        this.#shownSession = state.status === "signed-in" ? state.sessionId : undefined;
        await this.#read(Math.min(this.#state.devices.length, RELOADED_MAX), "", []);
    }

    /** Adds the next page. */
    async more(): Promise<void> {
        await this.#reading;
        const { devices } = this.#state;
        if (this.#nextPage) await this.#read(devices.length + 1, this.#nextPage, devices);
    }

    /** Reads at least one page, and more until there are `count` sessions: a page may be empty before the last one. */
    #read(count: number, nextPage: string, known: readonly Session[]): Promise<void> {
        const load = (this.#load += 1);
        this.#show({ ...this.#state, isLoading: true });
        const read = async () => {
            try {
                const devices = new Map(known.map((device) => [device.id, device]));
                do {
                    const page = await this.#client.listSessions({ pageSize: this.#pageSize, pageToken: nextPage });
                    if (load !== this.#load) return;
                    for (const device of page.items) devices.set(device.id, device);
                    nextPage = page.next_page_token;
                } while (nextPage && devices.size < count);
                this.#nextPage = nextPage;
                const sorted = [...devices.values()].sort((one, other) => Number(other.is_current_session) - Number(one.is_current_session));
                // The server may have ended it all the same.
                if (this.#notEnded && sorted.every(this.#notEnded.stays)) this.#notEnded = undefined;
                const failed = this.#notEnded && { error: this.#notEnded.error };
                this.#show({ devices: sorted, hasMore: nextPage !== "", isLoading: false, ...failed });
            } catch (error) {
                if (load === this.#load) this.#fail(error);
            }
        };
        return (this.#reading = read());
    }

    #fail(error: unknown): void {
        this.#show({ ...this.#state, isLoading: false, error: error as SessiondError });
    }

    /** Ends a session; the current one by signing out. Rejects with the reason, which `state.error` has too. */
    async end(id: string): Promise<void> {
        await this.#ending(() => this.#client.revokeSession(id), (device) => device.id !== id);
    }

    /** Ends all sessions but the current one. */
    async endOthers(): Promise<void> {
        await this.#ending(() => this.#client.revokeOtherSessions(), (device) => device.is_current_session);
        this.#nextPage = "";
    }

    async #ending(end: () => Promise<unknown>, stays: (device: Session) => boolean): Promise<void> {
        this.#notEnded = undefined;
        try {
            await end();
        } catch (error) {
            if (this.#client.state.status !== "signed-out") this.#notEnded = { error: error as SessiondError, stays };
            this.#fail(error);
            throw error;
        }
        if (this.#client.state.status === "signed-out") return this.#clear();
        const { devices, hasMore, isLoading } = this.#state;
        this.#show({ devices: devices.filter(stays), hasMore, isLoading });
    }
}
