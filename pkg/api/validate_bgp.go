package api

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	v3 "github.com/projectcalico/api/pkg/apis/projectcalico/v3"
)

func (f *faults) bgpPeer(s *v3.BGPPeerSpec) {
	exclusive := func(path string, set bool, other string, otherSet bool) {
		if set && otherSet {
			f.add(path, nil, "not together with %s", other)
		}
	}
	exclusive("spec.node", s.Node != "", "nodeSelector", s.NodeSelector != "")
	exclusive("spec.peerIP", s.PeerIP != "", "peerSelector", s.PeerSelector != "")
	exclusive("spec.asNumber", s.ASNumber != 0, "peerSelector", s.PeerSelector != "")
	exclusive("spec.peerIP", s.PeerIP != "", "localWorkloadSelector", s.LocalWorkloadSelector != "")
	exclusive("spec.peerSelector", s.PeerSelector != "", "localWorkloadSelector", s.LocalWorkloadSelector != "")
	exclusive("spec.keepOriginalNextHop", s.KeepOriginalNextHop, "nextHopMode", s.NextHopMode != nil)
	if s.PeerIP == "" && s.PeerSelector == "" && s.LocalWorkloadSelector == "" {
		f.add("spec.peerIP", nil, "missing, and there is no peerSelector or localWorkloadSelector either")
	}
	if s.ASNumber == 0 && (s.PeerIP != "" || s.LocalWorkloadSelector != "") {
		f.add("spec.asNumber", uint32(s.ASNumber), "expected an AS number from 1 to 4294967295")
	}
	if s.NextHopMode != nil {
		f.oneOf("spec.nextHopMode", string(*s.NextHopMode), "Auto", "Self", "Keep")
	}
	if s.ReversePeering != nil {
		f.oneOf("spec.reversePeering", string(*s.ReversePeering), "Auto", "Manual")
	}
	if s.Password != nil && s.Password.SecretKeyRef == nil {
		f.add("spec.password.secretKeyRef", nil, "missing")
	}
	if s.NumAllowedLocalASNumbers != nil && *s.NumAllowedLocalASNumbers < 0 {
		f.add("spec.numAllowedLocalASNumbers", *s.NumAllowedLocalASNumbers, "expected 0 or more")
	}
	if s.MaxRestartTime != nil && s.MaxRestartTime.Duration < 0 {
		f.add("spec.maxRestartTime", s.MaxRestartTime.Duration, "expected 0 or more")
	}
	if s.ReachableBy == "" {
		return
	}
	by, err := netip.ParseAddr(s.ReachableBy)
	peer, err2 := ParsePeerIP(s.PeerIP)
	switch {
	case s.PeerIP == "":
		f.add("spec.reachableBy", s.ReachableBy, "needs peerIP")
	case err == nil && err2 == nil && by.Is4() != peer.Addr().Is4():
		f.add("spec.reachableBy", s.ReachableBy, "not of peerIP's family")
	}
}

func (f *faults) oneOf(path, value string, options ...string) {
	for _, o := range options {
		if value == o {
			return
		}
	}
	f.add(path, value, "expected %s", orList(options))
}

// bgpFilter checks every rule of the four lists.
func (f *faults) bgpFilter(r *BGPFilter) {
	for _, l := range []struct {
		path  string
		rules []v3.BGPFilterRuleV4
	}{{"spec.exportV4", r.Spec.ExportV4}, {"spec.importV4", r.Spec.ImportV4}} {
		for i, rule := range l.rules {
			var lo, hi *int32
			if rule.PrefixLength != nil {
				lo, hi = rule.PrefixLength.Min, rule.PrefixLength.Max
			}
			f.filterRule(fmt.Sprintf("%s[%d]", l.path, i), rule.CIDR, rule.MatchOperator, rule.PrefixLength != nil, lo, hi, 32)
		}
	}
	for _, l := range []struct {
		path  string
		rules []v3.BGPFilterRuleV6
	}{{"spec.exportV6", r.Spec.ExportV6}, {"spec.importV6", r.Spec.ImportV6}} {
		for i, rule := range l.rules {
			var lo, hi *int32
			if rule.PrefixLength != nil {
				lo, hi = rule.PrefixLength.Min, rule.PrefixLength.Max
			}
			f.filterRule(fmt.Sprintf("%s[%d]", l.path, i), rule.CIDR, rule.MatchOperator, rule.PrefixLength != nil, lo, hi, 128)
		}
	}
}

func (f *faults) filterRule(path, cidr string, op v3.BGPFilterMatchOperator, hasLength bool, lo, hi *int32, longest int32) {
	if cidr != "" && op == "" {
		f.add(path+".matchOperator", nil, "missing: a cidr needs one")
	}
	if cidr == "" && op != "" {
		f.add(path+".cidr", nil, "missing: matchOperator needs one")
	}
	if cidr == "" && hasLength {
		f.add(path+".cidr", nil, "missing: prefixLength needs one")
	}
	for _, b := range []struct {
		field string
		value *int32
	}{{"min", lo}, {"max", hi}} {
		if b.value != nil && (*b.value < 0 || *b.value > longest) {
			f.add(path+".prefixLength."+b.field, *b.value, "expected 0 to %d", longest)
		}
	}
	if lo != nil && hi != nil && *lo > *hi {
		f.add(path+".prefixLength.max", *hi, "less than min, %d", *lo)
	}
}

func (f *faults) bgpConfiguration(r *BGPConfiguration) {
	s := &r.Spec
	f.defaultOrNode(r)
	if r.Name != "default" {
		for _, c := range []struct {
			path string
			set  bool
		}{
			{"spec.nodeToNodeMeshEnabled", s.NodeToNodeMeshEnabled != nil}, {"spec.asNumber", s.ASNumber != nil},
			{"spec.nodeMeshPassword", s.NodeMeshPassword != nil}, {"spec.nodeMeshMaxRestartTime", s.NodeMeshMaxRestartTime != nil},
		} {
			if c.set {
				f.add(c.path, nil, `only for the configuration "default"`)
			}
		}
	}
	if s.NodeToNodeMeshEnabled != nil && !*s.NodeToNodeMeshEnabled {
		if s.NodeMeshPassword != nil {
			f.add("spec.nodeMeshPassword", nil, "not without the node-to-node mesh")
		}
		if s.NodeMeshMaxRestartTime != nil {
			f.add("spec.nodeMeshMaxRestartTime", nil, "not without the node-to-node mesh")
		}
	}
	if s.BindMode != nil {
		f.oneOf("spec.bindMode", string(*s.BindMode), "None", "NodeIP")
	}
	if s.ServiceLoadBalancerAggregation != nil {
		f.oneOf("spec.serviceLoadBalancerAggregation", string(*s.ServiceLoadBalancerAggregation), "Enabled", "Disabled")
	}
	names := make(map[string]bool, len(s.Communities))
	for i, c := range s.Communities {
		names[c.Name] = true
		if c.Value != "" && !isCommunity(c.Value) {
			f.add(fmt.Sprintf("spec.communities[%d].value", i), c.Value, "expected aa:nn of 16 bits or aa:nn:mm of 32 bits")
		}
	}
	if len(s.Communities) > 0 && len(s.PrefixAdvertisements) == 0 {
		f.add("spec.communities", nil, "not used by any prefixAdvertisements")
	}
	for i, a := range s.PrefixAdvertisements {
		for _, c := range a.Communities {
			if !names[c] && !isCommunity(c) {
				f.add(fmt.Sprintf("spec.prefixAdvertisements[%d].communities", i), c, "neither a community nor the name of one")
			}
		}
	}
}

// isCommunity tells whether s is a standard or large community in numbers.
func isCommunity(s string) bool {
	parts := strings.Split(s, ":")
	bits := map[int]int{2: 16, 3: 32}[len(parts)]
	for _, p := range parts {
		if _, err := strconv.ParseUint(p, 10, bits); err != nil || bits == 0 {
			return false
		}
	}
	return true
}
