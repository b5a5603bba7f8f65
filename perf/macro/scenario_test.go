package macro

import (
	"slices"
	"testing"
	"time"
)

// A short run of traffic of each kind: known connections, first packets, streams, a
// tunnel, turns, and what XDP drops.
func TestMeasure(t *testing.T) {
	short := []string{"packets/local", "packets/rules/10", "first/networks/10", "stream/vxlan", "turns/local", "denied/networks/10"}
	var chosen []Scenario
	for _, s := range All() {
		if slices.Contains(short, s.Name) {
			chosen = append(chosen, s)
		}
	}
	if len(chosen) != len(short) {
		t.Fatalf("%d scenarios of %d", len(chosen), len(short))
	}
	r := Run{Effort: Effort{Repetitions: 1, Turns: 1, Sample: 10 * time.Millisecond}, Progress: func(string) {}}
	results, wrong := r.Measure(t.Context(), chosen)
	for _, w := range wrong {
		t.Error(w)
	}
	peers := make(map[string]bool)
	for _, x := range results {
		peers[x.Peer] = true
		if x.Unit == "" || x.Value < 0 || x.Peer != "" && x.PeerValue < 0 {
			t.Errorf("%+v", x)
		}
	}
	for _, p := range []string{"kernel", "nft", "nft-map", "nft-set", "redirect_peer", "XDP_DROP", "XDP_REDIRECT"} {
		if !peers[p] {
			t.Errorf("nobody is compared with %s; missing: %v", p, r.Missing)
		}
	}
}
