package datastore

import (
	"errors"
	"net"
	"slices"
	"strings"
	"testing"
)

func TestDiscovery(t *testing.T) {
	records := map[string][]*net.SRV{"etcd-client": {{Target: "a.example.", Port: 2379}, {Target: "b.example.", Port: 2380}}}
	lookup := func(service, proto, name string) (string, []*net.SRV, error) {
		if proto != "tcp" || name != "example" || records[service] == nil {
			return "", nil, errors.New("no such host")
		}
		return "", records[service], nil
	}
	got, err := discover("example", lookup)
	if want := []string{"http://a.example:2379", "http://b.example:2380"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("%v: got %v", err, got)
	}
	records["etcd-client-ssl"] = []*net.SRV{{Target: "c.example.", Port: 2379}}
	if got, err := discover("example", lookup); err != nil || !slices.Equal(got, []string{"https://c.example:2379"}) {
		t.Errorf("%v: got %v", err, got)
	}
	if _, err := discover("elsewhere", lookup); err == nil || !strings.Contains(err.Error(), "no member of elsewhere") {
		t.Errorf("got %v", err)
	}
	env := map[string]string{"ETCD_DISCOVERY_SRV": "example", "ETCD_ENDPOINTS": "http://a:1"}
	if _, err := ConfigFromEnvironment(func(n string) string { return env[n] }); err == nil {
		t.Error("a domain and endpoints were taken together")
	}
}
