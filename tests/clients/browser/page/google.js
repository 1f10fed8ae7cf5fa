// Google's client, in both of its modes.

import { GrpcWebClientBase, MethodDescriptor, MethodType } from "grpc-web";
import * as messages from "./google/sessiond/v1/session_service_pb.js";
import * as details from "./google/google/rpc/error_details_pb.js";
import * as rpc from "./google/google/rpc/status_pb.js";
import { Refusal } from "./outcome.js";

const SERVICE = "/sessiond.v1.SessionService/";

/** As protoc-gen-grpc-web writes it. */
function method(name, type = MethodType.UNARY) {
    const [request, response] = [messages[`${name}Request`], messages[`${name}Response`]];
    const write = (message) => message.serializeBinary();
    return new MethodDescriptor(SERVICE + name, type, request, response, write, response.deserializeBinary);
}

const revokeCurrent = method("RevokeCurrent");
const refreshSession = method("RefreshSession");
const listSessions = method("ListSessions");
const watchRevocations = method("WatchRevocations", MethodType.SERVER_STREAMING);

function refusal(error) {
    const encoded = error.metadata?.["grpc-status-details-bin"];
    if (!encoded) return error;
    const status = rpc.Status.deserializeBinary(encoded);
    const said = { code: error.code };
    for (const detail of status.getDetailsList()) {
        if (detail.getTypeName() === "google.rpc.ErrorInfo") {
            const info = detail.unpack(details.ErrorInfo.deserializeBinary, detail.getTypeName());
            Object.assign(said, { reason: info.getReason(), domain: info.getDomain() });
        } else if (detail.getTypeName() === "google.rpc.BadRequest") {
            const request = detail.unpack(details.BadRequest.deserializeBinary, detail.getTypeName());
            said.fields = request.getFieldViolationsList().map((violation) => violation.getField());
        }
    }
    return status.getCode() === error.code ? new Refusal(said) : error;
}

export function google(server, format) {
    const client = new GrpcWebClientBase({ format });
    const call = async (method, request, credentials) => {
        try {
            return await client.unaryCall(server + method.getName(), request, credentials, method);
        } catch (error) {
            throw refusal(error);
        }
    };
    return {
        async signOut(credentials) {
            const answer = await call(revokeCurrent, new messages.RevokeCurrentRequest(), credentials);
            return { success: answer.getSuccess(), again: answer.hasAlreadyRevoked() && answer.getAlreadyRevoked() };
        },

        async refresh(token) {
            const request = new messages.RefreshSessionRequest().setRefreshToken(token);
            const answer = await call(refreshSession, request, {});
            return { access_token: answer.getAccessToken(), refresh_token: answer.getRefreshToken() };
        },

        async list(credentials, pageSize) {
            const request = new messages.ListSessionsRequest().setPageSize(pageSize);
            const answer = await call(listSessions, request, credentials);
            return answer.getItemsList().map((session) => session.getId());
        },

        /** Only the text mode streams: in the binary mode the client waits for the whole response. */
        watch: (credentials, tell) => new Promise((resolve, reject) => {
            const { WatchRevocationsRequest, WatchRevocationsResponse } = messages;
            const request = new WatchRevocationsRequest();
            client.serverStreaming(server + watchRevocations.getName(), request, credentials, watchRevocations)
                .on("data", (told) => {
                    switch (told.getEventCase()) {
                        case WatchRevocationsResponse.EventCase.SNAPSHOT_BEGIN: return tell("begin");
                        case WatchRevocationsResponse.EventCase.SNAPSHOT_COMPLETE: return tell("complete");
                        case WatchRevocationsResponse.EventCase.HEARTBEAT: return tell("heartbeat");
                        case WatchRevocationsResponse.EventCase.REVOCATIONS:
                            for (const one of told.getRevocations().getRevocationsList()) tell("ended", one.getSessionId());
                    }
                })
                .on("error", (error) => reject(refusal(error)))
                .on("end", resolve);
        }),
    };
}
