package migrations_test

import (
	"context"
	"crypto/rand"
	"errors"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"taskledger/migrations"
	"taskledger/migrations/testdb"
)

// cast is a database whose owner is an ordinary role, and other roles, by the names that they have in a test.
type cast struct {
	t     *testing.T
	admin *pgxpool.Pool
	names map[string]string
}

// newCast makes an empty database for the role "owner" and those named, with their attributes.
func newCast(t *testing.T, attributes map[string]string) *cast {
	t.Helper()
	c := &cast{t: t, admin: emptyDatabase(t), names: map[string]string{}}
	attributes = maps.Clone(attributes)
	attributes["owner"] = ""
	for name, has := range attributes {
		c.names[name] = "a " + name + " " + rand.Text() // a name that needs quotes
		c.do(`CREATE ROLE {` + name + `} ` + has)
	}
	t.Cleanup(func() {
		// Not t.Context(), which has ended.
		for name := range c.names {
			_, err := c.admin.Exec(context.Background(), c.sql(`DROP OWNED BY {`+name+`} CASCADE`))
			if err != nil {
				t.Error(err)
			}
		}
		for name := range c.names {
			if _, err := c.admin.Exec(context.Background(), c.sql(`DROP ROLE {`+name+`}`)); err != nil {
				t.Error(err)
			}
		}
	})
	c.do(`DO $$ BEGIN EXECUTE format('GRANT CREATE ON DATABASE %I TO {owner}', current_database()); END $$`)
	return c
}

// sql puts the roles' names into a statement.
func (c *cast) sql(statement string) string {
	for name, real := range c.names {
		statement = strings.ReplaceAll(statement, "{"+name+"}", pgx.Identifier{real}.Sanitize())
	}
	return statement
}

func (c *cast) do(statement string) {
	c.t.Helper()
	if _, err := c.admin.Exec(c.t.Context(), c.sql(statement), pgx.QueryExecModeSimpleProtocol); err != nil {
		c.t.Fatalf("%s: %v", statement, err)
	}
}

// as connects as a role.
func (c *cast) as(name string) *pgxpool.Pool {
	c.t.Helper()
	config := c.admin.Config()
	config.ConnConfig.RuntimeParams["role"] = c.names[name]
	return openPool(c.t, config)
}

func (c *cast) up(name string) {
	c.t.Helper()
	if err := migrations.Up(c.t.Context(), c.as(name), testdb.Schema); err != nil {
		c.t.Fatalf("Up as the %s: %v", name, err)
	}
}

// has lists what a role may do with anything of the ledger, however it came to that.
func (c *cast) has(name string) []string {
	c.t.Helper()
	rows, err := c.admin.Query(c.t.Context(), `
		SELECT 'schema' WHERE has_schema_privilege($1, 'taskledger', 'USAGE, CREATE')
		UNION ALL
		SELECT relname
		FROM pg_class c
		WHERE relnamespace = 'taskledger'::regnamespace AND relkind = ANY ('{r,S}')
		AND (has_table_privilege($1, c.oid, 'SELECT, INSERT, UPDATE, DELETE, TRUNCATE, REFERENCES, TRIGGER')
			OR relkind = 'r' AND has_any_column_privilege($1, c.oid, 'SELECT, INSERT, UPDATE, REFERENCES'))
		UNION ALL
		SELECT DISTINCT proname
		FROM pg_proc
		CROSS JOIN LATERAL aclexplode(proacl)
		WHERE pronamespace = 'taskledger'::regnamespace
			AND grantee = (SELECT oid FROM pg_roles WHERE rolname = $1)`, c.names[name])
	if err != nil {
		c.t.Fatal(err)
	}
	has, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		c.t.Fatal(err)
	}
	return has
}

// Who serves keeps what it has and gets what it lacks; nobody else keeps anything, at each start and after a rebuild.
func TestWhoMayUseTheLedger(t *testing.T) {
	t.Parallel()
	const all = `
		GRANT USAGE ON SCHEMA taskledger TO {other}; GRANT ALL ON ALL TABLES IN SCHEMA taskledger TO {other};
		GRANT ALL ON ALL SEQUENCES IN SCHEMA taskledger TO {other};
		GRANT ALL ON ALL FUNCTIONS IN SCHEMA taskledger TO {other};`
	const least = `GRANT USAGE ON SCHEMA taskledger TO {other};
		GRANT SELECT, INSERT ON taskledger.task_events TO {other};`
	for _, tt := range []struct {
		name   string
		roles  map[string]string
		before string // is run before there is a ledger
		grants string
		serves bool
	}{
		{name: "all by name", roles: map[string]string{"other": "LOGIN"}, grants: all, serves: true},
		{name: "the least", roles: map[string]string{"other": "LOGIN"}, grants: least, serves: true},
		{
			name: "a group", roles: map[string]string{"other": "", "member": "LOGIN"},
			before: `GRANT {other} TO {member}`, grants: least, serves: true,
		},
		{
			name: "of two groups", roles: map[string]string{"other": "LOGIN", "readers": ""},
			before: `GRANT {readers} TO {other}`,
			grants: `GRANT USAGE ON SCHEMA taskledger TO {readers}; GRANT SELECT ON taskledger.task_events TO {readers};
				GRANT INSERT ON taskledger.task_events TO {other}`,
			serves: true,
		},
		{
			name: "by default on new tables, and then by name", roles: map[string]string{"other": "LOGIN"},
			before: `ALTER DEFAULT PRIVILEGES FOR ROLE {owner} GRANT ALL ON TABLES TO {other}`, grants: least,
			serves: true,
		},
		{
			name: "by default", roles: map[string]string{"other": "LOGIN"},
			before: `ALTER DEFAULT PRIVILEGES FOR ROLE {owner} GRANT ALL ON TABLES TO {other};
				ALTER DEFAULT PRIVILEGES FOR ROLE {owner} GRANT ALL ON SEQUENCES TO {other};
				ALTER DEFAULT PRIVILEGES FOR ROLE {owner} GRANT ALL ON FUNCTIONS TO {other};
				ALTER DEFAULT PRIVILEGES FOR ROLE {owner} GRANT ALL ON SCHEMAS TO {other}`,
		},
		{
			name: "by default, and restored from a dump", roles: map[string]string{"other": "LOGIN"},
			before: `ALTER DEFAULT PRIVILEGES FOR ROLE {owner} GRANT ALL ON SCHEMAS TO {other}`, grants: all,
		},
		{ // Supabase: who logs in is authenticator, which may become anon but does not inherit from it
			name: "anon", roles: map[string]string{"other": "", "authenticator": "LOGIN NOINHERIT"},
			before: `GRANT {other} TO {authenticator}`, grants: all,
		},
		{
			name: "a reader", roles: map[string]string{"other": "LOGIN"},
			grants: `GRANT USAGE ON SCHEMA taskledger TO {other};
				GRANT SELECT ON ALL TABLES IN SCHEMA taskledger TO {other}`,
		},
		{
			name: "tables without the schema", roles: map[string]string{"other": "LOGIN"},
			grants: `GRANT ALL ON ALL TABLES IN SCHEMA taskledger TO {other}`,
		},
		{
			name: "a column", roles: map[string]string{"other": "LOGIN"},
			grants: `GRANT USAGE ON SCHEMA taskledger TO {other};
				GRANT SELECT (title) ON taskledger.task_history TO {other}`,
		},
		{
			name: "PUBLIC", roles: map[string]string{"other": "LOGIN"},
			grants: `GRANT USAGE ON SCHEMA taskledger TO PUBLIC; GRANT ALL ON ALL TABLES IN SCHEMA taskledger TO PUBLIC;
				GRANT SELECT ON taskledger.users TO {other}`,
		},
		{
			name: "from one who serves", roles: map[string]string{"other": "LOGIN", "server": "LOGIN"},
			grants: `GRANT USAGE ON SCHEMA taskledger TO {server} WITH GRANT OPTION;
				GRANT SELECT, INSERT ON taskledger.task_events TO {server} WITH GRANT OPTION;
				SET ROLE {server}; GRANT USAGE ON SCHEMA taskledger TO {other};
				GRANT SELECT ON taskledger.task_events TO {other}; RESET ROLE`,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			c := newCast(t, tt.roles)
			if tt.before != "" {
				c.do(tt.before)
			}
			c.up("owner")
			if has := c.has("other"); len(has) > 0 {
				t.Errorf("in a new ledger it has %v", has)
			}
			c.do(`SET ROLE {owner}; ` + tt.grants + `; RESET ROLE`)
			c.up("owner")
			c.check(tt.serves)
			for _, step := range []string{
				`create_read_model('_rebuild')`, `index_read_model('_rebuild')`, `swap_read_model('_rebuild')`,
			} {
				c.do(`SET ROLE {owner}; SELECT taskledger.` + step + `; RESET ROLE`)
				c.check(tt.serves)
			}
			if _, ok := c.names["server"]; ok {
				c.serves("server")
			}
		})
	}
}

// There is no moment in which others have what default privileges give them.
func TestWhatIsMadeIsClosedFromTheBeginning(t *testing.T) {
	t.Parallel()
	for name, files := range map[string]fs.FS{"schema": oneMigration(`SELECT 1`), "tables": migrations.Files} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newCast(t, map[string]string{"other": "LOGIN"})
			for _, what := range []string{"TABLES", "SEQUENCES", "FUNCTIONS", "SCHEMAS"} {
				c.do(`ALTER DEFAULT PRIVILEGES FOR ROLE {owner} GRANT ALL ON ` + what + ` TO {other}, PUBLIC`)
			}
			if err := migrations.UpWith(t.Context(), c.as("owner"), testdb.Schema, files, time.Minute); err != nil {
				t.Fatal(err)
			}
			has := c.has("other")
			// Without the schema goose's table can't be reached.
			if name == "schema" && slices.Contains(has, "schema") || name == "tables" && len(has) > 0 {
				t.Errorf("it has %v", has)
			}
		})
	}
}

func (c *cast) check(serves bool) {
	c.t.Helper()
	others, err := migrations.Others(c.t.Context(), c.admin, testdb.Schema)
	if err != nil {
		c.t.Fatal(err)
	}
	if serves {
		c.serves("other")
		if !slices.Equal(others, []string{c.names["other"]}) {
			c.t.Errorf("others: %q", others)
		}
		return
	}
	if has := c.has("other"); len(has) > 0 {
		c.t.Errorf("it has %v", has)
	}
	if err := migrations.Check(c.t.Context(), c.as("other"), testdb.Schema); !isRightsError(err) {
		c.t.Errorf("Check: %v, want a RightsError", err)
	}
}

func (c *cast) serves(name string) {
	c.t.Helper()
	if err := migrations.Up(c.t.Context(), c.as(name), testdb.Schema); err != nil {
		c.t.Errorf("Up as the %s: %v", name, err)
	}
}

func isRightsError(err error) bool {
	_, ok := errors.AsType[*migrations.RightsError](err)
	return ok
}

// Whoever migrates or rebuilds for the owner, all is the owner's.
func TestTheOwnerStaysTheOwner(t *testing.T) {
	t.Parallel()
	for name, before := range map[string]string{
		"its own database": `SELECT 1`,
		"a schema that was made for it": `
			DO $$ BEGIN EXECUTE format('REVOKE CREATE ON DATABASE %I FROM {owner}', current_database()); END $$;
			CREATE SCHEMA taskledger AUTHORIZATION {owner}`,
		"a schema of another's": `
			DO $$ BEGIN EXECUTE format('REVOKE CREATE ON DATABASE %I FROM {owner}', current_database()); END $$;
			CREATE SCHEMA taskledger; GRANT ALL ON SCHEMA taskledger TO {owner}`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newCast(t, map[string]string{"member": ""})
			c.do(`GRANT {owner} TO {member}`)
			c.do(before)
			if name == "a schema that was made for it" {
				if err := migrations.Up(t.Context(), c.admin, testdb.Schema); err != nil {
					t.Fatal(err)
				}
			}
			c.up("owner")
			for _, who := range []string{"RESET ROLE", "SET ROLE {member}"} {
				for _, step := range []string{
					`create_read_model('_rebuild')`, `index_read_model('_rebuild')`, `swap_read_model('_rebuild')`,
				} {
					c.do(who + `; SELECT taskledger.` + step + `; RESET ROLE`)
				}
				c.up("owner")
				c.up("member")
				if err := migrations.Up(t.Context(), c.admin, testdb.Schema); err != nil {
					t.Fatal(err)
				}
			}
			foreign := count(t, c.admin, c.sql(`
				SELECT (SELECT count(*) FROM pg_class WHERE relnamespace = 'taskledger'::regnamespace
					AND relkind IN ('r', 'S')
					AND relowner <> (SELECT oid FROM pg_roles WHERE quote_ident(rolname) = '{owner}'))
				+ (SELECT count(*) FROM pg_proc WHERE pronamespace = 'taskledger'::regnamespace
					AND proowner <> (SELECT oid FROM pg_roles WHERE quote_ident(rolname) = '{owner}'))
				+ (SELECT count(*) FROM pg_type WHERE typnamespace = 'taskledger'::regnamespace
					AND typowner <> (SELECT oid FROM pg_roles WHERE quote_ident(rolname) = '{owner}'))`))
			if foreign != 0 {
				t.Errorf("%d things are not the owner's", foreign)
			}
		})
	}
}

// Who may not migrate, or may not use what is there, is told what to do, in one line.
func TestWhoMayNotIsToldWhatToDo(t *testing.T) {
	t.Parallel()
	c := newCast(t, map[string]string{"other": "LOGIN"})
	tell := func(want ...string) {
		t.Helper()
		err := migrations.Up(t.Context(), c.as("other"), testdb.Schema)
		for _, part := range want {
			if err == nil || !strings.Contains(err.Error(), part) || strings.Contains(err.Error(), "\n") {
				t.Errorf("got %v, want %s", err, part)
			}
		}
	}
	tell("CREATE SCHEMA", "AUTHORIZATION")
	c.up("owner")
	tell(c.names["other"], "USAGE ON SCHEMA", "taskledger migrate")
	c.do(`GRANT USAGE ON SCHEMA taskledger TO {other}`)
	tell("schema_versions")
	c.do(`GRANT SELECT ON ALL TABLES IN SCHEMA taskledger TO {other}`)
	tell("INSERT ON TABLE taskledger.task_events", "SELECT ON SEQUENCE taskledger.task_events_position_seq")
	c.do(
		`GRANT ALL ON ALL TABLES IN SCHEMA taskledger TO {other};
		GRANT ALL ON ALL SEQUENCES IN SCHEMA taskledger TO {other};
		REVOKE DELETE ON taskledger.users FROM {other}`,
	)
	tell("DELETE ON TABLE taskledger.users")
	c.do(`GRANT DELETE ON taskledger.users TO {other}`)
	c.serves("other")
	c.do(`REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA taskledger FROM PUBLIC`)
	tell("lacking")
	c.up("owner")
	c.serves("other")
}

// Row level security that was switched off is on again after a start.
func TestRowLevelSecurityIsMended(t *testing.T) {
	t.Parallel()
	c := newCast(t, map[string]string{})
	c.up("owner")
	c.do(
		`ALTER TABLE taskledger.tasks DISABLE ROW LEVEL SECURITY;
		ALTER TABLE taskledger.task_events NO FORCE ROW LEVEL SECURITY;
		DROP POLICY own_rows ON taskledger.users; DROP POLICY ledger ON taskledger.task_history`,
	)
	c.up("owner")
	whole := count(t, c.admin, `
		SELECT count(*)
		FROM pg_class c
		WHERE relnamespace = 'taskledger'::regnamespace AND relrowsecurity AND relforcerowsecurity
		AND (SELECT count(*) FROM pg_policy WHERE polrelid = c.oid) = 2`)
	if whole != 6 {
		t.Errorf("%d tables have row level security, want 6", whole)
	}
}
