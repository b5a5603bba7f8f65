/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
 *
 * IPIP (RFC 2003) and VXLAN (RFC 7348) headers, pushed and popped without a tunnel
 * device. The ENCAP flags tell the kernel what was pushed, so that GSO packets stay
 * whole; FIXED_GSO because workloads' MTU leaves room for the header.
 */
#ifndef ENCAP_H
#define ENCAP_H

#include "maps.h"
#include "packet.h"

#define ENCAP_TTL 64
#define VXLAN_FLAG_VNI 0x08

struct vxlan_header {
	__u8 flags;
	__u8 reserved[3];
	__be32 vni; /* << 8 */
};

/* The outer headers of VXLAN behind the outer IP header. */
struct vxlan_tail {
	struct udphdr udp;
	struct vxlan_header vxlan;
	struct ethhdr eth;
} __attribute__((packed));

#define VXLAN4_BYTES (sizeof(struct iphdr) + sizeof(struct vxlan_tail))
#define VXLAN6_BYTES (sizeof(struct ipv6hdr) + sizeof(struct vxlan_tail))

static __always_inline void ipv4_checksum(struct iphdr *ip)
{
	__u16 *words = (void *)ip;
	__u32 sum = 0;

	ip->check = 0;
	for (int i = 0; i < 10; i++)
		sum += words[i];
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	ip->check = ~sum;
}

/* What tells the fragments of an outer packet from those of others between the same nodes:
 * none comes back within 65,536 of this CPU's packets, and flows differ in the order.
 */
static __always_inline __be16 outer_id(const struct next_hop *hop)
{
	__u32 zero = 0;
	struct judging *j = bpf_map_lookup_elem(&scratch, &zero);

	return j ? ++j->outer * 0x9e37 + hop->source_port : 0;
}

/* tos is the inner packet's: DSCP and ECN are copied out (RFC 6040, normal mode). */
static __always_inline void ipv4_outer(struct iphdr *ip, const struct settings *now, const struct next_hop *hop,
				       __u8 protocol, __u16 length, __u8 tos, __be16 dont_fragment)
{
	ip->version = 4;
	ip->ihl = 5;
	ip->tos = tos;
	ip->tot_len = bpf_htons(length);
	ip->id = dont_fragment ? 0 : outer_id(hop);
	ip->frag_off = dont_fragment;
	ip->ttl = ENCAP_TTL;
	ip->protocol = protocol;
	ip->saddr = address_ipv4(&now->node4);
	ip->daddr = address_ipv4(&hop->node);
	ipv4_checksum(ip);
}

static __always_inline void vxlan_tail_set(struct vxlan_tail *tail, const struct settings *now,
					   const struct next_hop *hop, __u16 udp_length, __be16 protocol)
{
	tail->udp.source = hop->source_port;
	tail->udp.dest = now->vxlan_port;
	tail->udp.len = bpf_htons(udp_length);
	tail->udp.check = 0;
	tail->vxlan.flags = VXLAN_FLAG_VNI;
	__builtin_memset(tail->vxlan.reserved, 0, sizeof(tail->vxlan.reserved));
	tail->vxlan.vni = bpf_htonl(now->vxlan_vni << 8);
	__builtin_memcpy(tail->eth.h_dest, hop->mac, ETH_ALEN);
	__builtin_memcpy(tail->eth.h_source, now->vxlan_mac, ETH_ALEN);
	tail->eth.h_proto = protocol;
}

/* Pushes the outer header that hop asks for. 0, or why the packet is dropped. */
__noinline int encap_push(struct __sk_buff *skb, const struct next_hop *hop, __u8 tos)
{
	__u32 zero = 0, inner = skb->len - ETH_HLEN;
	struct settings *now = bpf_map_lookup_elem(&settings, &zero);
	__be16 protocol = skb->protocol, dont_fragment = 0;
	void *data, *end;
	int ipv4;

	if (!now || !hop)
		return DROP_ENCAP;
	if (hop->forward == FORWARD_IPIP) {
		struct iphdr *ip;

		ip = (void *)(long)skb->data + ETH_HLEN;
		if ((void *)(ip + 1) > (void *)(long)skb->data_end)
			return DROP_ENCAP;
		dont_fragment = ip->frag_off & bpf_htons(IP_DONT_FRAGMENT);
		if (bpf_skb_adjust_room(skb, sizeof(struct iphdr), BPF_ADJ_ROOM_MAC,
					BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_ENCAP_L3_IPV4))
			return DROP_ENCAP;
		ip = (void *)(long)skb->data + ETH_HLEN;
		if ((void *)(ip + 1) > (void *)(long)skb->data_end)
			return DROP_ENCAP;
		ipv4_outer(ip, now, hop, IPPROTO_IPIP, inner + sizeof(*ip), tos, dont_fragment);
		return 0;
	}

	ipv4 = address_is_ipv4(&hop->node);
	if (ipv4) {
		struct iphdr *ip;

		if (bpf_skb_adjust_room(skb, VXLAN4_BYTES, BPF_ADJ_ROOM_MAC,
					BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 |
						BPF_F_ADJ_ROOM_ENCAP_L4_UDP | BPF_F_ADJ_ROOM_ENCAP_L2_ETH |
						BPF_F_ADJ_ROOM_ENCAP_L2(ETH_HLEN)))
			return DROP_ENCAP;
		data = (void *)(long)skb->data + ETH_HLEN;
		end = (void *)(long)skb->data_end;
		ip = data;
		if (data + VXLAN4_BYTES > end)
			return DROP_ENCAP;
		vxlan_tail_set((void *)(ip + 1), now, hop, inner + sizeof(struct vxlan_tail), protocol);
		ipv4_outer(ip, now, hop, IPPROTO_UDP, inner + VXLAN4_BYTES, tos, 0);
	} else {
		struct ipv6hdr *ip6;

		if (bpf_skb_adjust_room(skb, VXLAN6_BYTES, BPF_ADJ_ROOM_MAC,
					BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_ENCAP_L3_IPV6 |
						BPF_F_ADJ_ROOM_ENCAP_L4_UDP | BPF_F_ADJ_ROOM_ENCAP_L2_ETH |
						BPF_F_ADJ_ROOM_ENCAP_L2(ETH_HLEN)))
			return DROP_ENCAP;
		data = (void *)(long)skb->data + ETH_HLEN;
		end = (void *)(long)skb->data_end;
		ip6 = data;
		if (data + VXLAN6_BYTES > end)
			return DROP_ENCAP;
		vxlan_tail_set((void *)(ip6 + 1), now, hop, inner + sizeof(struct vxlan_tail), protocol);
		*(__be32 *)ip6 = bpf_htonl(6 << 28 | (__u32)tos << 20);
		ip6->payload_len = bpf_htons(inner + sizeof(struct vxlan_tail));
		ip6->nexthdr = IPPROTO_UDP;
		ip6->hop_limit = ENCAP_TTL;
		address_copy((void *)&ip6->saddr, &now->node6);
		address_copy((void *)&ip6->daddr, &hop->node);
	}
	return 0;
}

#define ECN_MASK 3
#define ECN_ECT1 1
#define ECN_ECT0 2
#define ECN_CE 3

/* Combines the outer header's congestion mark with that of the inner packet, which is all
 * that is left (RFC 6040, 4.2). 0, or why the packet is dropped.
 */
__noinline int encap_congestion(struct __sk_buff *skb, __u32 outer)
{
	void *data, *end;
	__u8 inner;

	packet_pull(skb, ETH_HLEN + sizeof(struct ipv6hdr));
	data = (void *)(long)skb->data + ETH_HLEN;
	end = (void *)(long)skb->data_end;
	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		struct iphdr *ip = data;
		__u32 sum;

		if ((void *)(ip + 1) > end)
			return DROP_MALFORMED;
		inner = ip->tos & ECN_MASK;
		if (inner && (outer == ECN_CE || inner == ECN_ECT0)) {
			/* RFC 1624, eqn. 3 */
			sum = (__u16)~ip->check + (__u16)~bpf_htons(ip->tos);
			ip->tos = (ip->tos & ~ECN_MASK) | outer;
			sum += bpf_htons(ip->tos);
			sum = (sum & 0xffff) + (sum >> 16);
			sum = (sum & 0xffff) + (sum >> 16);
			ip->check = ~sum;
		}
	} else {
		struct ipv6hdr *ip6 = data;

		if ((void *)(ip6 + 1) > end)
			return DROP_MALFORMED;
		inner = ip6->flow_lbl[0] >> 4 & ECN_MASK;
		if (inner && (outer == ECN_CE || inner == ECN_ECT0))
			ip6->flow_lbl[0] = (ip6->flow_lbl[0] & ~(ECN_MASK << 4)) | outer << 4;
	}
	return outer == ECN_CE && !inner ? DROP_ECN : 0;
}

/* Pops IPIP or VXLAN that another node sent to this one, and notes which. Everything
 * else is left alone: only nodes that we know may hand us a packet within a packet.
 */
static __always_inline int encap_pop(struct __sk_buff *skb, struct packet *p)
{
	__u32 zero = 0, bytes = 0;
	struct address from, to;
	struct settings *now;
	struct udphdr *udp = 0;
	void *data, *end;
	__u8 protocol, congestion;

	if (!p)
		return DROP_MALFORMED;
	p->tunnel = 0;
	packet_pull(skb, ETH_HLEN + VXLAN6_BYTES);
	data = (void *)(long)skb->data + ETH_HLEN;
	end = (void *)(long)skb->data_end;
	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		struct iphdr *ip = data;

		if ((void *)(ip + 1) > end || ip->ihl != 5)
			return 0;
		protocol = ip->protocol;
		if (protocol != IPPROTO_IPIP && protocol != IPPROTO_UDP)
			return 0;
		if (ip->frag_off & bpf_htons(IP_OFFSET_MASK | IP_MORE_FRAGMENTS))
			return 0; /* the host's stack puts it together */
		address_set(&from, 0, address_lo4(ip->saddr));
		address_set(&to, 0, address_lo4(ip->daddr));
		udp = (void *)(ip + 1);
		congestion = ip->tos & ECN_MASK;
		bytes = protocol == IPPROTO_IPIP ? sizeof(*ip) : VXLAN4_BYTES;
	} else if (skb->protocol == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr *ip6 = data;

		if ((void *)(ip6 + 1) > end || ip6->nexthdr != IPPROTO_UDP)
			return 0;
		protocol = IPPROTO_UDP;
		address_copy(&from, (void *)&ip6->saddr);
		address_copy(&to, (void *)&ip6->daddr);
		udp = (void *)(ip6 + 1);
		congestion = ip6->flow_lbl[0] >> 4 & ECN_MASK;
		bytes = VXLAN6_BYTES;
	} else {
		return 0;
	}
	now = bpf_map_lookup_elem(&settings, &zero);
	if (!now)
		return 0;
	if (protocol == IPPROTO_UDP) {
		struct vxlan_header *vxlan = (void *)(udp + 1);

		if ((void *)(udp + 1) > end || udp->dest != now->vxlan_port)
			return 0;
		if ((void *)(vxlan + 1) > end || !(vxlan->flags & VXLAN_FLAG_VNI) ||
		    bpf_ntohl(vxlan->vni) >> 8 != now->vxlan_vni)
			return 0;
	}
	if (!address_equal(&to, &now->node4) && !address_equal(&to, &now->node6))
		return 0;
	if (!bpf_map_lookup_elem(&peers, &from))
		return 0;
	address_copy(&p->node, &from);
	if (skb->len < ETH_HLEN + bytes + sizeof(struct iphdr))
		return DROP_MALFORMED;
	if (protocol == IPPROTO_UDP) {
		struct vxlan_tail *tail = (void *)udp;

		/* The shrunk packet keeps its protocol, so inner and outer family must agree. */
		if ((void *)(tail + 1) > end || tail->eth.h_proto != skb->protocol)
			return DROP_UNSUPPORTED;
	}
	if (bpf_skb_adjust_room(skb, -(__s32)bytes, BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_FIXED_GSO))
		return DROP_ENCAP;
	p->tunnel = protocol == IPPROTO_IPIP ? FORWARD_IPIP : FORWARD_VXLAN;
	/* The other marks change nothing. */
	return congestion & ECN_ECT1 ? encap_congestion(skb, congestion) : 0;
}

#endif
