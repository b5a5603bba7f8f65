package nodeapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
)

// frame is one line of a streamed answer: an item, or why there are no more.
type frame[T any] struct {
	Item  *T     `json:"item,omitempty"`
	Error string `json:"error,omitempty"`
}

// stream asks for a streamed answer, and hands it out item by item.
func stream[T any](ctx context.Context, c *Client, path string) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		var none T
		resp, err := c.ask(ctx, http.MethodGet, path, nil)
		if err != nil {
			yield(none, err)
			return
		}
		defer resp.Body.Close()
		for lines := json.NewDecoder(resp.Body); ; {
			var f frame[T]
			switch err := lines.Decode(&f); {
			case ctx.Err() != nil, errors.Is(err, io.EOF):
				return
			case err != nil:
				yield(none, fmt.Errorf("answer of calico-node: %w", err))
				return
			case f.Error != "":
				yield(none, fmt.Errorf("calico-node: %s", f.Error))
				return
			case f.Item != nil && !yield(*f.Item, nil):
				return
			}
		}
	}
}

// streamed answers with what each hands out; with live, as it comes. What goes wrong
// before the first item is an ordinary error.
func streamed[T any](w http.ResponseWriter, live bool, each func(yield func(T) bool) error) {
	var lines *json.Encoder
	flusher, _ := w.(http.Flusher)
	begin := func() {
		if lines == nil {
			w.Header().Set("Content-Type", "application/x-ndjson")
			lines = json.NewEncoder(w)
		}
	}
	err := each(func(item T) bool {
		begin()
		if lines.Encode(frame[T]{Item: &item}) != nil {
			return false // nobody reads any more
		}
		if live && flusher != nil {
			flusher.Flush()
		}
		return true
	})
	if err != nil && lines == nil {
		answer(w, nil, err)
		return
	}
	begin()
	if err != nil {
		lines.Encode(frame[T]{Error: err.Error()})
	}
}
