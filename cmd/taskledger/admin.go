package main

import (
	"context"
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"taskledger/httpapi/admin"
	"taskledger/projections"
	"taskledger/query"
)

// newAdmin is what ADMIN_ADDR serves.
func (a *app) newAdmin(cfg *settings, metrics prometheus.Gatherer, queries *query.Reader) *admin.Server {
	token := cfg.AdminToken
	if isLoopback(cfg.AdminAddr) {
		token = ""
	}
	return admin.New(admin.Config{
		Version: version(),
		Metrics: metrics,
		Log:     a.log,
		Token:   token,
		Status:  a.status,
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

// statusNow is what the page for operators shows of the service.
type statusNow struct {
	Ready      bool    `json:"ready"`
	WhyNot     string  `json:"why_not_ready,omitempty"`
	Schema     string  `json:"schema"`
	LagSeconds float64 `json:"lag_seconds"`
}

func (a *app) status(ctx context.Context) (any, error) {
	lag, err := projections.Lag(ctx, a.ledger)
	if err != nil {
		return nil, err
	}
	now := statusNow{Ready: true, Schema: a.ledger.Schema(), LagSeconds: lag.Round(time.Millisecond).Seconds()}
	if err := a.ready(ctx); err != nil {
		now.Ready, now.WhyNot = false, err.Error()
	}
	return now, nil
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
		return admin.Refusal("A rebuild, or a command that changes parked users, is running. Try again when it has ended.")
	case errors.Is(err, projections.ErrNotParked):
		return admin.Refusal("This user is not parked at this event any more.")
	}
	return err
}
