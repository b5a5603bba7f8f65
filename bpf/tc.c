// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//
// The four tc programs. Each one parses, decides, finishes.
//
// Failure: on a workload's interface what cannot be understood is dropped; on the
// host's interfaces what is not ours passes.
#include "maps.h"
#include "packet.h"
#include "verdict.h"
#include "flow.h"
#include "encap.h"
#include "arp.h"

/* On packets that left for another node through here, so that to_network lets them be. */
#define MARK_FORWARDED 0x01000000

/* One hop: TTL down by one, checksum with it (RFC 1624). The packet has been parsed. */
static __always_inline enum reason forward_hop(struct __sk_buff *skb, const struct packet *p)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;

	if (p->ipv6) {
		struct ipv6hdr *ip6 = data + ETH_HLEN;

		if ((void *)(ip6 + 1) > end)
			return DROP_MALFORMED;
		ip6->hop_limit--;
	} else {
		struct iphdr *ip = data + ETH_HLEN;
		__u32 check;

		if ((void *)(ip + 1) > end)
			return DROP_MALFORMED;
		ip->ttl--;
		check = ip->check + bpf_htons(0x0100);
		ip->check = check + (check >= 0xffff);
	}
	return 0;
}

/* Hands the packet to a local workload. */
static __always_inline enum reason forward_to_workload(struct __sk_buff *skb, const struct packet *p,
						       const struct flow *flow, int *action)
{
	struct endpoint *to = endpoint_at(flow->slots[OTHER_END(p->sender)]);
	enum reason reason;
	struct ethhdr *eth;

	if (!to || !to->ifindex)
		return DROP_NO_ENDPOINT;
	/* The host's stack answers with time exceeded. */
	if (p->ttl <= 1)
		return PASS_TO_STACK;
	reason = forward_hop(skb, p);
	if (reason)
		return reason;
	if (to->flags & ENDPOINT_MAC) {
		eth = (void *)(long)skb->data;
		if ((void *)(eth + 1) > (void *)(long)skb->data_end)
			return DROP_MALFORMED;
		__builtin_memcpy(eth->h_dest, to->mac, ETH_ALEN);
		__builtin_memcpy(eth->h_source, to->host_mac, ETH_ALEN);
	}
	if (to->flags & ENDPOINT_VETH)
		*action = bpf_redirect_peer(to->ifindex, 0);
	else if (to->flags & ENDPOINT_MAC)
		*action = bpf_redirect(to->ifindex, 0);
	else
		*action = bpf_redirect_neigh(to->ifindex, 0, 0, 0);
	return PASS_TO_WORKLOAD;
}

/* Sends the packet towards the end of its flow that is no local workload. */
static __always_inline enum reason forward_away(struct __sk_buff *skb, const struct packet *p,
						const struct flow *flow, int *action)
{
	enum reason reason;
	__u32 uplink;
	__u8 forward = flow->next_hop.forward;

	if (forward == FORWARD_HOST)
		return PASS_TO_HOST;
	if (forward == FORWARD_STACK || p->ttl <= 1)
		return PASS_TO_STACK;
	reason = forward_hop(skb, p);
	if (reason)
		return reason;
	uplink = flow->next_hop.ifindex;
	skb->mark |= MARK_FORWARDED;
	if (forward != FORWARD_NODE) {
		reason = encap_push(skb, &flow->next_hop, p->tos);
		if (reason)
			return reason;
	}
	*action = bpf_redirect_neigh(uplink, 0, 0, 0);
	return forward == FORWARD_NODE ? PASS_TO_NODE : forward == FORWARD_IPIP ? PASS_IPIP : PASS_VXLAN;
}

/* Why a packet that is not plain IP does not pass a workload's interface. */
static __always_inline enum reason parsed_drop(enum parsed parsed)
{
	switch (parsed) {
	case PARSED_MULTICAST:
		return DROP_MULTICAST;
	case PARSED_FRAGMENT:
		return DROP_FRAGMENT;
	case PARSED_MALFORMED:
		return DROP_MALFORMED;
	default:
		return DROP_UNSUPPORTED;
	}
}

static __always_inline enum reason decide_from_workload(struct __sk_buff *skb, struct packet *p, int *action)
{
	struct flow *flow;
	enum reason reason;
	enum parsed parsed;

	parsed = packet_parse(skb, p);
	switch (parsed) {
	case PARSED_IP:
		break;
	case PARSED_ARP:
		if (arp_answer(skb))
			*action = bpf_redirect(skb->ifindex, 0);
		return PASS_NEIGHBOR;
	case PARSED_NEIGHBOR:
		return PASS_NEIGHBOR;
	default:
		return parsed_drop(parsed);
	}
	reason = flow_decide(skb, p, &flow, HOOK_FROM_WORKLOAD);
	if (reason)
		return reason;
	if (flow->slots[OTHER_END(p->sender)])
		return forward_to_workload(skb, p, flow, action);
	return forward_away(skb, p, flow, action);
}

SEC("tc")
int from_workload(struct __sk_buff *skb)
{
	struct packet p = {};
	int action = TC_ACT_UNSPEC;
	__u32 length = skb->len;
	enum reason reason = decide_from_workload(skb, &p, &action);

	return finish(HOOK_FROM_WORKLOAD, reason, length, action);
}

/* The host's stack delivers to a workload: the host's own packets, and what it
 * forwards itself.
 */
static __always_inline enum reason decide_to_workload(struct __sk_buff *skb, struct packet *p)
{
	struct flow *flow;
	enum reason reason;
	enum parsed parsed;

	parsed = packet_parse(skb, p);
	switch (parsed) {
	case PARSED_IP:
		break;
	case PARSED_ARP:
	case PARSED_NEIGHBOR:
		return PASS_NEIGHBOR;
	default:
		return parsed_drop(parsed);
	}
	/* What the host has to say about a workload's packet: too big, time exceeded. */
	if (p->icmp_error && !skb->ingress_ifindex)
		return PASS_TO_WORKLOAD;
	reason = flow_decide(skb, p, &flow, HOOK_TO_WORKLOAD);
	return reason ? reason : PASS_TO_WORKLOAD;
}

SEC("tc")
int to_workload(struct __sk_buff *skb)
{
	struct packet p = {};
	__u32 length = skb->len;
	enum reason reason = decide_to_workload(skb, &p);

	return finish(HOOK_TO_WORKLOAD, reason, length, TC_ACT_UNSPEC);
}

static __always_inline enum reason decide_from_network(struct __sk_buff *skb, struct packet *p, int *action)
{
	struct flow *flow;
	struct address *destination;
	enum reason reason;
	struct outer outer;

	reason = encap_pop(skb, &outer);
	if (reason)
		return reason;
	/* Out of a tunnel it can only be for a workload; else it is the host's. */
	if (packet_parse(skb, p) != PARSED_IP)
		return outer.forward ? DROP_UNSUPPORTED : PASS_NOT_OURS;
	destination = p->sender ? &p->key.a : &p->key.b;
	if (!workload_slot(destination))
		return PASS_NOT_OURS;
	reason = flow_decide(skb, p, &flow, HOOK_FROM_NETWORK);
	if (reason)
		return reason;
	if (outer.forward && !p->icmp_error) {
		struct address *source = p->sender ? &p->key.b : &p->key.a;

		if (!address_equal(&outer.node, &flow->next_hop.node) && !address_equal(&outer.node, source))
			return DROP_WRONG_NODE;
	}
	return forward_to_workload(skb, p, flow, action);
}

SEC("tc")
int from_network(struct __sk_buff *skb)
{
	struct packet p = {};
	int action = TC_ACT_UNSPEC;
	__u32 length = skb->len;
	enum reason reason = decide_from_network(skb, &p, &action);

	return finish(HOOK_FROM_NETWORK, reason, length, action);
}

/* What the host itself sends to workloads of other nodes gets its outer header here;
 * the kernel's route has already chosen the next hop.
 */
static __always_inline enum reason decide_to_network(struct __sk_buff *skb, struct packet *p)
{
	struct next_hop hop = {};
	struct address *destination;
	struct route *route;
	enum reason reason;

	if (skb->mark & MARK_FORWARDED)
		return PASS_TO_NODE;
	if (packet_parse(skb, p) != PARSED_IP || p->icmp_error)
		return PASS_NOT_OURS;
	destination = p->sender ? &p->key.a : &p->key.b;
	route = route_lookup(destination);
	if (!route || route->kind != ROUTE_WORKLOAD)
		return PASS_NOT_OURS;
	if (route->forward == FORWARD_NODE)
		return PASS_TO_NODE;
	address_copy(&hop.node, &route->node);
	hop.forward = route->forward;
	if (route->forward == FORWARD_VXLAN) {
		struct peer *peer = bpf_map_lookup_elem(&peers, &hop.node);

		if (!peer)
			return DROP_NO_NEXT_HOP;
		__builtin_memcpy(hop.mac, peer->mac, sizeof(hop.mac));
	}
	reason = encap_push(skb, &hop, p->tos);
	if (reason)
		return reason;
	return hop.forward == FORWARD_IPIP ? PASS_IPIP : PASS_VXLAN;
}

SEC("tc")
int to_network(struct __sk_buff *skb)
{
	struct packet p = {};
	__u32 length = skb->len;
	enum reason reason = decide_to_network(skb, &p);

	return finish(HOOK_TO_NETWORK, reason, length, TC_ACT_UNSPEC);
}

char __license[] SEC("license") = "GPL";
