package datastore

import (
	"bytes"
	"slices"

	"calico-xdp/pkg/api"

	v3 "github.com/projectcalico/api/pkg/apis/projectcalico/v3"
	"go.etcd.io/etcd/api/v3/mvccpb"
)

// rereader reads objects again that have changed. Nearly all of the time that a long
// policy takes, from the event to the packets, is that of its JSON and of the check of
// its rules; so rules that stand in it as they did before are taken from the last
// reading.
type rereader struct {
	last map[api.Key]reading
}

// reading is a valid object as it was read last.
type reading struct {
	value []byte
	lists ruleLists
	rules [2][]v3.Rule // ingress, egress
}

// longValue is the size of objects, in bytes, from which on it is worth to remember them.
const longValue = 32 << 10

// find is [find], and remembers.
func (r *rereader) find(key api.Key, kv *mvccpb.KeyValue) finding {
	last, known := r.last[key]
	delete(r.last, key)
	if len(kv.Value) < longValue {
		return find(key, kv)
	}
	lists, ok := findRules(kv.Value)
	if !ok {
		return find(key, kv)
	}
	f, found := finding{}, false
	if known {
		f, found = last.findChanged(key, kv, lists)
	}
	if !found {
		f = find(key, kv)
	}
	if f.err != nil || f.change.Resource == nil {
		return f
	}
	if rules, ok := rulesOf(f.change.Resource); ok && len(*rules[0]) == len(lists[0]) && len(*rules[1]) == len(lists[1]) {
		if r.last == nil {
			r.last = make(map[api.Key]reading)
		}
		r.last[key] = reading{kv.Value, lists, [2][]v3.Rule{*rules[0], *rules[1]}}
	}
	return f
}

// forget is called when an object is gone.
func (r *rereader) forget(key api.Key) { delete(r.last, key) }

// findChanged reads what has changed since the last reading; false if that is no way to
// read it, or if there is a fault, whose text names rules by their place.
func (last *reading) findChanged(key api.Key, kv *mvccpb.KeyValue, lists ruleLists) (finding, bool) {
	short := &mvccpb.KeyValue{Key: kv.Key, Value: make([]byte, 0, longValue), ModRevision: kv.ModRevision}
	var same [2]common
	copied := 0
	for _, i := range lists.inOrder() {
		same[i] = lists[i].common(kv.Value, last.lists[i], last.value)
		for _, rule := range same[i].unchanged(lists[i]) {
			short.Value = append(short.Value, kv.Value[copied:rule.from]...)
			copied = rule.to
		}
	}
	short.Value = append(short.Value, kv.Value[copied:]...)
	f := find(key, short)
	if f.err != nil || f.change.Resource == nil {
		return f, false
	}
	rules, ok := rulesOf(f.change.Resource)
	if !ok {
		return f, false
	}
	for i, list := range rules {
		if len(*list) != len(lists[i])-same[i].front-same[i].back {
			return f, false
		}
		*list = same[i].whole(*list, last.rules[i])
	}
	return f, true
}

// rulesOf are the places of ingress and egress rules of the kinds that have long lists.
func rulesOf(r api.Resource) ([2]*[]v3.Rule, bool) {
	switch r := r.(type) {
	case *api.GlobalNetworkPolicy:
		return [2]*[]v3.Rule{&r.Spec.Ingress, &r.Spec.Egress}, true
	case *api.NetworkPolicy:
		return [2]*[]v3.Rule{&r.Spec.Ingress, &r.Spec.Egress}, true
	case *api.StagedGlobalNetworkPolicy:
		return [2]*[]v3.Rule{&r.Spec.Ingress, &r.Spec.Egress}, true
	case *api.StagedNetworkPolicy:
		return [2]*[]v3.Rule{&r.Spec.Ingress, &r.Spec.Egress}, true
	case *api.Profile:
		return [2]*[]v3.Rule{&r.Spec.Ingress, &r.Spec.Egress}, true
	}
	return [2]*[]v3.Rule{}, false
}

// span is a part of a text: [from, to).
type span struct{ from, to int }

// ruleList are the elements of one list in a text, each but the first with the comma
// before it.
type ruleList []span

// ruleLists are those of spec.ingress and of spec.egress.
type ruleLists [2]ruleList

// inOrder are the indices of the lists in the order in which they stand in the text.
func (l ruleLists) inOrder() []int {
	order := []int{0, 1}
	slices.SortFunc(order, func(a, b int) int { return l[a].start() - l[b].start() })
	return order
}

func (l ruleList) start() int {
	if len(l) == 0 {
		return 0
	}
	return l[0].from
}

// common says how many rules two lists have in common: after the first one, which always
// is read, for a list without any is another thing; and at the end.
type common struct{ front, back int }

func (l ruleList) common(text []byte, other ruleList, otherText []byte) (c common) {
	n := min(len(l), len(other)) - 1
	same := func(i, j int) bool {
		return bytes.Equal(text[l[i].from:l[i].to], otherText[other[j].from:other[j].to])
	}
	for c.front < n && same(1+c.front, 1+c.front) {
		c.front++
	}
	for c.back < n-c.front && same(len(l)-1-c.back, len(other)-1-c.back) {
		c.back++
	}
	return c
}

// unchanged are the rules of the list that need not be read.
func (c common) unchanged(l ruleList) []span {
	if c.front+c.back == 0 {
		return nil
	}
	out := slices.Clone(l[1 : 1+c.front])
	return append(out, l[len(l)-c.back:]...)
}

// whole puts the list together again from the rules that were read and those of before.
func (c common) whole(read, before []v3.Rule) []v3.Rule {
	if c.front+c.back == 0 {
		return read
	}
	return slices.Concat(read[:1], before[1:1+c.front], read[1:], before[len(before)-c.back:])
}

// findRules finds the rules in the JSON of a policy. What it does not understand it
// leaves to those who do.
func findRules(text []byte) (lists ruleLists, ok bool) {
	s := scanner{text: text, ok: true}
	specs := 0
	s.object(func(name string) {
		if name != "spec" {
			s.skip()
			return
		}
		specs++
		s.object(func(name string) {
			i := slices.Index([]string{"ingress", "egress"}, name)
			if i < 0 || s.peek() != '[' {
				s.skip()
				return
			}
			s.ok = s.ok && lists[i] == nil
			lists[i] = s.array()
		})
	})
	return lists, s.ok && specs == 1
}

// scanner goes over JSON. Where that is none it stops, or takes it for some: it has
// to be read by others as well.
type scanner struct {
	text []byte
	at   int
	ok   bool
}

// peek is the next character that is no space; 0 at the end and after a fault.
func (s *scanner) peek() byte {
	for ; s.ok && s.at < len(s.text); s.at++ {
		switch s.text[s.at] {
		case ' ', '\t', '\r', '\n':
		default:
			return s.text[s.at]
		}
	}
	return 0
}

func (s *scanner) take(c byte) {
	s.ok = s.peek() == c
	s.at++
}

// object calls value for each field, which has to take its value.
func (s *scanner) object(value func(name string)) {
	s.take('{')
	for first := true; s.ok && s.peek() != '}'; first = false {
		if !first {
			s.take(',')
		}
		s.peek()
		from := s.at
		s.skipString()
		if !s.ok {
			return
		}
		name := s.text[from+1 : s.at-1]
		s.ok = !bytes.ContainsRune(name, '\\')
		s.take(':')
		value(string(name))
	}
	s.take('}')
}

// array takes an array.
func (s *scanner) array() (out ruleList) {
	out = make(ruleList, 0, 64)
	s.take('[')
	for s.ok && s.peek() != ']' {
		from := s.at
		if len(out) > 0 {
			s.take(',')
		}
		if s.peek() != '{' {
			s.ok = false
		}
		s.skip()
		out = append(out, span{from, s.at})
	}
	s.take(']')
	return out
}

// skip takes one value.
func (s *scanner) skip() {
	switch s.peek() {
	case '"':
		s.skipString()
	case '{', '[':
		depth := 0
		for s.ok && s.at < len(s.text) {
			switch s.text[s.at] {
			case '"':
				s.skipString()
				continue
			case '{', '[':
				depth++
			case '}', ']':
				depth--
			}
			s.at++
			if depth == 0 {
				return
			}
		}
		s.ok = false
	default:
		from := s.at
		for s.at < len(s.text) && bytes.IndexByte([]byte(",]} \t\r\n"), s.text[s.at]) < 0 {
			s.at++
		}
		s.ok = s.ok && s.at > from
	}
}

func (s *scanner) skipString() {
	if s.ok = s.ok && s.at < len(s.text) && s.text[s.at] == '"'; !s.ok {
		return
	}
	for s.at++; s.at < len(s.text); s.at++ {
		switch s.text[s.at] {
		case '\\': // and what is escaped
			s.at++
		case '"':
			s.at++
			return
		}
	}
	s.ok = false
}
