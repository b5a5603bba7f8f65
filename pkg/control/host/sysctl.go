package host

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"calico-xdp/pkg/control/desired"

	"github.com/vishvananda/netlink"
)

// sysctl is one kernel parameter, a path under /proc/sys/net.
type sysctl struct {
	path string
	// link is the index of the interface in the path, 0 without one: another
	// interface of the same name starts from the defaults.
	link int
}

func (s sysctl) String() string { return "net." + strings.ReplaceAll(s.path, "/", ".") }

func (s sysctl) file() string { return filepath.Join("/proc/sys/net", s.path) }

// sysctlTable is the parameters that are wanted, as a reconcile.Table.
type sysctlTable struct {
	network *Network
	wanted  map[sysctl]string
}

// Load reads what is wanted only.
func (t *sysctlTable) Load() (map[sysctl]string, error) {
	values := make(map[sysctl]string, len(t.wanted))
	err := t.network.inside(func() error {
		for s := range t.wanted {
			b, err := os.ReadFile(s.file())
			if err != nil {
				continue // Put will say why
			}
			values[s] = strings.TrimSpace(string(b))
		}
		return nil
	})
	return values, err
}

// Put writes a parameter.
func (t *sysctlTable) Put(s sysctl, value string) error {
	return t.network.inside(func() error {
		err := os.WriteFile(s.file(), []byte(value), 0o644)
		if s.link != 0 && (errors.Is(err, os.ErrNotExist) || isGone(err)) {
			return nil // the interface has just vanished
		}
		return err
	})
}

// Delete leaves the parameter as it is.
func (t *sysctlTable) Delete(sysctl) error { return nil }

const (
	forward4 = "ipv4/ip_forward"
	forward6 = "ipv6/conf/all/forwarding"
)

func (n *Network) wantSysctls(want *desired.State, links map[string]netlink.Link) map[sysctl]string {
	values := make(map[sysctl]string)
	if want.Host.ForwardIPv4 {
		values[sysctl{path: forward4}] = "1"
	}
	if want.Host.ForwardIPv6 && n.hasIPv6 {
		values[sysctl{path: forward6}] = "1"
	}
	// What leaves for a tunnel has an address as its source that nobody on the link knows:
	// requests for the next hop must not be sent from it.
	if slices.ContainsFunc(want.Host.Addresses, netip.Addr.Is4) {
		for _, name := range want.Host.Uplinks {
			if l, ok := links[name]; ok {
				values[sysctl{path: filepath.Join("ipv4/conf", name, "arp_announce"), link: l.Attrs().Index}] = "2"
			}
		}
	}
	n.addWorkloadSysctls(values, want, links)
	return values
}

// addWorkloadSysctls adds those of the workloads whose links are given.
func (n *Network) addWorkloadSysctls(values map[sysctl]string, want *desired.State, links map[string]netlink.Link) {
	forwardIPv6 := want.Host.ForwardIPv6 && n.hasIPv6
	for name, l := range links {
		if _, ok := want.Host.Workloads[name]; !ok {
			continue
		}
		set := func(family, group, parameter, value string) {
			values[sysctl{path: filepath.Join(family, group, name, parameter), link: l.Attrs().Index}] = value
		}
		// Workloads have every other address behind 169.254.1.1, which no interface
		// has: the host answers for it, and at once.
		set("ipv4", "conf", "proxy_arp", "1")
		set("ipv4", "neigh", "proxy_delay", "0")
		set("ipv4", "conf", "rp_filter", "1")
		if want.Host.ForwardIPv4 {
			set("ipv4", "conf", "forwarding", "1")
		}
		if forwardIPv6 {
			set("ipv6", "conf", "forwarding", "1")
			// A workload must not be able to tell the host about routers.
			set("ipv6", "conf", "accept_ra", "0")
		}
	}
}

func (n *Network) ensureSysctls(want *desired.State, links map[string]netlink.Link) error {
	var errs []error
	if want.Host.ForwardIPv6 {
		errs = append(errs, n.keepRouters())
	}
	n.values.wanted = n.wantSysctls(want, links)
	if err := n.sysctls.Ensure(n.values.wanted); err != nil {
		errs = append(errs, fmt.Errorf("sysctls: %w", err))
	}
	return errors.Join(errs...)
}

// keepRouters lets interfaces that learn their default route from router
// advertisements go on to do so: with accept_ra 1 the kernel stops when it is
// made to forward.
func (n *Network) keepRouters() error {
	return n.inside(func() error {
		b, err := os.ReadFile(sysctl{path: forward6}.file())
		if err != nil || strings.TrimSpace(string(b)) != "0" {
			return nil // no IPv6, or it forwards already
		}
		files, err := filepath.Glob("/proc/sys/net/ipv6/conf/*/accept_ra")
		if err != nil {
			return err
		}
		var errs []error
		for _, f := range files {
			if b, err := os.ReadFile(f); err == nil && strings.TrimSpace(string(b)) == "1" {
				errs = append(errs, os.WriteFile(f, []byte("2"), 0o644))
			}
		}
		return errors.Join(errs...)
	})
}

// ErrLooseRPF says that the kernel accepts packets from addresses that it would
// not answer through the same interface.
var ErrLooseRPF = errors.New("net.ipv4.conf.all.rp_filter is 2 (loose): workloads could use others' addresses towards the host; " +
	"set it to 0 or 1, or set FELIX_IGNORELOOSERPF=true")

func (n *Network) checkRPF() error {
	var value string
	err := n.inside(func() error {
		b, err := os.ReadFile("/proc/sys/net/ipv4/conf/all/rp_filter")
		value = strings.TrimSpace(string(b))
		return err
	})
	switch {
	case err != nil:
		return fmt.Errorf("reverse path filter: %w", err)
	case value != "2":
		return nil
	case n.options.IgnoreLooseRPF:
		n.log.Warn("the kernel's reverse path filter is loose, as configuration allows")
		return nil
	}
	return ErrLooseRPF
}
