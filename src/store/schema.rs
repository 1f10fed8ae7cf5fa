//! The tables as the migrations leave them. A test compares the two.

diesel::table! {
    projects (id) {
        id -> Text,
        created_at -> Timestamptz,
        epoch -> BigInt,
        access_token_ttl_ms -> BigInt,
        refresh_grace_ms -> BigInt,
        idle_ttl_ms -> BigInt,
        strict_refresh -> Bool,
        session_ttl_ms -> BigInt,
        session_ttl_max_ms -> BigInt,
        idle_ttl_max_ms -> BigInt,
        sessions_max -> Nullable<Integer>,
        sessions_overflow -> SmallInt,
        default_claims -> Jsonb,
        epoch_raised_at -> Nullable<Timestamptz>,
        users_epoch_base -> BigInt,
        impersonation_ttl_ms -> BigInt,
        impersonation_ttl_max_ms -> BigInt,
        repeat_elsewhere_ends -> Bool,
        refresh_needs_client -> Bool,
        revoke_auth_age_ms -> Nullable<BigInt>,
        revoke_acr -> Array<Text>,
        bucket_key -> Binary,
        cookies -> Nullable<Text>,
        cookies_strict -> Bool,
        cookies_clear_site_data -> Bool,
    }
}

diesel::table! {
    signing_keys (project_id, id) {
        project_id -> Text,
        id -> Uuid,
        sealed_private -> Binary,
        created_at -> Timestamptz,
        signs_from -> Timestamptz,
        retired_at -> Nullable<Timestamptz>,
        revoked_at -> Nullable<Timestamptz>,
        either_s_until -> Nullable<Timestamptz>,
    }
}

diesel::table! {
    refresh_keys (project_id, id) {
        project_id -> Text,
        id -> Uuid,
        sealed_secret -> Binary,
        created_at -> Timestamptz,
        signs_from -> Timestamptz,
        retired_at -> Nullable<Timestamptz>,
        revoked_at -> Nullable<Timestamptz>,
    }
}

diesel::table! {
    server_keys (id) {
        id -> Uuid,
        project_id -> Text,
        digest -> Nullable<Binary>,
        role -> Text,
        created_at -> Timestamptz,
        revoked_at -> Nullable<Timestamptz>,
        certificate_name -> Nullable<Text>,
        last_used_at -> Nullable<Timestamptz>,
        may_impersonate -> Bool,
        expires_at -> Nullable<Timestamptz>,
    }
}

diesel::table! {
    users (project_id, user_id, slot) {
        project_id -> Text,
        user_id -> Text,
        epoch -> BigInt,
        epoch_raised_at -> Nullable<Timestamptz>,
        slot -> SmallInt,
    }
}

diesel::table! {
    sessions (project_id, id, slot) {
        project_id -> Text,
        id -> Uuid,
        user_id -> Text,
        project_epoch -> BigInt,
        user_epoch -> BigInt,
        created_at -> Timestamptz,
        last_used_at -> Timestamptz,
        expires_at -> Timestamptz,
        idle_ttl_ms -> BigInt,
        idle_expires_at -> Timestamptz,
        access_expires_at -> Timestamptz,
        revoked_at -> Nullable<Timestamptz>,
        revoke_reason -> Nullable<SmallInt>,
        refresh_secret -> Binary,
        refresh_generation -> BigInt,
        refresh_attempts -> Array<BigInt>,
        refresh_issued_at -> Array<Timestamptz>,
        impersonator_id -> Nullable<Text>,
        auth_time -> Nullable<Timestamptz>,
        acr -> Nullable<Text>,
        amr -> Array<Text>,
        device_name -> Nullable<Text>,
        user_agent -> Nullable<Text>,
        ip -> Nullable<Text>,
        labels -> Jsonb,
        claims -> Jsonb,
        used_before_at -> Nullable<Timestamptz>,
        refresh_repeats -> SmallInt,
        refresh_repeated_elsewhere -> Bool,
        device_changed_at -> Nullable<Timestamptz>,
        device_before -> Nullable<Jsonb>,
        creator_key_id -> Nullable<Uuid>,
        slot -> SmallInt,
        session_epoch -> BigInt,
    }
}

diesel::table! {
    session_requests (project_id, request_id, slot) {
        project_id -> Text,
        request_id -> Uuid,
        session_id -> Nullable<Uuid>,
        digest -> Binary,
        created_at -> Timestamptz,
        revoked_count -> Nullable<Integer>,
        slot -> SmallInt,
    }
}

diesel::table! {
    revocations (project_id, id, slot) {
        project_id -> Text,
        id -> Uuid,
        at -> Timestamptz,
        reason -> SmallInt,
        session_id -> Nullable<Uuid>,
        user_epoch -> Nullable<BigInt>,
        project_epoch -> Nullable<BigInt>,
        spared_session_id -> Nullable<Uuid>,
        user_id -> Nullable<Text>,
        access_expires_at -> Timestamptz,
        actor -> SmallInt,
        actor_id -> Nullable<Uuid>,
        ip -> Nullable<Text>,
        is_impersonation -> Bool,
        signing_key_id -> Nullable<Uuid>,
        server_key_id -> Nullable<Uuid>,
        writer -> BigInt,
        seq -> Integer,
        slot -> SmallInt,
        superseded_session_id -> Nullable<Uuid>,
        session_epoch -> Nullable<BigInt>,
    }
}

diesel::table! {
    audit_events (project_id, id, slot) {
        project_id -> Text,
        id -> Uuid,
        at -> Timestamptz,
        kind -> SmallInt,
        session_id -> Nullable<Uuid>,
        user_id -> Nullable<Text>,
        impersonator_id -> Nullable<Text>,
        key_kind -> Nullable<SmallInt>,
        key_id -> Nullable<Uuid>,
        actor -> SmallInt,
        actor_id -> Nullable<Uuid>,
        ip -> Nullable<Text>,
        details -> Nullable<Jsonb>,
        slot -> SmallInt,
    }
}

diesel::table! {
    feed_beacons (replica) {
        replica -> Uuid,
        beat -> BigInt,
        at -> Timestamptz,
    }
}

diesel::table! {
    feed_writers (id, slot) {
        id -> BigInt,
        opened_at -> Timestamptz,
        last -> Nullable<Integer>,
        closed_at -> Nullable<Timestamptz>,
        slot -> SmallInt,
    }
}

diesel::table! {
    feed_histories (id) {
        id -> Uuid,
        began_at -> Timestamptz,
    }
}

diesel::table! {
    sweeps (task) {
        task -> Text,
        project_id -> Text,
        key -> Text,
        completed_at -> Nullable<Timestamptz>,
        slot -> SmallInt,
    }
}

diesel::table! {
    backchannel_endpoints (project_id, id) {
        project_id -> Text,
        id -> Uuid,
        kind -> SmallInt,
        url -> Text,
        audience -> Text,
        created_at -> Timestamptz,
        removed_at -> Nullable<Timestamptz>,
    }
}

diesel::table! {
    backchannel_deliveries (project_id, id, slot) {
        project_id -> Text,
        id -> Uuid,
        endpoint_id -> Uuid,
        revocation_id -> Uuid,
        session_id -> Nullable<Uuid>,
        user_id -> Nullable<Text>,
        user_erased -> Bool,
        at -> Timestamptz,
        reason -> SmallInt,
        actor -> SmallInt,
        actor_id -> Nullable<Uuid>,
        queued_at -> Timestamptz,
        due_at -> Nullable<Timestamptz>,
        attempts -> Integer,
        last_error -> Nullable<Text>,
        delivered_at -> Nullable<Timestamptz>,
        dead_at -> Nullable<Timestamptz>,
        slot -> SmallInt,
    }
}

diesel::table! {
    slots (slot) {
        slot -> SmallInt,
    }
}

diesel::allow_tables_to_appear_in_same_query!(sessions, users, projects);
diesel::allow_tables_to_appear_in_same_query!(slots, backchannel_deliveries);
