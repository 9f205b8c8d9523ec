package main

import (
	"context"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/go-logr/logr"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"taskledger/events"
)

const (
	// flushTimeout bounds how long the last traces may take at a stop.
	flushTimeout = 2 * time.Second
	// tracingWarnEvery is the least time between two warnings that traces can't be sent.
	tracingWarnEvery = time.Minute
)

// tracing sends traces to a collector, in the background: one that is away costs traces, and never a request its time.
// A nil *tracing is that nobody traces.
type tracing struct {
	provider *sdktrace.TracerProvider
	log      *slog.Logger

	mu   sync.Mutex
	told time.Time
}

// startTracing returns nil when there is no collector. What else there is to set is in the standard variables, which
// the SDK reads.
func startTracing(ctx context.Context, cfg *settings, log *slog.Logger) (*tracing, error) {
	if cfg.OTLPEndpoint == "" || strings.EqualFold(os.Getenv("OTEL_SDK_DISABLED"), "true") {
		return nil, nil
	}
	t := &tracing{log: log}
	// There is one of each for all, and nobody else here who uses the SDK. Its logger would show a header that cannot
	// be parsed, with the token in it.
	otel.SetErrorHandler(t)
	otel.SetLogger(logr.Discard())
	exporter, err := otlptracehttp.New(ctx, cfg.otlpOptions()...)
	if err != nil {
		return nil, fmt.Errorf("OTEL_EXPORTER_OTLP_ENDPOINT: %w", err)
	}
	about, err := resource.New(ctx,
		resource.WithTelemetrySDK(),
		resource.WithAttributes(
			attribute.String("service.name", "taskledger"), attribute.String("service.version", version()),
		),
		resource.WithFromEnv(), // last: it wins
	)
	if err != nil {
		t.Handle(err) // what could be read of it is there
	}
	t.provider = sdktrace.NewTracerProvider(sdktrace.WithBatcher(exporter), sdktrace.WithResource(about))
	return t, nil
}

// otlpOptions is where traces go, when no variable of the SDK's own says so better.
func (s *settings) otlpOptions() []otlptracehttp.Option {
	to, err := url.JoinPath(s.OTLPEndpoint, "v1/traces")
	if err != nil || os.Getenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") != "" {
		return nil
	}
	return []otlptracehttp.Option{otlptracehttp.WithEndpointURL(to)}
}

// Handle implements otel.ErrorHandler: it warns now and then.
func (t *tracing) Handle(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.told.IsZero() && time.Since(t.told) < tracingWarnEvery {
		return
	}
	t.told = time.Now()
	t.log.Warn("tracing does not work: the service goes on without", "err", events.SafeText(err))
}

// tracer is what the API's spans begin with; nil = none do.
func (t *tracing) tracer() trace.Tracer {
	if t == nil {
		return nil
	}
	return t.provider.Tracer("taskledger/httpapi")
}

// close sends what is left, within a bound.
func (t *tracing) close() {
	if t == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), flushTimeout)
	defer cancel()
	if err := t.provider.Shutdown(ctx); err != nil {
		t.Handle(err)
	}
}
