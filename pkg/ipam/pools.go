package ipam

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	"calico-xdp/pkg/api"

	v3 "github.com/projectcalico/api/pkg/apis/projectcalico/v3"
)

// pool is what assignment needs of an IPPool.
type pool struct {
	name      string
	cidr      netip.Prefix
	blockBits int
	spec      *v3.IPPoolSpec
}

// pools returns all pools; what is not a pool that we understand is left out.
func (a *Allocator) pools(ctx context.Context) ([]pool, error) {
	ps, err := list[*api.IPPool](ctx, a.store, api.KindIPPool)
	if err != nil {
		return nil, err
	}
	return readPools(ps), nil
}

func readPools(ps []*api.IPPool) []pool {
	var out []pool
	for _, p := range ps {
		cidr, err := netip.ParsePrefix(p.Spec.CIDR)
		if err != nil {
			continue // reported by whoever shows the pool's faults
		}
		cidr = cidr.Masked()
		bits := p.Spec.BlockSize
		if bits == 0 {
			bits = 26
			if cidr.Addr().Is6() {
				bits = 122
			}
		}
		if bits < cidr.Bits() || bits > cidr.Addr().BitLen() || cidr.Addr().BitLen()-bits > maxBlockBits {
			continue
		}
		out = append(out, pool{name: p.Name, cidr: cidr, blockBits: bits, spec: &p.Spec})
	}
	return out
}

// blockOf returns the block of the pool that a is in.
func (p pool) blockOf(a netip.Addr) netip.Prefix {
	return netip.PrefixFrom(a, p.blockBits).Masked()
}

// usable tells whether a node may take addresses of the pool by itself.
func (p pool) usable(use string) bool {
	return !p.spec.Disabled && p.allows(use)
}

func (p pool) allows(use string) bool {
	if len(p.spec.AllowedUses) == 0 {
		return use == UseWorkload || use == UseTunnel
	}
	return slices.Contains(p.spec.AllowedUses, v3.IPPoolAllowedUse(use))
}

// selects tells whether the pool is for a node with these labels. A selector
// that does not parse selects nothing.
func (p pool) selects(labels map[string]string) bool {
	s, err := api.ParseSelector(p.spec.NodeSelector)
	return err == nil && s.Matches(labels)
}

// selectsNamespace tells whether the pool is for the namespaces that we know, which have no
// labels: those are Kubernetes' own. Calico's plugin outside of Kubernetes judges alike.
func (p pool) selectsNamespace() bool {
	s, err := api.ParseSelector(p.spec.NamespaceSelector)
	return err == nil && (p.spec.NamespaceSelector == "" || s.Matches(nil))
}

// eligible returns the pools of a family that may serve a request. Pools that
// the request names, by name or CIDR, are taken as they are, in its order:
// neither their selectors nor their assignment mode count, since the user
// chose.
func eligible(all []pool, is4 bool, use string, labels map[string]string, requested []string) ([]pool, error) {
	var out []pool
	if len(requested) > 0 {
		for _, wanted := range requested {
			cidr, _ := netip.ParsePrefix(wanted)
			i := slices.IndexFunc(all, func(p pool) bool { return p.name == wanted || p.cidr == cidr.Masked() })
			switch {
			case i < 0:
				return nil, fmt.Errorf("%w: no pool %q", ErrNoPool, wanted)
			case all[i].cidr.Addr().Is4() != is4:
				return nil, fmt.Errorf("%w: pool %q is of the other family", ErrNoPool, wanted)
			case !all[i].usable(use):
				return nil, fmt.Errorf("%w: pool %q is disabled or not for %s addresses", ErrNoPool, wanted, use)
			}
			out = append(out, all[i])
		}
		return out, nil
	}
	for _, p := range all {
		if p.cidr.Addr().Is4() != is4 || !p.usable(use) {
			continue
		}
		if p.spec.AssignmentMode != nil && *p.spec.AssignmentMode == v3.Manual {
			continue
		}
		if p.selects(labels) && p.selectsNamespace() {
			out = append(out, p)
		}
	}
	if len(out) == 0 {
		family := "IPv6"
		if is4 {
			family = "IPv4"
		}
		return nil, fmt.Errorf("%w: no enabled %s pool for %s addresses selects this node", ErrNoPool, family, use)
	}
	return out, nil
}

// containing returns the pool that has this prefix.
func containing(pools []pool, prefix netip.Prefix) (pool, bool) {
	for _, p := range pools {
		if p.cidr.Bits() <= prefix.Bits() && p.cidr.Contains(prefix.Addr()) {
			return p, true
		}
	}
	return pool{}, false
}

// reserved returns what IPReservations keep from automatic assignment.
func (a *Allocator) reserved(ctx context.Context) (reservations, error) {
	rs, err := list[*api.IPReservation](ctx, a.store, api.KindIPReservation)
	if err != nil {
		return nil, err
	}
	var out reservations
	for _, r := range rs {
		for _, text := range r.Spec.ReservedCIDRs {
			p, err := api.ParseNodeAddress(text) // an address or a prefix
			if err != nil {
				return nil, fmt.Errorf("IPReservation(%s): %w", r.Name, err)
			}
			out = append(out, p.Masked())
		}
	}
	return out, nil
}

// nodeLabels returns the labels of a node, none if it does not exist.
func (a *Allocator) nodeLabels(ctx context.Context, name string) (map[string]string, error) {
	n, err := get[*api.Node](ctx, a.store, api.KindNode, name)
	if err != nil || n == nil {
		return nil, err
	}
	return n.Labels, nil
}
