package dataplane

import (
	kernel "calico-xdp/pkg/maps"
	"calico-xdp/pkg/policy"
)

// ruleset is one ruleset in the kernel, laid out as policy.h says.
type ruleset struct {
	extent
	words        []uint64 // as they are in the kernel
	rules        int
	peers, ports int // capacities in classes
	vectors      int // capacity in words; 0 for a ruleset whose vectors are one word
}

const (
	headerWords = 2  // before the rules
	smallRules  = 64 // up to here a vector is one word
)

// newRuleset is a ruleset with room for classes to come, which has no place yet.
func newRuleset(from *policy.Ruleset, peers, ports int) *ruleset {
	r := &ruleset{rules: len(from.Rules), peers: peers, ports: ports}
	if r.rules > smallRules {
		for _, d := range dimensions(from) {
			r.vectors += 2*len(d.Blocks) + len(d.Words)
		}
		r.vectors += r.vectors / 4
	}
	r.size = r.firstVector() + r.vectors
	return r
}

// readRuleset is the ruleset that a former process has put at base.
func readRuleset(base int, header []uint64) *ruleset {
	r := &ruleset{
		rules: int(uint32(header[0])), peers: int(header[0] >> 32),
		ports: int(uint32(header[1])), vectors: int(header[1] >> 32),
	}
	r.extent = extent{base, r.firstVector() + r.vectors}
	return r
}

func (r *ruleset) sourceRow(k uint32) int          { return headerWords + r.rules + int(k) }
func (r *ruleset) destinationRow(k uint32) int     { return r.sourceRow(k) + r.peers }
func (r *ruleset) sourcePortRow(k uint32) int      { return r.sourceRow(0) + 2*r.peers + int(k) }
func (r *ruleset) destinationPortRow(k uint32) int { return r.sourcePortRow(k) + r.ports }
func (r *ruleset) firstVector() int                { return r.sourcePortRow(0) + 2*r.ports }

func dimensions(from *policy.Ruleset) [4]*policy.Dimension {
	return [4]*policy.Dimension{from.Sources, from.Destinations, from.SourcePorts, from.DestinationPorts}
}

// capacity leaves room for the classes to come, so that a ruleset rarely moves.
func capacity(n uint32) int {
	c := 16
	for c < int(n)+int(n)/4 {
		c *= 2
	}
	return c
}

var actions = map[policy.Action]kernel.RuleAction{
	policy.Deny: kernel.RuleDeny, policy.Allow: kernel.RuleAllow, policy.Pass: kernel.RulePass, policy.Log: kernel.RuleLog,
}

// encode returns r's words for a compiled ruleset: as they are in the kernel, with
// the rows of the classes that are new. Rows of classes that are not in use stay as
// they are. It is not ok if that cannot be written in place: then the ruleset needs a
// new one.
func (c *classifier) encode(r *ruleset, from *policy.Ruleset) (words []uint64, ok bool) {
	words = make([]uint64, r.size)
	copy(words, r.words)
	words[0], words[1] = uint64(r.rules)|uint64(r.peers)<<32, uint64(r.ports)|uint64(r.vectors)<<32
	for i, rule := range from.Rules {
		words[headerWords+i] = uint64(actions[rule.Action]) | uint64(rule.Next)<<8
	}
	classes := [4]map[uint32]uint32{c.peers.kernel, c.peers.kernel, c.sources.kernel, c.destinations.kernel}
	rows := [4]func(uint32) int{r.sourceRow, r.destinationRow, r.sourcePortRow, r.destinationPortRow}
	at := r.firstVector()
	for i, d := range dimensions(from) {
		if r.rules <= smallRules {
			for class, k := range classes[i] {
				words[rows[i](k)] = d.Word(class, 0)
			}
			continue
		}
		blocks := at
		stored := blocks + 2*len(d.Blocks)
		if at = stored + len(d.Words); at > r.size {
			return nil, false
		}
		for b, block := range d.Blocks {
			words[blocks+2*b], words[blocks+2*b+1] = block.Stored, uint64(stored)+uint64(block.At)
		}
		copy(words[stored:], d.Words)
		for class, k := range classes[i] {
			row := uint32(0)
			if int(class) < len(d.Row) {
				row = d.Row[class]
			}
			words[rows[i](k)] = uint64(blocks + 2*d.Width*int(row))
		}
	}
	// A packet may be reading: what it may follow must not change under it.
	for i, was := range r.words {
		if was != 0 && words[i] != was {
			return nil, false
		}
	}
	return words, true
}
