package api

import (
	"encoding/base64"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"
)

// textFault applies the check name to s and says what is wrong, or "". Checks
// it does not know pass.
func textFault(name, s string) string {
	switch name {
	case "name":
		return strings.Join(validation.IsDNS1123Subdomain(s), "; ")
	case "portName":
		return strings.Join(validation.IsValidPortName(s), "; ")
	case "containerID":
		if !madeOf(s, "-", 1024) || strings.HasPrefix(s, "-") || strings.HasSuffix(s, "-") {
			return "expected letters and digits, '-' between them"
		}
	case "selector":
		if _, err := ParseSelector(s); err != nil {
			return err.Error()
		}
	case "interface":
		if s != "*" {
			return deviceFault(s)
		}
	case "deviceName":
		return deviceFault(s)
	case "bgpFilterInterface":
		if !madeOf(s, "_.*-", maxDevice) {
			return "expected an interface name of at most 15 bytes, * for any part"
		}
	case "ignoredInterface":
		if s == "*" {
			return "all interfaces cannot be ignored"
		}
		return textFault("bgpFilterInterface", s)
	case "ifaceFilter", "ifaceFilterSlice":
		if !madeOf(s, ":._+-", maxDevice) {
			return "expected an interface name of at most 15 bytes, + for any end"
		}
	case "mac":
		if m, err := net.ParseMAC(s); err != nil || len(m) != 6 {
			return "expected a MAC address"
		}
	case "regexp":
		if _, err := regexp.Compile(s); err != nil {
			return err.Error()
		}
	case "keyValueList":
		for item := range strings.SplitSeq(s, ",") {
			key, _, ok := strings.Cut(strings.TrimSpace(item), "=")
			if item != "" && (!ok || !madeOf(key, "_", len(key))) {
				return "expected key=value,key=value"
			}
		}
	case "wireguardPublicKey":
		if k, err := base64.StdEncoding.DecodeString(s); err != nil || len(k) != 32 {
			return "expected 32 bytes in base64"
		}
	case "prometheusHost":
		if !madeOf(s, ":._+-", 64) {
			return "expected a host's name or address"
		}
	}
	if options := strings.Fields(enumeration(name)); len(options) > 0 {
		if !slices.Contains(options, s) {
			return "expected " + orList(options)
		}
		return ""
	}
	return addressFault(name, s)
}

// enumeration returns the values of a named check, "" if it lists none.
func enumeration(name string) string {
	switch name {
	case "action":
		return "Allow Deny Log Pass"
	case "policyType":
		return "Ingress Egress"
	case "stagedAction":
		return "Set Delete Learn Ignore"
	case "ipIpMode", "vxlanMode":
		return "Always CrossSubnet Never"
	case "assignmentMode":
		return "Automatic Manual"
	case "assignIPs":
		return "AllServices RequestedServicesOnly"
	case "sourceAddress":
		return "UseNodeIP None"
	case "filterAction":
		return "Accept Reject"
	case "matchOperator":
		return "Equal NotEqual In NotIn"
	case "logLevel":
		return "Trace Debug Info Warning Error Fatal"
	case "bpfLogLevel":
		return "Off Info Debug"
	case "bpfServiceMode":
		return "Tunnel DSR"
	case "dropAcceptReturn":
		return "Drop Accept Return"
	case "acceptReturn":
		return "Accept Return"
	case "dropReject":
		return "Drop Reject"
	case "iptablesBackend":
		return "Legacy NFT Auto"
	case "routeSource":
		return "WorkloadIPs CalicoIPAM"
	case "createDefaultHostEndpoint":
		return "Enabled Disabled"
	}
	return ""
}

// addressFault applies the checks of addresses: "net" is a network without
// host bits, "cidr" may have them; both may be a single address.
func addressFault(name, s string) string {
	base := strings.TrimSuffix(strings.TrimSuffix(name, "v4"), "v6")
	switch base {
	case "ip": // also ipv4, ipv6
		a, err := netip.ParseAddr(s)
		if err != nil || a.Zone() != "" {
			return "expected an address without prefix length"
		}
		return familyFault(name, a)
	case "net", "cidr", "cidrs":
		p, err := parsePrefix(s)
		switch {
		case err != nil:
			return "expected a network in CIDR notation"
		case base == "net" && p != p.Masked():
			return "not masked: the network is " + p.Masked().String()
		}
		return familyFault(name, p.Addr())
	case "singleAddress":
		if _, err := parseSingle(s); err != nil {
			return "expected one address, alone or with /32 or /128"
		}
	case "reachableBy":
		if _, err := netip.ParseAddr(s); err != nil {
			return "expected an address"
		}
	case "IP:port":
		if _, err := ParsePeerIP(s); err != nil {
			return "expected an address, IPv4:port or [IPv6]:port"
		}
	}
	return ""
}

func familyFault(name string, a netip.Addr) string {
	switch {
	case strings.HasSuffix(name, "v4") && !a.Is4():
		return "expected IPv4"
	case strings.HasSuffix(name, "v6") && (a.Is4() || a.Is4In6()):
		return "expected IPv6"
	}
	return ""
}

// maxDevice is the longest name of a network device, in bytes.
const maxDevice = 15

// deviceFault checks the name of a network device.
func deviceFault(s string) string {
	if !madeOf(s, "_.-", maxDevice) {
		return "expected an interface name: 1 to 15 letters, digits, '_', '.' or '-'"
	}
	return ""
}

// madeOf tells whether s is 1 to longest bytes of letters, digits and others.
func madeOf(s, others string, longest int) bool {
	for _, r := range s {
		if !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune(others, r)) {
			return false
		}
	}
	return s != "" && len(s) <= longest
}
