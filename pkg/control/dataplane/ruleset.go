package dataplane

import (
	"errors"
	"slices"

	kernel "calico-xdp/pkg/maps"
	"calico-xdp/pkg/policy"
)

// ruleset is one ruleset in the kernel, laid out as policy.h says.
type ruleset struct {
	extent
	words        []uint64 // as they are in the kernel
	rules        int
	peers, ports int    // capacities in classes
	vectors      int    // capacity in words; 0 for a ruleset whose vectors are one word
	any          uint64 // a bit for each dimension of which no rule asks anything

	staged  bool     // it is one that only counts
	counts  []uint32 // the numbers of its rules; nil: what words say
	without int      // rules that have no number

	from  *policy.Ruleset // what it was encoded from
	grown [4]vectors      // of more than 64 rules
	end   int             // where, behind these, the first word is that is not in use
}

// vectors is where the blocks and words of one dimension are, and how many.
type vectors struct {
	blocks, stored          []stretch
	blockCount, storedCount int
}

// stretch is a run of a dimension's blocks or words in a ruleset: from its number first
// on, at index at.
type stretch struct{ first, at int }

// find is the index of the block or word of a number.
func find(runs []stretch, number, size int) int {
	i := len(runs) - 1
	for runs[i].first > number {
		i--
	}
	return runs[i].at + (number-runs[i].first)*size
}

const (
	headerWords = 2  // before the rules
	smallRules  = 64 // up to here a vector is one word
	blockRules  = 4096
)

// newRuleset is a ruleset with room for classes to come, which has no place yet.
func newRuleset(from *policy.Ruleset, peers, ports int) *ruleset {
	r := &ruleset{rules: from.Len(), peers: peers, ports: ports}
	for i, d := range dimensions(from) {
		if d.Any {
			r.any |= 1 << i
		}
		if r.rules > smallRules {
			r.vectors += 2*len(d.Blocks) + len(d.Words)
		}
	}
	r.vectors += r.vectors / 4
	r.size = r.firstVector() + r.vectors
	return r
}

// readRuleset is the ruleset that a former process has put at base.
func readRuleset(base int, header []uint64) *ruleset {
	r := &ruleset{
		rules: int(header[0] & uint64(kernel.RulesetRules)), peers: int(header[0] >> 32), any: uint64(uint32(header[0]) / uint32(kernel.RulesetAny)),
		ports: int(uint32(header[1])), vectors: int(header[1] >> 32),
	}
	r.extent = extent{base, r.firstVector() + r.vectors}
	return r
}

// header is the words before the rules.
func (r *ruleset) header() [headerWords]uint64 {
	return [...]uint64{
		uint64(r.rules) | r.any*uint64(kernel.RulesetAny) | uint64(r.peers)<<32,
		uint64(r.ports) | uint64(r.vectors)<<32,
	}
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

var errNotARuleset = errors.New("not a ruleset")

// wider is a copy, without a place yet, with room for more classes.
func (r *ruleset) wider(peers, ports int) (*ruleset, error) {
	w := &ruleset{rules: r.rules, peers: peers, ports: ports, vectors: r.vectors, any: r.any, staged: r.staged, without: r.without, counts: r.counts, from: r.from}
	w.size = w.firstVector() + w.vectors
	w.words = make([]uint64, w.size)
	copy(w.words, r.words[:r.sourceRow(0)])
	header := w.header()
	copy(w.words, header[:])
	vectors := w.words[w.firstVector():]
	copy(vectors, r.words[r.firstVector():])
	// Of more than 64 rules, rows and blocks say where something is.
	shift, width := w.firstVector()-r.firstVector(), (r.rules+blockRules-1)/blockRules
	moved := make(map[int]bool)
	for d := range 4 {
		for k := uint32(0); ; k++ {
			from, ok := r.atRow(d, k)
			if !ok {
				break
			}
			word := r.words[from]
			if r.rules > smallRules && word != 0 {
				at := int(word) - r.firstVector()
				if at < 0 || at+2*width > len(vectors) {
					return nil, errNotARuleset
				}
				for b := range width {
					if i := at + 2*b + 1; !moved[i] {
						moved[i] = true
						vectors[i] += uint64(shift)
					}
				}
				word += uint64(shift)
			}
			to, _ := w.atRow(d, k)
			w.words[to] = word
		}
	}
	w.end = r.end + shift
	for i, v := range r.grown {
		move := func(runs []stretch) []stretch {
			out := slices.Clone(runs)
			for j := range out {
				out[j].at += shift
			}
			return out
		}
		v.blocks, v.stored = move(v.blocks), move(v.stored)
		w.grown[i] = v
	}
	return w, nil
}

var actions = [...]kernel.RuleAction{
	policy.Deny: kernel.RuleDeny, policy.Allow: kernel.RuleAllow, policy.Pass: kernel.RulePass, policy.Log: kernel.RuleLog,
	policy.Continue: kernel.RuleContinue,
}

// ruleWord is a rule of a part of a ruleset as policy.h reads it; number counts it.
func ruleWord(p *policy.Part, rule policy.RunRule, number uint32) uint64 {
	word := uint64(actions[rule.Action]) | uint64(number)<<32
	if rule.Action == policy.Pass {
		word |= uint64(uint16(p.Next)) << 8
	}
	if rule.SourceOnly {
		word |= uint64(kernel.RuleSourceOnly)
	}
	return word
}

// numbers are those of the rules.
func (r *ruleset) numbers() []uint32 {
	if r.counts != nil {
		return r.counts
	}
	out := make([]uint32, r.rules)
	for i := range out {
		out[i] = uint32(r.words[headerWords+i] >> 32)
	}
	return out
}

// sameRules says whether two compiled rulesets have the same rules.
func sameRules(a, b *policy.Ruleset) bool {
	same := func(p, q policy.Part) bool {
		return p.From == q.From && p.Next == q.Next && (p.Run == q.Run || p.ID == q.ID && slices.Equal(p.Rules, q.Rules))
	}
	return slices.EqualFunc(a.Parts, b.Parts, same)
}

// layOut notes where encode has put the vectors.
func (r *ruleset) layOut(from *policy.Ruleset) {
	r.from = from
	if r.end = r.firstVector(); r.rules <= smallRules {
		return
	}
	for i, d := range dimensions(from) {
		stored := r.end + 2*len(d.Blocks)
		r.grown[i] = vectors{[]stretch{{0, r.end}}, []stretch{{0, stored}}, len(d.Blocks), len(d.Words)}
		r.end = stored + len(d.Words)
	}
}

// extend adds what the compiled ruleset has got since, and the rows of some classes.
// It returns the runs of words that are different now, in the order in which they
// have to be written: a vector before the classes that it is of. It is not ok if
// there is no room.
func (r *ruleset) extend(classes [4][]uint32, kernel [4]map[uint32]uint32) (changed []extent, ok bool) {
	rows := [4]func(uint32) int{r.sourceRow, r.destinationRow, r.sourcePortRow, r.destinationPortRow}
	room := r.size - r.end
	for i, d := range dimensions(r.from) {
		if v := &r.grown[i]; r.rules > smallRules {
			room -= 2*(len(d.Blocks)-v.blockCount) + len(d.Words) - v.storedCount
		}
	}
	if room < 0 {
		return nil, false
	}
	for i, d := range dimensions(r.from) {
		v := &r.grown[i]
		if r.rules > smallRules && len(d.Blocks) > v.blockCount {
			changed = append(changed, r.append(v, d))
		}
		for _, class := range classes[i] {
			at, word := rows[i](kernel[i][class]), uint64(0)
			if r.rules <= smallRules {
				word = d.Word(class, 0)
			} else {
				word = uint64(find(v.blocks, d.RowOf(class)*d.Width, 2))
			}
			if r.words[at] != word {
				r.words[at] = word
				changed = append(changed, extent{at, 1})
			}
		}
	}
	return changed, true
}

// append adds the blocks and words that a dimension has got.
func (r *ruleset) append(v *vectors, d *policy.Dimension) extent {
	from := r.end
	blocks, words := d.Blocks[v.blockCount:], d.Words[v.storedCount:]
	v.blocks = append(v.blocks, stretch{v.blockCount, from})
	v.stored = append(v.stored, stretch{v.storedCount, from + 2*len(blocks)})
	for i, b := range blocks {
		r.words[from+2*i], r.words[from+2*i+1] = b.Stored, uint64(find(v.stored, int(b.At), 1))
	}
	r.end = from + 2*len(blocks) + copy(r.words[from+2*len(blocks):], words)
	v.blockCount, v.storedCount = len(d.Blocks), len(d.Words)
	return extent{from, r.end - from}
}

// encode returns r's words for a compiled ruleset, whose rules have these numbers: as
// they are in the kernel, with the rows of the classes that are new. Rows of classes
// that are not in use stay as they are. It is not ok if that cannot be written in place: then the ruleset needs a
// new one.
func (c *classifier) encode(r *ruleset, from *policy.Ruleset, numbers []uint32) (words []uint64, ok bool) {
	if words, c.spare = c.spare, nil; cap(words) < r.size || cap(words) > 4*r.size {
		words = make([]uint64, r.size)
	}
	words = words[:r.size]
	clear(words[copy(words, r.words):])
	header := r.header()
	copy(words, header[:])
	for n := range from.Parts {
		p := &from.Parts[n]
		for i, rule := range p.Rules {
			words[headerWords+p.From+i] = ruleWord(p, rule, numbers[p.From+i])
		}
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
			words[rows[i](k)] = uint64(blocks + 2*d.Width*d.RowOf(class))
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
