package projections

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"taskledger/events"
)

// importConnections are the one that stores the export, and one that catches up with what is appended meanwhile.
const importConnections = 2

// ImportReport says what an import did.
type ImportReport struct {
	events.Totals
	// Whole: the export says itself how much there is in it, so nothing is missing behind its last line.
	Whole  bool
	Took   time.Duration
	Locked time.Duration // how long nobody else could append
}

// Import puts an export into a ledger that has none of its users: into the log and into the read model, in one
// transaction. The export is read twice: nothing is stored before all of it was checked. The error of a line that is
// wrong, or about a user who is there, is a *events.LineError.
func Import(ctx context.Context, db *events.DB, log *slog.Logger, export io.ReadSeeker) (ImportReport, error) {
	im := &importer{db: db, log: log}
	start := time.Now()
	err := im.check(export)
	if err == nil {
		err = maintain(ctx, db, importConnections, func() error { return im.run(ctx, export) })
	}
	if err != nil {
		return ImportReport{}, fmt.Errorf("import: nothing was kept: %w", err)
	}
	im.report.Took = time.Since(start)
	return im.report, tell(ctx, db)
}

type importer struct {
	db         *events.DB
	log        *slog.Logger
	tx         *events.Tx
	user       *userFold // whose lines are being stored
	generation int64     // of the read model
	report     ImportReport
}

func (im *importer) check(export io.ReadSeeker) error {
	for audit := events.NewAudit(export); ; {
		l, err := audit.Next()
		if errors.Is(err, io.EOF) && audit.Events == 0 {
			return errors.New("there is nothing in the export")
		}
		if errors.Is(err, io.EOF) {
			_, err := export.Seek(0, io.SeekStart)
			return err
		}
		if err == nil {
			err = l.Readable()
		}
		if err != nil {
			return err
		}
	}
}

func (im *importer) run(ctx context.Context, export io.Reader) error {
	var began time.Time
	err := im.db.Begin(ctx, pgx.TxOptions{}, func(tx *events.Tx) error {
		im.tx = tx
		if _, err := events.One(
			ctx, tx, `SELECT generation FROM {schema}.checkpoints WHERE projection = $1`, []any{Name}, &im.generation,
		); err != nil {
			return err
		}
		log, err := events.BeginImport(ctx, tx, export)
		if err != nil {
			return err
		}
		if err := im.store(ctx, log); err != nil {
			return err
		}
		im.report.Totals, im.report.Whole = log.Totals, log.Whole()
		// Most of what is to be done at the end is done before, while nobody waits.
		if err := log.Check(ctx); err != nil {
			return err
		}
		if err := catchUp(ctx, im.db, im.log); err != nil {
			return err
		}
		began = time.Now()
		if err := log.Join(ctx); err != nil {
			return err
		}
		return im.show(ctx, log.Position)
	})
	if !began.IsZero() {
		im.report.Locked = time.Since(began)
	}
	return err
}

// store stores the export, and the rows of the read model that are made of it.
func (im *importer) store(ctx context.Context, log *events.Import) error {
	for {
		lines, err := log.Store(ctx)
		if err != nil {
			return err
		}
		if len(lines) == 0 {
			return im.endUser(ctx)
		}
		changes := make([]change, 0, len(lines))
		for i := range lines {
			l := &lines[i]
			if im.user == nil || im.user.user != l.UserID {
				if err := im.endUser(ctx); err != nil {
					return err
				}
				im.user = newUserFold(l.UserID)
				im.user.generation = im.generation
			}
			if changes, err = im.user.apply(changes, &l.Event); err != nil {
				return err
			}
			if im.user.parked != nil {
				return &events.LineError{Line: l.Number, Err: errors.New(*im.user.parked)}
			}
		}
		if err := write(ctx, im.tx, historyColumns.fresh(historyTable, changes)); err != nil {
			return err
		}
	}
}

// endUser writes what the lines of the user have come to.
func (im *importer) endUser(ctx context.Context) error {
	if im.user == nil {
		return nil
	}
	for tasks := range slices.Chunk(im.user.current(), maxEvents) {
		if err := write(ctx, im.tx, taskColumns.fresh(taskTable, tasks)); err != nil {
			return err
		}
	}
	return write(ctx, im.tx, userColumns.fresh(userTable, []userState{im.user.userState}))
}

// show moves the checkpoint behind what was imported, whose rows are there: as soon as those of all that was before it
// are, too.
func (im *importer) show(ctx context.Context, position int64) error {
	if err := catchUp(ctx, im.db, im.log); err != nil {
		return err
	}
	_, err := im.tx.Exec(ctx, `
		UPDATE {schema}.checkpoints
		SET position = $2, `+writtenTo+`
		WHERE projection = $1`, Name, position)
	if err != nil {
		return fmt.Errorf("move the checkpoint: %w", err)
	}
	return nil
}
