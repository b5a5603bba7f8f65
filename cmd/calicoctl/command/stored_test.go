package command_test

import (
	"encoding/json"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// Every object that Calico's own tools stored goes in through apply and comes back as
// it was: in etcd to the byte, but for who made it when, and through get. Objects that
// are there are read as they are.
func TestStoredObjects(t *testing.T) {
	text, err := os.ReadFile("../../../pkg/api/testdata/stored.txt")
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	const root = "/calico/resources/v3/projectcalico.org/"
	ours, theirs := newCluster2(t)
	var all []json.RawMessage
	stored := make(map[string]string)
	for i := 0; i+1 < len(lines); i += 2 {
		theirs.etcd.Put(lines[i], lines[i+1])
		if !strings.HasPrefix(lines[i], root) || stored[lines[i]] != "" {
			continue
		}
		stored[lines[i]] = lines[i+1]
		all = append(all, json.RawMessage(lines[i+1]))
	}
	in, err := json.Marshal(all)
	if err != nil {
		t.Fatal(err)
	}
	if got := ours.with(string(in)).ok(t, "apply", "-f", "-"); !strings.Contains(got, "Successfully applied ") {
		t.Errorf("got %s", got)
	}
	for key, want := range stored {
		got := ours.etcd.Get(key)
		if anonymous(t, got) != anonymous(t, want) {
			t.Errorf("%s\n got %s\nwant %s", key, got, want)
		}
		name := strings.Split(strings.TrimPrefix(key, root), "/")
		args := []string{"get", name[0], name[len(name)-1], "-o", "json", "--export"}
		if len(name) == 3 {
			args = append(args, "-n", name[1])
		}
		if diff := cmp.Diff(theirs.ok(t, args...), ours.ok(t, args...)); diff != "" {
			t.Errorf("%s: %s", key, diff)
		}
	}
	before := ours.etcd.Revision()
	again := theirs.ok(t, "get", strings.Join(kindsThat(false), ","), "-o", "yaml", "--export")
	if got := ours.with(again).ok(t, "diff", "-f", "-"); got != "" {
		t.Errorf("what comes out differs from what went in:\n%s", got)
	}
	if ours.etcd.Revision() != before {
		t.Error("something was written")
	}
}

// anonymous is an object without who made it when.
func anonymous(t *testing.T, object string) string {
	t.Helper()
	var o struct {
		Metadata struct {
			UID               string `json:"uid"`
			CreationTimestamp string `json:"creationTimestamp"`
		} `json:"metadata"`
	}
	if err := json.Unmarshal([]byte(object), &o); err != nil {
		t.Fatalf("%s: %v", object, err)
	}
	return strings.NewReplacer(o.Metadata.UID, "", o.Metadata.CreationTimestamp, "").Replace(object)
}
