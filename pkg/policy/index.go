package policy

import (
	"slices"

	"calico-xdp/pkg/api"
)

// index finds the matches that may select an identity, and the identities that a
// match may select, by the labels without which a match selects nothing.
type index[O comparable] struct {
	number  int // of this index, for identity.at
	keys    map[string]*labelKey[O]
	entries map[O][]api.Label // where each owner of a match is found
}

// labelKey is all labels of one name.
type labelKey[O comparable] struct {
	values     map[string]*labelValue[O]
	owners     []O // of matches found through any value
	identities int
}

type labelValue[O comparable] struct {
	owners     []O
	identities []*identity
}

// The numbers of the indexes.
const (
	everywhere = iota // of the sets that rules ask for
	here              // of the policies that select local endpoints
	indexes
)

func newIndex[O comparable](number int) *index[O] {
	return &index[O]{number: number, keys: make(map[string]*labelKey[O]), entries: make(map[O][]api.Label)}
}

func (x *index[O]) key(name string) *labelKey[O] {
	k := x.keys[name]
	if k == nil {
		k = &labelKey[O]{values: make(map[string]*labelValue[O])}
		x.keys[name] = k
	}
	return k
}

func (k *labelKey[O]) value(text string) *labelValue[O] {
	v := k.values[text]
	if v == nil {
		v = new(labelValue[O])
		k.values[text] = v
	}
	return v
}

// tidy forgets a label that nobody has and nobody looks for.
func (x *index[O]) tidy(name, text string) {
	k := x.keys[name]
	if v := k.values[text]; v != nil && len(v.identities)+len(v.owners) == 0 {
		delete(k.values, text)
	}
	if len(k.values)+len(k.owners) == 0 {
		delete(x.keys, name)
	}
}

// addIdentity returns the owners whose matches may select the identity; an owner
// may be there twice.
func (x *index[O]) addIdentity(i *identity) []O {
	var found []O
	at := make([]int32, len(i.traits))
	for n, t := range i.traits {
		k := x.key(t.name)
		v := k.value(t.value)
		at[n] = int32(len(v.identities))
		v.identities = append(v.identities, i)
		k.identities++
		found = append(append(found, k.owners...), v.owners...)
	}
	i.at[x.number] = at
	return found
}

func (x *index[O]) removeIdentity(i *identity) {
	for n, t := range i.traits {
		k := x.keys[t.name]
		v := k.values[t.value]
		at, last := i.at[x.number][n], len(v.identities)-1
		moved := v.identities[last]
		v.identities[at] = moved
		moved.at[x.number][slices.Index(moved.traits, t)] = at
		v.identities[last] = nil
		v.identities = v.identities[:last]
		k.identities--
		x.tidy(t.name, t.value)
	}
	i.at[x.number] = nil
}

// addMatch returns the identities that the match may select; one may be there
// twice.
func (x *index[O]) addMatch(owner O, m *match) []*identity {
	labels := x.rarest(m.needs())
	x.entries[owner] = labels
	var found []*identity
	for _, l := range labels {
		k := x.key(l.Key)
		if !l.Any {
			v := k.value(l.Value)
			v.owners = append(v.owners, owner)
			found = append(found, v.identities...)
			continue
		}
		k.owners = append(k.owners, owner)
		for _, v := range k.values {
			found = append(found, v.identities...)
		}
	}
	return found
}

func (x *index[O]) removeMatch(owner O) {
	for _, l := range x.entries[owner] {
		k := x.keys[l.Key]
		owners := &k.owners
		if !l.Any {
			owners = &k.values[l.Value].owners
		}
		if i := slices.Index(*owners, owner); i >= 0 {
			*owners = slices.Delete(*owners, i, i+1)
		}
		x.tidy(l.Key, l.Value)
	}
	delete(x.entries, owner)
}

// rarest picks the list that the fewest identities are found by.
func (x *index[O]) rarest(lists [][]api.Label) []api.Label {
	count := func(list []api.Label) (n int) {
		for _, l := range list {
			k := x.keys[l.Key]
			switch {
			case k == nil:
			case l.Any:
				n += k.identities
			case k.values[l.Value] != nil:
				n += len(k.values[l.Value].identities)
			}
		}
		return n
	}
	return slices.MinFunc(lists, func(a, b []api.Label) int { return count(a) - count(b) })
}
