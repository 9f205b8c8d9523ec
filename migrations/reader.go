package migrations

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5/pgxpool"
)

// ensureReader makes the role that queries run as, and lets it read the read models and nothing else. Roles belong to a cluster and
// not to a database: a dump restored elsewhere comes without, so this is no migration but done at every start.
func ensureReader(ctx context.Context, pool *pgxpool.Pool) error {
	if _, err := pool.Exec(ctx, readerRole); err != nil {
		return fmt.Errorf("make the role taskledger_reader (as a superuser: CREATE ROLE taskledger_reader NOLOGIN; GRANT taskledger_reader TO this user): %w", err)
	}
	return nil
}

// Programs on other databases of the cluster may be making the role too.
const readerRole = `
	DO $$
	DECLARE
		read_model text;
	BEGIN
		IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'taskledger_reader') THEN
			BEGIN
				CREATE ROLE taskledger_reader NOLOGIN;
				EXECUTE format('GRANT taskledger_reader TO %I', current_user);
			EXCEPTION WHEN duplicate_object OR unique_violation THEN
				NULL;
			END;
		END IF;
		IF NOT pg_has_role(current_user, 'taskledger_reader', 'MEMBER') THEN
			EXECUTE format('GRANT taskledger_reader TO %I', current_user);
		END IF;
		IF NOT has_schema_privilege('taskledger_reader', current_schema(), 'USAGE') THEN
			EXECUTE format('GRANT USAGE ON SCHEMA %I TO taskledger_reader', current_schema());
		END IF;
		FOR read_model IN
			SELECT relname
			FROM pg_class
			WHERE relnamespace = current_schema()::regnamespace AND relkind = 'r' AND relrowsecurity
			AND NOT has_table_privilege('taskledger_reader', oid, 'SELECT')
		LOOP
			EXECUTE format('GRANT SELECT ON %I TO taskledger_reader', read_model);
		END LOOP;
	END
	$$`
