// Package result is what a run of the harness has found, and how it is read: no
// measuring, no I/O but on what it is given.
package result

import "encoding/json"

// Result is one figure.
//
// A path's cost has Ns and BaselineNs: nanoseconds per packet, beside those of what
// Baseline names. What real packets have shown has Value in Unit, beside the PeerValue
// of Peer.
type Result struct {
	Name  string `json:"name"`
	About string `json:"about,omitempty"`

	Ns         float64 `json:"ns,omitempty"`
	Baseline   string  `json:"baseline,omitempty"`
	BaselineNs float64 `json:"baseline_ns,omitempty"`
	Lookups    int     `json:"lookups,omitempty"` // in maps, by one packet

	Value     float64 `json:"value,omitempty"`
	Unit      string  `json:"unit,omitempty"`
	Peer      string  `json:"peer,omitempty"`
	PeerValue float64 `json:"peer_value,omitempty"`

	// Ratio is Ns to BaselineNs, or Value to PeerValue.
	Ratio float64 `json:"ratio"`
	// Spread is how far the repetitions' ratios are from Ratio, at most, as a part of
	// it: 0.05 is 5 %.
	Spread float64 `json:"spread"`
	// Goal is what Ratio is to be: at most where Least is false.
	Goal  float64 `json:"goal,omitempty"`
	Least bool    `json:"goal_is_least,omitempty"`
	// Tolerance is how much worse than in an earlier run, as a part, is no regression;
	// 0: twice the two spreads.
	Tolerance float64 `json:"tolerance,omitempty"`
}

// MarshalJSON writes what a figure of its kind has, also where it is zero: the ratio of a
// cost, or the value and that of a peer.
func (r Result) MarshalJSON() ([]byte, error) {
	type plain Result // without methods
	if r.Unit == "" {
		return json.Marshal(struct {
			plain
			Ns         float64 `json:"ns"`
			BaselineNs float64 `json:"baseline_ns"`
		}{plain(r), r.Ns, r.BaselineNs})
	}
	return json.Marshal(struct {
		plain
		Value     float64 `json:"value"`
		Peer      string  `json:"peer"`
		PeerValue float64 `json:"peer_value"`
	}{plain(r), r.Value, r.Peer, r.PeerValue})
}

// Met says whether the goal is met; true where there is none.
func (r Result) Met() bool {
	return r.Goal == 0 || r.Least && r.Ratio >= r.Goal || !r.Least && r.Ratio <= r.Goal
}

// Better says in which direction a ratio is better: 1 for up, -1 for down. Less time
// is better, and so are the units of time and cost.
func (r Result) Better() int {
	switch r.Unit {
	case "", "ns", "us", "ms", "s", "MB", "CPU s/Gbit":
		return -1
	}
	return 1
}
