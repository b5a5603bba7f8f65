package control

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"calico-xdp/pkg/api"
	"calico-xdp/pkg/control/desired"
	"calico-xdp/pkg/control/host"
	"calico-xdp/pkg/datastore"
	"calico-xdp/pkg/nodeapi"

	v3 "github.com/projectcalico/api/pkg/apis/projectcalico/v3"
)

// Host knows the host's addresses.
type Host interface {
	// Detect finds the node's address by a method of IP_AUTODETECTION_METHOD.
	Detect(ctx context.Context, method string, ipv6 bool) (host.Detected, error)
	Links() ([]desired.Link, error)
}

// Store is what start-up needs of the datastore. *datastore.Client is one.
type Store interface {
	Initialize(ctx context.Context) error
	Get(ctx context.Context, key api.Key) (api.Resource, error)
	List(ctx context.Context, kind, namespace string) ([]api.Resource, error)
	Create(ctx context.Context, r api.Resource) (api.Resource, error)
	Update(ctx context.Context, r api.Resource) (api.Resource, error)
}

// Startup makes the node known to the cluster, and what the cluster needs
// before its first node.
type Startup struct {
	Environment *Environment
	Store       Store
	Host        Host
	Version     string // of this daemon
	Logger      *slog.Logger
}

// Run writes the Node resource, the default pools and the default configuration
// where they are absent. It returns the node's addresses.
func (s *Startup) Run(ctx context.Context) ([]nodeapi.Address, error) {
	if err := s.Store.Initialize(ctx); err != nil {
		return nil, fmt.Errorf("initialize datastore: %w", err)
	}
	addresses, err := s.writeNode(ctx, true)
	if err != nil {
		return nil, err
	}
	for _, a := range addresses {
		s.Logger.Info("node address", "address", a.Address, "interface", a.Interface, "reason", a.Reason)
	}
	if err := s.warnOfTwins(ctx); err != nil {
		return nil, err
	}
	if err := s.createPools(ctx); err != nil {
		return nil, err
	}
	kind, _ := api.FindKind(api.KindFelixConfiguration)
	felix := kind.New()
	felix.SetName("default")
	if err := s.createMissing(ctx, felix); err != nil {
		return nil, err
	}
	return addresses, s.announce(ctx)
}

// announce writes into the ClusterInformation which version the cluster has, as Calico's
// nodes do, and that we are part of it. The version of a cluster that has one already is
// not touched: Calico's own calicoctl refuses to work with another than its own. For the
// same reason only a release has a version to write.
func (s *Startup) announce(ctx context.Context) error {
	const ours = "calico-xdp"
	for {
		stored, err := s.Store.Get(ctx, api.Key{Kind: api.KindClusterInformation, Name: "default"})
		if errors.Is(err, datastore.ErrNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		info := stored.DeepCopyObject().(*api.ClusterInformation)
		types := strings.FieldsFunc(info.Spec.ClusterType, func(r rune) bool { return r == ',' })
		known := slices.Contains(types, ours)
		if !known {
			info.Spec.ClusterType = strings.Join(append(types, ours), ",")
		}
		if info.Spec.CalicoVersion == "" && isRelease(s.Version) {
			info.Spec.CalicoVersion = s.Version
		} else if known {
			return nil
		}
		_, err = s.Store.Update(ctx, info)
		if !errors.Is(err, datastore.ErrConflict) {
			return err
		}
	}
}

// isRelease tells v1.2.3 from what stands in where there is no version.
func isRelease(version string) bool {
	numbers := strings.Split(strings.TrimPrefix(version, "v"), ".")
	for _, n := range numbers {
		if _, err := strconv.ParseUint(n, 10, 32); err != nil {
			return false
		}
	}
	return len(numbers) == 3 && strings.HasPrefix(version, "v")
}

// Refresh finds the node's addresses again and corrects the Node resource. If there
// is none it writes one only if create is set. It returns the addresses.
func (s *Startup) Refresh(ctx context.Context, create bool) ([]nodeapi.Address, error) {
	return s.writeNode(ctx, create)
}

// writeNode creates or updates the Node resource. What others have written
// there stays.
func (s *Startup) writeNode(ctx context.Context, create bool) ([]nodeapi.Address, error) {
	key := api.Key{Kind: api.KindNode, Name: s.Environment.Node}
	for {
		stored, err := s.Store.Get(ctx, key)
		if err != nil && !errors.Is(err, datastore.ErrNotFound) {
			return nil, err
		}
		node, exists := stored.(*api.Node)
		if exists {
			node = node.DeepCopyObject().(*api.Node)
		} else {
			node = api.NewNode()
			node.Name = key.Name
		}
		addresses, err := s.fillNode(ctx, node)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", key, err)
		}
		switch {
		case !exists && create:
			_, err = s.Store.Create(ctx, node)
		case exists && !reflect.DeepEqual(node, stored):
			if _, err = s.Store.Update(ctx, node); err == nil {
				s.Logger.Info("node resource brought up to date", "node", node.Name)
			}
		}
		if errors.Is(err, datastore.ErrConflict) || errors.Is(err, datastore.ErrExists) || errors.Is(err, datastore.ErrNotFound) {
			continue // somebody else was faster; look again
		}
		if err != nil {
			return nil, err
		}
		return addresses, nil
	}
}

func (s *Startup) fillNode(ctx context.Context, node *api.Node) ([]nodeapi.Address, error) {
	bgp := node.Spec.BGP
	if bgp == nil {
		bgp = new(api.NodeBGPSpec)
	}
	var addresses []nodeapi.Address
	for _, family := range []struct {
		is6    bool
		name   string
		choice AddressChoice
		dst    *string
	}{{false, "IP", s.Environment.IPv4, &bgp.IPv4Address}, {true, "IP6", s.Environment.IPv6, &bgp.IPv6Address}} {
		found, err := s.choose(ctx, family.is6, family.name, family.choice, *family.dst)
		if err != nil {
			return nil, err
		}
		*family.dst = ""
		if found.Prefix.IsValid() {
			*family.dst = found.Prefix.String()
			addresses = append(addresses, nodeapi.Address{
				Address: found.Prefix.String(), Interface: found.Interface, Reason: found.Reason,
			})
		}
	}
	if s.Environment.AS != nil {
		bgp.ASNumber = s.Environment.AS
	}
	if *bgp != (api.NodeBGPSpec{}) {
		node.Spec.BGP = bgp
	} else {
		node.Spec.BGP = nil
	}

	var known []api.NodeAddress
	for _, a := range addresses {
		known = append(known, api.NodeAddress{Address: a.Address, Type: api.AddressCalicoNodeIP})
	}
	for _, a := range node.Spec.Addresses {
		if a.Type != api.AddressCalicoNodeIP {
			known = append(known, a)
		}
	}
	node.Spec.Addresses = known
	if name := s.Environment.K8sNode; name != "" {
		node.Spec.OrchRefs = slices.DeleteFunc(node.Spec.OrchRefs, func(r api.OrchRef) bool {
			return r.Orchestrator == v3.OrchestratorKubernetes
		})
		node.Spec.OrchRefs = append(node.Spec.OrchRefs, api.OrchRef{NodeName: name, Orchestrator: v3.OrchestratorKubernetes})
	}
	return addresses, nil
}

// choose returns the node's address of one family, none where none is wanted.
// stored is what the Node resource has.
func (s *Startup) choose(ctx context.Context, is6 bool, name string, choice AddressChoice, stored string) (host.Detected, error) {
	switch {
	case choice.given.IsValid():
		return s.locate(choice.given, name+"="+choice.Value)
	case choice.Value == "none", choice.Value == "" && is6 && stored == "":
		return host.Detected{}, nil
	case choice.Value == "" && stored != "":
		// A node keeps its address unless told otherwise.
		p, err := api.ParseNodeAddress(stored)
		if err == nil {
			return s.locate(p, "in the Node resource")
		}
		s.Logger.Warn("the node resource's address is not one", "address", stored, "error", err)
	}
	found, err := s.Host.Detect(ctx, choice.Method, is6)
	if err != nil {
		err = fmt.Errorf("%s: detection by %q: %w", name, choice.Method, err)
	}
	return found, err
}

// locate finds the interface that has an address, and the subnet of one that was
// given without.
func (s *Startup) locate(p netip.Prefix, reason string) (host.Detected, error) {
	found := host.Detected{Prefix: p, Reason: reason}
	links, err := s.Host.Links()
	if err != nil {
		return found, err
	}
	for _, l := range links {
		for _, has := range l.Addresses {
			if has.Addr() == p.Addr() {
				found.Interface = l.Name
				if p.IsSingleIP() {
					found.Prefix = has
				}
			}
		}
	}
	if found.Interface == "" {
		s.Logger.Warn("no interface has the node's address", "address", p, "chosen by", reason)
	}
	return found, nil
}

// warnOfTwins warns of other nodes with our addresses.
func (s *Startup) warnOfTwins(ctx context.Context) error {
	all, err := s.Store.List(ctx, api.KindNode, "")
	if err != nil {
		return err
	}
	seen := make(map[netip.Addr]bool)
	each := func(n *api.Node, do func(netip.Addr)) {
		for _, p := range []netip.Prefix{n.IPv4(), n.IPv6()} {
			if p.IsValid() {
				do(p.Addr())
			}
		}
	}
	for _, r := range all {
		if n, ok := r.(*api.Node); ok && n.Name == s.Environment.Node {
			each(n, func(a netip.Addr) { seen[a] = true })
		}
	}
	for _, r := range all {
		if n, ok := r.(*api.Node); ok && n.Name != s.Environment.Node {
			each(n, func(a netip.Addr) {
				if seen[a] {
					s.Logger.Warn("another node has this node's address", "node", n.Name, "address", a)
				}
			})
		}
	}
	return nil
}

// createPools creates the default pools of the families that have no pool.
func (s *Startup) createPools(ctx context.Context) error {
	if s.Environment.NoDefaultPools {
		return nil
	}
	all, err := s.Store.List(ctx, api.KindIPPool, "")
	if err != nil {
		return err
	}
	have := make(map[bool]bool)
	for _, r := range all {
		if p, ok := r.(*api.IPPool); ok {
			if cidr, err := netip.ParsePrefix(p.Spec.CIDR); err == nil {
				have[cidr.Addr().Is6()] = true
			}
		}
	}
	for is6, pool := range map[bool]*api.IPPool{false: s.Environment.IPv4Pool, true: s.Environment.IPv6Pool} {
		if pool == nil || have[is6] {
			continue
		}
		pool = pool.DeepCopy()
		if pool.Spec.CIDR == "" {
			pool.Spec.CIDR = randomULA().String()
		}
		if err := s.createMissing(ctx, pool); err != nil {
			return fmt.Errorf("default pool: %w", err)
		}
	}
	return nil
}

// randomULA returns a network for one site, as RFC 4193 has sites make theirs.
func randomULA() netip.Prefix {
	b := [16]byte{0xfd}
	rand.Read(b[1:6])
	return netip.PrefixFrom(netip.AddrFrom16(b), 48)
}

func (s *Startup) createMissing(ctx context.Context, r api.Resource) error {
	_, err := s.Store.Get(ctx, api.KeyOf(r))
	if !errors.Is(err, datastore.ErrNotFound) {
		return err
	}
	_, err = s.Store.Create(ctx, r)
	if errors.Is(err, datastore.ErrExists) {
		return nil // another node, at the same moment
	}
	if err == nil {
		s.Logger.Info("created", "object", api.KeyOf(r))
	}
	return err
}
