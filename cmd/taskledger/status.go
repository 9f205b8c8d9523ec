package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/jackc/pgx/v5"

	"taskledger/events"
	"taskledger/httpapi/auth"
	"taskledger/migrations"
	"taskledger/projections"
)

// statusTimeout bounds the look at everything: who asks may be a page that waits.
const statusTimeout = 30 * time.Second

type statusCmd struct {
	JSON bool `name:"json" help:"As one JSON object."`
}

// Run exits with 0 when nothing needs a person. It writes nothing into the database.
func (c *statusCmd) Run(ctx context.Context, cfg *settings, log *slog.Logger, stdout io.Writer) (err error) {
	db, err := openShared(ctx, cfg, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.close()) }()
	s, err := readStatus(ctx, cfg, db)
	if err != nil {
		return err
	}
	shown := s.text()
	if c.JSON {
		if shown, err = json.Marshal(s); err != nil {
			return err
		}
		shown = append(shown, '\n')
	}
	if _, err := stdout.Write(shown); err != nil {
		return err
	}
	if n := len(s.Problems); n > 0 {
		return fmt.Errorf("status: problems that need somebody: %d", n)
	}
	return nil
}

// status is how the service stands, for an operator.
type status struct {
	Version  string              `json:"version"`
	Schema   schemaStatus        `json:"schema"`
	Ledger   *projections.Status `json:"ledger"` // null: the schema is not one that this program can work on
	Rows     rowSecurity         `json:"row_level_security"`
	Sessions sessionStatus       `json:"sessions"`
	JWKS     *jwksStatus         `json:"jwks"`     // null: none is configured
	Problems []string            `json:"problems"` // what needs a person
	Notes    []string            `json:"notes"`    // what is worth a look
}

type schemaStatus struct {
	Name           string `json:"name"`
	Version        int64  `json:"version"`         // of the database; 0: there is none
	ProgramVersion int64  `json:"program_version"` // of this program
	Error          string `json:"error"`           // why this program can't work on it; empty: it can
}

// rowSecurity is the second lock between users.
type rowSecurity struct {
	On    bool `json:"on"`    // every table has it
	Binds bool `json:"binds"` // and it binds the connections that this database role reads by
}

type sessionStatus struct {
	Reachable bool   `json:"reachable"`
	Tables    bool   `json:"tables"` // Better Auth's are there
	Error     string `json:"error"`
}

type jwksStatus struct {
	Reachable bool   `json:"reachable"`
	Keys      int    `json:"keys"` // that can be used
	Error     string `json:"error"`
}

// readStatus looks at everything that the service needs.
func readStatus(ctx context.Context, cfg *settings, db *database) (*status, error) {
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	s := &status{Version: version(), Schema: schemaStatus{Name: db.schema}, Problems: []string{}, Notes: []string{}}
	if err := s.readLedger(ctx, db); err != nil {
		return nil, err
	}
	s.readSessions(ctx, cfg, db)
	s.readJWKS(ctx, cfg.jwksURL())
	return s, nil
}

func (s *status) readLedger(ctx context.Context, db *database) (err error) {
	pool := db.ledger.Pool()
	if s.Schema.Version, s.Schema.ProgramVersion, err = migrations.Versions(ctx, pool, db.schema); err != nil {
		return err
	}
	err = migrations.Check(ctx, pool, db.schema)
	_, wrongVersion := errors.AsType[*migrations.VersionError](err)
	_, noRights := errors.AsType[*migrations.RightsError](err)
	if wrongVersion || noRights {
		s.Schema.Error = err.Error()
		s.Problems = append(s.Problems, err.Error())
		return nil
	}
	if err != nil {
		return err
	}
	if s.Ledger, err = projections.ReadStatus(ctx, db.ledger); err != nil {
		return err
	}
	problems, notes := s.Ledger.Findings()
	s.Problems, s.Notes = append(s.Problems, problems...), append(s.Notes, notes...)
	s.Rows.On = !s.Ledger.Locked
	for _, t := range s.Ledger.Tables {
		s.Rows.On = s.Rows.On && t.RowSecurity
	}
	s.Rows.Binds = s.Rows.On && (!db.traits.bypasses || db.traits.switches)
	if s.Rows.On && !s.Rows.Binds {
		s.Notes = append(s.Notes, "row level security does not bind this database role: GRANT "+readingRole+
			" TO it, or use one without BYPASSRLS")
	}
	return nil
}

func (s *status) readSessions(ctx context.Context, cfg *settings, db *database) {
	url, err := cfg.sessionURL(db, slog.New(slog.DiscardHandler))
	if err == nil {
		s.Sessions.Tables, err = hasSessions(ctx, url)
	}
	if s.Sessions.Reachable = err == nil; err != nil {
		s.Sessions.Error = events.Cause(err)
		s.Problems = append(s.Problems, "Better Auth's sessions can't be looked up: "+s.Sessions.Error)
	}
}

// hasSessions tells whether Better Auth's tables are there.
func hasSessions(ctx context.Context, url databaseURL) (there bool, err error) {
	pool, err := openSessions(ctx, url)
	if err != nil {
		return false, err
	}
	defer pool.Close()
	schema := cmp.Or(url.schema, "public")
	err = pool.QueryRow(ctx, `SELECT pg_catalog.to_regclass($1) IS NOT NULL AND pg_catalog.to_regclass($2) IS NOT NULL`,
		pgx.Identifier{schema, "session"}.Sanitize(), pgx.Identifier{schema, "user"}.Sanitize()).Scan(&there)
	return there, err
}

func (s *status) readJWKS(ctx context.Context, url string) {
	if url == "" {
		return
	}
	keys, err := auth.CountKeys(ctx, url)
	s.JWKS = &jwksStatus{Reachable: err == nil, Keys: keys}
	switch {
	case err != nil:
		s.JWKS.Error = events.Cause(err)
		s.Problems = append(s.Problems, "the JWKS can't be read: "+s.JWKS.Error)
	case keys == 0:
		s.Problems = append(s.Problems, "the JWKS has no key that can be used")
	}
}

// text is the status as one screen.
func (s *status) text() []byte {
	var out bytes.Buffer
	w := tabwriter.NewWriter(&out, 0, 0, 2, ' ', 0)
	row := func(name, format string, args ...any) {
		_, _ = fmt.Fprintf(w, name+"\t"+format+"\n", args...) // into memory
	}
	row("taskledger", "%s", s.Version)
	row("schema", "%s, version %d; this program has %d", s.Schema.Name, s.Schema.Version, s.Schema.ProgramVersion)
	if s.Ledger != nil {
		ledgerText(row, s.Ledger)
	}
	if s.Ledger != nil && !s.Ledger.Locked {
		row("row level security", "%s, %s", choose(s.Rows.On, "on", "off"),
			choose(s.Rows.Binds, "binds the connections that read", "does not bind the connections that read"))
	}
	row("sessions", "%s", choose(!s.Sessions.Reachable, "not reachable: "+s.Sessions.Error,
		choose(s.Sessions.Tables, "reachable", "reachable, Better Auth's tables are not there")))
	switch {
	case s.JWKS == nil:
		row("jwks", "none is configured")
	case s.JWKS.Reachable:
		row("jwks", "reachable, %d keys", s.JWKS.Keys)
	default:
		row("jwks", "not reachable: %s", s.JWKS.Error)
	}
	for _, problem := range s.Problems {
		row("PROBLEM", "%s", problem)
	}
	for _, note := range s.Notes {
		row("note", "%s", note)
	}
	if len(s.Problems) == 0 {
		row("", "nothing needs anybody")
	}
	_ = w.Flush() // into memory
	return out.Bytes()
}

func ledgerText(row func(name, format string, args ...any), l *projections.Status) {
	if !l.Locked {
		tablesText(row, l)
	}
	serverText(row, l)
}

func tablesText(row func(name, format string, args ...any), l *projections.Status) {
	row(
		"log",
		"%s%d events, %s; the last one %s",
		choose(l.Log.Estimated, "about ", ""),
		l.Log.Events,
		size(l.Log.Bytes),
		ago(l.Log.LastRecordedAt),
	)
	row("", "%d in the last minute, %d in the last hour (%.2f/s), %d in the last day (about %s)",
		l.Log.LastMinute, l.Log.LastHour, float64(l.Log.LastHour)/3600, l.Log.LastDay, size(l.Log.BytesLastDay))
	row(
		"read model",
		"%d events and %s behind%s; %s; version %d",
		l.ReadModel.LagEvents,
		seconds(l.ReadModel.LagSeconds),
		choose(l.ReadModel.Stuck, ", not moving", ""),
		size(l.ReadModel.Bytes),
		l.ReadModel.Version,
	)
	row("parked", "%s", choose(l.Parked.Users == 0, "nobody", fmt.Sprintf("%d users", l.Parked.Users)))
	for _, p := range l.Parked.First {
		row("", "user=%q event=%d since=%s reason=%q", p.UserID, p.Seq, p.Since.UTC().Format(time.RFC3339), p.Reason)
	}
	switch r := l.Rebuild; {
	case r == nil:
		row("rebuild", "none")
	case !r.Running:
		row("rebuild", "none; an interrupted one has left tables behind")
	default:
		row("rebuild", "%s, %d of about %d events, for %s", r.Phase, r.DoneEvents, r.TotalEvents, seconds(r.Seconds))
	}
	for i, t := range l.Tables {
		row(choose(i == 0, "tables", ""), "%s: about %d rows, %d dead, %s, analyzed %s, vacuumed %s", t.Name, t.Rows,
			t.DeadRows, size(t.Bytes), ago(t.AnalyzedAt), ago(t.VacuumedAt))
	}
}

func serverText(row func(name, format string, args ...any), l *projections.Status) {
	p := l.PostgreSQL
	row("postgresql", "%s%s, shared_buffers %s, fsync %s, full_page_writes %s, synchronous_commit %s, autovacuum %s",
		p.Version, choose(p.Standby, " (standby)", ""), size(p.SharedBuffers), onOff(p.Fsync), onOff(p.FullPageWrites),
		p.SynchronousCommit, onOff(p.Autovacuum))
	row("connections", "%d of %d", p.Connections, p.MaxConnections)
	for _, c := range l.Connections {
		row("", "%d %s %s%s, up to %s", c.Count, cmp.Or(c.Application, "(no name)"), c.State,
			choose(c.Waits == "", "", " waiting for "+c.Waits), seconds(c.Seconds))
	}
	row("locks", "%s", choose(len(l.LockWaits) == 0, "nobody waits", fmt.Sprintf("%d wait", len(l.LockWaits))))
	for _, w := range l.LockWaits {
		row("", "process %d (%s) for %s since %s, blocked by %s", w.PID, cmp.Or(w.Application, "no name"), w.Lock,
			seconds(w.Seconds), strings.Trim(fmt.Sprint(w.BlockedBy), "[]"))
	}
}

func choose(yes bool, one, other string) string {
	if yes {
		return one
	}
	return other
}

func onOff(on bool) string { return choose(on, "on", "off") }

func seconds(s float64) string {
	return (time.Duration(s*1000) * time.Millisecond).Round(100 * time.Millisecond).String()
}

func ago(t *time.Time) string {
	if t == nil {
		return "never"
	}
	return time.Since(*t).Round(time.Second).String() + " ago"
}

// size is a number of bytes for people.
func size(n int64) string {
	units := []string{"B", "kB", "MB", "GB", "TB"}
	value, i := float64(n), 0
	for ; value >= 1024 && i < len(units)-1; i++ {
		value /= 1024
	}
	return fmt.Sprintf("%.*f %s", min(i, 1), value, units[i]) // bytes have no fraction
}
