package ipam

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"

	"calico-xdp/pkg/api"
)

// Collector releases what is left in IPAM of workloads of its node that are gone,
// and of nodes that are gone. It follows the resources in memory; only when
// something has looked leaked for the whole of a grace period does it read the
// datastore, to make sure.
type Collector struct {
	allocator *Allocator
	node      string
	log       *slog.Logger

	// Interval is how often it looks; Grace how long an address must have looked
	// leaked before it is released, unless the cluster says otherwise
	// (KubeControllersConfiguration, leakGracePeriod; 0 is never).
	Interval, Grace time.Duration

	mu        sync.Mutex
	blocks    map[string]*api.IPAMBlock
	endpoints map[api.Key][]netip.Addr // this node's
	nodes     map[string]bool          // that exist
	grace     *time.Duration           // as the cluster says
	locked    bool                     // nothing is to be changed

	since map[suspicion]time.Time // what looks leaked, since when
}

// suspicion is an assignment that looks leaked, or a block of a node that is gone.
type suspicion struct {
	address  netip.Addr
	handle   string
	sequence uint64

	node  string
	block netip.Prefix
}

const (
	collectInterval = time.Minute
	defaultGrace    = 15 * time.Minute // Calico's
)

// NewCollector returns a collector that does nothing until it runs.
func NewCollector(a *Allocator, node string, log *slog.Logger) *Collector {
	return &Collector{
		allocator: a, node: node, log: log, Interval: collectInterval, Grace: defaultGrace,
		blocks: make(map[string]*api.IPAMBlock), endpoints: make(map[api.Key][]netip.Addr), nodes: make(map[string]bool),
		since: make(map[suspicion]time.Time),
	}
}

// Observe is told of all resources that changed.
func (c *Collector) Observe(changes []api.Change) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, change := range changes {
		switch change.Key.Kind {
		case api.KindIPAMBlock:
			if b, ok := change.Resource.(*api.IPAMBlock); ok {
				c.blocks[change.Key.Name] = b
			} else {
				delete(c.blocks, change.Key.Name)
			}
		case api.KindNode:
			if change.Resource != nil {
				c.nodes[change.Key.Name] = true
			} else {
				delete(c.nodes, change.Key.Name)
			}
		case api.KindWorkloadEndpoint:
			c.observeEndpoint(change)
		case api.KindClusterInformation:
			c.locked = api.Locked(change.Resource)
		case api.KindKubeControllersConfiguration:
			if change.Key.Name == "default" {
				c.grace = graceOf(change.Resource)
			}
		}
	}
}

func (c *Collector) observeEndpoint(change api.Change) {
	if w, ok := change.Resource.(*api.WorkloadEndpoint); ok && w.Spec.Node == c.node {
		c.endpoints[change.Key] = w.Addresses()
	} else {
		delete(c.endpoints, change.Key)
	}
}

// graceOf returns what the cluster says, nil if nothing.
func graceOf(r api.Resource) *time.Duration {
	k, ok := r.(*api.KubeControllersConfiguration)
	if !ok || k.Spec.Controllers.Node == nil || k.Spec.Controllers.Node.LeakGracePeriod == nil {
		return nil
	}
	return &k.Spec.Controllers.Node.LeakGracePeriod.Duration
}

// Run collects until ctx ends.
func (c *Collector) Run(ctx context.Context) {
	said := ""
	for {
		pause := time.Duration(float64(c.Interval) * (0.8 + 0.4*rand.Float64()))
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
		err := c.collect(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err == nil:
			said = ""
		case err.Error() != said:
			said = err.Error()
			c.log.Warn("leaked addresses cannot be released; will try again", "error", err)
		}
	}
}

// collect is one pass.
func (c *Collector) collect(ctx context.Context) error {
	addresses, blocks := c.due(c.allocator.now())
	if len(addresses)+len(blocks) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, collectTime)
	defer cancel()
	var wanted []Assignment
	for _, s := range addresses {
		wanted = append(wanted, Assignment{Address: s.address, Handle: s.handle, Sequence: s.sequence})
	}
	freed, err := c.allocator.Reclaim(ctx, wanted)
	for _, as := range freed {
		c.log.Info("released a leaked address: nothing has it any more", "address", as.Address, "handle", as.Handle, "node", as.Attributes[AttributeNode])
	}
	errs := []error{err}
	if len(blocks) > 0 {
		errs = append(errs, c.releaseOrphans(ctx, blocks))
	}
	return errors.Join(errs...)
}

func (c *Collector) releaseOrphans(ctx context.Context, blocks []suspicion) error {
	found, err := c.allocator.Audit(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for _, o := range found.Orphans {
		if !slices.Contains(blocks, suspicion{node: o.Node, block: o.Block}) {
			continue
		}
		if err := c.allocator.ReleaseOrphan(ctx, o); err != nil {
			errs = append(errs, err)
			continue
		}
		c.log.Info("took a block from a node that is gone", "block", o.Block, "node", o.Node)
	}
	return errors.Join(errs...)
}

const collectTime = 5 * time.Minute

// due returns what has looked leaked for the whole of the grace period: addresses
// of this node's workloads, and what nodes that are gone have left. Of the latter
// about one node of the cluster takes care in each interval.
func (c *Collector) due(now time.Time) (addresses, blocks []suspicion) {
	c.mu.Lock()
	defer c.mu.Unlock()
	grace := c.Grace
	if c.grace != nil {
		grace = *c.grace
	}
	if grace <= 0 || c.locked {
		clear(c.since)
		return nil, nil
	}
	mine := make(map[netip.Addr]bool)
	for _, addrs := range c.endpoints {
		for _, a := range addrs {
			mine[a] = true
		}
	}
	others := rand.IntN(max(len(c.nodes), 1)) == 0
	seen := make(map[suspicion]time.Time)
	note := func(s suspicion) bool {
		since, ok := c.since[s]
		if !ok {
			since = now
		}
		seen[s] = since
		return now.Sub(since) >= grace
	}
	for _, b := range c.blocks {
		if node, ok := owner(b); ok && !c.nodes[node] {
			if note(suspicion{node: node, block: b.CIDR}) && others {
				blocks = append(blocks, suspicion{node: node, block: b.CIDR})
			}
		}
		for _, al := range allocations(b) {
			as := al.public(b.CIDR)
			node := as.Attributes[AttributeNode]
			gone := node != "" && !c.nodes[node]
			if stateOf(Allocation{Assignment: as}) != Leaked || node != c.node && !gone || mine[as.Address] {
				continue
			}
			if node == c.node && isTunnel(as) {
				continue // the node's own business, see EnsureTunnelAddress
			}
			s := suspicion{address: as.Address, handle: as.Handle, sequence: as.Sequence}
			if note(s) && (others || node == c.node) {
				addresses = append(addresses, s)
			}
		}
	}
	c.since = seen
	return addresses, blocks
}
