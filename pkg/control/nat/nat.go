// Package nat has the kernel masquerade what workloads send out of pools with
// natOutgoing, and hold back what they send to services until policy has judged where that
// leads: one nftables table per address family, which is ours alone. The BPF
// programs decide which packets these are, and mark them.
package nat

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"calico-xdp/pkg/control/desired"
	"calico-xdp/pkg/control/reconcile"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"
)

// tableName is that of our tables, of the families ip and ip6.
const tableName = "calico-xdp"

// NAT is the sink. Its methods are for one goroutine; its collector is for any.
type NAT struct {
	log     *slog.Logger
	tables  *tables
	tracked *reconcile.Tracked[family, content]

	last   desired.NAT // what active was made from
	active map[family]content
	pruned bool // what is not active has no rules
}

// family is a table's address family, nftables' number for it.
type family byte

func (f family) String() string {
	if f == family(nftables.TableFamilyIPv6) {
		return "ip6 " + tableName
	}
	return "ip " + tableName
}

// New returns a sink for the network namespace of the calling process.
func New(log *slog.Logger) (*NAT, error) { return newIn(0, log) }

// newIn is New for the namespace that a file descriptor stands for; 0 for the own one.
func newIn(namespace int, log *slog.Logger) (*NAT, error) {
	conn, err := dial(namespace)
	if err != nil {
		return nil, err
	}
	n := &NAT{log: log, tables: &tables{conn: conn, namespace: namespace}}
	n.tracked = reconcile.TrackWith(n.tables, reconcile.Options[content]{
		Name: "nftables", Logger: log, Equal: func(a, b content) bool { return a.text == b.text },
	})
	return n, nil
}

// sendBuffer has room for a table with a hundred thousand prefixes: a table is written
// in one go.
const sendBuffer = 16 << 20

func dial(namespace int) (*nftables.Conn, error) {
	conn, err := nftables.New(nftables.WithNetNSFd(namespace), nftables.WithSockOptions(func(c *netlink.Conn) error {
		return errors.Join(c.SetWriteBuffer(sendBuffer), c.SetReadBuffer(sendBuffer))
	}))
	if err != nil {
		return nil, fmt.Errorf("nftables: %w", err)
	}
	return conn, nil
}

// Ensure makes the tables of the families that have a pool with natOutgoing, or services. It
// comes before packets are marked.
func (n *NAT) Ensure(_ context.Context, want *desired.State) error {
	if n.active == nil || !n.last.Equal(want.NAT) {
		n.last, n.active, n.pruned = want.NAT, make(map[family]content), false
		for _, f := range []nftables.TableFamily{nftables.TableFamilyIPv4, nftables.TableFamilyIPv6} {
			if translates(&want.NAT, f) || hasServices(&want.NAT, f) {
				n.active[family(f)] = contentOf(&want.NAT, f)
			}
		}
	}
	if len(n.active) == 0 {
		return nil
	}
	if err := n.tracked.Ensure(n.active); err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	return nil
}

// Prune takes the rules out of tables whose family has no such pool any more. The
// tables stay, with the chain: without one the kernel would translate no packet of
// the connections that it has begun to translate.
func (n *NAT) Prune(_ context.Context, _ *desired.State) error {
	if n.pruned {
		return nil // most rounds have nothing to do with it
	}
	there, err := n.tables.list()
	if err != nil && len(n.active) == 0 {
		return nil // a kernel without nftables
	}
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	want := make(map[family]content)
	for f := range there {
		if _, ok := n.active[f]; !ok {
			want[f] = contentOf(nil, nftables.TableFamily(f))
		}
	}
	if len(want) > 0 {
		if err := n.tracked.Ensure(want); err != nil {
			return fmt.Errorf("nftables: %w", err)
		}
	}
	n.pruned = true
	return nil
}

// Resync makes the next round read the tables again.
func (n *NAT) Resync() {
	n.tracked.Resync()
	n.pruned = false
}

// Detach removes our tables from the calling process's network namespace, and says
// which.
func Detach() ([]string, error) { return detach(0) }

func detach(namespace int) ([]string, error) {
	conn, err := dial(namespace)
	if err != nil {
		return nil, err
	}
	t := &tables{conn: conn}
	there, err := t.list()
	if errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.EINVAL) {
		return nil, nil // a kernel without nftables
	}
	if err != nil {
		return nil, fmt.Errorf("nftables: %w", err)
	}
	var removed []string
	var errs []error
	for f := range there {
		if err := t.Delete(f); err != nil {
			errs = append(errs, fmt.Errorf("nftables table %s: %w", f, err))
			continue
		}
		removed = append(removed, fmt.Sprintf("nftables table %s", f))
	}
	return removed, errors.Join(errs...)
}

// Collector counts what Ensure and Prune have met.
func (n *NAT) Collector() prometheus.Collector {
	return &collector{
		nat:    n,
		tables: prometheus.NewDesc("calico_xdp_nat_tables", "Tables of ours in nftables.", nil, nil),
		errors: prometheus.NewDesc("calico_xdp_nat_errors_total", "Writes to nftables that failed.", nil, nil),
		drift:  prometheus.NewDesc("calico_xdp_nat_drift_total", "Tables of ours that others had added, removed or changed.", nil, nil),
	}
}

type collector struct {
	nat                   *NAT
	tables, errors, drift *prometheus.Desc
}

func (c *collector) Describe(out chan<- *prometheus.Desc) {
	out <- c.tables
	out <- c.errors
	out <- c.drift
}

func (c *collector) Collect(out chan<- prometheus.Metric) {
	t := c.nat.tracked
	d := t.Drift()
	out <- prometheus.MustNewConstMetric(c.tables, prometheus.GaugeValue, float64(t.Entries()))
	out <- prometheus.MustNewConstMetric(c.errors, prometheus.CounterValue, float64(t.Failures()))
	out <- prometheus.MustNewConstMetric(c.drift, prometheus.CounterValue, float64(d.Added+d.Removed+d.Changed))
}
