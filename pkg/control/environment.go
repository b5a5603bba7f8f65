package control

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"strconv"
	"strings"

	"calico-xdp/pkg/api"
	"calico-xdp/pkg/control/desired"

	v3 "github.com/projectcalico/api/pkg/apis/projectcalico/v3"
	"github.com/projectcalico/api/pkg/lib/numorstring"
)

// Environment is what the daemon's environment says of the node, in the
// variables that users of Calico know.
type Environment struct {
	Node    string         // NODENAME, else the host's name, lower case
	Config  desired.Config // CALICO_NETWORKING_BACKEND, CALICO_ROUTER_ID, FELIX_*
	IPv4    AddressChoice  // IP, IP_AUTODETECTION_METHOD
	IPv6    AddressChoice  // IP6, IP6_AUTODETECTION_METHOD
	AS      *numorstring.ASNumber
	K8sNode string // CALICO_K8S_NODE_REF
	// Kubernetes says that there is an API server to ask: KUBECONFIG, or what a pod is
	// told. Namespace is where it has the Secrets of BGP: NAMESPACE, else kube-system.
	Kubernetes bool
	Namespace  string

	SecretsDir string // CALICO_SECRETS_DIR

	NoDefaultPools bool // NO_DEFAULT_POOLS
	// Pools are the default pools; nil where the CIDR is "none". The IPv6 one
	// has no CIDR if a random one is wanted.
	IPv4Pool, IPv6Pool *api.IPPool
}

// AddressChoice is how one of the node's addresses is chosen.
type AddressChoice struct {
	// Value is what IP or IP6 says: an address or prefix, "autodetect", "none",
	// or empty, which for IPv4 is "autodetect" unless the Node resource has an
	// address, and for IPv6 what the Node resource has.
	Value  string
	Method string // "first-found" unless told otherwise
	given  netip.Prefix
}

// Names of the default pools, Calico's.
const (
	DefaultIPv4Pool = "default-ipv4-ippool"
	DefaultIPv6Pool = "default-ipv6-ippool"
)

// ReadEnvironment reads what environ, in the form of os.Environ, says. All
// faults are reported, each with its variable.
func ReadEnvironment(environ []string, hostname string) (*Environment, error) {
	vars := make(map[string]string)
	e := &Environment{Config: desired.Config{Felix: make(map[string]string)}}
	for _, kv := range environ {
		name, value, _ := strings.Cut(kv, "=")
		vars[name] = strings.TrimSpace(value)
		if parameter, ok := strings.CutPrefix(strings.ToLower(name), "felix_"); ok {
			e.Config.Felix[parameter] = vars[name]
		}
	}
	var errs []error
	fail := func(name string, err error) {
		errs = append(errs, fmt.Errorf("%s %q: %w", name, vars[name], err))
	}

	e.Node = vars["NODENAME"]
	if e.Node == "" {
		e.Node = strings.ToLower(hostname)
	}
	if e.Node == "" || strings.ContainsAny(e.Node, "/ \t\n") {
		errs = append(errs, fmt.Errorf("NODENAME %q: not a name for a node", e.Node))
	}
	e.Config.Backend = cmp.Or(vars["CALICO_NETWORKING_BACKEND"], desired.BackendBIRD)
	e.Config.RouterID = vars["CALICO_ROUTER_ID"]
	e.Config.AdvertiseClusterIPs = vars["CALICO_ADVERTISE_CLUSTER_IPS"]
	e.Config.ServiceCIDRs = vars["CALICO_SERVICE_CIDRS"]
	e.SecretsDir = cmp.Or(vars["CALICO_SECRETS_DIR"], DefaultSecretsDir)
	e.K8sNode = vars["CALICO_K8S_NODE_REF"]
	e.Kubernetes = vars["KUBECONFIG"] != "" || vars["KUBERNETES_SERVICE_HOST"] != ""
	e.Namespace = cmp.Or(vars["NAMESPACE"], "kube-system")

	choose := func(name string, is6 bool) AddressChoice {
		c := AddressChoice{Value: vars[name], Method: vars[name+"_AUTODETECTION_METHOD"]}
		if c.Method == "" {
			c.Method = "first-found"
		}
		switch c.Value {
		case "", "none", "autodetect":
			return c
		}
		var err error
		if c.given, err = api.ParseNodeAddress(c.Value); err != nil {
			fail(name, errors.New(`want an address, alone or with its prefix length, "autodetect" or "none"`))
		} else if c.given.Addr().Is6() != is6 {
			fail(name, errors.New("wrong address family"))
		}
		return c
	}
	e.IPv4, e.IPv6 = choose("IP", false), choose("IP6", true)
	if v := vars["AS"]; v != "" {
		as, err := numorstring.ASNumberFromString(v)
		if err != nil {
			fail("AS", errors.New("not an AS number"))
		}
		e.AS = &as
	}

	boolean := func(name string, otherwise bool) bool {
		switch strings.ToLower(vars[name]) {
		case "":
			return otherwise
		case "true", "yes", "1", "y", "t":
			return true
		case "false", "no", "0", "n", "f":
			return false
		}
		fail(name, errors.New("want true or false"))
		return otherwise
	}
	e.NoDefaultPools = boolean("NO_DEFAULT_POOLS", false)
	pool := func(version, name, cidr string, is6 bool) *api.IPPool {
		prefix := "CALICO_IPV" + version + "POOL_"
		p := v3.NewIPPool()
		p.Name = name
		switch v := vars[prefix+"CIDR"]; v {
		case "none":
			return nil
		case "":
			p.Spec.CIDR = cidr
		default:
			p.Spec.CIDR = v
			if net, err := netip.ParsePrefix(v); err != nil || net.Addr().Is6() != is6 {
				fail(prefix+"CIDR", fmt.Errorf("not an IPv%s network", version))
			}
		}
		p.Spec.VXLANMode = v3.VXLANMode(mode(vars[prefix+"VXLAN"], "Never"))
		if p.Spec.VXLANMode == "" {
			fail(prefix+"VXLAN", errors.New("want Always, CrossSubnet or Never"))
		}
		p.Spec.IPIPMode = v3.IPIPModeNever
		if !is6 {
			otherwise := "Always"
			if p.Spec.VXLANMode != v3.VXLANModeNever {
				otherwise = "Never"
			}
			p.Spec.IPIPMode = v3.IPIPMode(mode(vars[prefix+"IPIP"], otherwise))
			switch {
			case p.Spec.IPIPMode == "":
				fail(prefix+"IPIP", errors.New("want Always, CrossSubnet or Never"))
			case p.Spec.IPIPMode != v3.IPIPModeNever && p.Spec.VXLANMode != v3.VXLANModeNever:
				fail(prefix+"IPIP", fmt.Errorf("%sVXLAN is %s: a pool has one of the two", prefix, p.Spec.VXLANMode))
			}
		}
		p.Spec.NATOutgoing = boolean(prefix+"NAT_OUTGOING", !is6)
		p.Spec.DisableBGPExport = boolean(prefix+"DISABLE_BGP_EXPORT", false)
		p.Spec.NodeSelector = vars[prefix+"NODE_SELECTOR"]
		if v := vars[prefix+"BLOCK_SIZE"]; v != "" {
			size, err := strconv.Atoi(v)
			if err != nil || size < 1 || size > math.MaxUint8 {
				fail(prefix+"BLOCK_SIZE", errors.New("not a prefix length"))
			}
			p.Spec.BlockSize = size
		}
		return p
	}
	e.IPv4Pool = pool("4", DefaultIPv4Pool, "192.168.0.0/16", false)
	e.IPv6Pool = pool("6", DefaultIPv6Pool, "", true)
	if strings.EqualFold(vars["FELIX_IPV6SUPPORT"], "false") {
		e.IPv6Pool = nil
	}
	return e, errors.Join(errs...)
}

// mode returns the API's word for a mode of encapsulation, empty for what is
// none.
func mode(v, otherwise string) string {
	switch strings.ToLower(v) {
	case "":
		return otherwise
	case "always":
		return "Always"
	case "crosssubnet", "cross-subnet":
		return "CrossSubnet"
	case "never", "off":
		return "Never"
	}
	return ""
}
