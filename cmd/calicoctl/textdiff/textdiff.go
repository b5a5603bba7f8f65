// Package textdiff shows how two texts differ, in the unified format.
package textdiff

import (
	"fmt"
	"slices"
	"strings"
)

// context is how many unchanged lines surround a change.
const context = 3

// edit is one line: common (' '), only in the old text ('-') or in the new ('+').
type edit struct {
	op   byte
	line string
}

// Unified returns the difference, without the two lines that name the files; "" if
// there is none.
func Unified(before, after string) string {
	edits := compare(lines(before), lines(after))
	var b strings.Builder
	for i := 0; i < len(edits); {
		if edits[i].op == ' ' {
			i++
			continue
		}
		begin, end := max(0, i-context), i
		for quiet := 0; end < len(edits) && quiet <= 2*context; end++ {
			if quiet++; edits[end].op != ' ' {
				quiet = 0
			}
		}
		for edits[end-1].op == ' ' {
			end--
		}
		i = min(len(edits), end+context)
		hunk(&b, edits, begin, i)
	}
	return b.String()
}

func hunk(b *strings.Builder, edits []edit, begin, end int) {
	count := func(es []edit, not byte) int {
		return len(es) - len(slices.DeleteFunc(slices.Clone(es), func(e edit) bool { return e.op != not }))
	}
	span := func(not byte) string {
		first, n := count(edits[:begin], not)+1, count(edits[begin:end], not)
		if n == 0 {
			first--
		}
		if n == 1 {
			return fmt.Sprint(first)
		}
		return fmt.Sprintf("%d,%d", first, n)
	}
	fmt.Fprintf(b, "@@ -%s +%s @@\n", span('+'), span('-'))
	for _, e := range edits[begin:end] {
		fmt.Fprintf(b, "%c%s\n", e.op, e.line)
	}
}

func lines(text string) []string {
	if text == "" {
		return nil
	}
	return strings.Split(strings.TrimSuffix(text, "\n"), "\n")
}

// most is the largest table of the exact comparison. Beyond it the texts' middles are
// shown as replaced.
const most = 4 << 20

// compare finds a longest common subsequence between what both texts begin and end with.
func compare(a, b []string) []edit {
	var head, tail []edit
	for len(a) > 0 && len(b) > 0 && a[0] == b[0] {
		head = append(head, edit{' ', a[0]})
		a, b = a[1:], b[1:]
	}
	for len(a) > 0 && len(b) > 0 && a[len(a)-1] == b[len(b)-1] {
		tail = append(tail, edit{' ', a[len(a)-1]})
		a, b = a[:len(a)-1], b[:len(b)-1]
	}
	slices.Reverse(tail)
	return slices.Concat(head, middle(a, b), tail)
}

func middle(a, b []string) []edit {
	var out []edit
	if (len(a)+1)*(len(b)+1) <= most {
		// common[i][j] is the length of what a[i:] and b[j:] have in common.
		common := make([][]int32, len(a)+1)
		for i := len(a); i >= 0; i-- {
			common[i] = make([]int32, len(b)+1)
			for j := len(b) - 1; j >= 0 && i < len(a); j-- {
				if a[i] == b[j] {
					common[i][j] = common[i+1][j+1] + 1
				} else {
					common[i][j] = max(common[i+1][j], common[i][j+1])
				}
			}
		}
		i, j := 0, 0
		for i < len(a) && j < len(b) {
			switch {
			case a[i] == b[j]:
				out = append(out, edit{' ', a[i]})
				i, j = i+1, j+1
			case common[i+1][j] >= common[i][j+1]:
				out = append(out, edit{'-', a[i]})
				i++
			default:
				out = append(out, edit{'+', b[j]})
				j++
			}
		}
		a, b = a[i:], b[j:]
	}
	for _, line := range a {
		out = append(out, edit{'-', line})
	}
	for _, line := range b {
		out = append(out, edit{'+', line})
	}
	return out
}
