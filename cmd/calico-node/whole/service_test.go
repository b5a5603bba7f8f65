package whole

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"calico-xdp/tools/testbed"
)

const serviceRouter = `
log stderr { error, bug };
router id 10.10.1.1;
protocol device { }
protocol kernel { ipv4 { import none; export where source = RTS_BGP; }; }
protocol bgp host1 {
  local 10.10.1.1 as 65100; neighbor 10.10.1.2 as 64512; password "tea"; graceful restart on;
  connect delay time 1; connect retry time 1; error wait time 1, 2;
  ipv4 { import all; export none; };
}
`

// TestServices: a router learns of Kubernetes' services from those nodes that should
// have their traffic, through a session whose password is in a Secret; and it keeps all of
// that while the daemon restarts.
func TestServices(t *testing.T) {
	c := newCluster(t, options{subnets: []int{1}})
	a, router := c.nodes[0], c.lab.Router
	kubernetes := testbed.StartKubernetes(t)
	openGate(c, a.Namespace, "127.0.0.1:6443", kubernetes.Address())
	path := filepath.Join(a.dir, "kubeconfig")
	if err := os.WriteFile(path, []byte(kubernetes.Kubeconfig("127.0.0.1:6443")), 0o600); err != nil {
		t.Fatal(err)
	}
	a.stop()
	a.environ = append(a.environ, "KUBECONFIG="+path, "CALICO_K8S_NODE_REF=host1.example")

	const apis = "/apis/discovery.k8s.io/v1/namespaces/shop/endpointslices/"
	slice := func(name, service, node string) {
		kubernetes.Put(apis+name, fmt.Sprintf(`{"addressType": "IPv4", "metadata": {"labels": {"kubernetes.io/service-name": %q}},
			"endpoints": [{"addresses": ["10.65.0.9"], "nodeName": %q, "conditions": {"ready": true}}]}`, service, node))
	}
	kubernetes.Put("/api/v1/namespaces/kube-system/secrets/bgp", `{"data": {"router": "dGVh"}}`)
	kubernetes.Put("/api/v1/namespaces/shop/services/web", `{"spec": {"type": "LoadBalancer", "clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7"],
		"externalTrafficPolicy": "Local", "externalIPs": ["198.51.100.7"]}, "status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.7"}]}}}`)
	kubernetes.Put("/api/v1/namespaces/shop/services/everywhere", `{"spec": {"type": "ClusterIP", "clusterIP": "10.96.0.8"}}`)
	slice("web-1", "web", "host1.example")
	slice("everywhere-1", "everywhere", "host1.example")

	conf := filepath.Join(a.dir, "bird.conf")
	if err := os.WriteFile(conf, []byte(serviceRouter), 0o600); err != nil {
		t.Fatal(err)
	}
	bird := router.Start(t, "bird", "-f", "-c", conf, "-s", filepath.Join(a.dir, "bird.ctl"))
	c.ctl(`
{apiVersion: projectcalico.org/v3, kind: BGPPeer, metadata: {name: router}, spec: {peerIP: 10.10.1.1, asNumber: 65100, password: {secretKeyRef: {name: bgp, key: router}}}}
---
{apiVersion: projectcalico.org/v3, kind: BGPConfiguration, metadata: {name: default}, spec: {nodeToNodeMeshEnabled: false,
 serviceClusterIPs: [{cidr: 10.96.0.0/12}], serviceExternalIPs: [{cidr: 198.51.100.0/24}], serviceLoadBalancerIPs: [{cidr: 203.0.113.0/24}]}}`, "apply", "-f", "-")
	a.restart()

	learned := func() string {
		var out []string
		for line := range strings.Lines(router.MustRun(t, "ip", "route", "show", "proto", "bird")) {
			if prefix, rest, _ := strings.Cut(line, " "); strings.HasPrefix(rest, "via 10.10.1.2 ") && !strings.HasPrefix(prefix, "10.6") {
				out = append(out, prefix)
			}
		}
		return strings.Join(out, " ")
	}
	expect := func(when, want string) {
		t.Helper()
		got := ""
		if !c.eventually(func() bool { got = learned(); return got == want }) {
			t.Fatalf("%s: the router has learned %s\nwant %s\n%s", when, got, want, bird.Output())
		}
	}
	const nets, web = "10.96.0.0/12 198.51.100.0/24 203.0.113.0/24", "10.96.0.0/12 10.96.0.7 198.51.100.0/24 198.51.100.7 203.0.113.0/24 203.0.113.7"
	expect("an endpoint here", web)
	slice("web-1", "web", "host2.example")
	expect("the endpoint is elsewhere", nets)
	slice("web-1", "web", "host1.example")
	expect("the endpoint is back", web)

	changes := router.Start(t, "ip", "monitor", "route")
	a.daemon.Kill()
	time.Sleep(100 * time.Millisecond)
	a.restart()
	if !c.eventually(func() bool {
		s, err := a.api().BGP(t.Context())
		return err == nil && len(s.Peers) == 1 && s.Peers[0].State == "up"
	}) {
		t.Fatal("the session is not back")
	}
	time.Sleep(2 * time.Second) // until after our End-of-RIB marker
	if got := changes.Output(); strings.Contains(got, "Deleted") {
		t.Errorf("the router's routes while the daemon restarts:\n%s", got)
	}
	expect("after a restart", web)
	kubernetes.Delete("/api/v1/namespaces/shop/services/web")
	expect("the service is gone", nets)
	a.stop() // whatever it follows
}
