package dataplane

import (
	"errors"
	"fmt"

	"calico-xdp/pkg/api"
	"calico-xdp/pkg/control/desired"
	"calico-xdp/pkg/loader"
	kernel "calico-xdp/pkg/maps"
)

var routeKinds = map[desired.RouteKind]kernel.RouteKind{
	desired.RouteHost:     kernel.RouteHost,
	desired.RouteWorkload: kernel.RouteWorkload,
	desired.RouteBlock:    kernel.RouteBlock,
	desired.RoutePeerHost: kernel.RoutePeerHost,
}

var forwards = map[desired.Encap]kernel.Forward{
	desired.EncapNone:  kernel.ForwardNode,
	desired.EncapIPIP:  kernel.ForwardIPIP,
	desired.EncapVXLAN: kernel.ForwardVXLAN,
}

var toHosts = map[desired.ToHostAction]kernel.ToHost{
	desired.ToHostDrop:   kernel.ToHostDrop,
	desired.ToHostReturn: kernel.ToHostReturn,
	desired.ToHostAccept: kernel.ToHostAccept,
}

var rpfs = map[desired.RPF]uint8{
	desired.RPFDisabled: uint8(kernel.RPFDisabled),
	desired.RPFLoose:    uint8(kernel.RPFLoose),
	desired.RPFStrict:   uint8(kernel.RPFStrict),
}

func settingsOf(w *desired.Dataplane) map[uint32]kernel.Settings {
	var tunnels kernel.WorkloadTunnel
	if w.WorkloadIPIP {
		tunnels |= kernel.WorkloadIPIP
	}
	if w.WorkloadVXLAN {
		tunnels |= kernel.WorkloadVXLAN
	}
	return map[uint32]kernel.Settings{0: {
		Node4:     kernel.NewAddress(w.Node.IPv4),
		Node6:     kernel.NewAddress(w.Node.IPv6),
		VxlanMac:  w.Node.VXLANMAC,
		VxlanPort: kernel.BigEndian16(w.VXLANPort),
		VxlanVni:  w.VXLANVNI,
		ToHost:    uint8(toHosts[w.ToHost]),
		Rpf:       rpfs[w.RPF],

		HostPolicy: hostPolicy(w),
		NatMark:    w.NATMark,

		WorkloadTunnels: uint32(tunnels),
		UnjudgedMark:    w.UnjudgedMark,
	}}
}

func peersOf(w *desired.Dataplane) map[kernel.Address]kernel.Peer {
	out := make(map[kernel.Address]kernel.Peer, len(w.Peers))
	for addr, p := range w.Peers {
		out[kernel.NewAddress(addr)] = kernel.Peer{Mac: p.VXLANMAC}
	}
	return out
}

func routesOf(w *desired.Dataplane) map[kernel.Prefix]kernel.Route {
	out := make(map[kernel.Prefix]kernel.Route, len(w.Routes))
	for p, r := range w.Routes {
		out[kernel.NewPrefix(p)] = routeOf(r)
	}
	return out
}

func natNetsOf(w *desired.Dataplane) map[kernel.Prefix]uint32 {
	out := make(map[kernel.Prefix]uint32, len(w.NATNets))
	for p, n := range w.NATNets {
		var flags uint32
		if n.Source {
			flags |= kernel.NATSource
		}
		if n.Inside {
			flags |= kernel.NATInside
		}
		if n.Service {
			flags |= kernel.NATService
		}
		out[kernel.NewPrefix(p)] = flags
	}
	return out
}

func routeOf(r desired.Route) kernel.Route {
	route := kernel.Route{Kind: uint8(routeKinds[r.Kind])}
	if r.Kind == desired.RouteWorkload {
		route.Forward = uint8(forwards[r.Encap])
		route.Node = kernel.NewAddress(r.Via)
	}
	return route
}

// attachments are the hooks that should carry our programs.
func (d *Dataplane) attachments(w *desired.Dataplane) map[loader.Attachment]bool {
	out := make(map[loader.Attachment]bool)
	for _, e := range w.Endpoints {
		out[loader.Attachment{Program: loader.FromWorkload, Ifindex: e.Ifindex}] = true
		out[loader.Attachment{Program: loader.ToWorkload, Ifindex: e.Ifindex}] = true
	}
	for i := range w.Uplinks {
		out[loader.Attachment{Program: loader.FromNetwork, Ifindex: i}] = true
		out[loader.Attachment{Program: loader.ToNetwork, Ifindex: i}] = true
		if d.options.XDP && !w.NoXDP {
			out[loader.Attachment{Program: loader.XDPNetwork, Ifindex: i}] = true
		}
	}
	for i, key := range w.HostEndpoints {
		if i == desired.TunnelIndex {
			continue
		}
		out[loader.Attachment{Program: loader.FromNetwork, Ifindex: i}] = true
		out[loader.Attachment{Program: loader.ToNetwork, Ifindex: i}] = true
		if w.Policy.HostEndpoints[key].Untracked.Ingress != 0 && !w.NoXDP {
			out[loader.Attachment{Program: loader.XDPNetwork, Ifindex: i}] = true
		}
	}
	return out
}

// attach puts this process's programs on every hook, once, and again after Resync:
// that a link is still there is not known without asking. failing gets the endpoints
// whose interface could not be closed.
func (d *Dataplane) attach(w *desired.Dataplane, failing desired.EndpointErrors) error {
	endpoints := make(map[int]api.Key, len(w.Endpoints)+len(w.HostEndpoints))
	for i, key := range w.HostEndpoints {
		if _, uplink := w.Uplinks[i]; !uplink {
			endpoints[i] = key
		}
	}
	for key, e := range w.Endpoints {
		endpoints[e.Ifindex] = key
	}
	var missing []loader.Attachment
	for a := range d.attachments(w) {
		if !d.attached[a] {
			missing = append(missing, a)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	failed := d.programs.AttachAll(missing)
	var errs []error
	for _, a := range missing {
		err := failed[a]
		if a.Program == loader.XDPNetwork {
			d.noteXDP(a, w, err)
			d.attached[a] = true // or tried
			continue
		}
		if key, ok := endpoints[a.Ifindex]; ok && err != nil {
			failing[key] = err
		} else if err != nil {
			errs = append(errs, err)
		}
		d.attached[a] = err == nil
	}
	return errors.Join(errs...)
}

// noteXDP takes note of whether xdp_network could be put on an interface. That it could
// not, because another program is there or the driver refuses, is no error: from_network
// judges the same packets in the same way, only later. It is tried again after Resync.
func (d *Dataplane) noteXDP(a loader.Attachment, w *desired.Dataplane, err error) {
	d.refusing.Lock()
	defer d.refusing.Unlock()
	if err == nil {
		delete(d.refused, a)
		return
	}
	if why := err.Error(); d.refused[a] != why {
		d.refused[a] = why
		args := []any{"interface", a.Ifindex, "error", err}
		if l, ok := w.Uplinks[a.Ifindex]; ok {
			args = append(args, "uplink", l.Name)
		}
		if key, ok := w.HostEndpoints[a.Ifindex]; ok {
			args = append(args, "endpoint", key)
		}
		d.log.Warn("no XDP program; what it would have dropped is dropped in tc", args...)
	}
}

// detach takes programs off the hooks that are not wanted, and forgets the links of
// interfaces that are gone.
func (d *Dataplane) detach(w *desired.Dataplane) error {
	if !d.listed { // what a former process has left
		list, err := d.links.List()
		if err != nil {
			return err
		}
		for a := range list {
			if !d.attached[a] {
				d.attached[a] = false
			}
		}
		d.listed = true
	}
	want := d.attachments(w)
	var unwanted []loader.Attachment
	for a := range d.attached {
		if !want[a] {
			unwanted = append(unwanted, a)
		}
	}
	if len(unwanted) == 0 {
		return nil
	}
	failed := d.links.DetachAll(unwanted)
	var errs []error
	for _, a := range unwanted {
		if err := failed[a]; err != nil {
			errs = append(errs, fmt.Errorf("detach: %w", err))
			continue
		}
		delete(d.attached, a)
		d.refusing.Lock()
		delete(d.refused, a)
		d.refusing.Unlock()
	}
	return errors.Join(errs...)
}
