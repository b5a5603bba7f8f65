package api

import (
	"net/netip"
	"slices"

	v3 "github.com/projectcalico/api/pkg/apis/projectcalico/v3"
)

// blockSizes returns the shortest and longest prefix of IPAM's blocks.
func blockSizes(a netip.Addr) (shortest, longest int) {
	if a.Is4() {
		return 20, 32
	}
	return 116, 128
}

func (f *faults) pool(s *v3.IPPoolSpec) {
	p, err := parsePrefix(s.CIDR)
	if err != nil {
		return // has been noted with the field
	}
	if shortest, longest := blockSizes(p.Addr()); s.BlockSize < shortest || s.BlockSize > longest {
		f.add("spec.blockSize", s.BlockSize, "expected %d to %d", shortest, longest)
	} else if !s.Disabled && p.Bits() > s.BlockSize {
		f.add("spec.cidr", s.CIDR, "smaller than one block of /%d", s.BlockSize)
	}
	for _, local := range []netip.Prefix{
		netip.PrefixFrom(netip.AddrFrom4([4]byte{169, 254}), 16),
		netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfe, 0x80}), 10),
	} {
		if p.Overlaps(local) {
			f.add("spec.cidr", s.CIDR, "overlaps the link-local addresses %s", local)
		}
	}
	f.poolTunnels(s, p)
	balancer := slices.Contains(s.AllowedUses, v3.IPPoolAllowedUseLoadBalancer)
	for _, u := range s.AllowedUses {
		switch u {
		case v3.IPPoolAllowedUseLoadBalancer:
		case v3.IPPoolAllowedUseWorkload, v3.IPPoolAllowedUseTunnel:
			if balancer {
				f.add("spec.allowedUses", u, "not together with LoadBalancer")
			}
		default:
			f.add("spec.allowedUses", u, "expected Workload, Tunnel or LoadBalancer")
		}
	}
	if balancer && s.DisableBGPExport {
		f.add("spec.disableBGPExport", true, "a pool for load balancers is exported")
	}
	if usesGlobal(s.NodeSelector) {
		f.add("spec.nodeSelector", s.NodeSelector, "global() is no node: all() selects all")
	}
	if usesGlobal(s.NamespaceSelector) {
		f.add("spec.namespaceSelector", s.NamespaceSelector, "global() is no namespace: all() selects all")
	}
	if s.NamespaceSelector != "" && slices.Contains(s.AllowedUses, v3.IPPoolAllowedUseTunnel) {
		f.add("spec.namespaceSelector", s.NamespaceSelector, "tunnels have no namespace: allowedUses must be without Tunnel")
	}
	if balancer && s.NodeSelector != "all()" {
		f.add("spec.nodeSelector", s.NodeSelector, "a pool for load balancers has all()")
	}
}

func (f *faults) poolTunnels(s *v3.IPPoolSpec, p netip.Prefix) {
	ipip := s.IPIPMode == v3.IPIPModeAlways || s.IPIPMode == v3.IPIPModeCrossSubnet
	vxlan := s.VXLANMode == v3.VXLANModeAlways || s.VXLANMode == v3.VXLANModeCrossSubnet
	if ipip && p.Addr().Is6() {
		f.add("spec.ipipMode", s.IPIPMode, "IPIP carries IPv4 only")
	}
	if ipip && vxlan {
		f.add("spec.ipipMode", s.IPIPMode, "not together with vxlanMode %s", s.VXLANMode)
	}
	if (ipip || vxlan) && slices.Contains(s.AllowedUses, v3.IPPoolAllowedUseLoadBalancer) {
		f.add("spec.allowedUses", "LoadBalancer", "not together with ipipMode or vxlanMode")
	}
}

// internal checks the IPAM kinds, which only IPAM itself writes.
func (f *faults) internal(r Resource) {
	switch r := r.(type) {
	case *IPAMBlock:
		f.block(r)
	case *BlockAffinity:
		if _, _, err := r.Claim(); err != nil {
			f.add("name", r.Name, "%v", err)
		}
		if !slices.Contains([]string{AffinityPending, AffinityConfirmed, AffinityPendingDeletion}, r.State) {
			f.add("state", r.State, "expected pending, confirmed or pendingDeletion")
		}
	case *IPAMHandle:
		if r.Name == "" {
			f.add("name", nil, "missing")
		}
	case *IPAMConfig:
		f.onlyDefault(r)
		if r.MaxBlocksPerHost < 0 {
			f.add("maxBlocksPerHost", r.MaxBlocksPerHost, "expected 0 or more")
		}
	}
}

func (f *faults) block(b *IPAMBlock) {
	if !b.CIDR.IsValid() || b.CIDR != b.CIDR.Masked() {
		f.add("cidr", b.CIDR.String(), "expected a network")
		return
	}
	if b.Name != BlockName(b.CIDR) {
		f.add("name", b.Name, "the cidr makes it %q", BlockName(b.CIDR))
	}
	host := b.CIDR.Addr().BitLen() - b.CIDR.Bits()
	if host > 12 || len(b.Allocations) != 1<<host {
		f.add("allocations", len(b.Allocations), "not one for each address of %s", b.CIDR)
		return
	}
	for i, a := range b.Allocations {
		if a != nil && (*a < 0 || *a >= len(b.Attributes)) {
			f.add("allocations", *a, "address %d: there are %d attributes", i, len(b.Attributes))
		}
	}
	seen := make(map[int]bool, len(b.Unallocated))
	for _, o := range b.Unallocated {
		if o < 0 || o >= len(b.Allocations) || b.Allocations[o] != nil || seen[o] {
			f.add("unallocated", o, "not a free address, or there twice")
		} else {
			seen[o] = true
		}
	}
}
