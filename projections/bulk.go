package projections

import (
	"context"
	"errors"
	"log/slog"

	"taskledger/events"
)

// bulkConnections are one that work may hold on to, and one for appends and the projection, which all can share.
const bulkConnections = 2

// Bulk runs work, a command of the operator's that appends very many events. The read model follows them in this
// process, so that work can wait for it and not run away from it, whether servers are there or not. It returns
// ErrMaintenance, and does nothing, while another command that must not be undone is running.
func Bulk(ctx context.Context, log *events.Log, logger *slog.Logger, work func(*Runner) error) error {
	return maintain(ctx, log.DB(), bulkConnections, func() error {
		r := NewRunner(log, logger, nil)
		running, stop := context.WithCancel(ctx)
		defer stop()
		ended := make(chan error, 1)
		go func() { ended <- r.Run(running) }()
		err := work(r)
		stop()
		return errors.Join(err, <-ended)
	})
}
