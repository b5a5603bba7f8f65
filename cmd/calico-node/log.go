package main

import (
	"io"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/DeRuina/timberjack"
)

// newLogger logs to stdout and, where there is a directory, to
// <directory>/calico-node/current: ten files of 1 MB, as Calico's.
func newLogger(c *config) (*slog.Logger, io.Closer) {
	var out io.Writer = os.Stdout
	var file io.Closer = io.NopCloser(nil)
	if c.logDir != "" {
		rotated := &timberjack.Logger{
			Filename:   filepath.Join(c.logDir, "calico-node", "current"),
			MaxSize:    1, // MB
			MaxBackups: 9, // and the current one
		}
		out, file = io.MultiWriter(os.Stdout, &optional{Writer: rotated}), rotated
	}
	options := &slog.HandlerOptions{Level: &c.level}
	if c.logFormat == "json" {
		return slog.New(slog.NewJSONHandler(out, options)), file
	}
	return slog.New(slog.NewTextHandler(out, options)), file
}

// optional is a writer whose failure does not matter: a full disk must not
// silence stdout.
type optional struct{ io.Writer }

func (o *optional) Write(p []byte) (int, error) {
	o.Writer.Write(p)
	return len(p), nil
}
