package ipam

import (
	"encoding/json"
	"net/netip"
	"slices"
	"testing"

	"calico-xdp/pkg/api"
)

// FuzzBlock reads a block as it may stand in the datastore, whoever wrote it, and
// does everything with it: nothing panics, no address is handed out that is in
// use, and what is repaired has no fault.
//
// For long: go test ./pkg/ipam -run - -fuzz FuzzBlock -fuzztime 10m
func FuzzBlock(f *testing.F) {
	for _, text := range []string{
		`{"cidr":"10.0.0.0/30","affinity":"host:a","allocations":[0,null,null,null],"unallocated":[1,2,3],"attributes":[{"handle_id":"h","secondary":{"node":"a"}}],"sequenceNumber":2,"sequenceNumberForAllocation":{"0":1},"deleted":false}`,
		`{"cidr":"10.0.0.0/30","affinity":null,"allocations":[0,5,-1,null],"unallocated":[0,0,9,-3],"attributes":[{},{}]}`,
		`{"cidr":"fd00::/126","affinity":"virtual:lb","allocations":[1,1,null,0],"unallocated":null,"attributes":[{"handle_id":null},{"secondary":{"node":"b"}}]}`,
		`{"cidr":"0.0.0.0/0","allocations":[],"unallocated":[0]}`, `{"cidr":"::/0"}`, `{}`,
	} {
		f.Add([]byte(text), uint8(2))
	}
	f.Fuzz(func(t *testing.T, data []byte, n uint8) {
		r, err := api.DecodeStored(api.KindIPAMBlock, data)
		if err != nil {
			return
		}
		b, ok := r.(*api.IPAMBlock)
		if !ok || !b.CIDR.IsValid() || api.Validate(b) != nil && len(b.Allocations) != sizeOf(b.CIDR) || sizeOf(b.CIDR) > 1<<12 {
			return // reported as it is, never changed
		}
		blockFaults(b)
		allocations(b)
		unite(b)
		if faults := blockFaults(b); len(faults) > 0 {
			t.Fatalf("repaired, and yet: %v", faults)
		}
		var before []netip.Addr
		for _, al := range allocations(b) {
			before = append(before, al.address)
		}
		got := take(b, int(n), attribute("new", nil), nil)
		for _, ordinal := range got {
			if slices.Contains(before, addressAt(b.CIDR, ordinal)) {
				t.Fatalf("%s was in use", addressAt(b.CIDR, ordinal))
			}
		}
		if countOf(b, "new") < len(got) {
			t.Errorf("%d of %d are the new handle's", countOf(b, "new"), len(got))
		}
		release(b, func(al allocation) bool { return handleID(al.attribute) == "new" })
		if faults := blockFaults(b); len(faults) > 0 {
			t.Fatalf("after taking and giving back: %v", faults)
		}
		if _, err := json.Marshal(b); err != nil {
			t.Error(err)
		}
	})
}
