package manifest

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"

	"sigs.k8s.io/yaml"
)

// document is one document of a file.
type document struct {
	text []byte
	line int  // lines of the file before it
	json bool // text is one valid JSON value
}

// split returns the documents of a file that are not empty: JSON values one
// after another, or YAML documents, which are divided by lines of "---".
func split(data []byte) []document {
	data = bytes.TrimPrefix(data, []byte("\ufeff"))
	if docs, ok := splitJSON(data); ok {
		return docs
	}
	var (
		docs []document
		doc  = document{}
		line int
	)
	end := func() {
		if hasContent(doc.text) {
			docs = append(docs, doc)
		}
	}
	for text := range bytes.Lines(data) {
		// At the start of a line these marks always end a document: the lines of
		// a multi-line value are indented.
		if rest, ok := marker(text, "---"); ok {
			end()
			doc = document{line: line}
			text = rest
		} else if _, ok := marker(text, "..."); ok {
			end()
			doc = document{line: line + 1}
			text = nil
		}
		doc.text = append(doc.text, text...)
		line++
	}
	end()
	return docs
}

// marker cuts a document marker off the line. What follows it on the same line
// already belongs to the document.
func marker(line []byte, mark string) (rest []byte, ok bool) {
	rest, ok = bytes.CutPrefix(line, []byte(mark))
	if !ok || (len(bytes.TrimSpace(rest)) > 0 && rest[0] != ' ' && rest[0] != '\t') {
		return line, false
	}
	return rest, true
}

// hasContent tells whether there is more than blank lines, comments and
// directives.
func hasContent(text []byte) bool {
	for line := range bytes.Lines(text) {
		line = bytes.TrimSpace(line)
		if len(line) > 0 && line[0] != '#' && line[0] != '%' {
			return true
		}
	}
	return false
}

// splitJSON splits a file that is JSON from end to end. Looser JSON, with
// trailing commas or bare keys, is read as YAML instead.
func splitJSON(data []byte) ([]document, bool) {
	trimmed := bytes.TrimSpace(data)
	if len(trimmed) == 0 || (trimmed[0] != '{' && trimmed[0] != '[') {
		return nil, false
	}
	var docs []document
	dec := json.NewDecoder(bytes.NewReader(data))
	for {
		var value json.RawMessage
		err := dec.Decode(&value)
		if errors.Is(err, io.EOF) {
			return docs, true
		}
		if err != nil {
			return nil, false
		}
		docs = append(docs, document{text: value, json: true})
	}
}

// toJSON returns the document's value. YAML errors have the line number of the
// file.
func (d document) toJSON() (json.RawMessage, error) {
	if d.json {
		var out bytes.Buffer
		err := json.Compact(&out, d.text) // tabs between values are fine in JSON and not in YAML
		return out.Bytes(), err
	}
	out, err := yaml.YAMLToJSONStrict(d.text)
	if err != nil && d.line > 0 {
		// Once more behind as many empty lines: only now, since a file may have
		// thousands of documents.
		_, err = yaml.YAMLToJSONStrict(append(bytes.Repeat([]byte("\n"), d.line), d.text...))
	}
	return out, err
}
