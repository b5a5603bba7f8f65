package kubernetes

import (
	"cmp"
	"context"
	"net/netip"
	"slices"

	"calico-xdp/pkg/control/desired"

	core "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	"k8s.io/client-go/tools/cache"
)

// followServices keeps the services and their endpoints until ctx ends.
func (w *Watcher) followServices(ctx context.Context, c Clients) {
	stale := func() {
		w.mu.Lock()
		told := w.seen.services
		w.stale = true
		w.mu.Unlock()
		if told {
			w.signal()
		}
	}
	services := informer(w, c, "services", c.CoreV1().Services(""), "", &core.Service{}, stripService, stale)
	endpoints := informer(w, c, "endpoint slices", c.DiscoveryV1().EndpointSlices(""), "", &discovery.EndpointSlice{}, w.stripSlice, stale)
	w.mu.Lock()
	w.services, w.slices = services.GetStore(), endpoints.GetStore()
	w.mu.Unlock()
	w.keep(ctx, []cache.SharedIndexInformer{services, endpoints}, func() {
		w.seen.services, w.stale = true, true
		w.log.Info("kubernetes: services are followed", "services", len(services.GetStore().ListKeys()))
	})
}

// keep runs informers until ctx ends. When all have read everything once, seen is
// called, under the lock.
func (w *Watcher) keep(ctx context.Context, informers []cache.SharedIndexInformer, seen func()) {
	done := make(chan struct{})
	for _, i := range informers {
		go func() {
			i.RunWithContext(ctx)
			done <- struct{}{}
		}()
	}
	synced := make([]cache.InformerSynced, len(informers))
	for n, i := range informers {
		synced[n] = i.HasSynced
	}
	if cache.WaitForCacheSync(ctx.Done(), synced...) {
		w.mu.Lock()
		if ctx.Err() == nil {
			seen()
		}
		w.mu.Unlock()
		w.signal()
	}
	for range informers {
		<-done
	}
}

// Services are those that BGP may tell of, by name; none before all have been read.
// What is returned is not to be changed.
func (w *Watcher) Services() []desired.Service {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.stale && w.seen.services && w.want.services {
		w.stale, w.found = false, w.readServices()
	}
	if !w.want.services {
		return nil
	}
	return w.found
}

func (w *Watcher) readServices() []desired.Service {
	type families struct{ v4, v6 bool }
	here, ready := make(map[string]families), make(map[string]families)
	for _, object := range w.slices.List() {
		s, ok := object.(*discovery.EndpointSlice)
		if !ok || len(s.Endpoints) == 0 {
			continue
		}
		name := s.Namespace + "/" + s.Labels[discovery.LabelServiceName]
		add := func(to map[string]families) {
			f := to[name]
			f.v4 = f.v4 || s.AddressType == discovery.AddressTypeIPv4
			f.v6 = f.v6 || s.AddressType == discovery.AddressTypeIPv6
			to[name] = f
		}
		add(ready)
		if s.Endpoints[0].NodeName != nil {
			add(here)
		}
	}
	var out []desired.Service
	for _, object := range w.services.List() {
		if s, ok := object.(*core.Service); ok {
			if service, ok := serviceOf(s); ok {
				f, any := here[service.Name], ready[service.Name]
				service.Here4, service.Here6 = f.v4, f.v6
				service.Ready4, service.Ready6 = any.v4, any.v6
				out = append(out, service)
			}
		}
	}
	slices.SortFunc(out, func(a, b desired.Service) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

// serviceOf reads a service that has an address of its own.
func serviceOf(s *core.Service) (desired.Service, bool) {
	switch s.Spec.Type {
	case core.ServiceTypeClusterIP, core.ServiceTypeNodePort, core.ServiceTypeLoadBalancer, "":
	default:
		return desired.Service{}, false
	}
	out := desired.Service{
		Name:         s.Namespace + "/" + s.Name,
		LoadBalancer: s.Spec.Type == core.ServiceTypeLoadBalancer,
		Local:        s.Spec.ExternalTrafficPolicy == core.ServiceExternalTrafficPolicyLocal,
	}
	add := func(to *[]netip.Addr, text string) {
		if a, err := netip.ParseAddr(text); err == nil && !slices.Contains(*to, a.Unmap()) {
			*to = append(*to, a.Unmap())
		}
	}
	for _, a := range append([]string{s.Spec.ClusterIP}, s.Spec.ClusterIPs...) {
		add(&out.ClusterIPs, a) // "None" is no address
	}
	if len(out.ClusterIPs) == 0 {
		return desired.Service{}, false
	}
	for _, a := range s.Spec.ExternalIPs {
		add(&out.ExternalIPs, a)
	}
	for _, i := range s.Status.LoadBalancer.Ingress {
		add(&out.BalancerIPs, i.IP)
	}
	return out, true
}

func stripService(object any) any {
	s, ok := object.(*core.Service)
	if !ok {
		return object
	}
	out := &core.Service{ObjectMeta: bare(s.ObjectMeta), Spec: core.ServiceSpec{
		Type: s.Spec.Type, ClusterIP: s.Spec.ClusterIP, ClusterIPs: s.Spec.ClusterIPs, ExternalIPs: s.Spec.ExternalIPs,
		ExternalTrafficPolicy: s.Spec.ExternalTrafficPolicy,
	}}
	for _, i := range s.Status.LoadBalancer.Ingress {
		out.Status.LoadBalancer.Ingress = append(out.Status.LoadBalancer.Ingress, core.LoadBalancerIngress{IP: i.IP})
	}
	return out
}

// stripSlice leaves one endpoint of a slice that has ready ones: on this node, if some
// are, else on none. What it leaves it may be given again.
func (w *Watcher) stripSlice(object any) any {
	s, ok := object.(*discovery.EndpointSlice)
	if !ok {
		return object
	}
	out := &discovery.EndpointSlice{ObjectMeta: bare(s.ObjectMeta), AddressType: s.AddressType}
	out.Labels = map[string]string{discovery.LabelServiceName: s.Labels[discovery.LabelServiceName]}
	for _, e := range s.Endpoints {
		switch ready := e.Conditions.Ready == nil || *e.Conditions.Ready; {
		case !ready:
		case e.NodeName != nil && *e.NodeName == w.o.Node:
			out.Endpoints = []discovery.Endpoint{{NodeName: &w.o.Node}}
			return out
		default:
			out.Endpoints = []discovery.Endpoint{{}}
		}
	}
	return out
}
