package api

import (
	"errors"
	"slices"

	v3 "github.com/projectcalico/api/pkg/apis/projectcalico/v3"
)

// ValidateChange returns what may not become of old, joined: fields that stay
// as they are as long as the object exists. Both have been through [Default].
func ValidateChange(old, r Resource) error {
	f := &faults{key: KeyOf(r)}
	if o, ok := old.(*IPPool); ok {
		if p, ok := r.(*IPPool); ok {
			// Addresses are in blocks that belong to the pool by its CIDR.
			if p.Spec.CIDR != o.Spec.CIDR {
				f.add("spec.cidr", p.Spec.CIDR, "cannot be changed from %s", o.Spec.CIDR)
			}
			if p.Spec.BlockSize != o.Spec.BlockSize {
				f.add("spec.blockSize", p.Spec.BlockSize, "cannot be changed from %d", o.Spec.BlockSize)
			}
			balancer := v3.IPPoolAllowedUseLoadBalancer
			if slices.Contains(o.Spec.AllowedUses, balancer) && !slices.Contains(p.Spec.AllowedUses, balancer) {
				f.add("spec.allowedUses", p.Spec.AllowedUses, "cannot be changed from LoadBalancer")
			}
		}
	}
	if o, ok := old.(*ClusterInformation); ok {
		if c, ok := r.(*ClusterInformation); ok && o.Spec.ClusterGUID != "" && c.Spec.ClusterGUID != o.Spec.ClusterGUID {
			f.add("spec.clusterGUID", c.Spec.ClusterGUID, "cannot be changed from %s", o.Spec.ClusterGUID)
		}
	}
	return errors.Join(f.errs...)
}
