package api

// Label is a label with one value, or with any.
type Label struct {
	Key, Value string
	Any        bool // whatever the value
}

// Needs returns lists of labels. Whatever labels the selector holds for, at least
// one of each list is among them. With no lists nothing is known: it may hold for
// no labels at all. That is what an index of selectors by label goes by.
func (s *Selector) Needs() [][]Label {
	if s.root == nil {
		return nil
	}
	return needs(s.root)
}

func needs(n node) [][]Label {
	switch n := n.(type) {
	case has:
		return [][]Label{{{Key: n.key, Any: true}}}
	case compare:
		switch n.op {
		case opEqual:
			return [][]Label{{{Key: n.key, Value: n.value}}}
		case opNotEqual:
			return nil
		}
		return [][]Label{{{Key: n.key, Any: true}}}
	case member:
		if n.negated {
			return nil
		}
		list := make([]Label, len(n.values))
		for i, v := range n.values {
			list[i] = Label{Key: n.key, Value: v}
		}
		return [][]Label{list}
	case and:
		var lists [][]Label
		for _, part := range n {
			lists = append(lists, needs(part)...)
		}
		return lists
	case or:
		var list []Label
		for _, part := range n {
			lists := needs(part)
			if len(lists) == 0 {
				return nil
			}
			list = append(list, narrowest(lists)...)
		}
		return [][]Label{list}
	}
	return nil
}

// narrowest picks the list with the fewest labels that may have any value, and of
// these the shortest.
func narrowest(lists [][]Label) []Label {
	width := func(list []Label) (w int) {
		for _, l := range list {
			w++
			if l.Any {
				w += 1 << 20
			}
		}
		return w
	}
	best := lists[0]
	for _, list := range lists[1:] {
		if width(list) < width(best) {
			best = list
		}
	}
	return best
}
