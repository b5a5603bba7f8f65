package api

import (
	"slices"
	"strings"
)

// lookup returns a label's value and whether there is one.
type lookup = func(key string) (string, bool)

// node is a part of an expression.
type node interface {
	holds(labels lookup) bool
	write(b *strings.Builder)
}

type (
	all    struct{}
	global struct{}
	has    struct{ key string }
	// compare is key, operator and a literal. The operators are in [compare.holds].
	compare struct{ key, op, value string }
	// member is "in", or "not in" if negated. values are sorted.
	member struct {
		key     string
		negated bool
		values  []string
	}
	not struct{ of node }
	and []node // at least two
	or  []node // at least two
)

func (all) holds(lookup) bool           { return true }
func (all) write(b *strings.Builder)    { b.WriteString("all()") }
func (global) holds(lookup) bool        { return true }
func (global) write(b *strings.Builder) { b.WriteString("global()") }
func (n has) holds(labels lookup) bool  { _, ok := labels(n.key); return ok }
func (n has) write(b *strings.Builder)  { b.WriteString("has(" + n.key + ")") }
func (n not) holds(labels lookup) bool  { return !n.of.holds(labels) }

const (
	opEqual      = "=="
	opNotEqual   = "!="
	opContains   = "contains"
	opStartsWith = "starts with"
	opEndsWith   = "ends with"
)

func (n compare) holds(labels lookup) bool {
	v, ok := labels(n.key)
	switch n.op {
	case opEqual:
		return ok && v == n.value
	case opNotEqual: // holds without the label too
		return !ok || v != n.value
	case opContains:
		return ok && strings.Contains(v, n.value)
	case opStartsWith:
		return ok && strings.HasPrefix(v, n.value)
	case opEndsWith:
		return ok && strings.HasSuffix(v, n.value)
	}
	return false
}

func (n compare) write(b *strings.Builder) {
	b.WriteString(n.key + " " + n.op + " ")
	quote(b, n.value)
}

func (n member) holds(labels lookup) bool {
	v, ok := labels(n.key)
	_, in := slices.BinarySearch(n.values, v)
	return (ok && in) != n.negated // "not in" holds without the label too
}

func (n member) write(b *strings.Builder) {
	b.WriteString(n.key)
	if n.negated {
		b.WriteString(" not")
	}
	b.WriteString(" in {")
	for i, v := range n.values {
		if i > 0 {
			b.WriteString(", ")
		}
		quote(b, v)
	}
	b.WriteString("}")
}

// quote writes a literal. There are no escapes, so a literal holds at most one
// of the two quotes.
func quote(b *strings.Builder, s string) {
	q := "'"
	if strings.Contains(s, q) {
		q = `"`
	}
	b.WriteString(q + s + q)
}

func (n not) write(b *strings.Builder) {
	b.WriteString("!")
	writeIn(b, n.of, !isCompound(n.of))
}

func (n and) holds(labels lookup) bool {
	for _, c := range n {
		if !c.holds(labels) {
			return false
		}
	}
	return true
}

func (n and) write(b *strings.Builder) {
	for i, c := range n {
		if i > 0 {
			b.WriteString(" && ")
		}
		_, isOr := c.(or)
		writeIn(b, c, !isOr)
	}
}

func (n or) holds(labels lookup) bool {
	for _, c := range n {
		if c.holds(labels) {
			return true
		}
	}
	return false
}

func (n or) write(b *strings.Builder) {
	for i, c := range n {
		if i > 0 {
			b.WriteString(" || ")
		}
		c.write(b)
	}
}

// isCompound tells whether a "!" in front of n would bind to a part of it.
func isCompound(n node) bool {
	switch n.(type) {
	case and, or:
		return true
	}
	return false
}

// writeIn writes n, in parentheses unless it is bare.
func writeIn(b *strings.Builder, n node, bare bool) {
	if bare {
		n.write(b)
		return
	}
	b.WriteString("(")
	n.write(b)
	b.WriteString(")")
}

// contains tells whether part is n or somewhere in it. part is a leaf.
func contains(n, part node) bool {
	switch n := n.(type) {
	case not:
		return contains(n.of, part)
	case and:
		return slices.ContainsFunc(n, func(c node) bool { return contains(c, part) })
	case or:
		return slices.ContainsFunc(n, func(c node) bool { return contains(c, part) })
	case member:
		return false // not comparable
	}
	return n == part
}
