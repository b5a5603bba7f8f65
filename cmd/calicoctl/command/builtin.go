package command

import (
	"slices"
	"strings"

	"calico-xdp/pkg/api"

	v3 "github.com/projectcalico/api/pkg/apis/projectcalico/v3"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// defaultAllow is the profile that every cluster has without storing it: all
// traffic in, all out.
const defaultAllow = "projectcalico-default-allow"

var zeroTime metav1.Time

// builtIn returns the resource that exists without being stored, or nil.
func builtIn(key api.Key) api.Resource {
	if key != (api.Key{Kind: api.KindProfile, Name: defaultAllow}) {
		return nil
	}
	p := v3.NewProfile()
	p.Name = defaultAllow
	p.Spec.Ingress = []api.Rule{{Action: v3.Allow}}
	p.Spec.Egress = []api.Rule{{Action: v3.Allow}}
	return p
}

// withBuiltIn adds what exists without being stored to all resources of a kind,
// at its place by name.
func withBuiltIn(k *api.Kind, rs []api.Resource) []api.Resource {
	b := builtIn(api.Key{Kind: k.Name, Name: defaultAllow})
	if b == nil {
		return rs
	}
	at, found := slices.BinarySearchFunc(rs, defaultAllow, func(r api.Resource, name string) int {
		return strings.Compare(r.GetName(), name)
	})
	if found {
		return rs
	}
	return slices.Insert(slices.Clone(rs), at, b)
}
