package policy

import (
	"cmp"
	"slices"
	"strings"

	"calico-xdp/pkg/api"
)

// problems are what could not be compiled, each once however many say so.
type problems struct {
	counts map[problemKey]int
	errs   map[problemKey]error
	list   []Problem // sorted; nil if it has to be made
}

type problemKey struct {
	object api.Key
	text   string
}

func newProblems() *problems {
	return &problems{counts: make(map[problemKey]int), errs: make(map[problemKey]error)}
}

func (p *problems) add(object api.Key, err error) {
	key := problemKey{object, err.Error()}
	if p.counts[key]++; p.counts[key] == 1 {
		p.errs[key] = err
		p.list = nil
	}
}

func (p *problems) remove(object api.Key, err error) {
	key := problemKey{object, err.Error()}
	if p.counts[key]--; p.counts[key] == 0 {
		delete(p.counts, key)
		delete(p.errs, key)
		p.list = nil
	}
}

// replace takes back an object's problem, if any, for another one, if any.
func (p *problems) replace(object api.Key, was, is error) {
	if is != nil {
		p.add(object, is)
	}
	if was != nil {
		p.remove(object, was)
	}
}

// sorted returns all problems. The list is never changed.
func (p *problems) sorted() []Problem {
	if p.list == nil && len(p.errs) > 0 {
		for key, err := range p.errs {
			p.list = append(p.list, Problem{Object: key.object, Err: err})
		}
		slices.SortFunc(p.list, func(a, b Problem) int {
			return cmp.Or(compareKeys(a.Object, b.Object), strings.Compare(a.Err.Error(), b.Err.Error()))
		})
	}
	return p.list
}
