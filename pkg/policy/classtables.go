package policy

// classTables are the classes of one result, as all its rulesets need them.
type classTables struct {
	peers, ports             [][]setID // the sets of each class
	peerSizes, portSizes     map[setID]int
	portsOverflow            bool
	peerVersion, portVersion uint64
}

// classTables is made when the classes of all prefixes and ports are numbered.
func (c *Compiler) classTables(portsOverflow bool) *classTables {
	t := &classTables{
		peers: classSets(c.peerNumbers), ports: classSets(c.portNumbers),
		portsOverflow: portsOverflow,
		peerVersion:   c.peerNumbers.version, portVersion: c.portNumbers.version,
	}
	t.peerSizes, t.portSizes = sizes(t.peers), sizes(t.ports)
	return t
}

func classSets(n *numbering[[]setID]) [][]setID {
	out := make([][]setID, len(n.entries))
	for class := range n.entries {
		out[class] = n.entries[class].value
	}
	return out
}

// sizes counts the classes in each set.
func sizes(classes [][]setID) map[setID]int {
	out := make(map[setID]int)
	for _, ids := range classes {
		for _, id := range ids {
			out[id]++
		}
	}
	return out
}

// bring makes what is handed out true for these classes. What was handed out
// before is never changed.
func (r *compiledRuleset) bring(t *classTables) *Ruleset {
	if r.ruleset != nil && r.peerVersion == t.peerVersion && r.portVersion == t.portVersion && r.overflow == t.portsOverflow {
		return r.ruleset
	}
	s := &Ruleset{Rules: r.rules}
	for side, to := range []**Dimension{source: &s.Sources, destination: &s.Destinations} {
		terms := make([]term, len(r.clauses))
		for i := range r.clauses {
			k := &r.clauses[i]
			terms[i] = newTerm(idsOf(k.in[side]), idsOf(k.out[side]))
		}
		*to = &dimensionOf(terms, t.peers, t.peerSizes).Dimension
	}
	for side, to := range []**Dimension{source: &s.SourcePorts, destination: &s.DestinationPorts} {
		terms := make([]term, len(r.clauses))
		for i := range r.clauses {
			switch p := r.clauses[i].ports[side]; {
			case p.set == nil:
			case p.not:
				terms[i].out = []setID{p.set.id}
			default:
				terms[i].in = []setID{p.set.id}
			}
		}
		d := dimensionOf(terms, t.ports, t.portSizes)
		if t.portsOverflow {
			d.addNothing(uint32(noPortClass))
		}
		*to = &d.Dimension
	}
	r.ruleset, r.peerVersion, r.portVersion, r.overflow = s, t.peerVersion, t.portVersion, t.portsOverflow
	return s
}

func dimensionOf(terms []term, classes [][]setID, sizes map[setID]int) *dimension {
	d := newDimension(terms, func(id setID) int { return sizes[id] })
	for class, ids := range classes {
		d.add(uint32(class), ids)
	}
	return d
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
