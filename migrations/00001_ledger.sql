-- {schema} is the schema of the ledger: everything of ours is in it, and always named with it.

-- The log: the only source of truth. Append-only; the read model is derived from it.
CREATE TABLE {schema}.task_events (
    position            bigint      GENERATED ALWAYS AS IDENTITY,
    user_id             text        COLLATE "C" NOT NULL,
    seq                 bigint      NOT NULL,
    task_id             uuid,
    type                text        NOT NULL,
    schema_version      integer     NOT NULL,
    data                jsonb       NOT NULL,
    event_id            uuid        NOT NULL,
    command_id          uuid        NOT NULL,
    idempotency_key     text        COLLATE "C",
    request_fingerprint bytea,
    actor               text        NOT NULL,
    request_id          text        NOT NULL,
    recorded_at         timestamptz NOT NULL,
    CONSTRAINT task_events_pkey PRIMARY KEY (user_id, seq),
    -- One constraint, not six: each is made ready anew for every statement.
    CONSTRAINT task_events_check CHECK (
        octet_length(user_id) BETWEEN 1 AND 255
        AND seq > 0
        AND (task_id IS NULL) = (type = 'UserErased')
        AND schema_version > 0
        AND jsonb_typeof(data) = 'object'
        AND (idempotency_key IS NULL) = (request_fingerprint IS NULL)
    )
);
-- The planner keeps samples of what is in a column (pg_statistic), also of what was erased: not of what users write.
ALTER TABLE {schema}.task_events
    ALTER data SET STATISTICS 0,
    ALTER idempotency_key SET STATISTICS 0,
    ALTER request_fingerprint SET STATISTICS 0,
    ALTER request_id SET STATISTICS 0;
CREATE INDEX task_events_position ON {schema}.task_events (position);
CREATE UNIQUE INDEX task_events_idempotency_key ON {schema}.task_events (user_id, idempotency_key)
    WHERE idempotency_key IS NOT NULL;

-- Nobody changes what happened. Only the erasure of one user, named for one transaction, may delete.
CREATE FUNCTION {schema}.task_events_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' AND OLD.user_id = pg_catalog.current_setting('taskledger.erase_user', true) THEN
        RETURN OLD;
    END IF;
    RAISE EXCEPTION 'task_events is append-only: % refused', TG_OP USING ERRCODE = 'restrict_violation';
END
$$;
CREATE TRIGGER task_events_append_only
    BEFORE UPDATE OR DELETE ON {schema}.task_events
    FOR EACH ROW EXECUTE FUNCTION {schema}.task_events_append_only();
CREATE TRIGGER task_events_no_truncate
    BEFORE TRUNCATE ON {schema}.task_events
    FOR EACH STATEMENT EXECUTE FUNCTION {schema}.task_events_append_only();

-- Events that an operator has had passed over, because they could not be applied.
CREATE TABLE {schema}.skipped_events (
    user_id    text        COLLATE "C" NOT NULL,
    seq        bigint      NOT NULL,
    skipped_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    CONSTRAINT skipped_events_pkey PRIMARY KEY (user_id, seq)
);

-- How far each projection has applied the log, and by which version of its code its tables were made. Whatever an
-- operator does to a read model raises its generation: what was remembered of it before, in any process, does not hold
-- any more.
CREATE TABLE {schema}.checkpoints (
    projection text    NOT NULL,
    position   bigint  NOT NULL DEFAULT 0,
    generation bigint  NOT NULL DEFAULT 0,
    version    integer NOT NULL DEFAULT 1,
    CONSTRAINT checkpoints_pkey PRIMARY KEY (projection)
);
INSERT INTO {schema}.checkpoints (projection) VALUES ('tasks');
ALTER TABLE {schema}.checkpoints ENABLE ROW LEVEL SECURITY;
ALTER TABLE {schema}.checkpoints FORCE ROW LEVEL SECURITY;
CREATE POLICY readable ON {schema}.checkpoints FOR SELECT USING (true);
CREATE POLICY ledger ON {schema}.checkpoints
    USING (pg_catalog.current_setting('taskledger.ledger', true) = 'on');

-- Rows on their way into the tables. A newer program whose rows have other columns brings types of its own: those that
-- are here stay for the older one beside it.
CREATE TYPE {schema}.row_of_task_events AS (
    user_id             text,
    seq                 bigint,
    task_id             uuid,
    type                text,
    schema_version      integer,
    data                jsonb,
    event_id            uuid,
    command_id          uuid,
    idempotency_key     text,
    request_fingerprint bytea,
    actor               text,
    request_id          text,
    after               uuid,
    generation          bigint,
    command_key         text
);
CREATE TYPE {schema}.row_of_tasks AS (
    user_id      text,
    id           uuid,
    version      bigint,
    is_completed boolean,
    created_at   timestamptz,
    updated_at   timestamptz,
    deleted_at   timestamptz,
    title_key    bytea,
    search       text,
    body         text
);
CREATE TYPE {schema}.row_of_task_history AS (
    user_id      text,
    seq          bigint,
    task_id      uuid,
    type         text,
    recorded_at  timestamptz,
    actor        text,
    request_id   text,
    changes      text,
    hash         bytea,
    version      bigint,
    title        text,
    description  text,
    is_completed boolean,
    created_at   timestamptz,
    updated_at   timestamptz,
    deleted_at   timestamptz
);
CREATE TYPE {schema}.row_of_users AS (
    user_id      text,
    seq          bigint,
    live         integer,
    hash         bytea,
    parked_error text,
    parked_at    timestamptz,
    generation   bigint
);

-- The tables of the read model, as functions of a suffix, so that a rebuild makes the new ones ("_rebuild") as a
-- migration made the first ones (""), even where those were dropped or damaged.

CREATE FUNCTION {schema}.read_model() RETURNS text[] LANGUAGE sql IMMUTABLE
AS $$ SELECT ARRAY['tasks', 'task_history', 'users'] $$;

-- The tables without what slows down filling them.
CREATE FUNCTION {schema}.create_read_model(suffix text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    -- The current state of every task; deleted ones stay, with deleted_at. body is the Task as clients see it.
    -- title_key orders titles alphabetically, whatever the case and the locale of the server. search is the case-folded
    -- text that a search looks in.
    EXECUTE pg_catalog.format($ddl$
        CREATE TABLE {schema}.%I (
            user_id      text        COLLATE "C" NOT NULL,
            id           uuid        NOT NULL,
            version      bigint      NOT NULL,
            is_completed boolean     NOT NULL,
            created_at   timestamptz NOT NULL,
            updated_at   timestamptz NOT NULL,
            deleted_at   timestamptz,
            title_key    bytea       NOT NULL,
            search       text        COLLATE "C" NOT NULL,
            body         text        COLLATE "C" NOT NULL
        ) WITH (fillfactor = 85)
    $ddl$, 'tasks' || suffix);
    EXECUTE pg_catalog.format($ddl$
        ALTER TABLE {schema}.%I
            ALTER title_key SET STATISTICS 0,
            ALTER search SET STATISTICS 0,
            ALTER body SET STATISTICS 0
    $ddl$, 'tasks' || suffix);

    -- Every event as people read it, with its hash in the chain, and the task as it was after it. Its version is the
    -- event's seq, but for an event that was skipped and changed nothing; updated_at is there only where it is not
    -- recorded_at.
    EXECUTE pg_catalog.format($ddl$
        CREATE TABLE {schema}.%I (
            user_id      text        COLLATE "C" NOT NULL,
            seq          bigint      NOT NULL,
            task_id      uuid,
            type         text        NOT NULL,
            recorded_at  timestamptz NOT NULL,
            actor        text        NOT NULL,
            request_id   text        NOT NULL,
            changes      text        COLLATE "C" NOT NULL,
            hash         bytea       NOT NULL,
            version      bigint      NOT NULL,
            title        text        COLLATE "C" NOT NULL,
            description  text        COLLATE "C",
            is_completed boolean     NOT NULL,
            created_at   timestamptz NOT NULL,
            updated_at   timestamptz,
            deleted_at   timestamptz
        )
    $ddl$, 'task_history' || suffix);
    EXECUTE pg_catalog.format($ddl$
        ALTER TABLE {schema}.%I
            ALTER request_id SET STATISTICS 0,
            ALTER changes SET STATISTICS 0,
            ALTER title SET STATISTICS 0,
            ALTER description SET STATISTICS 0
    $ddl$, 'task_history' || suffix);

    -- One row a user: the seq that is shown, how many tasks are live at it, and the hash of its event. parked_error
    -- says why the read model goes no further. generation is that of the checkpoint when the row was written: it is
    -- here too, because every read asks for it, and the checkpoint, which every batch moves, is many dead rows to walk.
    EXECUTE pg_catalog.format($ddl$
        CREATE TABLE {schema}.%I (
            user_id      text        COLLATE "C" NOT NULL,
            seq          bigint      NOT NULL,
            live         integer     NOT NULL,
            hash         bytea       NOT NULL,
            parked_error text,
            parked_at    timestamptz,
            generation   bigint      NOT NULL DEFAULT 0
        ) WITH (fillfactor = 70)
    $ddl$, 'users' || suffix);
    PERFORM {schema}.settle();
END
$$;

-- Keys, indexes, and row level security. The indexes are few, because each change of a task writes each of them; no
-- column that a toggle changes is in one, so a toggle is a HOT update.
CREATE FUNCTION {schema}.index_read_model(suffix text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY[
        'ALTER TABLE {schema}.%1$I ADD CONSTRAINT %4$I PRIMARY KEY (user_id, id)',
        'CREATE INDEX %5$I ON {schema}.%1$I (user_id, created_at, id) WHERE deleted_at IS NULL',
        'CREATE INDEX %6$I ON {schema}.%1$I (user_id, deleted_at) WHERE deleted_at IS NOT NULL',
        'ALTER TABLE {schema}.%2$I ADD CONSTRAINT %7$I PRIMARY KEY (user_id, seq)',
        'CREATE INDEX %8$I ON {schema}.%2$I (user_id, task_id, seq)',
        'CREATE INDEX %10$I ON {schema}.%2$I (user_id, type, seq)',
        'ALTER TABLE {schema}.%3$I ADD CONSTRAINT %9$I PRIMARY KEY (user_id)'
    ] LOOP
        EXECUTE pg_catalog.format(name,
            'tasks' || suffix, 'task_history' || suffix, 'users' || suffix,
            'tasks_pkey' || suffix, 'tasks_by_created_at' || suffix, 'tasks_deleted' || suffix,
            'task_history_pkey' || suffix, 'task_history_by_task' || suffix, 'users_pkey' || suffix,
            'task_history_by_type' || suffix);
    END LOOP;
    FOREACH name IN ARRAY {schema}.read_model() LOOP
        PERFORM {schema}.protect(name || suffix);
    END LOOP;
END
$$;

-- A second lock on a table of users' rows, besides the WHERE of each query, which binds its owner too: who names a user
-- in taskledger.user_id may read that user's rows, and who says that this is the ledger at work, in taskledger.ledger,
-- may do all. Superusers and roles with BYPASSRLS pass it; the server reads as another role then. The subselects are
-- there for speed: a setting is looked up once a statement, not once a row.
CREATE FUNCTION {schema}.protect(name text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    statement text;
BEGIN
    FOREACH statement IN ARRAY ARRAY[
        'ALTER TABLE {schema}.%I ENABLE ROW LEVEL SECURITY',
        'ALTER TABLE {schema}.%I FORCE ROW LEVEL SECURITY',
        'DROP POLICY IF EXISTS own_rows ON {schema}.%I',
        'CREATE POLICY own_rows ON {schema}.%I FOR SELECT
            USING (user_id = (SELECT pg_catalog.current_setting(''taskledger.user_id'', true)))',
        'DROP POLICY IF EXISTS ledger ON {schema}.%I',
        'CREATE POLICY ledger ON {schema}.%I
            USING ((SELECT pg_catalog.current_setting(''taskledger.ledger'', true)) = ''on'')'
    ] LOOP
        EXECUTE pg_catalog.format(statement, name);
    END LOOP;
END
$$;

-- Deletes what is derived of a user's events, and what an operator decided about them. The tasks come last: a
-- projection that changes one waits for the end of the transaction.
CREATE FUNCTION {schema}.forget_user(name text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM {schema}.skipped_events WHERE user_id = name;
    DELETE FROM {schema}.task_history WHERE user_id = name;
    DELETE FROM {schema}.tasks WHERE user_id = name;
END
$$;

CREATE FUNCTION {schema}.drop_read_model(suffix text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY {schema}.read_model() LOOP
        EXECUTE pg_catalog.format('DROP TABLE IF EXISTS {schema}.%I', name || suffix);
    END LOOP;
END
$$;

-- Puts the tables with the suffix in the place of those that serve.
CREATE FUNCTION {schema}.swap_read_model(suffix text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    name text;
    index_name text;
    not_null text;
BEGIN
    PERFORM {schema}.drop_read_model('');
    FOREACH name IN ARRAY {schema}.read_model() LOOP
        EXECUTE pg_catalog.format('ALTER TABLE {schema}.%I RENAME TO %I', name || suffix, name);
        FOR index_name IN
            SELECT c.relname
            FROM pg_catalog.pg_index i
            JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid
            WHERE i.indrelid = pg_catalog.format('{schema}.%I', name)::pg_catalog.regclass
        LOOP
            EXECUTE pg_catalog.format('ALTER INDEX {schema}.%I RENAME TO %I',
                index_name, pg_catalog.left(index_name, -pg_catalog.length(suffix)));
        END LOOP;
        FOR not_null IN -- which has a name since PostgreSQL 18
            SELECT conname
            FROM pg_catalog.pg_constraint
            WHERE conrelid = pg_catalog.format('{schema}.%I', name)::pg_catalog.regclass AND contype = 'n'
        LOOP
            EXECUTE pg_catalog.format('ALTER TABLE {schema}.%I RENAME CONSTRAINT %I TO %I',
                name, not_null, pg_catalog.replace(not_null, suffix, ''));
        END LOOP;
    END LOOP;
    PERFORM {schema}.settle();
END
$$;

-- Who may use the ledger.
--
-- All of it belongs to one role, the owner of the log. Another role is one that serves the ledger if somebody let it
-- into the schema by name (GRANT USAGE; default privileges on schemas do not count), if it may read the log and append
-- to it, and if a role that can log in has its privileges. It is given what a server needs, also on tables that a later
-- migration or a rebuild makes. Nobody else keeps anything: not PUBLIC, not those whom default privileges give each new
-- table (Supabase, for one, gives all to anon). settle() sees to it: in the transaction that makes a table, and at each
-- start.

-- Whether the caller has all that is the role's, and may give it what is the caller's own.
CREATE FUNCTION {schema}.stands_for(role oid) RETURNS boolean LANGUAGE sql STABLE SET search_path = pg_catalog AS $$
    SELECT pg_has_role($1, 'USAGE') AND pg_has_role($1,
        CASE WHEN current_setting('server_version_num')::integer < 160000 THEN 'MEMBER' ELSE 'SET' END)
$$;

-- Every privilege that is granted on something of the ledger. Those on columns go with their table's.
CREATE FUNCTION {schema}.grants() RETURNS TABLE (object text, owner oid, grantor oid, grantee oid)
LANGUAGE sql STABLE SET search_path = pg_catalog AS $$
    SELECT DISTINCT o.object, o.owner, a.grantor, a.grantee
    FROM (
        SELECT format('SCHEMA %I', nspname) AS object, nspowner AS owner, nspacl AS acl, false AS callable
        FROM pg_namespace
        WHERE oid = '{schema}'::regnamespace
        UNION ALL
        SELECT CASE relkind WHEN 'S' THEN 'SEQUENCE ' ELSE 'TABLE ' END || c.oid::regclass, relowner, acl, false
        FROM pg_class c
        CROSS JOIN LATERAL (
            SELECT relacl AS acl
            UNION ALL
            SELECT attacl FROM pg_attribute WHERE attrelid = c.oid AND attacl IS NOT NULL
        ) x
        WHERE relnamespace = '{schema}'::regnamespace AND relkind IN ('r', 'p', 'v', 'm', 'f', 'S')
        UNION ALL
        SELECT 'ROUTINE ' || oid::regprocedure, proowner, proacl, true
        FROM pg_proc
        WHERE pronamespace = '{schema}'::regnamespace
        UNION ALL
        SELECT 'TYPE ' || t.oid::regtype, typowner, typacl, true
        FROM pg_type t
        JOIN pg_class c ON c.oid = typrelid
        WHERE typnamespace = '{schema}'::regnamespace AND relkind = 'c'
    ) o
    CROSS JOIN LATERAL aclexplode(o.acl) a
    -- Everybody may execute a function and use a type by default; none of ours does more than its caller may, or can be
    -- called from outside.
    WHERE a.grantee <> o.owner AND (a.grantee <> 0 OR NOT o.callable)
$$;

-- The roles that serve the ledger, besides those that are the owner or have all that is the owner's.
CREATE FUNCTION {schema}.servers() RETURNS SETOF oid LANGUAGE sql STABLE SET search_path = pg_catalog AS $$
    SELECT r.oid
    FROM pg_roles r
    CROSS JOIN (SELECT oid, relowner AS owner FROM pg_class WHERE oid = '{schema}.task_events'::regclass) log
    WHERE r.oid IN (SELECT grantee FROM {schema}.grants())
    AND NOT pg_has_role(r.oid, log.owner, 'USAGE')
    AND has_schema_privilege(r.oid, '{schema}'::regnamespace, 'USAGE')
    AND has_table_privilege(r.oid, log.oid, 'SELECT')
    AND has_table_privilege(r.oid, log.oid, 'INSERT')
    AND EXISTS (
        SELECT
        FROM pg_roles l
        WHERE l.rolcanlogin AND pg_has_role(l.oid, r.oid, 'USAGE') AND NOT pg_has_role(l.oid, log.owner, 'USAGE')
    )
    AND NOT EXISTS (
        SELECT
        FROM pg_default_acl d
        CROSS JOIN LATERAL aclexplode(d.defaclacl) a
        WHERE d.defaclobjtype = 'n' AND a.grantee <> 0 AND pg_has_role(r.oid, a.grantee, 'USAGE')
    )
$$;

-- What a server needs, and a role does not have.
CREATE FUNCTION {schema}.lacking(role oid) RETURNS TABLE (privilege text, object text)
LANGUAGE sql STABLE SET search_path = pg_catalog AS $$
    SELECT p.privilege, CASE c.relkind WHEN 'S' THEN 'SEQUENCE ' ELSE 'TABLE ' END || c.oid::regclass
    FROM (VALUES
        ('schema_versions', ARRAY['SELECT']),
        ('task_events', ARRAY['SELECT', 'INSERT', 'DELETE']),
        ('task_events_position_seq', ARRAY['SELECT']),
        ('skipped_events', ARRAY['SELECT', 'INSERT', 'DELETE']),
        ('checkpoints', ARRAY['SELECT', 'UPDATE']),
        ('tasks', ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']),
        ('task_history', ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']),
        ('users', ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE'])
    ) n (name, privileges)
    JOIN pg_class c ON c.relnamespace = '{schema}'::regnamespace AND c.relname = n.name
    CROSS JOIN LATERAL unnest(n.privileges) p (privilege)
    WHERE NOT has_table_privilege($1, c.oid, p.privilege)
    UNION ALL
    SELECT 'USAGE', format('SCHEMA %I', nspname)
    FROM pg_namespace
    WHERE oid = '{schema}'::regnamespace AND NOT has_schema_privilege($1, oid, 'USAGE')
    UNION ALL
    SELECT 'EXECUTE', 'ROUTINE ' || oid::regprocedure
    FROM pg_proc
    WHERE pronamespace = '{schema}'::regnamespace AND proname IN ('lacking', 'oldest_program')
    AND NOT has_function_privilege($1, oid, 'EXECUTE')
$$;

-- Takes everything from these roles, also what another one than the owner gave.
CREATE FUNCTION {schema}.shut_out(roles oid[]) RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog AS $$
DECLARE
    statement text;
BEGIN
    FOREACH statement IN ARRAY ARRAY(
        SELECT DISTINCT CASE g.grantor
            WHEN g.owner THEN format('REVOKE ALL ON %s FROM %s CASCADE', g.object,
                CASE g.grantee WHEN 0 THEN 'PUBLIC' ELSE g.grantee::regrole::text END)
            ELSE format('REVOKE GRANT OPTION FOR ALL ON %s FROM %s CASCADE', g.object, g.grantor::regrole)
        END
        FROM {schema}.grants() g
        WHERE g.grantee = ANY (roles) AND pg_has_role(g.owner, 'USAGE')
    ) LOOP
        EXECUTE statement;
    END LOOP;
END
$$;

-- Puts owners, row level security and privileges right, as far as the caller may.
CREATE FUNCTION {schema}.settle() RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog AS $$
DECLARE
    ledger    oid := '{schema}'::regnamespace;
    log_owner oid := (SELECT relowner FROM pg_class WHERE oid = '{schema}.task_events'::regclass);
    serving   oid[];
    server    oid;
    statement text;
BEGIN
    -- What a superuser, or a member of the owner, has just made for it.
    FOREACH statement IN ARRAY ARRAY(
        SELECT object
        FROM (
            SELECT 'TABLE ' || oid::regclass AS object, relowner AS owner
            FROM pg_class
            WHERE relnamespace = ledger AND relkind = 'r'
            UNION ALL
            SELECT 'ROUTINE ' || oid::regprocedure, proowner
            FROM pg_proc
            WHERE pronamespace = ledger
            UNION ALL
            SELECT 'TYPE ' || t.oid::regtype, typowner
            FROM pg_type t
            JOIN pg_class c ON c.oid = typrelid
            WHERE typnamespace = ledger AND relkind = 'c'
        ) o
        WHERE o.owner <> log_owner AND pg_get_userbyid(o.owner) = current_user AND {schema}.stands_for(log_owner)
    ) LOOP
        EXECUTE format('ALTER %s OWNER TO %s', statement, log_owner::regrole);
    END LOOP;
    PERFORM {schema}.protect(relname)
    FROM pg_class c
    WHERE relnamespace = ledger AND relname = ANY ({schema}.read_model() || ARRAY['task_events', 'skipped_events'])
    AND pg_has_role(relowner, 'USAGE') AND NOT (relrowsecurity AND relforcerowsecurity AND (
        SELECT count(*) = 2 FROM pg_policy WHERE polrelid = c.oid AND polname IN ('own_rows', 'ledger')
    ));
    PERFORM {schema}.shut_out(ARRAY[0::oid]); -- first: that everybody may says of nobody that it serves
    serving := ARRAY(SELECT {schema}.servers());
    PERFORM {schema}.shut_out(ARRAY(
        SELECT grantee
        FROM {schema}.grants()
        WHERE grantee <> 0 AND grantee <> ALL (serving) AND NOT pg_has_role(grantee, log_owner, 'USAGE')
    ));
    FOREACH server IN ARRAY serving LOOP
        FOREACH statement IN ARRAY ARRAY(
            SELECT format('GRANT %s ON %s TO %s', l.privilege, l.object, server::regrole)
            FROM {schema}.lacking(server) l
        ) LOOP
            EXECUTE statement;
        END LOOP;
    END LOOP;
END
$$;

SELECT {schema}.create_read_model('');
SELECT {schema}.index_read_model('');
SELECT {schema}.protect('task_events');
SELECT {schema}.protect('skipped_events');

-- goose made this one, and writes it as the owner.
ALTER TABLE {schema}.schema_versions ENABLE ROW LEVEL SECURITY;
CREATE POLICY readable ON {schema}.schema_versions FOR SELECT USING (true);

-- A schema that was made for a role is that role's ledger, whoever migrates it.
DO $$
DECLARE
    schema_owner oid := (SELECT nspowner FROM pg_catalog.pg_namespace WHERE oid = '{schema}'::pg_catalog.regnamespace);
BEGIN
    IF {schema}.stands_for(schema_owner) THEN
        EXECUTE pg_catalog.format('ALTER TABLE {schema}.task_events OWNER TO %s', schema_owner::pg_catalog.regrole);
    END IF;
END
$$;

-- The version of the oldest program that can work on this schema. A migration that ends the work of older programs
-- raises it.
CREATE FUNCTION {schema}.oldest_program() RETURNS bigint LANGUAGE sql IMMUTABLE AS $$ SELECT 1::bigint $$;

SELECT {schema}.settle();
