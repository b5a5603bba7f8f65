// Package nodeapi is how other programs on a host talk to its calico-node: JSON
// over HTTP on a unix socket. The CNI plugin waits here until an endpoint's
// policy is live; calicoctl reads the node's and its BGP sessions' state.
package nodeapi

import (
	"fmt"
	"path/filepath"
	"time"

	"calico-xdp/pkg/api"
)

// DefaultRunDir is where the daemon keeps its socket unless told otherwise.
const DefaultRunDir = "/var/run/calico"

// SocketPath returns the path of the daemon's socket.
func SocketPath(runDir string) string { return filepath.Join(runDir, "node.sock") }

// Status is the state of one node.
type Status struct {
	Node      string    `json:"node"`
	Version   string    `json:"version"`
	PID       int       `json:"pid"`
	Started   time.Time `json:"started"`
	Backend   string    `json:"backend"`
	Datastore []string  `json:"datastore"` // etcd's URLs
	Addresses []Address `json:"addresses"`
	// Revision is the datastore revision that the kernel enforces; 0 before the
	// first complete round.
	Revision int64 `json:"revision"`
	// InSync is true once everything in the datastore has been seen and applied.
	InSync bool `json:"inSync"`
	// Error is why the last round did not complete; empty if it did.
	Error string `json:"error,omitempty"`
	// WorkloadMTU is the MTU for a new workload's interface, bytes.
	WorkloadMTU int        `json:"workloadMTU"`
	Endpoints   []Endpoint `json:"endpoints"`
	Problems    []Problem  `json:"problems,omitempty"`
}

// Address is one of the node's own addresses, as in its Node resource.
type Address struct {
	Address   string `json:"address"` // "10.0.0.1/24"
	Interface string `json:"interface,omitempty"`
	Reason    string `json:"reason"` // how it was chosen: "IP=10.0.0.1", "first-found", …
}

// EndpointState says how far an endpoint has come.
type EndpointState string

const (
	EndpointReady   EndpointState = "ready"   // the kernel enforces it
	EndpointPending EndpointState = "pending" // next round
	EndpointWaiting EndpointState = "waiting" // its interface does not exist
	EndpointClosed  EndpointState = "closed"  // something is wrong with it: it is left out
)

// Endpoint is one workload endpoint of this node.
type Endpoint struct {
	Namespace string        `json:"namespace"`
	Name      string        `json:"name"`
	Interface string        `json:"interface"`
	Addresses []string      `json:"addresses"`
	State     EndpointState `json:"state"`
	Problem   string        `json:"problem,omitempty"`
}

// Problem is one object that could not be applied whole, or a parameter that
// could not be used.
type Problem struct {
	Object string `json:"object"` // "IPPool(default-ipv4-ippool)"
	Error  string `json:"error"`
}

// BGPStatus is the state of the node's BGP sessions.
type BGPStatus struct {
	Enabled  bool            `json:"enabled"`
	AS       uint32          `json:"as,omitempty"`
	RouterID string          `json:"routerID,omitempty"`
	Peers    []BGPPeerStatus `json:"peers"`
}

// BGPPeerStatus is one session, in the words of `calicoctl node status`.
type BGPPeerStatus struct {
	Address string    `json:"address"`
	Type    string    `json:"type"`   // "node-to-node mesh", "node specific", "global"
	State   string    `json:"state"`  // "up" or "start"
	Since   time.Time `json:"since"`  // of State
	Info    string    `json:"info"`   // "Established", "Active", …
	Family  string    `json:"family"` // "v4" or "v6"
	Name    string    `json:"name"`   // the BGPPeer that it follows from, or "mesh"; then the node, if it is one
	AS      uint32    `json:"as"`
	// Received and Advertised count prefixes.
	Received   int `json:"received"`
	Advertised int `json:"advertised"`
	// Flaps is how often the session went down in the last two minutes.
	Flaps int `json:"flaps,omitempty"`
}

// BGPRoutes is what peers and this node tell each other.
type BGPRoutes struct {
	Received   []BGPRoute `json:"received"`
	Advertised []BGPRoute `json:"advertised"`
}

// BGPRoute is a route from a peer or to one.
type BGPRoute struct {
	Prefix      string   `json:"prefix"`
	NextHop     string   `json:"nextHop"`
	Peer        string   `json:"peer"`
	ASPath      string   `json:"asPath,omitempty"` // "65100 65200"
	Communities []string `json:"communities,omitempty"`
	// Best: of those that were received for the prefix, this one is used, alone or
	// with others that are as good.
	Best  bool `json:"best,omitempty"`
	Stale bool `json:"stale,omitempty"` // its peer is away, and back soon
}

// Kept apart from api.Key so that the wire does not depend on that type.
type waitRequest struct {
	Kind      string        `json:"kind,omitempty"`
	Namespace string        `json:"namespace,omitempty"`
	Name      string        `json:"name,omitempty"`
	Revision  int64         `json:"revision"`
	Timeout   time.Duration `json:"timeout,omitempty"` // nanoseconds; 0: as long as the connection lasts
}

func (r waitRequest) key() api.Key {
	return api.Key{Kind: r.Kind, Namespace: r.Namespace, Name: r.Name}
}

type errorBody struct {
	Error string `json:"error"`
}

// NotEnforcedError says that what was waited for did not come about.
type NotEnforcedError struct {
	Key    api.Key
	Reason string
}

func (e *NotEnforcedError) Error() string {
	if e.Key == (api.Key{}) {
		return "not enforced: " + e.Reason
	}
	return fmt.Sprintf("%s not enforced: %s", e.Key, e.Reason)
}
