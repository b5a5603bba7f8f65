package loader

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"calico-xdp/tools/testbed"
)

// Many links come and go, those that were there stay, and nothing of the hurry is left.
func TestManyLinks(t *testing.T) {
	w := newWire(t, false)
	p := load(t, w.links)
	var list []Attachment
	for i := range 2 * burst {
		name := fmt.Sprint("many", i)
		testbed.Veth(t, w.Namespace, name, w.far, name)
		list = append(list, Attachment{FromWorkload, w.Link(t, name).Attrs().Index})
	}
	w.attach(t, p, list[0])
	gone := Attachment{ToWorkload, 1 << 20}
	var failed map[Attachment]error
	do := func(f func() map[Attachment]error) {
		t.Helper()
		if err := w.Do(func() error { failed = f(); return nil }); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 { // the second time in their own place
		do(func() map[Attachment]error { return p.AttachAll(append(list, gone)) })
		if len(failed) != 1 || failed[gone] == nil {
			t.Errorf("failed: %v, want interface %d only", failed, gone.Ifindex)
		}
		if got := pinsOf(t, w.links.Dir); len(got) != len(list) {
			t.Errorf("pinned: %v, want %d links", got, len(list))
		}
	}
	do(func() map[Attachment]error { return w.links.DetachAll(list) })
	if left := pinsOf(t, w.links.Dir); len(failed)+len(left) > 0 {
		t.Errorf("left: %v, failed: %v", left, failed)
	}
}

// The kernel's setting is as it was before, whoever set it and however the process ended.
func TestHurry(t *testing.T) {
	for _, c := range []struct {
		name          string
		setting       string // before; empty: there is none
		marked        bool   // a killed process has left its mark
		during, after string
	}{
		{name: "nobody has set it", setting: "0\n", during: "1", after: "0"},
		{name: "somebody else has", setting: "1\n", during: "1\n", after: "1\n"},
		{name: "a killed process has", setting: "1\n", marked: true, during: "1", after: "0"},
		{name: "a process was killed before it has", setting: "0\n", marked: true, during: "1", after: "0"},
		{name: "there is no such setting"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			h := hurry{setting: filepath.Join(dir, "setting"), mark: filepath.Join(dir, "links", "hurry")}
			write := func(text string) {
				if err := os.WriteFile(h.setting, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			is := func(when, want string) {
				t.Helper()
				if got, _ := os.ReadFile(h.setting); string(got) != want {
					t.Errorf("setting %s: %q, want %q", when, got, want)
				}
			}
			if c.setting != "" {
				write(c.setting)
			}
			if c.marked {
				if err := os.MkdirAll(h.mark, 0o700); err != nil {
					t.Fatal(err)
				}
			}
			h.end()
			h.begin()
			is("meanwhile", c.during)
			h.end()
			is("afterwards", c.after)
			if _, err := os.Stat(h.mark); err == nil {
				t.Error("the mark is left")
			}
		})
	}
}

// Where the setting cannot be put back, the mark stays for the next one to do it.
func TestHurryFails(t *testing.T) {
	dir := t.TempDir()
	h := hurry{setting: filepath.Join(dir, "setting"), mark: filepath.Join(dir, "hurry")}
	if err := os.WriteFile(h.setting, []byte("0"), 0o600); err != nil {
		t.Fatal(err)
	}
	h.begin()
	away := h.setting + ".away"
	if err := os.Rename(h.setting, away); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(h.setting, 0o700); err != nil { // so that writing fails
		t.Fatal(err)
	}
	h.end()
	if _, err := os.Stat(h.mark); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(h.setting); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(away, h.setting); err != nil {
		t.Fatal(err)
	}
	h.end()
	if got, _ := os.ReadFile(h.setting); string(got) != "0" {
		t.Errorf("setting: %q, want 0", got)
	}
	if _, err := os.Stat(h.mark); err == nil {
		t.Error("the mark is left")
	}
}
