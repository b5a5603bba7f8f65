/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
 *
 * A number for each IPv4 address, found in at most five steps. The daemon makes such tries
 * beside tables that say the same more slowly, and of IPv6 too.
 */
#ifndef TRIE_H
#define TRIE_H

#include "maps.h"
#include "packet.h"

#define TRIE_DEPTH 5 /* nodes from the root to the last four bits of an address */

/* The number of an address, -1 if the trie does not know it. */
static __always_inline int trie_find(void *nodes, __be32 ipv4)
{
	__u32 addr = bpf_ntohl(ipv4), index = addr >> 20, entry = 0;
	struct trie_node *node;

#pragma clang loop unroll(disable)
	for (int depth = 0; depth < TRIE_DEPTH; depth++) {
		node = bpf_map_lookup_elem(nodes, &index);
		if (!node)
			return -1;
		entry = node->entry[addr >> (16 - 4 * depth) & (TRIE_WAYS - 1)];
		if (!(entry & TRIE_CHILD))
			break;
		index = entry & ~TRIE_CHILD;
	}
	return (int)entry - TRIE_KNOWN;
}

/* enum place of an address, -1 if the trie does not know it. */
static __always_inline int place_of(const struct address *addr)
{
	return address_is_ipv4(addr) ? trie_find(&place_nodes, address_ipv4(addr)) : -1;
}

/* enum place of an address that the trie does not know. */
__noinline int place_else(const struct address *addr)
{
	struct address key;
	__u32 *slot;

	if (!addr)
		return PLACE_ROUTE;
	address_copy(&key, addr); /* see there */
	slot = bpf_map_lookup_elem(&workloads, &key);
	return slot ? PLACE_WORKLOAD + *slot : PLACE_ROUTE;
}

/* enum place of an address. */
static __always_inline int place_at(const struct address *addr)
{
	int place = place_of(addr);

	return place >= 0 ? place : place_else(addr);
}

/* The slot of the workload at a place, 0 if there is none. */
static __always_inline __u32 place_slot(int place)
{
	return place >= PLACE_WORKLOAD ? place - PLACE_WORKLOAD : 0;
}

static __always_inline __u32 workload_slot(const struct address *addr)
{
	return place_slot(place_at(addr));
}

#endif
