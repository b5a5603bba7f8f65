package policy

// terms are what one clause asks of one dimension: to be in all of these sets
// and out of all of those.
type terms[S ~uint32] struct{ in, out []S }

// vector returns for each class the clauses whose terms it meets, as a word.
// inSet lists the classes in each set.
func vector[S ~uint32](classes int, clauses []terms[S], inSet map[S][]uint32) []uint64 {
	all := ^uint64(0) >> (64 - len(clauses))
	words := make([]uint64, classes)
	for class := range words {
		words[class] = all
	}
	var meets []uint64
	for layer := 0; ; layer++ {
		var asking uint64 // the clauses that have a term in this layer
		for i, t := range clauses {
			if layer < len(t.in) {
				asking |= 1 << i
			}
		}
		if asking == 0 {
			break
		}
		if meets == nil {
			meets = make([]uint64, classes)
		}
		clear(meets)
		for i, t := range clauses {
			if layer >= len(t.in) {
				continue
			}
			for _, class := range inSet[t.in[layer]] {
				meets[class] |= 1 << i
			}
		}
		for class := range words {
			words[class] &= meets[class] | ^asking
		}
	}
	for i, t := range clauses {
		for _, set := range t.out {
			for _, class := range inSet[set] {
				words[class] &^= 1 << i
			}
		}
	}
	return words
}

// classTables are the classes of one result, as all its rulesets need them.
type classTables struct {
	peers, ports             int // how many classes
	inPeers                  map[setID][]uint32
	inPorts                  map[portID][]uint32
	portsOverflow            bool
	peerVersion, portVersion uint64
}

// classTables is made when the classes of all prefixes and ports are numbered.
func (c *Compiler) classTables(portsOverflow bool) *classTables {
	t := &classTables{
		peers: len(c.peerNumbers.entries), inPeers: members(c.peerNumbers),
		ports: len(c.portNumbers.entries), inPorts: members(c.portNumbers),
		portsOverflow: portsOverflow,
		peerVersion:   c.peerNumbers.version, portVersion: c.portNumbers.version,
	}
	if portsOverflow {
		t.ports = int(noPortClass) + 1
	}
	return t
}

// members lists for each set the classes that are in it.
func members[S ~uint32](n *numbering[[]S]) map[S][]uint32 {
	out := make(map[S][]uint32)
	for class := range n.entries {
		for _, id := range n.entries[class].value {
			out[id] = append(out[id], uint32(class))
		}
	}
	return out
}

// bring makes what is handed out true for these classes. What was handed out
// before is never changed.
func (r *compiledRuleset) bring(t *classTables) *Ruleset {
	if r.ruleset != nil && r.peerVersion == t.peerVersion && r.portVersion == t.portVersion &&
		len(r.ruleset.SourcePorts) == t.ports {
		return r.ruleset
	}
	s := &Ruleset{Rules: r.rules}
	for side, to := range []*[]uint64{source: &s.Sources, destination: &s.Destinations} {
		list := make([]terms[setID], len(r.clauses))
		for i := range r.clauses {
			k := &r.clauses[i]
			list[i] = terms[setID]{idsOf(k.in[side]), idsOf(k.out[side])}
		}
		*to = vector(t.peers, list, t.inPeers)
	}
	for side, to := range []*[]uint64{source: &s.SourcePorts, destination: &s.DestinationPorts} {
		list := make([]terms[portID], len(r.clauses))
		for i := range r.clauses {
			switch p := r.clauses[i].ports[side]; {
			case p.set == nil:
			case p.not:
				list[i].out = []portID{p.set.id}
			default:
				list[i].in = []portID{p.set.id}
			}
		}
		*to = vector(t.ports, list, t.inPorts)
		if t.portsOverflow {
			(*to)[noPortClass] = 0
		}
	}
	s.Affected = func(from, to PeerClass) bool {
		classes := PeerClass(len(s.Sources))
		if from >= classes || to >= classes {
			return true
		}
		return s.Sources[from] != s.Sources[to] || s.Destinations[from] != s.Destinations[to]
	}
	r.ruleset, r.peerVersion, r.portVersion = s, t.peerVersion, t.portVersion
	return s
}

func idsOf(list []*peerSet) []setID {
	if len(list) == 0 {
		return nil
	}
	ids := make([]setID, len(list))
	for i, s := range list {
		ids[i] = s.id
	}
	return ids
}
