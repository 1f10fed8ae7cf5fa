// Connect's client with its grpc-web transport.

import { ConnectError, createClient } from "@connectrpc/connect";
import { createGrpcWebTransport } from "@connectrpc/connect-web";
import { BadRequestSchema, ErrorInfoSchema } from "./gen/google/rpc/error_details_pb.js";
import { SessionService } from "./gen/sessiond/v1/session_service_pb.js";
import { Refusal } from "./outcome.js";

const KINDS = { snapshotBegin: "begin", snapshotComplete: "complete", heartbeat: "heartbeat" };

function refusal(thrown) {
    const error = ConnectError.from(thrown);
    const [info] = error.findDetails(ErrorInfoSchema);
    if (!info) return error;
    const fields = error.findDetails(BadRequestSchema)[0]?.fieldViolations.map(({ field }) => field);
    return new Refusal({ code: error.code, reason: info.reason, domain: info.domain, fields });
}

export function connect(server) {
    const sessions = createClient(SessionService, createGrpcWebTransport({ baseUrl: server }));
    const call = (answer) => answer.catch((error) => { throw refusal(error); });
    return {
        async signOut(headers) {
            const { success, alreadyRevoked } = await call(sessions.revokeCurrent({}, { headers }));
            return { success, again: alreadyRevoked ?? false };
        },

        async refresh(refreshToken) {
            const answer = await call(sessions.refreshSession({ refreshToken }));
            return { access_token: answer.accessToken, refresh_token: answer.refreshToken };
        },

        async list(headers, pageSize) {
            return (await call(sessions.listSessions({ pageSize }, { headers }))).items.map(({ id }) => id);
        },

        async watch(headers, tell) {
            try {
                for await (const { event } of sessions.watchRevocations({}, { headers })) {
                    if (event.case !== "revocations") tell(KINDS[event.case]);
                    else for (const { ended } of event.value.revocations) tell("ended", ended.value);
                }
            } catch (error) {
                throw refusal(error);
            }
        },
    };
}
