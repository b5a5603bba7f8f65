// Package api holds Calico's v3 resources as this project reads and writes
// them: types, names, defaulting, validation and the selector language. It does
// no I/O.
package api

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// GroupVersion is the apiVersion of every resource.
const GroupVersion = "projectcalico.org/v3"

// Resource is one object of Calico's v3 API. Types that projectcalico/api has
// are used as they are; WorkloadEndpoint, Node and the IPAM blocks are ours.
type Resource interface {
	metav1.Object
	runtime.Object
}

// Key names one resource. Namespace is empty for kinds without namespaces.
type Key struct {
	Kind      string // "IPPool", as in the resource's JSON
	Namespace string
	Name      string
}

func (k Key) String() string {
	if k.Namespace == "" {
		return k.Kind + "(" + k.Name + ")"
	}
	return k.Kind + "(" + k.Namespace + "/" + k.Name + ")"
}

// KeyOf returns the key of r. The kind is that of r's Go type, whether or not r
// says it.
func KeyOf(r Resource) Key {
	kind := kindOf(r)
	if kind == "" {
		kind = r.GetObjectKind().GroupVersionKind().Kind
	}
	return Key{Kind: kind, Namespace: r.GetNamespace(), Name: r.GetName()}
}

// Locked tells whether r is a ClusterInformation that says that nobody is to change the
// datastore (datastoreReady: false), as while it is migrated or its pools are split.
func Locked(r Resource) bool {
	c, ok := r.(*ClusterInformation)
	return ok && c != nil && c.Spec.DatastoreReady != nil && !*c.Spec.DatastoreReady
}

// Change is one resource as it is now, or its absence.
type Change struct {
	Key      Key
	Resource Resource // nil: it is gone, or what the datastore holds is not valid
}
