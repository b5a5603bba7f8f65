package dataplane_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"

	"calico-xdp/pkg/api"
	"calico-xdp/pkg/control/dataplane"
	"calico-xdp/pkg/control/desired"
	"calico-xdp/pkg/loader"
	"calico-xdp/pkg/policy"
	"calico-xdp/tools/testbed"

	"github.com/prometheus/client_golang/prometheus/testutil"
)

// listed are the programs on an interface of the host, "from_network to_network".
func (n *node) listed(t *testing.T, iface string) string {
	t.Helper()
	list, err := loader.Links{Dir: filepath.Join(n.pins, "v1", "links")}.List()
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, p := range []loader.Program{loader.FromWorkload, loader.ToWorkload, loader.FromNetwork, loader.ToNetwork, loader.XDPNetwork} {
		if list[loader.Attachment{Program: p, Ifindex: n.Link(t, iface).Attrs().Index}] {
			out = append(out, string(p))
		}
	}
	return strings.Join(out, " ")
}

// Programs go where host endpoints are, whether that is an uplink or not, and XDP
// where one has untracked policy for what comes in.
func TestProgramsFollowHostEndpoints(t *testing.T) {
	lab := testbed.NewHosts(t, 1)
	n := newNode(t, lab.Hosts[0], dataplane.Options{})
	testbed.Veth(t, n.Namespace, "side0", n.Namespace, "side1")
	eth0, side0 := n.Link(t, "eth0").Attrs().Index, n.Link(t, "side0").Attrs().Index
	tables := n.state.Dataplane.Policy
	plain, untracked := api.Key{Kind: "HostEndpoint", Name: "plain"}, api.Key{Kind: "HostEndpoint", Name: "untracked"}
	normal := policy.Rulesets{Egress: 1, Ingress: 1}
	tables.HostEndpoints = map[api.Key]policy.HostRulesets{
		plain: {Normal: normal}, untracked: {Normal: normal, Untracked: policy.Rulesets{Ingress: 1}},
	}
	const tc, withXDP = "from_network to_network", "from_network to_network xdp_network"
	for _, s := range []struct {
		name        string
		endpoints   map[int]api.Key
		eth0, side0 string
	}{
		{"none", nil, tc, ""},
		{"on an uplink", map[int]api.Key{eth0: plain}, tc, ""},
		{"on another interface", map[int]api.Key{side0: plain}, tc, tc},
		{"untracked", map[int]api.Key{side0: untracked, desired.TunnelIndex: untracked}, tc, withXDP},
		{"untracked on both", map[int]api.Key{side0: untracked, eth0: untracked}, withXDP, withXDP},
		{"untracked on both, where XDP is off", map[int]api.Key{side0: untracked, eth0: untracked}, tc, tc},
		{"untracked on both again", map[int]api.Key{side0: untracked, eth0: untracked}, withXDP, withXDP},
		{"untracked no more", map[int]api.Key{side0: plain, eth0: untracked}, withXDP, tc},
		{"none again", nil, tc, ""},
	} {
		n.state.Dataplane.HostEndpoints = s.endpoints
		n.state.Dataplane.NoXDP = strings.HasSuffix(s.name, "where XDP is off")
		n.sync(t)
		if a, b := n.listed(t, "eth0"), n.listed(t, "side0"); a != s.eth0 || b != s.side0 {
			t.Errorf("%s: on eth0 %q, on side0 %q", s.name, a, b)
		}
	}
}

// Another XDP program stays where it is. That is said once, hinders nothing, and ours
// follows when the other one has gone.
func TestForeignXDPIsRespected(t *testing.T) {
	lab := testbed.NewHosts(t, 1)
	first := newNode(t, lab.Hosts[0], dataplane.Options{XDP: true}) // its program is foreign to the second
	first.sync(t)

	var log bytes.Buffer
	second := &node{Host: first.Host, pins: first.pins + "-2", state: first.state}
	t.Cleanup(func() {
		if err := second.Do(func() error { _, err := dataplane.Detach(second.pins); return err }); err != nil {
			t.Error(err)
		}
	})
	err := second.Do(func() (err error) {
		second.Dataplane, err = dataplane.New(dataplane.Options{PinDir: second.pins}, slog.New(slog.NewTextHandler(&log, nil)))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { second.Dataplane.Close() })
	key := api.Key{Kind: "HostEndpoint", Name: "uplink"}
	first.state.Dataplane.Policy.HostEndpoints = map[api.Key]policy.HostRulesets{
		key: {Normal: policy.Rulesets{Egress: 1, Ingress: 1}, Untracked: policy.Rulesets{Ingress: 1}},
	}
	first.state.Dataplane.HostEndpoints = map[int]api.Key{first.Link(t, "eth0").Attrs().Index: key}
	for range 3 {
		second.sync(t)
		second.Resync()
	}
	if got := strings.Count(log.String(), "no XDP program"); got != 1 || !strings.Contains(log.String(), "HostEndpoint(uplink)") {
		t.Errorf("said %d times:\n%s", got, log.String())
	}
	if got := second.listed(t, "eth0"); got != "from_network to_network" {
		t.Errorf("attached %q", got)
	}
	if n := testutil.CollectAndCount(second.Dataplane, "calico_xdp_xdp_refused"); n != 1 {
		t.Errorf("%d interfaces are said to have no XDP program of ours", n)
	}
	if got := first.listed(t, "eth0"); got != "from_network to_network xdp_network" {
		t.Errorf("the first has %q", got)
	}
	err = first.Do(func() error {
		_, err := dataplane.Detach(first.pins)
		return errors.Join(first.Dataplane.Close(), err)
	})
	if err != nil {
		t.Fatal(err)
	}
	second.Resync()
	if err := second.Do(func() error { return second.Ensure(context.Background(), second.state) }); err != nil {
		t.Fatal(err)
	}
	if got := second.listed(t, "eth0"); got != "from_network to_network xdp_network" {
		t.Errorf("attached %q when nobody else is there", got)
	}
	if n := testutil.CollectAndCount(second.Dataplane, "calico_xdp_xdp_refused"); n != 0 {
		t.Errorf("%d interfaces are said to have no XDP program of ours", n)
	}
}
