package output

import (
	"io"
	"strings"
	"unicode/utf8"
)

// Column is one column of a bordered table.
type Column struct {
	Heading string
	Right   bool // align to the right: numbers
	Centre  bool // as the tables of 2015
}

// Bordered writes a table with a frame of + - and |: headings centred, one space
// of padding. `node status` and `ipam show` have it.
func Bordered(w io.Writer, columns []Column, rows [][]string) error {
	widths := make([]int, len(columns))
	for i, c := range columns {
		widths[i] = utf8.RuneCountInString(c.Heading)
		for _, row := range rows {
			widths[i] = max(widths[i], utf8.RuneCountInString(row[i]))
		}
	}
	var b strings.Builder
	rule := func() {
		for _, width := range widths {
			b.WriteString("+" + strings.Repeat("-", width+2))
		}
		b.WriteString("+\n")
	}
	line := func(cell func(i int) (text string, left int)) {
		for i, width := range widths {
			text, left := cell(i)
			right := width - utf8.RuneCountInString(text) - left
			b.WriteString("| " + strings.Repeat(" ", left) + text + strings.Repeat(" ", right) + " ")
		}
		b.WriteString("|\n")
	}
	rule()
	line(func(i int) (string, int) {
		heading := columns[i].Heading
		return heading, (widths[i] - utf8.RuneCountInString(heading)) / 2
	})
	rule()
	for _, row := range rows {
		line(func(i int) (string, int) {
			room := widths[i] - utf8.RuneCountInString(row[i])
			switch {
			case columns[i].Right:
				return row[i], room
			case columns[i].Centre:
				return row[i], (room + 1 - utf8.RuneCountInString(row[i])%2) / 2
			}
			return row[i], 0
		})
	}
	rule()
	_, err := io.WriteString(w, b.String())
	return err
}
