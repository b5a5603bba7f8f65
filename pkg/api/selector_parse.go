package api

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// The grammar, with the lowest precedence first:
//
//	or      = and { "||" and }
//	and     = operand { "&&" operand }
//	operand = { "!" } ( "(" or ")" | "all()" | "global()" | "has(" key ")" | key test )
//	test    = ( "==" | "!=" | "contains" | "starts with" | "ends with" ) literal
//	        | ( "in" | "not in" ) "{" [ literal { "," literal } [ "," ] ] "}"
//
// A key is made of letters, digits and _ . / -. A literal is in single or double
// quotes and has no escapes. Blanks may stand between all parts, also inside
// "has( key )", "starts   with" and "not   in" ("notin"), not between a word
// and its "(".

// blanks separate words. Calico refuses line breaks, so we do.
const blanks = " \t"

// maxNesting bounds the parser's recursion.
const maxNesting = 500

type parser struct {
	text  string // all of it
	rest  string // what is left
	depth int
}

func parse(s string) (node, error) {
	p := &parser{text: s, rest: s}
	n, err := p.or()
	if err == nil {
		p.skip()
		if p.rest != "" {
			err = p.fault("the end")
		}
	}
	if err != nil {
		return nil, fmt.Errorf("selector %q: %w", s, err)
	}
	return n, nil
}

// fault says what was expected, and where.
func (p *parser) fault(want string) error {
	at := len(p.text) - len(p.rest)
	if p.rest == "" {
		return fmt.Errorf("expected %s at the end", want)
	}
	near := p.rest
	if len(near) > 20 {
		near = near[:20]
	}
	return fmt.Errorf("expected %s at offset %d, near %q", want, at, near)
}

func (p *parser) skip() { p.rest = strings.TrimLeft(p.rest, blanks) }

// take skips blanks and then word, if it comes next.
func (p *parser) take(word string) bool {
	p.skip()
	rest, ok := strings.CutPrefix(p.rest, word)
	if ok {
		p.rest = rest
	}
	return ok
}

func (p *parser) or() (node, error) {
	if p.depth++; p.depth > maxNesting {
		return nil, errors.New("too deeply nested")
	}
	defer func() { p.depth-- }()
	var parts or
	for {
		n, err := p.and()
		if err != nil {
			return nil, err
		}
		if same, ok := n.(or); ok {
			parts = append(parts, same...) // (a || b) || c
		} else {
			parts = append(parts, n)
		}
		if !p.take("||") {
			break
		}
	}
	if len(parts) == 1 {
		return parts[0], nil
	}
	return parts, nil
}

func (p *parser) and() (node, error) {
	var parts and
	for {
		n, err := p.operand()
		if err != nil {
			return nil, err
		}
		if same, ok := n.(and); ok {
			parts = append(parts, same...)
		} else {
			parts = append(parts, n)
		}
		if !p.take("&&") {
			break
		}
	}
	if len(parts) == 1 {
		return parts[0], nil
	}
	return parts, nil
}

func (p *parser) operand() (node, error) {
	negated := false
	for p.take("!") {
		negated = !negated
	}
	n, err := p.primary()
	if err != nil || !negated {
		return n, err
	}
	if twice, ok := n.(not); ok {
		return twice.of, nil // !(!a)
	}
	return not{n}, nil
}

func (p *parser) primary() (node, error) {
	switch {
	case p.take("("):
		n, err := p.or()
		if err != nil {
			return nil, err
		}
		return n, p.expect(")")
	case p.take("has("):
		key, err := p.key()
		if err != nil {
			return nil, err
		}
		return has{key}, p.expect(")")
	case p.take("all("):
		return all{}, p.expect(")")
	case p.take("global("):
		return global{}, p.expect(")")
	}
	key, err := p.key()
	if err != nil {
		return nil, err
	}
	return p.test(key)
}

func (p *parser) expect(word string) error {
	if !p.take(word) {
		return p.fault(word)
	}
	return nil
}

// longestLabel is how long Calico lets a label's name be.
const longestLabel = 512

// key reads a label's name.
func (p *parser) key() (string, error) {
	p.skip()
	end := strings.IndexFunc(p.rest, func(r rune) bool { return !isKeyRune(r) })
	if end < 0 {
		end = len(p.rest)
	}
	if end == 0 {
		return "", p.fault("a label name")
	}
	if end > longestLabel {
		return "", fmt.Errorf("a label name is longer than %d characters", longestLabel)
	}
	key := p.rest[:end]
	p.rest = p.rest[end:]
	return key, nil
}

func isKeyRune(r rune) bool {
	return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("_./-", r)
}

// test reads what stands behind a label's name.
func (p *parser) test(key string) (node, error) {
	switch {
	case p.take("=="):
		return p.compare(key, opEqual)
	case p.take("!="):
		return p.compare(key, opNotEqual)
	case p.take("contains"):
		return p.compare(key, opContains)
	case p.takeTwo("starts", "with"):
		return p.compare(key, opStartsWith)
	case p.takeTwo("ends", "with"):
		return p.compare(key, opEndsWith)
	case p.takeTwo("not", "in"):
		return p.member(key, true)
	case p.take("in"):
		return p.member(key, false)
	}
	return nil, p.fault("an operator")
}

// takeTwo takes two words or none.
func (p *parser) takeTwo(first, second string) bool {
	before := p.rest
	if p.take(first) && p.take(second) {
		return true
	}
	p.rest = before
	return false
}

func (p *parser) compare(key, op string) (node, error) {
	value, ok, err := p.literal()
	if err == nil && !ok {
		err = p.fault("a quoted value")
	}
	return compare{key, op, value}, err
}

// literal reads a value in quotes, if one comes next.
func (p *parser) literal() (value string, ok bool, err error) {
	p.skip()
	if p.rest == "" || p.rest[0] != '\'' && p.rest[0] != '"' {
		return "", false, nil
	}
	end := strings.IndexByte(p.rest[1:], p.rest[0])
	if end < 0 {
		return "", false, fmt.Errorf("the quote at offset %d is not closed", len(p.text)-len(p.rest))
	}
	value = p.rest[1 : end+1]
	p.rest = p.rest[end+2:]
	return value, true, nil
}

func (p *parser) member(key string, negated bool) (node, error) {
	if err := p.expect("{"); err != nil {
		return nil, err
	}
	var values []string
	for {
		v, ok, err := p.literal()
		if err != nil {
			return nil, err
		}
		if !ok {
			break
		}
		values = append(values, v)
		if !p.take(",") {
			break
		}
	}
	slices.Sort(values)
	return member{key, negated, slices.Compact(values)}, p.expect("}")
}
