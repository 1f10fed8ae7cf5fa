-- The sign-out as a function, called for one slot: a divided database sends the call to the node that has the slot, and has no plan
-- for the single statement with several INSERTs that it replaces. The previous release goes on beside it: it sends that statement.
--
-- Each statement sees what was committed before it. On Citus each is planned for one shard: so nothing here is an INSERT in a
-- WITH, and no SET has an array element on its right side, on which Citus 13.2 crashes.

CREATE FUNCTION sessions_revoke(
    p_projects text[], p_ids uuid[], p_at timestamptz[], p_reasons smallint[], p_records uuid[], p_actors smallint[],
    p_actor_ids uuid[], p_ips text[], p_last integer, p_writer bigint, p_slot smallint, p_waits boolean
) RETURNS TABLE (
    project_id text, id uuid, user_id text, is_impersonation boolean, at timestamptz, reason smallint, record uuid,
    access_expires_at timestamptz, seq integer, was_live boolean, is_queued boolean, is_locked boolean
) LANGUAGE plpgsql AS $function$
#variable_conflict use_column
DECLARE
    -- What was ended: columns of one array each, in one order. The number of an entry is its place in it.
    ended integer := 0;
    t_projects text[]; t_ids uuid[]; t_users text[]; t_impersonations boolean[]; t_expire timestamptz[]; t_live boolean[];
    -- The place of each among the parameters.
    t_asked integer[];
    has_queued boolean := false;
BEGIN
    -- The two statements differ in SKIP LOCKED.
    IF p_waits THEN
        WITH asked AS MATERIALIZED (
            SELECT * FROM unnest(p_projects, p_ids, p_at, p_reasons) WITH ORDINALITY AS a (project_id, id, at, reason, place)
        ), locked AS MATERIALIZED (
            SELECT a.* FROM asked AS a JOIN sessions AS s ON s.project_id = a.project_id AND s.id = a.id
            WHERE s.slot = p_slot AND s.revoked_at IS NULL ORDER BY s.project_id, s.id FOR UPDATE OF s
        ), ended AS (
            UPDATE sessions AS s SET revoked_at = a.at, revoke_reason = a.reason FROM locked AS a
            WHERE s.slot = p_slot AND s.project_id = a.project_id AND s.id = a.id AND s.revoked_at IS NULL
            RETURNING s.project_id, s.id, s.user_id, s.impersonator_id IS NOT NULL AS is_impersonation,
              s.access_expires_at, a.place::integer AS place,
              s.expires_at > a.at AND s.idle_expires_at > a.at
                AND NOT EXISTS (SELECT FROM users AS u WHERE u.slot = p_slot AND u.project_id = s.project_id
                    AND u.user_id = s.user_id AND u.epoch > s.user_epoch)
                AND NOT EXISTS (SELECT FROM projects AS p WHERE p.id = s.project_id AND p.epoch > s.project_epoch) AS was_live
        )
        SELECT count(*), array_agg(project_id), array_agg(id), array_agg(user_id), array_agg(is_impersonation),
          array_agg(access_expires_at), array_agg(was_live), array_agg(place)
        INTO ended, t_projects, t_ids, t_users, t_impersonations, t_expire, t_live, t_asked FROM ended;
    ELSE
        WITH asked AS MATERIALIZED (
            SELECT * FROM unnest(p_projects, p_ids, p_at, p_reasons) WITH ORDINALITY AS a (project_id, id, at, reason, place)
        ), locked AS MATERIALIZED (
            SELECT a.* FROM asked AS a JOIN sessions AS s ON s.project_id = a.project_id AND s.id = a.id
            WHERE s.slot = p_slot AND s.revoked_at IS NULL ORDER BY s.project_id, s.id FOR UPDATE OF s SKIP LOCKED
        ), ended AS (
            UPDATE sessions AS s SET revoked_at = a.at, revoke_reason = a.reason FROM locked AS a
            WHERE s.slot = p_slot AND s.project_id = a.project_id AND s.id = a.id AND s.revoked_at IS NULL
            RETURNING s.project_id, s.id, s.user_id, s.impersonator_id IS NOT NULL AS is_impersonation,
              s.access_expires_at, a.place::integer AS place,
              s.expires_at > a.at AND s.idle_expires_at > a.at
                AND NOT EXISTS (SELECT FROM users AS u WHERE u.slot = p_slot AND u.project_id = s.project_id
                    AND u.user_id = s.user_id AND u.epoch > s.user_epoch)
                AND NOT EXISTS (SELECT FROM projects AS p WHERE p.id = s.project_id AND p.epoch > s.project_epoch) AS was_live
        )
        SELECT count(*), array_agg(project_id), array_agg(id), array_agg(user_id), array_agg(is_impersonation),
          array_agg(access_expires_at), array_agg(was_live), array_agg(place)
        INTO ended, t_projects, t_ids, t_users, t_impersonations, t_expire, t_live, t_asked FROM ended;
    END IF;
    IF ended > 0 THEN
        PERFORM FROM feed_writers AS w WHERE w.slot = p_slot AND w.id = p_writer AND w.last IS NULL FOR SHARE;
        IF NOT FOUND OR p_last NOT IN (0, coalesce((SELECT r.seq FROM revocations AS r
            WHERE r.slot = p_slot AND r.writer = p_writer AND r.writer <> 0 ORDER BY r.seq DESC LIMIT 1), -1)) THEN
            RAISE EXCEPTION USING ERRCODE = '40001', MESSAGE =
              'this connection''s writer of the feed was closed, or the database lacks its last entry; a new connection has a new one';
        END IF;
        INSERT INTO revocations (slot, project_id, id, at, reason, session_id, user_id, is_impersonation, access_expires_at,
          actor, actor_id, ip, seq, writer)
        SELECT p_slot, t_projects[i], p_records[t_asked[i]], p_at[t_asked[i]], p_reasons[t_asked[i]], t_ids[i], t_users[i],
          t_impersonations[i], t_expire[i], p_actors[t_asked[i]], p_actor_ids[t_asked[i]], p_ips[t_asked[i]], p_last + i, p_writer
        FROM generate_series(1, ended) AS i;
        has_queued := EXISTS (SELECT FROM backchannel_endpoints AS e
            WHERE e.project_id = ANY (t_projects) AND e.removed_at IS NULL);
        IF has_queued THEN
            INSERT INTO backchannel_deliveries (slot, project_id, id, endpoint_id, revocation_id, session_id, user_id, at,
              reason, actor, actor_id, queued_at, due_at)
            SELECT p_slot, e.project_id, overlay(gen_random_uuid()::text PLACING left(p_records[t_asked[i]]::text, 15) FROM 1)::uuid,
              e.id, p_records[t_asked[i]], t_ids[i], t_users[i], p_at[t_asked[i]], p_reasons[t_asked[i]], p_actors[t_asked[i]],
              p_actor_ids[t_asked[i]], p_at[t_asked[i]], p_at[t_asked[i]]
            FROM generate_series(1, ended) AS i CROSS JOIN LATERAL (SELECT e.project_id, e.id FROM backchannel_endpoints AS e
                WHERE e.project_id = t_projects[i] AND e.removed_at IS NULL LIMIT 100) AS e;
        END IF;
        RETURN QUERY SELECT t_projects[i], t_ids[i], t_users[i], t_impersonations[i], p_at[t_asked[i]], p_reasons[t_asked[i]],
          p_records[t_asked[i]], t_expire[i], p_last + i, t_live[i], has_queued, false FROM generate_series(1, ended) AS i;
    END IF;
    IF ended < cardinality(p_ids) THEN
        RETURN QUERY SELECT a.project_id, a.id, NULL::text, NULL::boolean, NULL::timestamptz, NULL::smallint, NULL::uuid,
          NULL::timestamptz, NULL::integer, NULL::boolean, false, true
        FROM unnest(p_projects, p_ids) AS a (project_id, id)
            JOIN sessions AS s ON s.project_id = a.project_id AND s.id = a.id
        WHERE s.slot = p_slot AND s.revoked_at IS NULL;
    END IF;
END $function$;
