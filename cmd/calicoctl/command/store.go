package command

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"calico-xdp/cmd/calicoctl/manifest"
	"calico-xdp/pkg/api"
	"calico-xdp/pkg/datastore"
)

// store is the datastore as commands use it.
type store struct {
	*datastore.Client
	dry bool // --dry-run: writes are checked and not done
}

// Create is the client's, or says what that would say.
func (s store) Create(ctx context.Context, r api.Resource) (api.Resource, error) {
	if !s.dry {
		return s.Client.Create(ctx, r)
	}
	_, err := s.Get(ctx, api.KeyOf(r))
	switch {
	case err == nil:
		return nil, datastore.ErrExists
	case errors.Is(err, datastore.ErrNotFound):
		return r, nil
	}
	return nil, err
}

// Update is the client's, or says what that would say.
func (s store) Update(ctx context.Context, r api.Resource) (api.Resource, error) {
	if !s.dry {
		return s.Client.Update(ctx, r)
	}
	stored, err := s.Get(ctx, api.KeyOf(r))
	if err == nil && r.GetResourceVersion() != "" && r.GetResourceVersion() != stored.GetResourceVersion() {
		err = fmt.Errorf("%s: %w", api.KeyOf(r), datastore.ErrConflict)
	}
	return r, err
}

// checkCluster refuses, before anything is written, what each object alone would pass
// and the cluster does not: changes of what stays as it is, pools that overlap,
// policies in a tier and peers with a filter that is nowhere. Who is creating changes
// nothing that there is.
func checkCluster(ctx context.Context, s store, items []item, creating bool) error {
	var (
		errs    []error
		created []item
	)
	for _, it := range items {
		stored, err := s.Get(ctx, it.key)
		switch {
		case errors.Is(err, datastore.ErrUnreachable):
			return err
		case errors.Is(err, datastore.ErrNotFound):
			created = append(created, it)
			continue
		case err != nil || creating:
			continue // whoever writes it will say what is wrong
		}
		if _, err := it.over(stored); err != nil {
			errs = append(errs, manifest.Prefix(it.Source, err))
		}
	}
	faults, err := s.checkPools(ctx, created)
	if err != nil {
		return err
	}
	errs = append(errs, faults...)
	if faults, err = s.checkTiers(ctx, created, items); err != nil {
		return err
	}
	errs = append(errs, faults...)
	if faults, err = s.checkFilters(ctx, items); err != nil {
		return err
	}
	return refusal(append(errs, faults...))
}

// checkPools compares new pools with all others and with the blocks that there are.
func (s store) checkPools(ctx context.Context, created []item) (faults []error, err error) {
	type cidrOf struct {
		name string
		cidr netip.Prefix
	}
	var others []cidrOf
	var blocks []api.Resource
	for _, it := range created {
		pool, ok := it.resource.(*api.IPPool)
		if !ok {
			continue
		}
		cidr, err := netip.ParsePrefix(pool.Spec.CIDR)
		if err != nil {
			continue // has been noted
		}
		if others == nil {
			stored, err := s.List(ctx, api.KindIPPool, "")
			if err != nil {
				return nil, err
			}
			for _, r := range stored {
				if p, err := netip.ParsePrefix(r.(*api.IPPool).Spec.CIDR); err == nil {
					others = append(others, cidrOf{r.GetName(), p})
				}
			}
			if blocks, err = s.List(ctx, api.KindIPAMBlock, ""); err != nil {
				return nil, err
			}
		}
		for _, o := range others {
			if o.cidr.Overlaps(cidr) {
				faults = append(faults, fmt.Errorf("%s: %s: spec.cidr: %q: overlaps IPPool(%s), %s", it.Source, it.key, pool.Spec.CIDR, o.name, o.cidr))
			}
		}
		others = append(others, cidrOf{it.key.Name, cidr})
		for _, r := range blocks {
			if b := r.(*api.IPAMBlock).CIDR; b.Overlaps(cidr) && b.Bits() != pool.Spec.BlockSize {
				faults = append(faults, fmt.Errorf("%s: %s: spec.blockSize: %d: there is a block of another size, %s", it.Source, it.key, pool.Spec.BlockSize, b))
				break
			}
		}
	}
	return faults, nil
}

// checkTiers looks for the tiers that new policies are in, in the datastore and among
// all that is to be written.
func (s store) checkTiers(ctx context.Context, created, all []item) (faults []error, err error) {
	known := namesAmong(all, api.KindTier)
	known[api.DefaultTier] = true // the first write creates it
	looked := false
	for _, it := range created {
		p, ok := api.PolicyOf(it.resource)
		if !ok || p.Tier == "" || known[p.Tier] || strings.HasPrefix(p.Tier, "kube-") {
			continue
		}
		if !looked {
			if err := s.addNames(ctx, known, api.KindTier); err != nil {
				return nil, err
			}
			looked = true
		}
		if !known[p.Tier] {
			faults = append(faults, fmt.Errorf("%s: %s: spec.tier: %q: resource does not exist: Tier(%s)", it.Source, it.key, p.Tier, p.Tier))
		}
	}
	return faults, nil
}

// checkFilters looks for the filters that peers name, as checkTiers does for tiers.
func (s store) checkFilters(ctx context.Context, all []item) (faults []error, err error) {
	known, looked := namesAmong(all, api.KindBGPFilter), false
	for _, it := range all {
		peer, ok := it.resource.(*api.BGPPeer)
		if !ok {
			continue
		}
		for i, name := range peer.Spec.Filters {
			if !known[name] && !looked {
				if err := s.addNames(ctx, known, api.KindBGPFilter); err != nil {
					return nil, err
				}
				looked = true
			}
			if !known[name] {
				faults = append(faults, fmt.Errorf("%s: %s: spec.filters[%d]: %q: resource does not exist: BGPFilter(%s)", it.Source, it.key, i, name, name))
			}
		}
	}
	return faults, nil
}

// namesAmong returns the names of one kind's objects that are to be written.
func namesAmong(items []item, kind string) map[string]bool {
	names := make(map[string]bool)
	for _, it := range items {
		if it.key.Kind == kind {
			names[it.key.Name] = true
		}
	}
	return names
}

// addNames adds those that there are.
func (s store) addNames(ctx context.Context, names map[string]bool, kind string) error {
	stored, err := s.List(ctx, kind, "")
	for _, r := range stored {
		names[r.GetName()] = true
	}
	return err
}

// checkDelete refuses to delete what others need.
func (s store) checkDelete(ctx context.Context, key api.Key) error {
	switch key.Kind {
	case api.KindTier:
	case api.KindClusterInformation: // says which cluster this is, and whether it is locked
		return fmt.Errorf("operation delete is not supported on %s", key)
	default:
		return nil
	}
	switch key.Name {
	case api.DefaultTier, "kube-admin", "kube-baseline", "adminnetworkpolicy", "baselineadminnetworkpolicy":
		return fmt.Errorf("operation Delete is not supported on %s: cannot delete %s tier", key, key.Name)
	}
	for _, kind := range []string{
		api.KindGlobalNetworkPolicy, api.KindNetworkPolicy, api.KindStagedGlobalNetworkPolicy, api.KindStagedNetworkPolicy,
	} {
		policies, err := s.List(ctx, kind, "")
		if err != nil {
			return err
		}
		for _, r := range policies {
			if p, ok := api.PolicyOf(r); ok && p.Tier == key.Name {
				return fmt.Errorf("operation Delete is not supported on %s: cannot delete a non-empty tier: %s is in it", key, api.KeyOf(r))
			}
		}
	}
	return nil
}
