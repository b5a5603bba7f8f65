/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
 *
 * Whether a packet may have the source that it has, where no flow says so. A workload's
 * has to be its own or allowed; what the network sends must not come from an address
 * that lives here or nowhere, and the kernel must know a way back to it.
 */
#ifndef SOURCE_H
#define SOURCE_H

#include "maps.h"
#include "packet.h"
#include "route.h"
#include "trie.h"

/* The slot of the workload behind an interface if it may send from there, else 0. */
__noinline __u32 source_slot(__u32 ifindex, const struct address *addr)
{
	struct {
		__u32 prefix_length;
		__u32 ifindex;
		__u32 words[4];
	} key = { .prefix_length = 32 + 128, .ifindex = ifindex };
	__u32 *slot;

	if (!addr)
		return 0;
	__builtin_memcpy(key.words, addr, sizeof(key.words));
	slot = bpf_map_lookup_elem(&allowed_sources, &key);
	return slot ? *slot : 0;
}

/* Whether nothing that comes over a network has that source: nowhere, this host, a group
 * (RFC 1122, 3.2.1.3; RFC 4291, 2.5.2, 2.5.3, 2.7), or the node's own address. now may be 0.
 */
static __always_inline int source_is_martian(const struct address *addr, const struct settings *now)
{
	if (address_is_ipv4(addr)) {
		__u32 ipv4 = bpf_ntohl(address_ipv4(addr)), first = ipv4 >> 24;

		if (first == 0 || first == 127 || first >> 4 == 14 || ipv4 == 0xffffffff)
			return 1;
		return now && address_equal(addr, &now->node4);
	}
	if (addr->bytes[0] == 0xff || (ADDRESS_HI(addr) == 0 && bpf_be64_to_cpu(ADDRESS_LO(addr)) <= 1))
		return 1;
	return now && address_equal(addr, &now->node6);
}

/* Who asks for an address says that it has none yet. */
static __always_inline int source_is_none(const struct address *addr)
{
	return ADDRESS_HI(addr) == 0 && (ADDRESS_LO(addr) == 0 || ADDRESS_LO(addr) == address_lo4(0));
}

/* The source that stands in the packet: an ICMP error's key is of what it quotes. */
static __always_inline int source_load(struct __sk_buff *skb, const struct packet *p, struct address *source)
{
	__be32 ipv4;

	if (p->ipv6)
		return bpf_skb_load_bytes(skb, ETH_HLEN + 8, source, sizeof(*source));
	if (bpf_skb_load_bytes(skb, ETH_HLEN + 12, &ipv4, sizeof(ipv4)))
		return -1;
	address_set(source, 0, address_lo4(ipv4));
	return 0;
}

enum source_check {
	SOURCE_STATIC = 1,	/* ask no table but for martians */
	SOURCE_OPENS = 2,	/* ask more of TCP only when it opens a connection */
	SOURCE_HOST = 4,	/* no workload is concerned: who sends has not been looked at */
};

/* Whether the network may send us this packet, out of a tunnel or not, which is of no flow
 * that we know. how is a set of enum source_check. 0, or why it is dropped.
 */
__noinline int source_check(struct __sk_buff *skb, const struct packet *p, __u32 how)
{
	__u32 zero = 0, mode;
	struct settings *now;
	struct address source;
	struct route *route;

	if (!p)
		return DROP_MALFORMED;
	if (source_load(skb, p, &source))
		return DROP_MALFORMED;
	now = bpf_map_lookup_elem(&settings, &zero);
	if (source_is_martian(&source, now))
		return p->link_wide && source_is_none(&source) ? 0 : DROP_MARTIAN;
	if (how & SOURCE_STATIC || p->link_wide || address_is_link_local(&source))
		return 0;
	/* Nobody completes a handshake from an address that is not his. */
	if (how & SOURCE_OPENS && p->key.protocol == IPPROTO_TCP && !p->icmp_error &&
	    (p->tcp_flags & (TCP_FLAG_SYN_BYTE | TCP_FLAG_ACK_BYTE)) != TCP_FLAG_SYN_BYTE)
		return 0;
	if (how & SOURCE_HOST) {
		if (p->tunnel) {
			route = route_lookup(&source);
			if (!address_equal(&source, &p->node) &&
			    !(route && route->kind == ROUTE_WORKLOAD && address_equal(&route->node, &p->node)))
				return DROP_WRONG_NODE;
		} else if (workload_slot(&source)) {
			return DROP_MARTIAN;
		}
	}
	mode = now ? now->rpf : RPF_DISABLED;
	if (mode == RPF_DISABLED)
		return 0;
	if (p->tunnel)
		address_copy(&source, &p->node);
	return route_leads_back(skb, &source, mode) ? 0 : DROP_RPF;
}

#endif
