package main

import (
	"context"
	"crypto/sha1"
	"encoding/hex"
	"errors"
	"log/slog"
	"strings"

	"calico-xdp/pkg/api"
	"calico-xdp/pkg/datastore"
	"calico-xdp/pkg/ipam"
	"calico-xdp/pkg/nodeapi"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
)

// attachment is one interface of one container on the network, by all the names
// that it goes by.
type attachment struct {
	conf *netConf

	containerID, ifname, netns string
	args                       map[string]string

	endpoint     api.Key // of the WorkloadEndpoint
	orchestrator string  // "k8s" if the runtime names a pod, else "cni"
	pod          string
	hostName     string // the host's side of the veth
	mark         string // alias of the host's side: says whose it is
	handle       string // IPAM's
	elsewhere    bool   // another plugin makes the interface, and there is no endpoint
}

func newAttachment(cmd *skel.CmdArgs, conf *netConf) (*attachment, error) {
	args, err := parseArgs(cmd.Args)
	if err != nil {
		return nil, err
	}
	a := &attachment{
		conf: conf, containerID: cmd.ContainerID, ifname: cmd.IfName, netns: cmd.Netns, args: args,
		orchestrator: "cni",
		mark:         mark(conf.Name, cmd.ContainerID, cmd.IfName),
		handle:       handleOf(conf.Name, cmd.ContainerID),
	}
	namespace, workload, seed := "default", cmd.ContainerID, cmd.ContainerID
	if pod, ns := args["K8S_POD_NAME"], args["K8S_POD_NAMESPACE"]; pod != "" && ns != "" {
		a.orchestrator, a.pod = "k8s", pod
		namespace, workload, seed = ns, pod, ns+"."+pod
	}
	if cmd.IfName != "eth0" {
		seed += "." + cmd.IfName
	}
	sum := sha1.Sum([]byte(seed))
	a.hostName = "cali" + hex.EncodeToString(sum[:])[:11]
	a.endpoint = api.Key{
		Kind: api.KindWorkloadEndpoint, Namespace: namespace,
		Name: api.WorkloadEndpointName(conf.Nodename, a.orchestrator, workload, cmd.IfName),
	}
	return a, nil
}

// handleOf returns the IPAM handle of a container on a network, as Calico names
// it.
func handleOf(network, containerID string) string { return network + "." + containerID }

// mark returns the alias of a host interface of ours.
func mark(network, containerID, ifname string) string {
	return strings.Join([]string{network, containerID, ifname}, "/")
}

// parseMark reads what mark writes.
func parseMark(s string) (network, containerID, ifname string, ok bool) {
	parts := strings.Split(s, "/")
	if len(parts) != 3 {
		return "", "", "", false
	}
	return parts[0], parts[1], parts[2], true
}

// attributes are kept with the addresses.
func (a *attachment) attributes() map[string]string {
	out := map[string]string{ipam.AttributeNode: a.conf.Nodename, ipam.AttributeInterface: a.ifname}
	if a.elsewhere {
		out[ipam.AttributeType] = ipam.TypeElsewhere
	}
	if a.pod != "" {
		out[ipam.AttributeNamespace], out[ipam.AttributePod] = a.endpoint.Namespace, a.pod
	}
	return out
}

// owns tells whether an address under our handle is this interface's. One that
// Calico's own plugin assigned says no interface.
func (a *attachment) owns(as ipam.Assignment) bool {
	ifname, ok := as.Attributes[ipam.AttributeInterface]
	return !ok || ifname == a.ifname
}

// node is what the plugin asks the host's calico-node.
type node interface {
	Status(context.Context) (nodeapi.Status, error)
	WaitEnforced(ctx context.Context, key api.Key, revision int64) error
}

// session is what one invocation works with.
type session struct {
	conf  *netConf
	store *datastore.Client
	ipam  *ipam.Allocator
	node  node
	log   *slog.Logger
}

func open(ctx context.Context, conf *netConf) (*session, error) {
	config, err := conf.datastore()
	if err != nil {
		return nil, err
	}
	config.AuditInterval = -1
	log := conf.logger()
	store, err := datastore.Open(ctx, config, log)
	if err != nil {
		return nil, fail(types.ErrInvalidNetworkConfig, "%v", err)
	}
	return &session{conf: conf, store: store, ipam: ipam.New(store), node: nodeapi.NewClient(conf.RunDir), log: log}, nil
}

// close ends the session.
func (s *session) close() { s.store.Close() }

// asCNI turns an error into one with the code that tells the runtime what to
// do. Errors that have a code keep it.
func asCNI(err error) error {
	if coded := (*types.Error)(nil); err == nil || errors.As(err, &coded) {
		return err
	}
	var refused *nodeapi.NotEnforcedError
	code := types.ErrInternal
	switch {
	case errors.Is(err, datastore.ErrUnreachable), errors.Is(err, context.DeadlineExceeded),
		errors.Is(err, nodeapi.ErrNotRunning), errors.Is(err, datastore.ErrConflict):
		code = types.ErrTryAgainLater
	case errors.As(err, &refused):
		code = codeNotEnforced
	case errors.Is(err, ipam.ErrExhausted), errors.Is(err, ipam.ErrNoPool), errors.Is(err, ipam.ErrTaken):
		code = codeNoAddress
	}
	return types.NewError(code, err.Error(), "")
}
