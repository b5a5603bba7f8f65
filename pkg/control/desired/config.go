package desired

// Config is what the node's environment decides. A field that is empty leaves
// the decision to FelixConfiguration `node.<name>`, then `default`, then
// Calico's default.
type Config struct {
	Backend string // CALICO_NETWORKING_BACKEND: bird (also the empty string), vxlan or none
	// RouterID is CALICO_ROUTER_ID: an IPv4 address, "hash" for one made from the
	// node's name, or empty for the node's IPv4 address.
	RouterID string
	// Datastore are the URLs of the etcd servers that the daemon uses, and
	// DatastoreListen those that the one inside it serves: no policy cuts them off.
	Datastore, DatastoreListen []string
	// AdvertiseClusterIPs is CALICO_ADVERTISE_CLUSTER_IPS: nets of service cluster
	// addresses, by commas. It wins over BGPConfiguration's.
	AdvertiseClusterIPs string
	// ServiceCIDRs is CALICO_SERVICE_CIDRS: nets, by commas, of addresses that the host's own
	// rules lead to others, beside those that BGPConfiguration and AdvertiseClusterIPs
	// name.
	ServiceCIDRs string
	// Felix holds FELIX_* variables by lower-cased parameter name
	// ("defaultendpointtohostaction").
	Felix map[string]string
	// FelixFile is what Felix's configuration file says, named alike. Felix goes before
	// it, and it before all FelixConfigurations.
	FelixFile map[string]string
}

// The networking backends: with BGP, without, and none at all, where the node
// only enforces policy and something else carries packets between nodes.
const (
	BackendBIRD  = "bird"
	BackendVXLAN = "vxlan"
	BackendNone  = "none"
)

func (c Config) backend() string {
	switch c.Backend {
	case BackendVXLAN, BackendNone:
		return c.Backend
	}
	return BackendBIRD
}
