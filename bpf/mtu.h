/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
 *
 * Path MTU (RFC 1191, RFC 8201): what the underlay says about a node is remembered, and a
 * workload whose packet does not fit, header and all, is told what would.
 */
#ifndef MTU_H
#define MTU_H

#include "maps.h"
#include "packet.h"
#include "encap.h"

#define ICMP_FRAGMENTATION_NEEDED (ICMP_UNREACHABLE << 8 | 4)
#define ICMPV6_TOO_BIG (2 << 8)
#define MTU_MIN4 552
#define MTU_MIN6 1280

/* How much of a packet an answer quotes: its IP header and 20 bytes, so that no checksum
 * that the kernel still has to fill in is cut off.
 */
#define QUOTED 20

/* Bytes that go in front of a packet's IP header. */
static __always_inline __u32 encap_bytes(const struct next_hop *hop)
{
	if (hop->forward == FORWARD_IPIP)
		return sizeof(struct iphdr);
	if (hop->forward == FORWARD_VXLAN)
		return address_is_ipv4(&hop->node) ? VXLAN4_BYTES : VXLAN6_BYTES;
	return 0;
}

/* The MTU that a packet is too big for, or 0. Of a packet that the kernel will cut into
 * segments these count, with headers of the greatest length that is usual.
 */
static __always_inline __u32 mtu_exceeded(struct __sk_buff *skb, const struct packet *p, const struct next_hop *hop)
{
	__u32 room, length = skb->len - ETH_HLEN;

	if (!hop->mtu)
		return 0;
	room = hop->mtu - encap_bytes(hop);
	if (length <= room)
		return 0;
	if (skb->gso_size)
		length = skb->gso_size + (p->ipv6 ? 40 : 20) + 20 + 12;
	return length > room ? room : 0;
}

/* Remembers what a router says of the way to another node: the packet is an ICMP error,
 * about one that we have encapsulated.
 */
__noinline int mtu_learn(struct __sk_buff *skb, const struct packet *p)
{
	struct path_mtu path = {};
	const struct address *us;
	struct address node;
	struct settings *now;
	__u32 zero = 0, at;
	__be32 word = 0;

	if (!p || !p->icmp_error)
		return 0;
	if (p->icmp != (p->ipv6 ? ICMPV6_TOO_BIG : ICMP_FRAGMENTATION_NEEDED))
		return 0;
	now = bpf_map_lookup_elem(&settings, &zero);
	us = p->sender ? &p->key.a : &p->key.b;
	address_copy(&node, p->sender ? &p->key.b : &p->key.a);
	if (!now || !(address_equal(us, &now->node4) || address_equal(us, &now->node6)))
		return 0;
	if (!is_tunnel(now, p->key.protocol, p->sender ? p->key.b_port : p->key.a_port))
		return 0;
	if (!bpf_map_lookup_elem(&peers, &node))
		return 0;
	at = ETH_HLEN + (p->ipv6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr)) + 4;
	if (bpf_skb_load_bytes(skb, at, &word, sizeof(word)))
		return 0;
	path.mtu = p->ipv6 ? bpf_ntohl(word) : bpf_ntohl(word) & 0xffff;
	if (path.mtu < (p->ipv6 ? MTU_MIN6 : MTU_MIN4))
		return 0;
	path.learned = bpf_ktime_get_ns();
	bpf_map_update_elem(&path_mtus, &node, &path, BPF_ANY);
	return 0;
}

static __always_inline void mtu_answer_ethernet(struct __sk_buff *skb, struct ethhdr *eth)
{
	__u8 mac[ETH_ALEN];

	__builtin_memcpy(mac, eth->h_dest, ETH_ALEN);
	__builtin_memcpy(eth->h_dest, eth->h_source, ETH_ALEN);
	__builtin_memcpy(eth->h_source, mac, ETH_ALEN);
}

static __always_inline __u16 fold(__s64 sum)
{
	sum = (sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32 & 0xffff);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

struct icmp_too_big {
	__u8 type;
	__u8 code;
	__be16 check;
	__be32 mtu;
};

/* Makes the packet the answer that it is too big, from the node to its sender. 0, or -1 if
 * it cannot be made.
 */
__noinline int mtu_answer(struct __sk_buff *skb, __u32 mtu)
{
	struct icmp_too_big *icmp;
	struct settings *now;
	void *data, *end;
	__u32 zero = 0;

	now = bpf_map_lookup_elem(&settings, &zero);
	if (!now)
		return -1;
	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		const __u32 quoted = sizeof(struct iphdr) + QUOTED, pushed = sizeof(struct iphdr) + sizeof(*icmp);
		struct iphdr *ip, *inner;

		if (bpf_skb_change_tail(skb, ETH_HLEN + quoted, 0) ||
		    bpf_skb_adjust_room(skb, pushed, BPF_ADJ_ROOM_MAC, 0))
			return -1;
		data = (void *)(long)skb->data;
		end = (void *)(long)skb->data_end;
		ip = data + ETH_HLEN;
		icmp = (void *)(ip + 1);
		inner = (void *)(icmp + 1);
		if ((void *)inner + quoted > end)
			return -1;
		mtu_answer_ethernet(skb, data);
		__builtin_memset(ip, 0, sizeof(*ip));
		ip->version = 4;
		ip->ihl = 5;
		ip->tos = 0xc0; /* RFC 1812, 4.3.2.5 */
		ip->tot_len = bpf_htons(pushed + quoted);
		ip->ttl = ENCAP_TTL;
		ip->protocol = IPPROTO_ICMP;
		ip->saddr = address_ipv4(&now->node4);
		ip->daddr = inner->saddr;
		ipv4_checksum(ip);
		icmp->type = ICMP_UNREACHABLE;
		icmp->code = 4;
		icmp->check = 0;
		icmp->mtu = bpf_htonl(mtu);
		icmp->check = fold(bpf_csum_diff(0, 0, (void *)icmp, sizeof(*icmp) + quoted, 0));
	} else {
		const __u32 quoted = sizeof(struct ipv6hdr) + QUOTED, pushed = sizeof(struct ipv6hdr) + sizeof(*icmp);
		struct ipv6hdr *ip, *inner;
		__s64 sum;

		if (bpf_skb_change_tail(skb, ETH_HLEN + quoted, 0) ||
		    bpf_skb_adjust_room(skb, pushed, BPF_ADJ_ROOM_MAC, 0))
			return -1;
		data = (void *)(long)skb->data;
		end = (void *)(long)skb->data_end;
		ip = data + ETH_HLEN;
		icmp = (void *)(ip + 1);
		inner = (void *)(icmp + 1);
		if ((void *)inner + quoted > end)
			return -1;
		mtu_answer_ethernet(skb, data);
		*(__be32 *)ip = bpf_htonl(6 << 28);
		ip->payload_len = bpf_htons(sizeof(*icmp) + quoted);
		ip->nexthdr = IPPROTO_ICMPV6;
		ip->hop_limit = ENCAP_TTL;
		address_copy((void *)&ip->saddr, &now->node6);
		address_copy((void *)&ip->daddr, (void *)&inner->saddr);
		icmp->type = ICMPV6_TOO_BIG >> 8;
		icmp->code = 0;
		icmp->check = 0;
		icmp->mtu = bpf_htonl(mtu);
		/* The pseudo header's addresses, length and protocol (RFC 8200, 8.1). */
		sum = bpf_csum_diff(0, 0, (void *)&ip->saddr, 2 * 16, bpf_htons(sizeof(*icmp) + quoted));
		sum = bpf_csum_diff(0, 0, (void *)icmp, sizeof(*icmp) + quoted, sum + bpf_htons(IPPROTO_ICMPV6));
		icmp->check = fold(sum);
	}
	return 0;
}

#endif
