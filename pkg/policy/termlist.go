package policy

import "slices"

// termList is what the rules of a ruleset ask of one part of a packet, rule by rule. It
// is made of pieces that other lists have too, so that one which differs in a rule from
// another is made, and compared, without looking at all the others.
type termList struct {
	pieces []termPiece
	size   int
	hash   uint64 // of the terms, however they are cut into pieces
}

// termPiece is terms that follow each other. They are never changed.
type termPiece struct {
	terms []*term
	hash  uint64
}

// hashFactor spreads ids over 64 bits: a list's hash is a number that has the ids for
// digits and this for its base.
const hashFactor = 0x9e3779b97f4a7c15

func newTermPiece(terms []*term) termPiece {
	p := termPiece{terms: terms}
	for _, t := range terms {
		p.hash *= hashFactor
		if t != nil {
			p.hash += t.id
		}
	}
	return p
}

// append puts a piece behind those that there are.
func (l *termList) append(p termPiece) {
	if l.size == 0 {
		l.hash = 1 // what asks for nothing is not all alike: the length counts
	}
	l.pieces = append(l.pieces, p)
	l.size += len(p.terms)
	for n, factor := len(p.terms), uint64(hashFactor); n > 0; n /= 2 {
		if n%2 == 1 {
			l.hash *= factor
		}
		factor *= factor
	}
	l.hash += p.hash
}

// equal says whether two lists have the same terms.
func (l *termList) equal(m *termList) bool {
	if l.size != m.size || l.hash != m.hash {
		return false
	}
	var a, b []*term // what is left of the pieces at hand
	for i, j := 0, 0; ; {
		if len(a) == 0 {
			if i == len(l.pieces) {
				return true
			}
			a = l.pieces[i].terms
			i++
			continue
		}
		if len(b) == 0 {
			b = m.pieces[j].terms
			j++
			continue
		}
		n := min(len(a), len(b))
		if &a[0] != &b[0] && !slices.Equal(a[:n], b[:n]) {
			return false
		}
		a, b = a[n:], b[n:]
	}
}

// all is the terms in one slice.
func (l *termList) all() []*term {
	out := make([]*term, 0, l.size)
	for _, p := range l.pieces {
		out = append(out, p.terms...)
	}
	return out
}
