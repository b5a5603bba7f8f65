package api

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"
)

// Encode returns the JSON of r as Calico stores it: kind and apiVersion set,
// resourceVersion left out since it is the key's revision.
func Encode(r Resource) ([]byte, error) {
	kind := kindOf(r)
	if kind == "" {
		return nil, fmt.Errorf("encode: %T is no resource", r)
	}
	flat := reflect.New(reflect.TypeOf(r).Elem())
	flat.Elem().Set(reflect.ValueOf(r).Elem())
	r = stamp(flat.Interface().(Resource), kind)
	r.SetResourceVersion("")
	r.SetManagedFields(nil)
	data, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", KeyOf(r), err)
	}
	switch r.(type) {
	case *FelixConfiguration:
		return orderFelixSpec(data)
	case *Profile, *NetworkPolicy, *GlobalNetworkPolicy, *StagedNetworkPolicy, *StagedGlobalNetworkPolicy:
		return dropEmptySides(data), nil
	}
	return data, nil
}

// dropEmptySides leaves out the empty sources and destinations of rules, which
// upstream's types of an older version write and Calico does not any more. The
// text looked for is no part of a string, where quotes are escaped, and a rule
// begins with its action.
func dropEmptySides(data []byte) []byte {
	data = bytes.ReplaceAll(data, []byte(`,"source":{}`), nil)
	return bytes.ReplaceAll(data, []byte(`,"destination":{}`), nil)
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
