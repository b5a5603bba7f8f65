package api

import (
	"encoding/json"
	"fmt"
)

// Encode returns the JSON of r as Calico stores it: kind and apiVersion set,
// resourceVersion left out since it is the key's revision.
func Encode(r Resource) ([]byte, error) {
	kind := kindOf(r)
	if kind == "" {
		return nil, fmt.Errorf("encode: %T is no resource", r)
	}
	r = stamp(r.DeepCopyObject().(Resource), kind)
	r.SetResourceVersion("")
	r.SetManagedFields(nil)
	data, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", KeyOf(r), err)
	}
	switch r.(type) {
	case *FelixConfiguration, *Profile, *NetworkPolicy, *GlobalNetworkPolicy, *StagedNetworkPolicy, *StagedGlobalNetworkPolicy:
		return asCalicoNow(data)
	}
	return data, nil
}

// asCalicoNow corrects where the types we build against are older than the
// Calico that we follow: an empty side of a rule is left out, and the fields
// that only our FelixConfiguration has stand where Calico has them.
func asCalicoNow(data []byte) ([]byte, error) {
	t, err := parseTree(data)
	if err != nil {
		return nil, err
	}
	spec := t.get("spec")
	if spec == nil {
		return data, nil
	}
	spec.moveAfter("nftablesFlowTableOffload", "nftablesMode")
	for _, list := range []string{"ingress", "egress"} {
		if rules := spec.get(list); rules != nil {
			for _, rule := range rules.members {
				rule.dropEmpty("source")
				rule.dropEmpty("destination")
			}
		}
	}
	return t.append(nil), nil
}
