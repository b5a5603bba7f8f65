package control

import (
	"strings"
	"testing"

	v3 "github.com/projectcalico/api/pkg/apis/projectcalico/v3"
)

func TestEnvironmentDefaults(t *testing.T) {
	e, err := ReadEnvironment(nil, "Host-1.example.org")
	if err != nil {
		t.Fatal(err)
	}
	if e.Node != "host-1.example.org" || e.IPv4.Value != "" || e.IPv4.Method != "first-found" || e.AS != nil {
		t.Errorf("got %+v", e)
	}
	p := e.IPv4Pool.Spec
	if p.CIDR != "192.168.0.0/16" || p.IPIPMode != v3.IPIPModeAlways || p.VXLANMode != v3.VXLANModeNever || !p.NATOutgoing {
		t.Errorf("IPv4 pool %+v", p)
	}
	p = e.IPv6Pool.Spec
	if p.CIDR != "" || p.IPIPMode != v3.IPIPModeNever || p.VXLANMode != v3.VXLANModeNever || p.NATOutgoing {
		t.Errorf("IPv6 pool %+v", p)
	}
}

func TestEnvironment(t *testing.T) {
	e, err := ReadEnvironment([]string{
		"NODENAME=n1", "IP=10.0.0.1/24", "IP6=autodetect", "IP6_AUTODETECTION_METHOD=interface=eth.*", "AS=65001",
		"CALICO_NETWORKING_BACKEND=vxlan", "CALICO_ROUTER_ID=hash", "CALICO_K8S_NODE_REF=n1.k8s",
		"FELIX_HEALTHHOST=0.0.0.0", "FELIX_DefaultEndpointToHostAction=RETURN",
		"CALICO_IPV4POOL_CIDR=10.65.0.0/16", "CALICO_IPV4POOL_VXLAN=CrossSubnet", "CALICO_IPV4POOL_NAT_OUTGOING=false",
		"CALICO_IPV4POOL_BLOCK_SIZE=28", "CALICO_IPV4POOL_NODE_SELECTOR=rack == 'a'", "CALICO_IPV6POOL_CIDR=none",
	}, "ignored")
	if err != nil {
		t.Fatal(err)
	}
	if e.Node != "n1" || e.IPv4.given.String() != "10.0.0.1/24" || e.IPv6.Method != "interface=eth.*" || *e.AS != 65001 ||
		e.Config.Backend != "vxlan" || e.Config.RouterID != "hash" || e.K8sNode != "n1.k8s" ||
		e.Config.Felix["healthhost"] != "0.0.0.0" || e.Config.Felix["defaultendpointtohostaction"] != "RETURN" {
		t.Errorf("got %+v", e)
	}
	p := e.IPv4Pool.Spec
	// VXLAN asked for and IPIP not: not both.
	if p.CIDR != "10.65.0.0/16" || p.IPIPMode != v3.IPIPModeNever || p.VXLANMode != v3.VXLANModeCrossSubnet ||
		p.NATOutgoing || p.BlockSize != 28 || p.NodeSelector != "rack == 'a'" {
		t.Errorf("IPv4 pool %+v", p)
	}
	if e.IPv6Pool != nil {
		t.Error("IPv6 pool in spite of none")
	}
}

func TestEnvironmentFaults(t *testing.T) {
	_, err := ReadEnvironment([]string{
		"NODENAME=a/b", "IP=fd00::1", "IP6=x", "AS=many", "NO_DEFAULT_POOLS=perhaps",
		"CALICO_IPV4POOL_CIDR=10.0.0.0", "CALICO_IPV4POOL_IPIP=Always", "CALICO_IPV4POOL_VXLAN=Always",
		"CALICO_IPV6POOL_VXLAN=Sometimes", "CALICO_IPV4POOL_BLOCK_SIZE=big",
	}, "h")
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{
		`NODENAME "a/b"`, `IP "fd00::1": wrong address family`, `IP6 "x"`, `AS "many"`, `NO_DEFAULT_POOLS "perhaps"`,
		`CALICO_IPV4POOL_CIDR "10.0.0.0"`, `CALICO_IPV4POOL_IPIP "Always": CALICO_IPV4POOL_VXLAN is Always`,
		`CALICO_IPV6POOL_VXLAN "Sometimes"`, `CALICO_IPV4POOL_BLOCK_SIZE "big"`,
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("does not say %s:\n%v", want, err)
		}
	}
}
