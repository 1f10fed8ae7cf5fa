export { Guard, type FailMode, type GuardOptions, type Stats } from "./guard.js";
export { Refusal, type Reason, type RefusalResponse, type Requirement, type UnavailableReason, bearer } from "./refusal.js";
export { type Claims, Principal } from "./token.js";
export { ConfigurationError, type TlsOptions, type Trace } from "./upstream.js";
export type { Clock } from "./clock.js";
export { type Outcome, type RouteOptions, check } from "./check.js";
