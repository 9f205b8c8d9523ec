package main

import (
	"context"
	"errors"
	"slices"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/prometheus/client_golang/prometheus"

	"taskledger/httpapi/admin"
	"taskledger/projections"
	"taskledger/query"
)

// newAdmin is what ADMIN_ADDR serves.
func (a *app) newAdmin(cfg *settings, db *database, metrics prometheus.Gatherer, queries *query.Reader) *admin.Server {
	token := cfg.AdminToken
	if isLoopback(cfg.AdminAddr) {
		token = ""
	}
	return admin.New(admin.Config{
		Version: version(),
		Metrics: metrics,
		Log:     a.log,
		Token:   token,
		Status:  func(ctx context.Context) (any, error) { return readStatus(ctx, cfg, db) },
		Queries: queries,
		FindUsers: func(ctx context.Context, prefix string, limit int) ([]query.User, error) {
			return query.FindUsers(ctx, a.ledger, prefix, limit)
		},
		Verify: a.verifyUser,
		Parked: a.parked,
		Retry: func(ctx context.Context, user string) error {
			_, err := projections.RetryParked(ctx, a.ledger, user)
			return refused(err)
		},
		Skip: func(ctx context.Context, user string, seq int64) error {
			_, err := projections.SkipParkedAt(ctx, a.ledger, user, seq)
			return refused(err)
		},
	})
}

func (a *app) parked(ctx context.Context) ([]admin.Parked, error) {
	found, err := projections.ListParked(ctx, a.ledger, "")
	parked := make([]admin.Parked, len(found))
	for i, p := range found {
		parked[i] = admin.Parked(p)
	}
	return parked, err
}

func (a *app) verifyUser(ctx context.Context, user string, found func(string)) (admin.Verified, error) {
	report, err := projections.Verify(ctx, a.ledger, user, func(d projections.Difference) { found(d.String()) })
	return admin.Verified{
		Events: report.Events, Rows: report.Rows, Differences: report.Differences, Parked: report.Parked > 0,
	}, err
}

// refused tells the person at the page why nothing was done, where that is no fault.
func refused(err error) error {
	switch {
	case errors.Is(err, projections.ErrMaintenance):
		return admin.Refusal(
			"A rebuild, or a command that changes parked users, is running. Try again when it has ended.",
		)
	case errors.Is(err, projections.ErrNotParked):
		return admin.Refusal("This user is not parked at this event any more.")
	}
	// Data that the database has no place for, or that a constraint forbids: the database did answer.
	if pgErr, ok := errors.AsType[*pgconn.PgError](err); ok && slices.Contains([]string{"22", "23"}, pgErr.Code[:2]) {
		return admin.Refusal("The read model still refuses this event.")
	}
	return err
}
