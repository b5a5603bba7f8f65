package dataplane

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"calico-xdp/pkg/api"
	"calico-xdp/pkg/control/desired"
	"calico-xdp/pkg/loader"
	"calico-xdp/pkg/policy"
	"calico-xdp/pkg/policy/policytest"
)

// Rules of untracked policy count each packet once: what XDP drops there, what it lets
// pass behind it.
func TestUntrackedRulesAreCounted(t *testing.T) {
	l := newLedger(t)
	l.put(t, `{apiVersion: projectcalico.org/v3, kind: HostEndpoint, metadata: {name: uplink, labels: {role: host}}, spec: {node: `+policytest.Node+`, interfaceName: lo}}`)
	l.put(t, `{apiVersion: projectcalico.org/v3, kind: GlobalNetworkPolicy, metadata: {name: raw}, spec: {selector: role == 'host', order: 1, doNotTrack: true, applyOnForward: true, types: [Ingress, Egress],
		ingress: [{action: Deny, source: {nets: [192.0.2.0/24]}}, {action: Deny, protocol: TCP, destination: {ports: [23]}}, {action: Allow, protocol: TCP, destination: {ports: [22]}}],
		egress: [{action: Deny, protocol: UDP, destination: {ports: [53]}}, {action: Allow, protocol: UDP}]}}`)
	h := api.Key{Kind: api.KindHostEndpoint, Name: "uplink"}
	apply(t, l.Dataplane, &desired.State{Dataplane: desired.Dataplane{
		Policy: l.compiler.Compile(l.store, nil), Endpoints: localEndpoints(l.store), VXLANPort: 4789,
		HostEndpoints: map[int]api.Key{loopback: h},
	}})
	packet := func(from, to string, protocol uint8, port uint16) policy.Packet {
		return policy.Packet{Source: netip.MustParseAddr(from), Destination: netip.MustParseAddr(to), Protocol: protocol, SourcePort: 4000, DestinationPort: port}
	}
	const shut, other, host = "192.0.2.9", "203.0.113.9", "203.0.113.1"
	for _, s := range []struct {
		hook   loader.Program
		packet policy.Packet
		want   policy.Action
		counts []string // from then on
	}{
		{loader.XDPNetwork, packet(shut, host, 6, 80), policy.Deny, []string{"1 deny ingress[0]"}},
		{loader.XDPNetwork, packet(shut, host, 132, 80), policy.Deny, []string{"2 deny ingress[0]"}},
		{loader.XDPNetwork, packet(other, host, 6, 23), policy.Deny, []string{"2 deny ingress[0]", "1 deny ingress[1]"}},
		{loader.XDPNetwork, packet(other, host, 6, 22), policy.Allow, []string{"2 deny ingress[0]", "1 deny ingress[1]"}},
		{loader.FromNetwork, packet(other, host, 6, 22), policy.Allow, []string{"2 deny ingress[0]", "1 deny ingress[1]", "1 allow ingress[2]"}},
		{loader.FromNetwork, packet(other, host, 6, 23), policy.Deny, []string{"2 deny ingress[0]", "2 deny ingress[1]", "1 allow ingress[2]"}},
		{loader.ToNetwork, packet(host, other, 17, 53), policy.Deny, []string{"2 deny ingress[0]", "2 deny ingress[1]", "1 allow ingress[2]", "1 deny egress[0]"}},
		{loader.ToNetwork, packet(host, other, 17, 54), policy.Allow, []string{"2 deny ingress[0]", "2 deny ingress[1]", "1 allow ingress[2]", "1 deny egress[0]", "1 allow egress[1]"}},
	} {
		if got := sendAt(t, l.Dataplane, here, s.hook, loader.Context{}, s.packet); got != s.want {
			t.Errorf("%s %+v: %d, want %d", s.hook, s.packet, got, s.want)
		}
		rules, err := l.Rules()
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, c := range rules {
			if c.Packets > 0 {
				got = append(got, fmt.Sprintf("%d %s %s[%d]", c.Packets, actionName(c.Action), c.ID.Direction, c.ID.Index))
			}
		}
		slices.Sort(got)
		slices.Sort(s.counts)
		if !slices.Equal(got, s.counts) {
			t.Errorf("%s %+v: counted %q, want %q", s.hook, s.packet, got, s.counts)
		}
	}
}
