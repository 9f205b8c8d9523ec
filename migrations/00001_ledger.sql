-- +goose Up

-- The log: the only source of truth. Append-only; everything else in this database is derived from it.
CREATE TABLE task_events (
    position            bigint      GENERATED ALWAYS AS IDENTITY,
    user_id             text        COLLATE "C" NOT NULL,
    seq                 bigint      NOT NULL,
    task_id             uuid        NOT NULL,
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
    CONSTRAINT task_events_user_id_check CHECK (octet_length(user_id) BETWEEN 1 AND 255),
    CONSTRAINT task_events_seq_check CHECK (seq > 0),
    CONSTRAINT task_events_schema_version_check CHECK (schema_version > 0),
    CONSTRAINT task_events_data_check CHECK (jsonb_typeof(data) = 'object'),
    CONSTRAINT task_events_idempotency_check CHECK ((idempotency_key IS NULL) = (request_fingerprint IS NULL))
);
CREATE INDEX task_events_position ON task_events (position);
CREATE UNIQUE INDEX task_events_idempotency_key ON task_events (user_id, idempotency_key) WHERE idempotency_key IS NOT NULL;

-- Nobody changes what happened. Only the erasure of one user, named in taskledger.erase_user for one transaction, may delete.
-- +goose StatementBegin
CREATE FUNCTION task_events_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' AND OLD.user_id = current_setting('taskledger.erase_user', true) THEN
        RETURN OLD;
    END IF;
    RAISE EXCEPTION 'task_events is append-only: % refused', TG_OP USING ERRCODE = 'restrict_violation';
END
$$;
-- +goose StatementEnd
CREATE TRIGGER task_events_append_only
    BEFORE UPDATE OR DELETE ON task_events
    FOR EACH ROW EXECUTE FUNCTION task_events_append_only();
CREATE TRIGGER task_events_no_truncate
    BEFORE TRUNCATE ON task_events
    FOR EACH STATEMENT EXECUTE FUNCTION task_events_append_only();

-- Events that an operator has told everyone to pass over, because they could not be applied.
CREATE TABLE skipped_events (
    user_id    text        COLLATE "C" NOT NULL,
    seq        bigint      NOT NULL,
    skipped_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT skipped_events_pkey PRIMARY KEY (user_id, seq)
);

-- How far each projection has applied the log. One row a projection. A rebuild raises generation, so that a batch which was
-- folded from rows of before it is not written over rows of after it.
CREATE TABLE projection_checkpoints (
    projection text   NOT NULL PRIMARY KEY,
    position   bigint NOT NULL,
    generation bigint NOT NULL DEFAULT 0
);
INSERT INTO projection_checkpoints (projection, position) VALUES ('tasks', 0), ('task_history', 0);

-- Read model "tasks": the current state of every task; deleted ones stay, with deleted_at.
-- title_key orders titles alphabetically whatever the case and the server's locale; search is the case-folded text q looks in.
CREATE TABLE tasks (
    user_id      text        COLLATE "C" NOT NULL,
    id           uuid        NOT NULL,
    version      bigint      NOT NULL,
    title        text        NOT NULL,
    description  text,
    is_completed boolean     NOT NULL,
    created_at   timestamptz NOT NULL,
    updated_at   timestamptz NOT NULL,
    deleted_at   timestamptz,
    title_key    bytea       NOT NULL,
    search       text        COLLATE "C" NOT NULL,
    CONSTRAINT tasks_pkey PRIMARY KEY (user_id, id)
);
-- is_completed stands last in each index so that a status filter is decided in the index, without a visit to the row.
CREATE INDEX tasks_by_created_at ON tasks (user_id, created_at, id, is_completed) WHERE deleted_at IS NULL;
CREATE INDEX tasks_by_updated_at ON tasks (user_id, updated_at, id, is_completed) WHERE deleted_at IS NULL;
CREATE INDEX tasks_by_title ON tasks (user_id, title_key, id, is_completed) WHERE deleted_at IS NULL;

-- Read model "task_history": every event as people read it, and the task as it was after it.
CREATE TABLE task_history (
    user_id      text        COLLATE "C" NOT NULL,
    seq          bigint      NOT NULL,
    task_id      uuid        NOT NULL,
    type         text        NOT NULL,
    actor        text        NOT NULL,
    request_id   text        NOT NULL,
    recorded_at  timestamptz NOT NULL,
    changes      json        NOT NULL,
    title        text        NOT NULL,
    description  text,
    is_completed boolean     NOT NULL,
    created_at   timestamptz NOT NULL,
    deleted_at   timestamptz,
    CONSTRAINT task_history_pkey PRIMARY KEY (user_id, seq)
);
CREATE INDEX task_history_by_task ON task_history (user_id, task_id, seq);

-- One row a user and read model: the seq it has reached; parked_error says why it goes no further.
CREATE TABLE tasks_users (
    user_id      text        COLLATE "C" NOT NULL,
    seq          bigint      NOT NULL,
    parked_error text,
    parked_at    timestamptz,
    CONSTRAINT tasks_users_pkey PRIMARY KEY (user_id)
);
CREATE TABLE task_history_users (
    user_id      text        COLLATE "C" NOT NULL,
    seq          bigint      NOT NULL,
    parked_error text,
    parked_at    timestamptz,
    CONSTRAINT task_history_users_pkey PRIMARY KEY (user_id)
);

-- A second lock on the read models, besides the WHERE of each query: who is not their owner sees the rows of the user named in
-- app.user_id and, where nobody is named, none. Queries run as the role taskledger_reader, which the program makes at start.
ALTER TABLE tasks ENABLE ROW LEVEL SECURITY;
ALTER TABLE tasks_users ENABLE ROW LEVEL SECURITY;
ALTER TABLE task_history ENABLE ROW LEVEL SECURITY;
ALTER TABLE task_history_users ENABLE ROW LEVEL SECURITY;
CREATE POLICY own_rows ON tasks FOR SELECT USING (user_id = current_setting('app.user_id', true));
CREATE POLICY own_rows ON tasks_users FOR SELECT USING (user_id = current_setting('app.user_id', true));
CREATE POLICY own_rows ON task_history FOR SELECT USING (user_id = current_setting('app.user_id', true));
CREATE POLICY own_rows ON task_history_users FOR SELECT USING (user_id = current_setting('app.user_id', true));
