package api

import "strings"

// Selector is a parsed expression over labels. The zero value matches nothing.
type Selector struct {
	root node
}

// ParseSelector reads an expression. The empty one is all().
func ParseSelector(s string) (*Selector, error) {
	if strings.Trim(s, blanks) == "" {
		return &Selector{root: all{}}, nil
	}
	root, err := parse(s)
	if err != nil {
		return nil, err
	}
	return &Selector{root: root}, nil
}

// Matches tells whether the expression holds for these labels.
func (s *Selector) Matches(labels map[string]string) bool {
	return s.MatchesFunc(func(key string) (string, bool) {
		v, ok := labels[key]
		return v, ok
	})
}

// MatchesFunc is Matches for labels that are looked up, such as those of an
// endpoint before those of its profiles.
func (s *Selector) MatchesFunc(label func(key string) (value string, ok bool)) bool {
	return s.root != nil && s.root.holds(label)
}

// String returns the expression in its canonical form: single quotes, one space
// around operators, values of sets sorted, no more parentheses than needed. It
// parses to the same meaning.
func (s *Selector) String() string {
	if s.root == nil {
		return "!all()"
	}
	var b strings.Builder
	s.root.write(&b)
	return b.String()
}

// IsAll tells whether s is just all(), so that it matches whatever the labels are.
func (s *Selector) IsAll() bool { _, ok := s.root.(all); return ok }

// IsGlobal tells whether s is just global(), which as a namespace selector
// means: what is in no namespace.
func (s *Selector) IsGlobal() bool { _, ok := s.root.(global); return ok }
