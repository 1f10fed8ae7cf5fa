"use client";

import type { Client, State } from "@sessiond/client";
import { DeviceList, type DeviceListState } from "@sessiond/devices";
import { type ReactNode, createContext, createElement, useContext, useMemo, useSyncExternalStore } from "react";

const Context = createContext<Client | undefined>(undefined);

/** On the server nothing is known. */
const UNKNOWN: State = { status: "unknown" };
const EMPTY: DeviceListState = { devices: [], hasMore: false, isLoading: false };

/** Gives a client to the hooks below it. Create the client once, outside of components. */
export function SessiondProvider({ client, children }: { client: Client; children?: ReactNode }): ReactNode {
    return createElement(Context.Provider, { value: client }, children);
}

/** The client of the nearest provider. */
export function useClient(): Client {
    const client = useContext(Context);
    if (!client) throw new Error("useClient, useSession and useDevices need a <SessiondProvider> above them");
    return client;
}

/** Who is signed in: rerenders on every change. `unknown` on the server, and until the storage is read. */
export function useSession(): State {
    const client = useClient();
    return useSyncExternalStore(client.subscribe, () => client.state, () => UNKNOWN);
}

export interface Devices extends DeviceListState {
    end(id: string): Promise<void>;
    endOthers(): Promise<void>;
    more(): Promise<void>;
    reload(): Promise<void>;
}

/** The user's sessions, kept up to date while the component is mounted. */
export function useDevices(pageSize?: number): Devices {
    const client = useClient();
    const list = useMemo(() => new DeviceList(client, pageSize), [client, pageSize]);
    const state = useSyncExternalStore(list.subscribe, () => list.state, () => EMPTY);
    return useMemo(() => ({
        ...state,
        end: (id: string) => list.end(id),
        endOthers: () => list.endOthers(),
        more: () => list.more(),
        reload: () => list.load(),
    }), [list, state]);
}

/** `useDevices` as a component without markup: `<DeviceListing>{({ devices, end }) => …}</DeviceListing>`. */
export function DeviceListing({ pageSize, children }: { pageSize?: number; children: (devices: Devices) => ReactNode }): ReactNode {
    return children(useDevices(pageSize));
}
