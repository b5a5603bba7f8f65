package desired

// Config is what the node's environment decides. A field that is empty leaves
// the decision to FelixConfiguration `node.<name>`, then `default`, then
// Calico's default.
type Config struct {
	Backend string // CALICO_NETWORKING_BACKEND: bird, vxlan or none
	// Felix holds FELIX_* variables by lower-cased parameter name
	// ("defaultendpointtohostaction").
	Felix map[string]string
}
