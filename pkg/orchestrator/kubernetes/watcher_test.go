package kubernetes

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"calico-xdp/pkg/control/desired"

	core "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
)

// start returns a watcher of node "a" that runs, beside an API server with objects.
func start(t *testing.T, objects ...runtime.Object) (*Watcher, *fake.Clientset) {
	t.Helper()
	server := fake.NewClientset(objects...)
	return run(t, func() (Clients, error) { return server, nil }, pendingTime), server
}

func run(t *testing.T, connect func() (Clients, error), limit time.Duration) *Watcher {
	t.Helper()
	w := New(Options{Node: "a", Namespace: "calico-system", Connect: connect}, slog.New(slog.NewTextHandler(t.Output(), nil)))
	w.limit = limit
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		w.Run(ctx)
	}()
	t.Cleanup(func() { cancel(); <-done })
	return w
}

// eventually waits for changes until got gives want.
func (w *Watcher) eventually(t *testing.T, what, want string, got func() string) {
	t.Helper()
	limit := time.After(20 * time.Second)
	for {
		now := got()
		if now == want {
			return
		}
		select {
		case <-w.Changed():
		case <-limit:
			t.Fatalf("%s:\n%s\nwant:\n%s", what, now, want)
		}
	}
}

func (w *Watcher) serviceText() string {
	var lines []string
	for _, s := range w.Services() {
		lines = append(lines, fmt.Sprintf("%s cluster %v external %v balancer %v %v local %v here %v %v ready %v %v",
			s.Name, s.ClusterIPs, s.ExternalIPs, s.LoadBalancer, s.BalancerIPs, s.Local, s.Here4, s.Here6, s.Ready4, s.Ready6))
	}
	return strings.Join(lines, "\n")
}

func (w *Watcher) secretText() string {
	var lines []string
	all := w.Secrets()
	for _, k := range slices.SortedFunc(maps.Keys(all), func(a, b desired.SecretKey) int {
		return cmp.Or(cmp.Compare(a.Secret, b.Secret), cmp.Compare(a.Key, b.Key))
	}) {
		lines = append(lines, k.Secret+"/"+k.Key+"="+all[k])
	}
	return strings.Join(lines, "\n")
}

func service(name string, spec core.ServiceSpec, balancer ...string) *core.Service {
	s := &core.Service{ObjectMeta: meta.ObjectMeta{Namespace: "shop", Name: name}, Spec: spec}
	for _, ip := range balancer {
		s.Status.LoadBalancer.Ingress = append(s.Status.LoadBalancer.Ingress, core.LoadBalancerIngress{IP: ip})
	}
	return s
}

// endpoints are those of a service, each as "node" or "node!" if it is not ready.
func endpoints(of, name string, family discovery.AddressType, nodes ...string) *discovery.EndpointSlice {
	s := &discovery.EndpointSlice{
		ObjectMeta:  meta.ObjectMeta{Namespace: "shop", Name: name, Labels: map[string]string{discovery.LabelServiceName: of}},
		AddressType: family,
	}
	for _, n := range nodes {
		node, unready := strings.CutSuffix(n, "!")
		s.Endpoints = append(s.Endpoints, discovery.Endpoint{NodeName: &node, Conditions: discovery.EndpointConditions{Ready: new(!unready)}})
	}
	return s
}

const local = core.ServiceExternalTrafficPolicyLocal

func TestServices(t *testing.T) {
	w, server := start(t,
		service("plain", core.ServiceSpec{Type: core.ServiceTypeClusterIP, ClusterIP: "10.96.0.1"}),
		service("both", core.ServiceSpec{Type: core.ServiceTypeNodePort, ClusterIP: "10.96.0.2", ClusterIPs: []string{"10.96.0.2", "fd96::2"}, ExternalTrafficPolicy: local}),
		service("web", core.ServiceSpec{Type: core.ServiceTypeLoadBalancer, ClusterIP: "10.96.0.3", ExternalIPs: []string{"198.51.100.3", "nonsense"}, ExternalTrafficPolicy: local}, "203.0.113.3", ""),
		service("headless", core.ServiceSpec{Type: core.ServiceTypeClusterIP, ClusterIP: "None", ClusterIPs: []string{"None"}}),
		service("elsewhere", core.ServiceSpec{Type: core.ServiceTypeExternalName, ExternalName: "example.org"}),
		endpoints("both", "both-4", discovery.AddressTypeIPv4, "b", "a!"),
		endpoints("both", "both-6", discovery.AddressTypeIPv6, "a"),
		endpoints("web", "web-1", discovery.AddressTypeIPv4, "b", "c"),
		endpoints("web", "web-2", discovery.AddressTypeIPv4, "a"),
	)
	if !w.Pending() {
		t.Error("nothing is pending before anything has been asked for")
	}
	if got := w.serviceText(); got != "" {
		t.Errorf("services that nobody has asked for: %s", got)
	}
	w.Follow(true, nil)
	const both, plain = "shop/both cluster [10.96.0.2 fd96::2] external [] balancer false [] local true here false true ready true true\n",
		"shop/plain cluster [10.96.0.1] external [] balancer false [] local false here false false ready false false\n"
	const web = "shop/web cluster [10.96.0.3] external [198.51.100.3] balancer true [203.0.113.3] local true here "
	w.eventually(t, "services", both+plain+web+"true false ready true false", w.serviceText)
	if w.Pending() {
		t.Error("pending after all has been read")
	}

	// The endpoint here is no longer ready; is gone; is back.
	ctx, in := t.Context(), server.DiscoveryV1().EndpointSlices("shop")
	update := func(s *discovery.EndpointSlice) {
		t.Helper()
		if _, err := in.Update(ctx, s, meta.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	update(endpoints("web", "web-2", discovery.AddressTypeIPv4, "a!"))
	w.eventually(t, "not ready here", both+plain+web+"false false ready true false", w.serviceText)
	update(endpoints("web", "web-1", discovery.AddressTypeIPv4, "b", "a"))
	w.eventually(t, "in the other slice", both+plain+web+"true false ready true false", w.serviceText)
	if err := in.Delete(ctx, "web-1", meta.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	w.eventually(t, "slice gone", both+plain+web+"false false ready false false", w.serviceText)

	// What makes no difference here is not told.
	before := w.Services()
	update(endpoints("both", "both-4", discovery.AddressTypeIPv4, "b", "c", "d"))
	if _, err := server.CoreV1().Services("shop").Update(ctx, service("plain", core.ServiceSpec{
		Type: core.ServiceTypeClusterIP, ClusterIP: "10.96.0.1", Selector: map[string]string{"app": "shop"},
	}), meta.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := server.CoreV1().Services("shop").Delete(ctx, "web", meta.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	w.eventually(t, "service gone", both+strings.TrimSpace(plain), w.serviceText)
	if got := w.Services(); &got[0] == &before[0] || &got[0] != &w.Services()[0] {
		t.Error("the list of services is made anew without a change, or not after one")
	}
	w.Follow(false, nil)
	if got := w.serviceText(); got != "" {
		t.Errorf("services that nobody asks for any more: %s", got)
	}
}

// TestStripTwice: client-go may strip what it has stripped already.
func TestStripTwice(t *testing.T) {
	w := New(Options{Node: "a"}, slog.New(slog.DiscardHandler))
	for _, object := range []any{
		service("web", core.ServiceSpec{Type: core.ServiceTypeLoadBalancer, ClusterIP: "10.96.0.3", ExternalTrafficPolicy: local}, "203.0.113.3"),
		endpoints("web", "web-1", discovery.AddressTypeIPv4, "b", "a"), endpoints("web", "web-2", discovery.AddressTypeIPv6, "b"),
		secret("calico-system", "bgp", map[string][]byte{"tor-1": []byte("tea")}),
	} {
		strip := func(o any) any { return stripSecret(stripService(w.stripSlice(o))) }
		once := strip(object)
		if twice := strip(once); !reflect.DeepEqual(once, twice) {
			t.Errorf("%+v, once more %+v", once, twice)
		}
	}
}

func secret(namespace, name string, data map[string][]byte) *core.Secret {
	return &core.Secret{ObjectMeta: meta.ObjectMeta{Namespace: namespace, Name: name}, Data: data}
}

func TestSecrets(t *testing.T) {
	w, server := start(t,
		secret("calico-system", "bgp", map[string][]byte{"tor-1": []byte("tea"), "tor-2": []byte("coffee")}),
		secret("calico-system", "other", map[string][]byte{"key": []byte("value")}),
		secret("default", "bgp", map[string][]byte{"tor-1": []byte("not this one")}),
	)
	w.Follow(false, []string{"bgp", "missing", "bgp"})
	w.eventually(t, "secrets", "bgp/tor-1=tea\nbgp/tor-2=coffee", w.secretText)
	w.eventually(t, "pending", "false", func() string { return fmt.Sprint(w.Pending()) })
	ctx, in := t.Context(), server.CoreV1().Secrets("calico-system")
	if _, err := in.Create(ctx, secret("calico-system", "missing", map[string][]byte{"late": []byte("milk")}), meta.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := in.Update(ctx, secret("calico-system", "bgp", map[string][]byte{"tor-1": []byte("water")}), meta.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	w.eventually(t, "secrets", "bgp/tor-1=water\nmissing/late=milk", w.secretText)
	if err := in.Delete(ctx, "missing", meta.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	w.eventually(t, "secrets", "bgp/tor-1=water", w.secretText)
	w.Follow(false, []string{"other"})
	w.eventually(t, "secrets", "other/key=value", w.secretText)
	w.Follow(false, []string{"bgp"})
	w.eventually(t, "secrets", "bgp/tor-1=water", w.secretText)
}

// TestNoServer: nobody waits for a server that does not answer for ever, and what it has
// to tell is taken up when it does.
func TestNoServer(t *testing.T) {
	server := fake.NewClientset(service("plain", core.ServiceSpec{Type: core.ServiceTypeClusterIP, ClusterIP: "10.96.0.1"}))
	var there atomic.Bool
	w := run(t, func() (Clients, error) {
		if !there.Load() {
			return nil, errors.New("nobody there")
		}
		return server, nil
	}, 50*time.Millisecond)
	w.Follow(true, nil)
	w.eventually(t, "pending", "false", func() string { return fmt.Sprint(w.Pending()) })
	if got := w.serviceText(); got != "" {
		t.Errorf("services of nobody: %s", got)
	}
	there.Store(true)
	w.Follow(true, []string{"bgp"}) // looks again at once
	w.eventually(t, "services", "shop/plain cluster [10.96.0.1] external [] balancer false [] local false here false false ready false false", w.serviceText)
	if w.Pending() {
		t.Error("pending again")
	}
}
