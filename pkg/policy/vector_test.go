package policy

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// asks says whether a term holds for a class in these sets.
func asks(in, out []setID, ids []setID) bool {
	has := func(id setID) bool { return slices.Contains(ids, id) }
	return !slices.ContainsFunc(in, func(id setID) bool { return !has(id) }) && !slices.ContainsFunc(out, has)
}

// cutAnyhow makes a list of terms in some pieces.
func cutAnyhow(rng *rand.Rand, terms []*term) (list termList) {
	for len(terms) > 0 {
		n := 1 + rng.IntN(len(terms))
		list.append(newTermPiece(terms[:n]))
		terms = terms[n:]
	}
	return list
}

func TestDimensionsSayWhichRulesMatch(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0))
		sets := rapid.IntRange(1, 30).Draw(t, "sets") // 0 is anyIPv4
		some := func(most int) (ids []setID) {
			for range rng.IntN(most + 1) {
				ids = append(ids, setID(rng.IntN(sets)))
			}
			slices.Sort(ids)
			return slices.Compact(ids)
		}
		rules := rapid.SampledFrom([]int{1, 2, 63, 64, 65, 300, 4095, 4096, 4097, 9000}).Draw(t, "rules")
		in, out, terms := make([][]setID, rules), make([][]setID, rules), make([]*term, rules)
		space := newSpace(anyIPv4, 1000)
		of := func(ids []setID) (list []*set) {
			for _, id := range ids {
				key := ipv4Key
				if id != anyIPv4 {
					key = fmt.Sprint("set ", id)
				}
				x, fresh := space.set([]byte(key))
				if fresh {
					x.id = id
				}
				list = append(list, x)
			}
			return list
		}
		of([]setID{anyIPv4})
		for i := range rules {
			if rng.IntN(4) == 0 && i > 0 {
				in[i], out[i] = in[i-1], out[i-1]
			} else {
				in[i], out[i] = some(rng.IntN(3)), some(rng.IntN(2))
			}
			terms[i] = space.term(of(in[i]), of(out[i]))
		}
		classes := [][]setID{nil}
		for range 20 {
			class := some(5)
			if number, _ := space.class(of(class), 1); int(number) == len(classes) {
				classes = append(classes, class)
			}
		}
		// Some classes are there before the dimension, some come later.
		born := space.born
		cut := rng.IntN(len(born) + 1)
		space.born = born[:cut]
		space.spread()
		list := cutAnyhow(rng, terms)
		d := space.dimension(nil, list)
		if again := space.dimension(nil, cutAnyhow(rng, slices.Clone(terms))); again != d {
			t.Fatal("the same terms in other pieces have a dimension of their own")
		}
		if others := slices.Clone(terms); rules > 1 {
			i := rng.IntN(rules)
			others[i] = terms[(i+1)%rules]
			if another := cutAnyhow(rng, others); list.equal(&another) != (terms[i] == others[i]) {
				t.Fatalf("lists that differ in term %d are equal", i)
			}
		}
		space.born = born[cut:]
		space.spread()
		if rng.IntN(2) == 0 {
			d = d.again()
		}
		d.addNothing(40)
		if d.Width != (rules+4095)/4096 || len(d.Blocks)%d.Width != 0 {
			t.Fatalf("%d rules, width %d, %d blocks", rules, d.Width, len(d.Blocks))
		}
		for class := range uint32(42) {
			for w := range d.Width * 64 {
				word := d.Word(class, w)
				for bit := range 64 {
					i, want := w*64+bit, false
					switch {
					case i >= rules || class == 40 && !d.Any:
					case int(class) < len(classes):
						want = asks(in[i], out[i], classes[class])
					default:
						want = asks(in[i], out[i], nil)
					}
					if got := word>>bit&1 == 1; got != want {
						t.Fatalf("class %d, rule %d: %v, want %v", class, i, got, want)
					}
				}
			}
		}
		rows := make(map[string]int)
		for class := range uint32(len(classes)) {
			var content []byte
			for w := range d.Width * 64 {
				for shift := 0; shift < 64; shift += 8 {
					content = append(content, byte(d.Word(class, w)>>shift))
				}
			}
			if row, ok := rows[string(content)]; ok && row != d.RowOf(class) && d.base[0] == d.base[1] && class != 0 {
				t.Fatalf("rows %d and %d are equal", row, d.RowOf(class))
			}
			rows[string(content)] = d.RowOf(class)
		}
	})
}
