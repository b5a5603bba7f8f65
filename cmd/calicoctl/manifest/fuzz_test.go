package manifest_test

import (
	"strings"
	"testing"

	"calico-xdp/cmd/calicoctl/manifest"
)

// Whatever is piped in, it is read or refused, and what is read has a kind.
func FuzzRead(f *testing.F) {
	for _, seed := range []string{
		kubespray, "", "---\n...\n---", "[{}]", `{"kind":"List","items":[{}]}`, "kind: IPPoolList\nitems: [1, null, {}]\n",
		"\ufeff{a: b", "- - -", "a: &a [*a]", "!!binary x", "{} {}", "kind: IPPool\napiVersion: projectcalico.org/v3\nmetadata: 3\n",
		"kind: IPPool\napiVersion: projectcalico.org/v3\nmetadata: {name: [x]}\nstatus: {}\n",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, in string) {
		objects, err := manifest.Read([]string{"-"}, false, strings.NewReader(in))
		if err != nil && objects != nil {
			t.Errorf("objects beside the error %v", err)
		}
		for _, o := range objects {
			if o.Kind == nil || o.Kind.Internal || o.Source == "" {
				t.Errorf("got %+v", o)
			}
			o.Decode() // must not panic
		}
	})
}
