export { Client } from "./client.js";
export { SessiondError, type ClientReason, type Reason, type ServerReason } from "./errors.js";
export { memoryStorage } from "./storage.js";
export type {
    ClientOptions, Identity, Session, SessionPage, SignedOutReason, State, TokenStorage, Tokens,
} from "./types.js";
