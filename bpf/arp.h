/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
 *
 * Workloads have one neighbour: their gateway 169.254.1.1, which no interface has.
 * It is answered here, so that nothing depends on the host's routes as proxy_arp does.
 */
#ifndef ARP_H
#define ARP_H

#include "maps.h"
#include "packet.h"

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

/* Answers a request for the gateway in place. 1 if it did. */
static __always_inline int arp_answer(struct __sk_buff *skb)
{
	struct arp_ipv4 *arp;
	struct address sender;
	struct endpoint *from;
	__u32 *slot;
	__be32 ip;

	packet_pull(skb, sizeof(*arp));
	arp = (void *)(long)skb->data;
	if ((void *)(arp + 1) > (void *)(long)skb->data_end)
		return 0;
	__builtin_memcpy(&ip, arp->target_ip, sizeof(ip));
	if (arp->operation != bpf_htons(ARP_REQUEST) || arp->protocol != bpf_htons(ETH_P_IP) ||
	    ip != bpf_htonl(GATEWAY_IPV4))
		return 0;
	__builtin_memcpy(&ip, arp->sender_ip, sizeof(ip));
	address_set(&sender, 0, address_lo4(ip));
	slot = bpf_map_lookup_elem(&workloads, &sender);
	if (!slot)
		return 0;
	from = bpf_map_lookup_elem(&endpoints, slot);
	if (!from || from->ifindex != skb->ifindex)
		return 0;
	__builtin_memcpy(arp->target_mac, arp->sender_mac, 6);
	__builtin_memcpy(arp->target_ip, arp->sender_ip, 4);
	__builtin_memcpy(arp->sender_mac, from->host_mac, 6);
	ip = bpf_htonl(GATEWAY_IPV4);
	__builtin_memcpy(arp->sender_ip, &ip, 4);
	__builtin_memcpy(arp->eth.h_dest, arp->eth.h_source, 6);
	__builtin_memcpy(arp->eth.h_source, from->host_mac, 6);
	arp->operation = bpf_htons(ARP_REPLY);
	return 1;
}

#endif
