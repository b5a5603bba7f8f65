package api

import (
	"strconv"
	"strings"

	"github.com/projectcalico/api/pkg/lib/numorstring"
)

// protocols are the protocols that have names in the API. Never changed.
var protocols = []struct {
	name   string
	number uint8
	ports  bool
}{
	{numorstring.ProtocolTCP, 6, true},
	{numorstring.ProtocolUDP, 17, true},
	{numorstring.ProtocolICMP, 1, false},
	{numorstring.ProtocolICMPv6, 58, false},
	{numorstring.ProtocolSCTP, 132, true},
	{numorstring.ProtocolUDPLite, 136, true},
}

// ProtocolNumber returns the IP protocol number of a name, in any case, or of a
// number as text. Zero is no protocol.
func ProtocolNumber(name string) (number uint8, ok bool) {
	for _, p := range protocols {
		if strings.EqualFold(p.name, name) {
			return p.number, true
		}
	}
	n, err := strconv.ParseUint(name, 10, 8)
	return uint8(n), err == nil && n != 0
}

// ProtocolName returns the API's name for a protocol number, or the number as
// text.
func ProtocolName(number uint8) string {
	for _, p := range protocols {
		if p.number == number {
			return p.name
		}
	}
	return strconv.Itoa(int(number))
}

// ProtocolHasPorts tells whether packets of the protocol have ports: TCP, UDP,
// SCTP and UDPLite.
func ProtocolHasPorts(number uint8) bool {
	for _, p := range protocols {
		if p.number == number {
			return p.ports
		}
	}
	return false
}

// takesPorts tells whether a rule or a named port may have this protocol and a port.
// Calico has none of UDPLite's, and its nodes drop a policy that does; ours would
// understand it.
func takesPorts(number uint8) bool { return number == 6 || number == 17 || number == 132 }

// NumberOf returns the number of a rule's or port's protocol.
func NumberOf(p numorstring.Protocol) (number uint8, ok bool) {
	if p.Type == numorstring.NumOrStringNum {
		return p.NumVal, p.NumVal != 0
	}
	return ProtocolNumber(p.StrVal)
}

// canonicalProtocol writes names as the API does: "tcp" becomes "TCP".
func canonicalProtocol(p *numorstring.Protocol) {
	if p != nil && p.Type == numorstring.NumOrStringString {
		*p = numorstring.ProtocolFromString(p.StrVal)
	}
}
