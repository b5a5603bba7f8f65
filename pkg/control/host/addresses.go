package host

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"sync"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// ifaProto is the attribute that says who made an address (IFA_PROTO, since Linux 5.18).
const ifaProto = 11

// addressTable is the host's addresses for what it sends through tunnels, as a
// reconcile.Table. They are on the loopback interface, as nothing else is their
// interface, with our protocol number. No packet gets one as its source but by a route
// that says so: they have the scope of the host, and are deprecated in IPv6.
type addressTable struct {
	network *Network
	mu      sync.Mutex // like routeTable's
	ours    map[netip.Addr]bool
}

const loopback = 1 // the index of lo, in every network namespace

// Load reads the addresses that have our protocol number.
func (t *addressTable) Load() (map[netip.Addr]bool, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	found := make(map[netip.Addr]bool)
	err := t.network.inside(func() error {
		list, err := dump(func() ([][]byte, error) {
			req := nl.NewNetlinkRequest(unix.RTM_GETADDR, unix.NLM_F_DUMP)
			req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
			return req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWADDR)
		})
		if err != nil {
			return err
		}
		for _, m := range list {
			if a, ours := ourAddress(m); ours {
				found[a] = true
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	t.ours = make(map[netip.Addr]bool, len(found))
	for a := range found {
		t.ours[a] = true
	}
	return found, nil
}

// ourAddress reads a message about an address, and says whether it is one of ours.
func ourAddress(message []byte) (a netip.Addr, ours bool) {
	msg := nl.DeserializeIfAddrmsg(message)
	attrs, err := nl.ParseRouteAttr(message[msg.Len():])
	if err != nil || msg.Index != loopback {
		return a, false
	}
	for _, attr := range attrs {
		switch attr.Attr.Type {
		case unix.IFA_ADDRESS:
			a = address(attr.Value)
		case ifaProto:
			ours = len(attr.Value) > 0 && attr.Value[0] == Protocol
		}
	}
	return a, ours
}

func (t *addressTable) request(command int, flags int, a netip.Addr) error {
	msg := nl.NewIfAddrmsg(unix.AF_INET)
	msg.Index, msg.Prefixlen = loopback, uint8(a.BitLen())
	req := nl.NewNetlinkRequest(command, flags|unix.NLM_F_ACK)
	req.AddData(msg)
	req.AddData(nl.NewRtAttr(unix.IFA_LOCAL, a.AsSlice()))
	req.AddData(nl.NewRtAttr(unix.IFA_ADDRESS, a.AsSlice()))
	req.AddData(nl.NewRtAttr(ifaProto, []byte{Protocol}))
	if a.Is4() {
		msg.Scope = unix.RT_SCOPE_HOST
	} else {
		msg.Family = unix.AF_INET6
		req.AddData(nl.NewRtAttr(unix.IFA_FLAGS, nl.Uint32Attr(unix.IFA_F_NODAD|unix.IFA_F_NOPREFIXROUTE)))
		// struct ifa_cacheinfo: preferred for no time, valid for ever.
		info := make([]byte, 16)
		binary.NativeEndian.PutUint32(info[4:], math.MaxUint32)
		req.AddData(nl.NewRtAttr(unix.IFA_CACHEINFO, info))
	}
	return t.network.inside(func() error {
		_, err := req.Execute(unix.NETLINK_ROUTE, 0)
		return err
	})
}

// Put adds an address. One that is there already, whoever made it, becomes ours: the
// datastore says that it is this node's.
func (t *addressTable) Put(a netip.Addr, _ bool) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	const flags = unix.NLM_F_CREATE | unix.NLM_F_EXCL
	err := t.request(unix.RTM_NEWADDR, flags, a)
	if errors.Is(err, unix.EEXIST) {
		if err = t.request(unix.RTM_DELADDR, 0, a); err == nil {
			err = t.request(unix.RTM_NEWADDR, flags, a)
		}
	}
	if err == nil {
		t.ours[a] = true
	}
	return err
}

// Delete removes an address of ours.
func (t *addressTable) Delete(a netip.Addr) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.ours, a)
	err := t.request(unix.RTM_DELADDR, 0, a)
	if errors.Is(err, unix.EADDRNOTAVAIL) {
		return nil
	}
	return err
}

func (t *addressTable) has(a netip.Addr) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.ours[a]
}

func (n *Network) wantAddresses(list []netip.Addr) map[netip.Addr]bool {
	want := make(map[netip.Addr]bool, len(list))
	for _, a := range list {
		if a.Is4() || n.hasIPv6 {
			want[a] = true
		}
	}
	return want
}
