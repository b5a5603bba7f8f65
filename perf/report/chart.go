package report

import (
	"fmt"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/plotutil"
	"gonum.org/v1/plot/vg"

	"calico-xdp/perf/result"
)

// ours is what the product is called in charts.
const ours = "calico-xdp"

// growing is the name of a scenario of a family that differs in a number: of rules, of
// networks.
var growing = regexp.MustCompile(`^(.+)/(\d+)$`)

// Charts draws what there is to draw into a directory, as SVG and PNG, and returns the
// names of the SVG files.
func Charts(results []result.Result, dir string) ([]string, error) {
	var out []string
	save := func(name string, p *plot.Plot, width, height vg.Length) error {
		for _, kind := range []string{".svg", ".png"} {
			if err := p.Save(width, height, filepath.Join(dir, name+kind)); err != nil {
				return fmt.Errorf("chart %s: %w", name, err)
			}
		}
		out = append(out, name+".svg")
		return nil
	}
	all := families(results)
	for _, name := range slices.Sorted(maps.Keys(all)) {
		p, err := all[name].lines()
		if err == nil {
			err = save(strings.ReplaceAll(name, "/", "-"), p, 16*vg.Centimeter, 10*vg.Centimeter)
		}
		if err != nil {
			return nil, err
		}
	}
	if p, n, err := bars(results); err != nil {
		return nil, err
	} else if n > 0 {
		if err := save("paths", p, 20*vg.Centimeter, vg.Length(n+3)*0.7*vg.Centimeter); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// family is scenarios that differ in a number, by who carried the traffic.
type family struct {
	name, unit string
	points     map[string]map[float64]float64
}

// families are those with more than one number.
func families(results []result.Result) map[string]family {
	out := make(map[string]family)
	add := func(r result.Result, unit, line string, x, y float64) {
		name := growing.FindStringSubmatch(r.Name)[1]
		f, ok := out[name]
		if !ok {
			f = family{name, unit, make(map[string]map[float64]float64)}
			out[name] = f
		}
		if f.points[line] == nil {
			f.points[line] = make(map[float64]float64)
		}
		f.points[line][x] = y
	}
	for _, r := range results {
		m := growing.FindStringSubmatch(r.Name)
		if m == nil || r.Baseline != "" {
			continue
		}
		x, _ := strconv.ParseFloat(m[2], 64)
		if isPath(r) {
			add(r, "ns", ours, x, r.Ns)
			add(r, "ns", "empty program", x, r.BaselineNs)
			continue
		}
		add(r, r.Unit, ours, x, r.Value)
		if r.Peer != "" && !strings.HasPrefix(r.Peer, ours) {
			add(r, r.Unit, r.Peer, x, r.PeerValue)
		}
	}
	maps.DeleteFunc(out, func(_ string, f family) bool { return len(f.points[ours]) < 2 })
	return out
}

func (f family) lines() (*plot.Plot, error) {
	p := plot.New()
	p.Title.Text, p.X.Label.Text, p.Y.Label.Text = f.name, f.name[strings.LastIndex(f.name, "/")+1:], f.unit
	p.X.Scale, p.Y.Scale = plot.LogScale{}, plot.LogScale{}
	p.X.Tick.Marker, p.Y.Tick.Marker = plot.LogTicks{Prec: -1}, plot.LogTicks{Prec: -1}
	p.Legend.YPosition = -0.5
	p.Add(plotter.NewGrid())
	var items []any
	names := slices.Sorted(maps.Keys(f.points))
	slices.SortStableFunc(names, func(a, b string) int { return strings.Compare(rank(a), rank(b)) })
	for _, name := range names {
		var line plotter.XYs
		for _, x := range slices.Sorted(maps.Keys(f.points[name])) {
			if y := f.points[name][x]; x > 0 && y > 0 {
				line = append(line, plotter.XY{X: x, Y: y})
			}
		}
		items = append(items, name, line)
	}
	return p, plotutil.AddLinePoints(p, items...)
}

// rank sorts the product first.
func rank(name string) string {
	if name == ours {
		return ""
	}
	return name
}

// bars are the paths' ratios to their baselines.
func bars(results []result.Result) (*plot.Plot, int, error) {
	var values plotter.Values
	var names []string
	for _, r := range slices.Backward(results) {
		if isPath(r) && r.Baseline == "" && r.Ratio > 0 {
			values, names = append(values, r.Ratio), append(names, r.Name)
		}
	}
	if len(values) == 0 {
		return nil, 0, nil
	}
	p := plot.New()
	p.Title.Text, p.X.Label.Text = "paths", "times the empty program"
	b, err := plotter.NewBarChart(values, 0.4*vg.Centimeter)
	if err != nil {
		return nil, 0, err
	}
	b.Horizontal, b.Color = true, plotutil.Color(2)
	p.Add(b)
	p.NominalY(names...)
	p.X.Min = 0
	return p, len(values), nil
}
