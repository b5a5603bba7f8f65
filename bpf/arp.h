/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
 *
 * Workloads have one neighbour: the host. Its IPv4 address there is 169.254.1.1, which no
 * interface has, and which is answered here, so that nothing depends on the host's routes
 * as proxy_arp does. What a workload says of its own address has to be true, and it says
 * nothing of routers.
 */
#ifndef ARP_H
#define ARP_H

#include "maps.h"
#include "packet.h"
#include "source.h"

#define GATEWAY_IPV4 0xa9fe0101 /* 169.254.1.1 */
#define ARP_REQUEST 1
#define ARP_REPLY 2

struct arp_ipv4 {
	struct ethhdr eth;
	__be16 hardware, protocol;
	__u8 hardware_length, protocol_length;
	__be16 operation;
	__u8 sender_mac[6];
	__u8 sender_ip[4];
	__u8 target_mac[6];
	__u8 target_ip[4];
} __attribute__((packed));

/* The workload behind an interface if it may call that address its own, else 0. */
static __always_inline struct endpoint *neighbor_at(__u32 ifindex, const struct address *addr)
{
	__u32 *known = bpf_map_lookup_elem(&workloads, addr), slot = known ? *known : source_slot(ifindex, addr);
	struct endpoint *at = bpf_map_lookup_elem(&endpoints, &slot);

	return slot && at && at->ifindex == ifindex ? at : 0;
}

static __always_inline int neighbor_mac_wrong(const struct endpoint *at, const __u8 *mac)
{
	return at->flags & ENDPOINT_MAC && (*(__u16 *)&mac[0] != *(__u16 *)&at->mac[0] ||
					    *(__u16 *)&mac[2] != *(__u16 *)&at->mac[2] ||
					    *(__u16 *)&mac[4] != *(__u16 *)&at->mac[4]);
}

/* A workload's ARP: a request for the gateway is answered in place, and *answered set. */
__noinline int arp_from_workload(struct __sk_buff *skb, int *answered)
{
	struct arp_ipv4 *arp;
	struct address sender;
	struct endpoint *from;
	__be32 ip;

	if (!answered)
		return DROP_MALFORMED;
	*answered = 0;
	packet_pull(skb, sizeof(*arp));
	arp = (void *)(long)skb->data;
	if ((void *)(arp + 1) > (void *)(long)skb->data_end)
		return DROP_MALFORMED;
	if (arp->protocol != bpf_htons(ETH_P_IP) || arp->hardware_length != ETH_ALEN || arp->protocol_length != 4)
		return DROP_UNSUPPORTED;
	__builtin_memcpy(&ip, arp->sender_ip, sizeof(ip));
	/* Whoever asks whether an address is in use has none yet (RFC 5227). */
	if (ip == 0 && arp->operation == bpf_htons(ARP_REQUEST))
		return PASS_NEIGHBOR;
	address_set(&sender, 0, address_lo4(ip));
	from = neighbor_at(skb->ifindex, &sender);
	if (!from || neighbor_mac_wrong(from, arp->sender_mac) || neighbor_mac_wrong(from, arp->eth.h_source))
		return DROP_SPOOFED;
	__builtin_memcpy(&ip, arp->target_ip, sizeof(ip));
	if (arp->operation != bpf_htons(ARP_REQUEST) || ip != bpf_htonl(GATEWAY_IPV4))
		return PASS_NEIGHBOR;
	__builtin_memcpy(arp->target_mac, arp->sender_mac, 6);
	__builtin_memcpy(arp->target_ip, arp->sender_ip, 4);
	__builtin_memcpy(arp->sender_mac, from->host_mac, 6);
	ip = bpf_htonl(GATEWAY_IPV4);
	__builtin_memcpy(arp->sender_ip, &ip, 4);
	__builtin_memcpy(arp->eth.h_dest, arp->eth.h_source, 6);
	__builtin_memcpy(arp->eth.h_source, from->host_mac, 6);
	arp->operation = bpf_htons(ARP_REPLY);
	*answered = 1;
	return PASS_NEIGHBOR;
}

/* A workload's neighbour and router discovery (RFC 4861), which has not been routed. */
__noinline int discovery_from_workload(struct __sk_buff *skb)
{
	struct address source, destination;
	struct ethhdr *eth;
	struct ipv6hdr *ip6;
	struct endpoint *from;
	__u8 type;

	packet_pull(skb, ETH_HLEN + sizeof(*ip6) + 8);
	eth = (void *)(long)skb->data;
	ip6 = (void *)(eth + 1);
	if ((void *)(ip6 + 1) + 8 > (void *)(long)skb->data_end)
		return DROP_MALFORMED;
	type = *(__u8 *)(ip6 + 1);
	if (type != ICMPV6_ROUTER_SOLICITATION && type != ICMPV6_NEIGHBOR_SOLICITATION &&
	    type != ICMPV6_NEIGHBOR_ADVERTISEMENT)
		return DROP_SPOOFED;
	address_copy(&source, (void *)&ip6->saddr);
	address_copy(&destination, (void *)&ip6->daddr);
	/* The host would forward it past policy. */
	if (destination.bytes[0] != 0xff && route_kind(&destination) != ROUTE_HOST)
		return DROP_SPOOFED;
	if (address_is_link_local(&source) || source_is_none(&source))
		return PASS_NEIGHBOR;
	from = neighbor_at(skb->ifindex, &source);
	return !from || neighbor_mac_wrong(from, eth->h_source) ? DROP_SPOOFED : PASS_NEIGHBOR;
}

#endif
