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
	if kind == KindFelixConfiguration {
		return orderFelixSpec(data)
	}
	return data, nil
}

// orderFelixSpec puts the fields that upstream's type lacks where Calico's own
// type has them.
func orderFelixSpec(data []byte) ([]byte, error) {
	t, err := parseTree(data)
	if err != nil {
		return nil, err
	}
	if spec := t.get("spec"); spec != nil {
		spec.moveAfter("nftablesFlowTableOffload", "nftablesMode")
	}
	return t.append(nil), nil
}
