package api

import (
	"encoding/json"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// The kinds below are ours alone: what operators and nodes have to agree upon beside
// the resources. They live under /calico/operations/v1/, within the range that nodes
// watch, so that they come in order with the resources. Calico does not look there.
const (
	KindTrial            = "Trial"
	KindTrialHold        = "TrialHold"
	KindEnforcementQuery = "EnforcementQuery"
)

// Trial is a change of resources that is undone unless somebody confirms it. It was
// written in one transaction with the resources: one that has the trial's revision
// still is as the trial made it.
type Trial struct {
	metav1.TypeMeta   `json:"-"`
	metav1.ObjectMeta `json:"-"`

	Started metav1.Time   `json:"started"`
	Seconds int           `json:"seconds"` // how long it may stay unconfirmed
	By      string        `json:"by,omitempty"`
	Changes []TrialChange `json:"changes"`
}

// TrialChange is one resource of a trial.
type TrialChange struct {
	Kind      string `json:"kind"`
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name"`
	// Before is what was stored; nothing if the trial created the resource.
	Before json.RawMessage `json:"before,omitempty"`
}

// Key returns the resource's key.
func (c *TrialChange) Key() Key { return Key{Kind: c.Kind, Namespace: c.Namespace, Name: c.Name} }

// DeepCopyObject returns a copy that shares nothing with t.
func (t *Trial) DeepCopyObject() runtime.Object {
	out := new(*t)
	t.ObjectMeta.DeepCopyInto(&out.ObjectMeta)
	out.Changes = slices.Clone(t.Changes)
	for i := range out.Changes {
		out.Changes[i].Before = slices.Clone(out.Changes[i].Before)
	}
	return out
}

// TrialHold is there as long as the trial of the same name may stay unconfirmed. Its
// etcd lease takes it away, whoever else is dead.
type TrialHold struct {
	metav1.TypeMeta   `json:"-"`
	metav1.ObjectMeta `json:"-"`
}

// DeepCopyObject returns a copy that shares nothing with h.
func (h *TrialHold) DeepCopyObject() runtime.Object {
	out := new(*h)
	h.ObjectMeta.DeepCopyInto(&out.ObjectMeta)
	return out
}

// EnforcementQuery asks each node to say when it enforces all that was written before
// the query. The answers live as long as it does, with its lease.
type EnforcementQuery struct {
	metav1.TypeMeta   `json:"-"`
	metav1.ObjectMeta `json:"-"`

	Lease int64 `json:"lease"` // etcd's id of it
}

// DeepCopyObject returns a copy that shares nothing with q.
func (q *EnforcementQuery) DeepCopyObject() runtime.Object {
	out := new(*q)
	q.ObjectMeta.DeepCopyInto(&out.ObjectMeta)
	return out
}

// Triable tells whether a resource of this kind may be in a trial: what says how
// traffic is treated and nothing else, so that the old one can come back at any time.
func Triable(kind string) bool {
	switch kind {
	case KindGlobalNetworkPolicy, KindNetworkPolicy, KindStagedGlobalNetworkPolicy, KindStagedNetworkPolicy,
		KindStagedKubernetesNetworkPolicy, KindTier, KindProfile, KindGlobalNetworkSet, KindNetworkSet,
		KindHostEndpoint, KindFelixConfiguration, KindBGPConfiguration, KindBGPPeer, KindBGPFilter:
		return true
	}
	return false
}
