package policy

import (
	"maps"
	"slices"

	"calico-xdp/pkg/api"
)

// sameRule says whether two rules say the same, field for field. It is what an edit
// of a long policy costs for each rule, so it does without reflection.
func sameRule(a, b *api.Rule) bool {
	return a == b || a.Action == b.Action &&
		samePointer(a.IPVersion, b.IPVersion) &&
		samePointer(a.Protocol, b.Protocol) &&
		samePointer(a.NotProtocol, b.NotProtocol) &&
		sameICMP(a.ICMP, b.ICMP) &&
		sameICMP(a.NotICMP, b.NotICMP) &&
		sameEntity(&a.Source, &b.Source) &&
		sameEntity(&a.Destination, &b.Destination) &&
		sameHTTP(a, b) &&
		sameMetadata(a, b)
}

func samePointer[T comparable](a, b *T) bool {
	return a == b || a != nil && b != nil && *a == *b
}

func sameICMP(a, b *api.ICMPFields) bool {
	return a == b || a != nil && b != nil && samePointer(a.Type, b.Type) && samePointer(a.Code, b.Code)
}

func sameEntity(a, b *api.EntityRule) bool {
	return a.Selector == b.Selector &&
		a.NotSelector == b.NotSelector &&
		a.NamespaceSelector == b.NamespaceSelector &&
		slices.Equal(a.Nets, b.Nets) &&
		slices.Equal(a.NotNets, b.NotNets) &&
		slices.Equal(a.Ports, b.Ports) &&
		slices.Equal(a.NotPorts, b.NotPorts) &&
		samePointer(a.Services, b.Services) &&
		sameAccounts(a, b)
}

func sameAccounts(a, b *api.EntityRule) bool {
	x, y := a.ServiceAccounts, b.ServiceAccounts
	return x == y || x != nil && y != nil && x.Selector == y.Selector && slices.Equal(x.Names, y.Names)
}

func sameHTTP(a, b *api.Rule) bool {
	x, y := a.HTTP, b.HTTP
	return x == y || x != nil && y != nil && slices.Equal(x.Methods, y.Methods) && slices.Equal(x.Paths, y.Paths)
}

func sameMetadata(a, b *api.Rule) bool {
	x, y := a.Metadata, b.Metadata
	return x == y || x != nil && y != nil && maps.Equal(x.Annotations, y.Annotations)
}
