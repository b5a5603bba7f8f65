package datastore

import (
	"context"
	"log/slog"
	"strings"
	"sync/atomic"

	"go.uber.org/zap/zapcore"
)

// slogCore is a zapcore.Core that writes etcd's warnings and errors to a slog
// logger. What etcd tells below a warning is for its own developers.
type slogCore struct {
	log     *slog.Logger
	closing *atomic.Bool // etcd reports each of its parts that is stopped as an error
}

func newSlogCore(log *slog.Logger) *slogCore { return &slogCore{log: log, closing: new(atomic.Bool)} }

// Enabled implements zapcore.LevelEnabler.
func (c *slogCore) Enabled(l zapcore.Level) bool { return l >= zapcore.WarnLevel && !c.closing.Load() }

// With implements zapcore.Core.
func (c *slogCore) With(fields []zapcore.Field) zapcore.Core {
	return &slogCore{log: c.log.With(attributes(fields)...), closing: c.closing}
}

// Check implements zapcore.Core.
func (c *slogCore) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(e.Level) && !usual(e.Message) {
		return ce.AddCore(e, c)
	}
	return ce
}

// usual tells what etcd complains of though it is as it should be.
func usual(message string) bool {
	switch message {
	case "simple token is not cryptographically signed",
		// A new database has no schema version until its first term is on
		// disk; etcd looks again a few seconds later.
		"Failed to detect schema version", "failed to update storage version":
		return true
	}
	return strings.HasPrefix(message, "Running http and grpc server on single port")
}

// Write implements zapcore.Core.
func (c *slogCore) Write(e zapcore.Entry, fields []zapcore.Field) error {
	level := slog.LevelWarn
	if e.Level >= zapcore.ErrorLevel {
		level = slog.LevelError
	}
	c.log.Log(context.Background(), level, e.Message, attributes(fields)...)
	return nil
}

// Sync implements zapcore.Core.
func (c *slogCore) Sync() error { return nil }

func attributes(fields []zapcore.Field) []any {
	encoder := zapcore.NewMapObjectEncoder()
	var out []any
	for _, f := range fields {
		f.AddTo(encoder)
		if v, ok := encoder.Fields[f.Key]; ok {
			out = append(out, slog.Any(f.Key, v))
		}
	}
	return out
}
