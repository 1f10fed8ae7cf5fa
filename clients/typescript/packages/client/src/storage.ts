import type { TokenStorage } from "./types.js";

/** A storage that lasts as long as the page. */
export function memoryStorage(): TokenStorage {
    const items = new Map<string, string>();
    return {
        getItem: (key) => items.get(key) ?? null,
        setItem: (key, value) => items.set(key, value),
        removeItem: (key) => items.delete(key),
    };
}

/** `localStorage` if it can be written: private modes and policies refuse, in several ways. */
export function usableLocalStorage(): TokenStorage | undefined {
    try {
        const probe = "sessiond?";
        localStorage.setItem(probe, probe);
        localStorage.removeItem(probe);
        return localStorage;
    } catch {}
}
