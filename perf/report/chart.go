package report

import (
	"errors"
	"fmt"
	"image/color"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/plotutil"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"

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
		for _, kind := range []string{"svg", "png"} {
			if err := write(p, width, height, kind, filepath.Join(dir, name+"."+kind)); err != nil {
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
			err = save(strings.ReplaceAll(name, "/", "-"), p, 20*vg.Centimeter, 10*vg.Centimeter)
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

// What is left free around a chart, and to the right of it for its legend, which would hide
// lines otherwise.
const (
	margin      = 0.4 * vg.Centimeter
	legendWidth = 4 * vg.Centimeter
)

func write(p *plot.Plot, width, height vg.Length, kind, file string) error {
	c, err := draw.NewFormattedCanvas(width, height, kind)
	if err != nil {
		return err
	}
	all := draw.New(c)
	all.SetColor(color.White)
	all.Fill(all.Rectangle.Path())
	inner := draw.Crop(all, margin, -margin, margin, -margin)
	legend := p.Legend
	p.Legend = plot.NewLegend()
	if legend.Rectangle(inner).Size().Y > 0 {
		legend.Top, legend.Left = true, true
		legend.Draw(draw.Crop(inner, inner.Size().X-legendWidth+margin, 0, 0, 0))
		inner = draw.Crop(inner, 0, -legendWidth, 0, 0)
	}
	p.Draw(inner)
	p.Legend = legend
	out, err := os.Create(file)
	if err != nil {
		return err
	}
	_, err = c.WriteTo(out)
	return errors.Join(err, out.Close())
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
	p.X.Scale, p.X.Tick.Marker = plot.LogScale{}, plot.LogTicks{Prec: -1}
	if f.unit == "ns" {
		p.Y.Min = 0
	} else { // peers are apart by orders of magnitude
		p.Y.Scale, p.Y.Tick.Marker = plot.LogScale{}, plot.LogTicks{Prec: -1}
	}
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
	var goals plotter.XYs
	for _, r := range slices.Backward(results) {
		if isPath(r) && r.Baseline == "" && r.Ratio > 0 {
			if r.Goal > 0 {
				goals = append(goals, plotter.XY{X: r.Goal, Y: float64(len(values))})
			}
			values, names = append(values, r.Ratio), append(names, r.Name)
		}
	}
	if len(values) == 0 {
		return nil, 0, nil
	}
	p := plot.New()
	p.Title.Text, p.X.Label.Text = "paths", "times the empty program; | is a goal: at most that"
	b, err := plotter.NewBarChart(values, 0.4*vg.Centimeter)
	if err != nil {
		return nil, 0, err
	}
	b.Horizontal, b.Color = true, plotutil.Color(2)
	p.Add(b)
	p.NominalY(names...)
	p.X.Min, p.X.Max = 0, 1.05*slices.Max(values)
	if len(goals) == 0 {
		return p, len(values), nil
	}
	marks, err := plotter.NewYErrorBars(struct {
		plotter.XYs
		plotter.YErrors
	}{goals, slices.Repeat(plotter.YErrors{{Low: 0.35, High: 0.35}}, len(goals))})
	if err != nil {
		return nil, 0, err
	}
	marks.CapWidth, marks.LineStyle.Width = 0, vg.Points(2)
	p.Add(marks)
	return p, len(values), nil
}
