// Package v1 knows how Calico wrote things before v3: names, rules and manifests, and
// what of v3 stands for them.
package v1

import (
	"crypto/sha1"
	"encoding/hex"
	"fmt"
	"net/netip"
	"regexp"
	"strings"
)

var (
	dashes  = regexp.MustCompile(`[^a-z0-9.-]`)
	dotRuns = regexp.MustCompile(`[.-]*\.[.-]*`)
)

// Name returns the v3 name of something that v1 called so: in lower case, with what is
// not allowed as dashes, and with a hash of the old name if it differs.
func Name(old string) string {
	if rest, ok := strings.CutPrefix(old, "k8s_ns."); ok {
		old = "kns." + rest
	}
	return hashed(old, plainName(old))
}

// PolicyName is Name for policies, whose dots are dashes too.
func PolicyName(old string) string {
	return hashed(old, strings.ReplaceAll(plainName(old), ".", "-"))
}

// NodeName is Name for hosts, which have no hash.
func NodeName(old string) string { return plainName(old) }

func plainName(old string) string {
	s := strings.ReplaceAll(strings.ToLower(old), "/", ".")
	s = dashes.ReplaceAllString(s, "-")
	s = dotRuns.ReplaceAllString(s, ".")
	return strings.Trim(s, ".-")
}

func hashed(old, name string) string {
	if name == old {
		return name
	}
	sum := sha1.Sum([]byte(old))
	suffix := hex.EncodeToString(sum[:])[:8]
	if name == "" {
		return suffix
	}
	return name + "-" + suffix
}

// PoolName returns the v3 name of the pool with a CIDR: 192-168-0-0-16.
func PoolName(cidr netip.Prefix) string {
	return strings.Trim(strings.NewReplacer(".", "-", ":", "-", "/", "-").Replace(cidr.String()), "-")
}

// PeerName returns the v3 name of a BGP peer of all nodes, or of one.
func PeerName(node string, peer netip.Addr) string {
	name := strings.ReplaceAll(peer.String(), ".", "-")
	if peer.Is6() {
		name = strings.ReplaceAll(peer.StringExpanded(), ":", "-")
	}
	if node != "" {
		return fmt.Sprintf("%s.%s", NodeName(node), name)
	}
	return name
}
