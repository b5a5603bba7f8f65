package api

import (
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
)

// Validate returns all faults of r, one line each, joined. A line names the
// object, the field, its value and what is wrong. r is expected to have been
// through [Default].
func Validate(r Resource) error {
	f := &faults{key: KeyOf(r)}
	kind := kindNamed(kindOf(r))
	switch {
	case kind == nil:
		return fmt.Errorf("%T is no resource", r)
	case kind.Internal:
		f.internal(r)
		return errors.Join(f.errs...)
	}
	f.metadata(kind, r)
	f.walk(nil, reflect.ValueOf(r), nil)
	switch r := r.(type) {
	case *BGPConfiguration:
		f.bgpConfiguration(r)
	case *BGPFilter:
		f.bgpFilter(r)
	case *BGPPeer:
		f.bgpPeer(&r.Spec)
	case *ClusterInformation, *IPAMConfiguration:
		f.onlyDefault(r)
	case *FelixConfiguration:
		f.felix(r)
	case *GlobalNetworkSet, *NetworkSet:
		f.networkSet(r)
	case *HostEndpoint:
		f.hostEndpoint(&r.Spec)
	case *IPPool:
		f.pool(&r.Spec)
	case *KubeControllersConfiguration:
		f.onlyDefault(r)
		f.kubeControllers(&r.Spec)
	case *Node:
		f.node(&r.Spec)
	case *Profile:
		f.rules("spec.ingress", r.Spec.Ingress)
		f.rules("spec.egress", r.Spec.Egress)
	case *StagedKubernetesNetworkPolicy:
		f.kubernetesPolicy(&r.Spec)
	case *Tier:
		f.tier(r)
	case *WorkloadEndpoint:
		f.workloadEndpoint(r)
	default:
		if p, ok := PolicyOf(r); ok {
			f.policy(p)
		}
	}
	return errors.Join(f.errs...)
}

// faults collects what is wrong with one object.
type faults struct {
	key  Key
	errs []error
}

// add notes a fault of the field at path, "spec.cidr". value is nil if there is
// none to show.
func (f *faults) add(path string, value any, why string, args ...any) {
	why = fmt.Sprintf(why, args...)
	switch v := reflect.ValueOf(value); v.Kind() {
	case reflect.Invalid:
		f.errs = append(f.errs, fmt.Errorf("%s: %s: %s", f.key, path, why))
	case reflect.String:
		f.errs = append(f.errs, fmt.Errorf("%s: %s: %q: %s", f.key, path, v.String(), why))
	default:
		f.errs = append(f.errs, fmt.Errorf("%s: %s: %v: %s", f.key, path, value, why))
	}
}

// maxAnnotations is the limit of all annotations of an object together, in bytes.
const maxAnnotations = 256 << 10

// metadata checks name, namespace, labels and annotations.
func (f *faults) metadata(kind *Kind, r Resource) {
	switch name := r.GetName(); {
	case name == "":
		f.add("metadata.name", nil, "missing")
	case kind.Name == KindTier: // becomes a part of other names and a label's value
		f.problems("metadata.name", name, validation.IsDNS1123Label(name))
	default:
		f.problems("metadata.name", name, validation.IsDNS1123Subdomain(name))
		f.policyName(kind.Name, name)
	}
	namespace := r.GetNamespace()
	switch {
	case kind.Namespaced && namespace == "":
		f.add("metadata.namespace", nil, "missing")
	case kind.Namespaced:
		f.problems("metadata.namespace", namespace, validation.IsDNS1123Label(namespace))
	case namespace != "":
		f.add("metadata.namespace", namespace, "%s has no namespace", kind.Name)
	}
	f.labels("metadata.labels", r.GetLabels())
	f.annotations("metadata.annotations", r.GetAnnotations())
}

// policyName checks that a policy's name has one dot at most, behind its tier's name,
// unless it is one that Kubernetes' policies have in the datastore.
func (f *faults) policyName(kind, name string) {
	switch kind {
	case KindNetworkPolicy, KindStagedNetworkPolicy:
		if strings.HasPrefix(name, "knp.default.") || strings.HasPrefix(name, "ossg.default.") {
			return
		}
	case KindGlobalNetworkPolicy, KindStagedGlobalNetworkPolicy:
	default:
		return
	}
	if strings.Count(name, ".") > 1 {
		f.add("metadata.name", name, "expected one dot at most: tier.name")
	}
}

func (f *faults) labels(path string, labels map[string]string) {
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		f.problems(path, k, validation.IsQualifiedName(k))
		f.problems(path+"["+k+"]", labels[k], validation.IsValidLabelValue(labels[k]))
	}
}

func (f *faults) annotations(path string, annotations map[string]string) {
	size := 0
	for _, k := range slices.Sorted(maps.Keys(annotations)) {
		f.problems(path, k, validation.IsQualifiedName(strings.ToLower(k)))
		size += len(k) + len(annotations[k])
	}
	if size > maxAnnotations {
		f.add(path, nil, "%d bytes in all, the limit is %d", size, maxAnnotations)
	}
}

// problems adds what one of Kubernetes' checks found.
func (f *faults) problems(path, value string, found []string) {
	if len(found) > 0 {
		f.add(path, value, "%s", strings.Join(found, "; "))
	}
}

// onlyDefault is for kinds of which a cluster has one object.
func (f *faults) onlyDefault(r metav1.Object) {
	if r.GetName() != "default" {
		f.add("metadata.name", r.GetName(), `only "default" has a meaning`)
	}
}
