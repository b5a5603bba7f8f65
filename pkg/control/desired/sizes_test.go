package desired

import (
	"strings"
	"testing"

	"calico-xdp/pkg/api"
)

// Calico's sizes of tables, those that mean something here.
func TestTableSizes(t *testing.T) {
	const felix = "apiVersion: projectcalico.org/v3\nkind: FelixConfiguration\nmetadata: {name: default}\nspec: {"
	for spec, want := range map[string]TableSizes{
		"":                             {},
		"bpfMapSizeConntrack: 2000000": {Flows: 2000000},
		"bpfMapSizeConntrack: 0":       {},
		"bpfMapSizePerCpuConntrack: 300000, bpfMapSizeConntrackScaling: Disabled": {FlowsPerCPU: 300000, FlowsFixed: true},
		"bpfMapSizeConntrackScaling: DoubleIfFull":                                {},
		"bpfMapSizeRoute: 500000, bpfMapSizeIPSets: 2000000":                      {Routes: 500000, Classes: 2000000},
		"bpfMapSizeNATFrontend: 9, bpfMapSizeIfState: 9":                          {},
	} {
		r, err := api.Decode([]byte(felix + spec + "}"))
		if err != nil {
			t.Fatal(err)
		}
		resources := api.NewStore()
		resources.Apply(api.Change{Key: api.KeyOf(r), Resource: r})
		if got, problems := resolveSettings(Input{Node: "a", Resources: resources}); got.tables != want || len(problems) > 0 {
			t.Errorf("%s: %+v, %v, want %+v", spec, got.tables, problems, want)
		}
	}
	env := Config{Felix: map[string]string{"bpfmapsizeconntrack": "many", "bpfmapsizeconntrackscaling": "triple", "bpfmapsizeroute": "-1"}}
	got, problems := resolveSettings(Input{Node: "a", Config: env, Resources: api.NewStore()})
	if len(problems) != 3 || got.tables != (TableSizes{}) || !strings.Contains(problems[0].Err.Error(), "bpfMapSizeConntrack") {
		t.Errorf("%+v, %v", got.tables, problems)
	}
}
