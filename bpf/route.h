/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
 *
 * Where an address that is no local workload lives, and how to get there.
 */
#ifndef ROUTE_H
#define ROUTE_H

#include "maps.h"
#include "packet.h"
#include "trie.h"

#define AF_INET 2
#define AF_INET6 10

static __always_inline struct route *route_lookup(const struct address *addr)
{
	struct {
		__u32 prefix_length;
		__u32 words[4];
	} prefix = { .prefix_length = 128 };

	if (place_of(addr) == PLACE_ELSEWHERE)
		return 0;
	__builtin_memcpy(prefix.words, addr, sizeof(prefix.words));
	return bpf_map_lookup_elem(&routes, &prefix);
}

/* What natOutgoing has to say of an address: a set of enum nat_net. */
static __always_inline __u32 nat_net(const struct address *addr)
{
	struct {
		__u32 prefix_length;
		__u32 words[4];
	} prefix = { .prefix_length = 128 };
	__u32 *net;

	__builtin_memcpy(prefix.words, addr, sizeof(prefix.words));
	net = bpf_map_lookup_elem(&nat_nets, &prefix);
	return net ? *net : 0;
}

/* Whether a flow that leaves this host is to be masqueraded. */
__noinline int nat_outgoing(const struct address *source, const struct address *destination)
{
	return source && destination && nat_net(source) & NAT_SOURCE && !(nat_net(destination) & NAT_INSIDE);
}

/* Whether the host's own rules lead elsewhere what is for that address. */
__noinline int is_service(const struct address *addr)
{
	return addr && nat_net(addr) & NAT_SERVICE;
}

static __always_inline int address_is_link_local(const struct address *addr)
{
	return addr->bytes[0] == 0xfe && (addr->bytes[1] & 0xc0) == 0x80;
}

/* How long to believe what a router says of a path (RFC 1191, 6.3). */
#define PATH_MTU_LIFE (600ULL * 1000000000)

/* The uplink that the kernel would use to reach a hop's node, or 0. Notes the way's MTU. */
static __always_inline __u32 route_uplink(struct __sk_buff *skb, struct next_hop *hop, const struct settings *settings)
{
	/* A length that fits: the kernel then tells the route's MTU. */
	struct bpf_fib_lookup fib = { .ifindex = skb->ifindex, .tot_len = 1 };
	struct path_mtu *path;
	struct address node;
	__u32 mtu;
	long rc;

	if (address_is_ipv4(&hop->node)) {
		fib.family = AF_INET;
		fib.ipv4_src = address_ipv4(&settings->node4);
		fib.ipv4_dst = address_ipv4(&hop->node);
	} else {
		fib.family = AF_INET6;
		__builtin_memcpy(fib.ipv6_src, &settings->node6, 16);
		__builtin_memcpy(fib.ipv6_dst, &hop->node, 16);
	}
	rc = bpf_fib_lookup(skb, &fib, sizeof(fib), 0);
	/* The neighbour may still have to be asked for: bpf_redirect_neigh does. */
	if (rc != BPF_FIB_LKUP_RET_SUCCESS && rc != BPF_FIB_LKUP_RET_NO_NEIGH)
		return 0;
	mtu = fib.mtu_result;
	if (rc == BPF_FIB_LKUP_RET_NO_NEIGH) {
		mtu = 1; /* a length that fits, again: the interface's is told */
		bpf_check_mtu(skb, fib.ifindex, &mtu, 0, 0);
	}
	hop->mtu = mtu;
	address_copy(&node, &hop->node);
	path = bpf_map_lookup_elem(&path_mtus, &node);
	if (path && (!hop->mtu || path->mtu < hop->mtu) && bpf_ktime_get_ns() - path->learned < PATH_MTU_LIFE)
		hop->mtu = path->mtu;
	return fib.ifindex;
}

/* VXLAN's source port spreads flows over the underlay's paths (RFC 7348, 5). */
static __always_inline __be16 encap_source_port(const struct flow_key *key)
{
	__u64 hash = ADDRESS_LO(&key->a) ^ ADDRESS_LO(&key->b) << 1 ^ ADDRESS_HI(&key->a) ^ ADDRESS_HI(&key->b) << 1;

	hash ^= (__u64)key->a_port << 32 ^ (__u64)key->b_port << 16 ^ key->protocol;
	hash *= 0x9e3779b97f4a7c15;
	return bpf_htons(49152 | hash >> 50);
}

/* Fills the next hop towards addr. Returns the kind of route, 0 for none; the next
 * hop then is the host's stack.
 */
__noinline int route_resolve(struct __sk_buff *skb, const struct address *addr, struct next_hop *hop)
{
	struct settings *now;
	struct route *route;
	__u32 zero = 0;

	if (!addr || !hop)
		return 0;
	now = bpf_map_lookup_elem(&settings, &zero);
	route = route_lookup(addr);
	__builtin_memset(hop, 0, sizeof(*hop));
	hop->forward = FORWARD_STACK;
	if (address_is_link_local(addr)) {
		hop->forward = FORWARD_HOST;
		return ROUTE_HOST;
	}
	if (!route || !now)
		return 0;
	if (route->kind == ROUTE_HOST) {
		hop->forward = FORWARD_HOST;
	} else if (route->kind == ROUTE_WORKLOAD) {
		address_copy(&hop->node, &route->node);
		hop->forward = route->forward;
		hop->ifindex = route_uplink(skb, hop, now);
		if (route->forward == FORWARD_VXLAN) {
			struct peer *peer = bpf_map_lookup_elem(&peers, &route->node);

			if (peer)
				__builtin_memcpy(hop->mac, peer->mac, sizeof(hop->mac));
		}
	}
	return route->kind;
}

/* The kind of route to addr, 0 for none. */
static __always_inline __u8 route_kind(const struct address *addr)
{
	struct route *route;

	if (address_is_link_local(addr))
		return ROUTE_HOST;
	route = route_lookup(addr);
	return route ? route->kind : 0;
}

/* Whether the kernel forwards what comes in here from one address to another. What it does
 * not is for the host, whatever the routes say: an address that they do not have yet, a
 * prefix of local addresses, a subnet's broadcast or anycast address.
 */
__noinline int route_forwards(struct __sk_buff *skb, const struct address *source, const struct address *destination)
{
	struct bpf_fib_lookup fib = { .ifindex = skb->ifindex };
	long rc;

	if (!source || !destination)
		return 0;
	if (route_kind(destination) == ROUTE_HOST)
		return 0;
	if (address_is_ipv4(destination)) {
		fib.family = AF_INET;
		fib.ipv4_src = address_ipv4(source);
		fib.ipv4_dst = address_ipv4(destination);
	} else {
		fib.family = AF_INET6;
		__builtin_memcpy(fib.ipv6_src, source, 16);
		__builtin_memcpy(fib.ipv6_dst, destination, 16);
	}
	rc = bpf_fib_lookup(skb, &fib, sizeof(fib), 0);
	return rc >= 0 && rc != BPF_FIB_LKUP_RET_NOT_FWDED && rc != BPF_FIB_LKUP_RET_FWD_DISABLED;
}

/* Whether the kernel has a way back to the source of what came in here, as enum rpf asks.
 * Where it does not forward it does not say, and has its own filter.
 */
__noinline int route_leads_back(struct __sk_buff *skb, const struct address *source, __u32 mode)
{
	struct bpf_fib_lookup fib = { .ifindex = skb->ifindex, .tot_len = 1 };
	long rc;

	if (!source)
		return 0;
	if (address_is_ipv4(source)) {
		fib.family = AF_INET;
		fib.ipv4_dst = address_ipv4(source);
	} else {
		fib.family = AF_INET6;
		__builtin_memcpy(fib.ipv6_dst, source, 16);
	}
	rc = bpf_fib_lookup(skb, &fib, sizeof(fib), 0);
	switch (rc) {
	case BPF_FIB_LKUP_RET_SUCCESS:
	case BPF_FIB_LKUP_RET_NO_NEIGH:
	case BPF_FIB_LKUP_RET_FRAG_NEEDED:
		return mode != RPF_STRICT || fib.ifindex == skb->ifindex;
	case BPF_FIB_LKUP_RET_UNSUPP_LWT:
		return mode != RPF_STRICT;
	case BPF_FIB_LKUP_RET_FWD_DISABLED:
		return 1;
	default:
		return 0;
	}
}

/* How often a flow looks where the kernel's route to its node goes now: when this many
 * low bits of the jiffies run over, 256 of them, about a second.
 */
#define FOLLOW_SHIFT 8

/* The kernel's route to a node may move to another uplink, and no generation tells. */
__noinline int route_follow(struct __sk_buff *skb, struct next_hop *hop)
{
	__u32 zero = 0, uplink;
	struct settings *now = bpf_map_lookup_elem(&settings, &zero);

	if (!hop || !now)
		return 0;
	uplink = route_uplink(skb, hop, now);
	if (uplink && uplink != hop->ifindex)
		hop->ifindex = uplink;
	return 0;
}

#endif
