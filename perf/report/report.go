package report

import (
	"encoding/json"
	"os"
	"path/filepath"
	"time"

	"calico-xdp/perf/result"
)

// Report is a run and its circumstances.
type Report struct {
	Machine Machine
	Quick   bool
	Took    time.Duration
	Results []result.Result
	Missing []string // what could not be measured, and why
}

// Write writes results.json, report.md and its charts into a directory.
func (r Report) Write(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	data, err := json.MarshalIndent(r.Results, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "results.json"), append(data, '\n'), 0o644); err != nil {
		return err
	}
	charts, err := Charts(r.Results, dir)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "report.md"), []byte(r.Markdown(charts)), 0o644)
}
