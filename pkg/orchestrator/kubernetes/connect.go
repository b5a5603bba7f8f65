// Package kubernetes reads from a Kubernetes API server what concerns BGP: the services
// whose addresses this node may announce, and the Secrets with the passwords of
// sessions. Nothing is asked for before a resource of Calico's needs it.
package kubernetes

import (
	"fmt"
	"os"

	"k8s.io/client-go/kubernetes/typed/core/v1"
	discovery "k8s.io/client-go/kubernetes/typed/discovery/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// Clients are those of the API groups that are read. Kubernetes' own set of clients is
// one.
type Clients interface {
	CoreV1() v1.CoreV1Interface
	DiscoveryV1() discovery.DiscoveryV1Interface
}

// Connect makes clients for the API server that the file KUBECONFIG tells of, or else
// for that of the cluster in one of whose pods this process runs.
func Connect() (Clients, error) {
	var config *rest.Config
	var err error
	if path := os.Getenv("KUBECONFIG"); path != "" {
		if config, err = clientcmd.BuildConfigFromFlags("", path); err != nil {
			return nil, fmt.Errorf("KUBECONFIG %s: %w", path, err)
		}
	} else if config, err = rest.InClusterConfig(); err != nil {
		return nil, fmt.Errorf("kubernetes service account: %w", err)
	}
	config.UserAgent = "calico-node"
	config.ContentType, config.AcceptContentTypes = "application/vnd.kubernetes.protobuf", "application/vnd.kubernetes.protobuf,application/json"
	core, err := v1.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("kubernetes client: %w", err)
	}
	slices, err := discovery.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("kubernetes client: %w", err)
	}
	return clients{core, slices}, nil
}

type clients struct {
	core   v1.CoreV1Interface
	slices discovery.DiscoveryV1Interface
}

func (c clients) CoreV1() v1.CoreV1Interface                  { return c.core }
func (c clients) DiscoveryV1() discovery.DiscoveryV1Interface { return c.slices }
