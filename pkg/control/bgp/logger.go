package bgp

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/osrg/gobgp/v3/pkg/log"
	"github.com/osrg/gobgp/v3/pkg/packet/bgp"
)

// logger writes GoBGP's log to slog. What GoBGP calls information is about its
// own doings, so it is written as debug; the speaker itself tells of sessions
// that go up or down, and of why: GoBGP says that nowhere but here. Fatal and Panic
// do not end the process: they mark a broken message or assumption of one session,
// never worth the node.
type logger struct {
	to *slog.Logger
	// fails is told why a session ends or does not come up.
	fails func(peer netip.Addr, reason string, guess bool)
}

func (l *logger) Panic(msg string, f log.Fields) { l.write(slog.LevelError, msg, f) }
func (l *logger) Fatal(msg string, f log.Fields) { l.write(slog.LevelError, msg, f) }
func (l *logger) Error(msg string, f log.Fields) { l.write(slog.LevelError, msg, f) }
func (l *logger) Debug(msg string, f log.Fields) { l.write(slog.LevelDebug, msg, f) }

func (l *logger) Info(msg string, f log.Fields) {
	if msg == "Peer Down" {
		if reason, ok := f["Reason"].(string); ok && !strings.HasPrefix(reason, "notification") {
			// Of notifications their own lines have said more.
			switch reason {
			case "read-failed", "write-failed", "graceful-restart":
				l.told(f, "Socket: Connection closed")
			case "hold-timer-expired":
				l.told(f, "Error: Hold timer expired")
			case "dying", "admin-down": // we ended it
			default:
				l.told(f, "Error: "+strings.ReplaceAll(reason, "-", " "))
			}
		}
	}
	l.write(slog.LevelDebug, msg, f)
}

func (l *logger) Warn(msg string, f log.Fields) {
	level := slog.LevelWarn
	switch msg {
	case "Closed an accepted connection":
		// Both sides dialled at once: one connection of the two always ends so.
		level = slog.LevelDebug
	case "No matching path for withdraw found, may be path was not installed into table":
		level = slog.LevelDebug // a path that was not taken: our own AS is in it
	case "received notification":
		level = slog.LevelDebug
		code, _ := f["Code"].(uint8)
		subcode, _ := f["Subcode"].(uint8)
		l.told(f, "Received: "+notification(code, subcode))
	case "sent notification":
		level = slog.LevelDebug
		if e, ok := f["Data"].(*bgp.MessageError); ok {
			text := notification(e.TypeCode, e.SubTypeCode)
			if e.Message != "" {
				text += " (" + e.Message + ")"
			}
			l.told(f, "BGP Error: "+text)
		} else if code, ok := f["Code"].(uint8); ok {
			subcode, _ := f["Subcode"].(uint8)
			l.told(f, "BGP Error: "+notification(code, subcode))
		}
	case "hold timer expired":
		level = slog.LevelDebug
		l.told(f, "Error: Hold timer expired")
	}
	l.write(level, msg, f)
}

func (l *logger) told(f log.Fields, reason string) {
	if text, ok := f["Key"].(string); ok {
		if peer, err := netip.ParseAddr(text); err == nil {
			l.fails(peer, reason, false)
		}
	}
}

// notification is what BIRD calls a code and subcode of RFC 4271 and RFC 4486.
func notification(code, subcode uint8) string {
	names := map[[2]uint8]string{
		{1, 0}: "Invalid message header", {1, 1}: "Connection not synchronized", {1, 2}: "Bad message length", {1, 3}: "Bad message type",
		{2, 0}: "Invalid OPEN message", {2, 1}: "Unsupported version number", {2, 2}: "Bad peer AS", {2, 3}: "Bad BGP identifier",
		{2, 4}: "Unsupported optional parameter", {2, 6}: "Unacceptable hold time", {2, 7}: "Required capability missing",
		{3, 0}: "Invalid UPDATE message", {4, 0}: "Hold timer expired", {5, 0}: "Finite state machine error",
		{6, 0}: "Cease", {6, 1}: "Maximum number of prefixes reached", {6, 2}: "Administrative shutdown", {6, 3}: "Peer de-configured",
		{6, 4}: "Administrative reset", {6, 5}: "Connection rejected", {6, 6}: "Other configuration change",
		{6, 7}: "Connection collision resolution", {6, 8}: "Out of Resources",
	}
	for _, key := range [][2]uint8{{code, subcode}, {code, 0}} {
		if name, ok := names[key]; ok {
			return name
		}
	}
	return fmt.Sprintf("Unknown error %d.%d", code, subcode)
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
