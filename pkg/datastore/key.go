package datastore

import (
	"fmt"
	"net/netip"
	"strings"

	"calico-xdp/pkg/api"
)

// Where the resources are. Names stand in keys as they are: Calico escapes
// nothing, so a name with a '/' has no key.
const (
	resourceRoot = "/calico/resources/v3/projectcalico.org/"
	ipamRoot     = "/calico/ipam/v2/"

	configKey    = ipamRoot + "config"
	handleRoot   = ipamRoot + "handle/"
	blockRoot    = ipamRoot + "assignment/"
	affinityRoot = ipamRoot + "host/"

	// What only we have. It is in the watched range, so that it comes in order with
	// the resources; the answers are not, since nobody but who asked wants them.
	operationsRoot = "/calico/operations/v1/"
	trialRoot      = operationsRoot + "trials/"
	holdRoot       = operationsRoot + "holds/"
	queryRoot      = operationsRoot + "queries/"
	answerRoot     = "/calico/xdp/v1/answers/" // query, node

	// One range holds all roots; [codec.key] tells what between them is not ours.
	watchBegin = ipamRoot
	watchEnd   = "/calico/resources/v3/projectcalico.org0" // '0' follows '/'
)

// codec turns resources' keys into etcd's and back. It never changes.
type codec struct {
	byName   map[string]*api.Kind
	byPlural map[string]*api.Kind
}

func newCodec() *codec {
	c := &codec{byName: make(map[string]*api.Kind), byPlural: make(map[string]*api.Kind)}
	for _, k := range api.Kinds() {
		c.byName[k.Name] = k
		if !k.Internal {
			c.byPlural[k.Plural] = k
		}
	}
	return c
}

// path returns the etcd key of k. Kinds with namespaces default to "default".
func (c *codec) path(k api.Key) (string, error) {
	kind := c.byName[k.Kind]
	if kind == nil {
		return "", fmt.Errorf("%s: unknown kind", k)
	}
	if k.Name == "" {
		return "", fmt.Errorf("%s: name missing", k)
	}
	switch kind.Name {
	case api.KindIPAMConfig:
		if k.Name != "default" {
			return "", fmt.Errorf(`%s: only "default" exists`, k)
		}
		return configKey, nil
	case api.KindIPAMBlock:
		block, err := api.ParseBlockName(k.Name)
		if err != nil {
			return "", fmt.Errorf("%s: %w", k, err)
		}
		return blockRoot + family(block) + "/block/" + api.BlockName(block), nil
	case api.KindBlockAffinity:
		node, block, err := api.ParseAffinityName(k.Name)
		if err != nil {
			return "", fmt.Errorf("%s: %w", k, err)
		}
		return affinityRoot + node + "/" + family(block) + "/block/" + api.BlockName(block), nil
	}
	if strings.Contains(k.Name+k.Namespace, "/") {
		return "", fmt.Errorf("%s: a name cannot contain '/'", k)
	}
	return c.prefix(kind, c.withNamespace(k).Namespace) + k.Name, nil
}

// withNamespace fills in the namespace if k's kind needs one, and drops it if
// the kind has none.
func (c *codec) withNamespace(k api.Key) api.Key {
	switch kind := c.byName[k.Kind]; {
	case kind == nil:
	case !kind.Namespaced:
		k.Namespace = ""
	case k.Namespace == "":
		k.Namespace = "default"
	}
	return k
}

// prefix returns how the etcd keys begin that a kind has in a namespace, or in
// all if namespace is empty.
func (c *codec) prefix(kind *api.Kind, namespace string) string {
	switch {
	case kind.Name == api.KindIPAMConfig:
		return configKey
	case kind.Name == api.KindIPAMBlock:
		return blockRoot
	case kind.Name == api.KindBlockAffinity:
		return affinityRoot
	case kind.Name == api.KindIPAMHandle:
		return handleRoot
	case kind.Name == api.KindTrial:
		return trialRoot
	case kind.Name == api.KindTrialHold:
		return holdRoot
	case kind.Name == api.KindEnforcementQuery:
		return queryRoot
	case kind.Namespaced && namespace != "":
		return resourceRoot + kind.Plural + "/" + namespace + "/"
	}
	return resourceRoot + kind.Plural + "/"
}

// key reads what [codec.path] writes. Anything else is not ours.
func (c *codec) key(path string) (api.Key, bool) {
	if rest, ok := strings.CutPrefix(path, resourceRoot); ok {
		plural, name, _ := strings.Cut(rest, "/")
		kind := c.byPlural[plural]
		if kind == nil {
			return api.Key{}, false
		}
		k := api.Key{Kind: kind.Name, Name: name}
		if kind.Namespaced {
			k.Namespace, k.Name, _ = strings.Cut(name, "/")
			if k.Namespace == "" {
				return k, false
			}
		}
		return k, k.Name != "" && !strings.Contains(k.Name, "/")
	}
	if path == configKey {
		return api.Key{Kind: api.KindIPAMConfig, Name: "default"}, true
	}
	for root, kind := range map[string]string{
		handleRoot: api.KindIPAMHandle, trialRoot: api.KindTrial, holdRoot: api.KindTrialHold, queryRoot: api.KindEnforcementQuery,
	} {
		if id, ok := strings.CutPrefix(path, root); ok {
			return api.Key{Kind: kind, Name: id}, id != "" && !strings.Contains(id, "/")
		}
	}
	var k api.Key
	if rest, ok := strings.CutPrefix(path, blockRoot); ok { // ipv4/block/192.168.46.128-26
		parts := strings.Split(rest, "/")
		if len(parts) != 3 {
			return k, false
		}
		k = api.Key{Kind: api.KindIPAMBlock, Name: parts[2]}
	}
	if rest, ok := strings.CutPrefix(path, affinityRoot); ok { // node-a/ipv4/block/192.168.46.128-26
		parts := strings.Split(rest, "/")
		if len(parts) != 4 {
			return k, false
		}
		k = api.Key{Kind: api.KindBlockAffinity, Name: parts[0] + "/" + parts[3]}
	}
	// A block must stand under its own family and be written as we write it:
	// two etcd keys must never be one key of ours.
	again, err := c.path(k)
	return k, err == nil && again == path
}

func family(p netip.Prefix) string {
	if p.Addr().Is4() {
		return "ipv4"
	}
	return "ipv6"
}

// Path returns the etcd key of a resource.
func (c *Client) Path(key api.Key) (string, error) { return c.codec.path(key) }

// KeyAt returns the resource that is at an etcd key, false if none of ours can be there.
func (c *Client) KeyAt(path string) (api.Key, bool) { return c.codec.key(path) }
