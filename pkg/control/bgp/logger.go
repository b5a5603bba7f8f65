package bgp

import (
	"context"
	"log/slog"
	"maps"
	"slices"

	"github.com/osrg/gobgp/v3/pkg/log"
)

// logger writes GoBGP's log to slog. What GoBGP calls information is about its
// own doings, so it is written as debug; the speaker itself tells of sessions
// that go up or down. Fatal and Panic do not end the process: they mark a
// broken message or assumption of one session, never worth the node.
type logger struct {
	to *slog.Logger
}

func (l *logger) Panic(msg string, f log.Fields) { l.write(slog.LevelError, msg, f) }
func (l *logger) Fatal(msg string, f log.Fields) { l.write(slog.LevelError, msg, f) }
func (l *logger) Error(msg string, f log.Fields) { l.write(slog.LevelError, msg, f) }
func (l *logger) Info(msg string, f log.Fields)  { l.write(slog.LevelDebug, msg, f) }
func (l *logger) Debug(msg string, f log.Fields) { l.write(slog.LevelDebug, msg, f) }

func (l *logger) Warn(msg string, f log.Fields) {
	if msg == "Closed an accepted connection" {
		// Both sides dialled at once: one connection of the two always ends so.
		l.write(slog.LevelDebug, msg, f)
		return
	}
	l.write(slog.LevelWarn, msg, f)
}

// SetLevel does nothing: the level is slog's.
func (l *logger) SetLevel(log.LogLevel) {}

func (l *logger) GetLevel() log.LogLevel {
	if l.to.Enabled(context.Background(), slog.LevelDebug) {
		return log.DebugLevel
	}
	return log.WarnLevel
}

func (l *logger) write(level slog.Level, msg string, f log.Fields) {
	if !l.to.Enabled(context.Background(), level) {
		return
	}
	attributes := []slog.Attr{slog.String("message", msg)}
	for _, name := range slices.Sorted(maps.Keys(f)) {
		switch name {
		case "Topic", log.FieldFacility: // "Peer" nearly always
		case "Key":
			attributes = append(attributes, slog.Any("peer", f[name]))
		default:
			attributes = append(attributes, slog.Any(name, f[name]))
		}
	}
	l.to.LogAttrs(context.Background(), level, "gobgp", attributes...)
}
