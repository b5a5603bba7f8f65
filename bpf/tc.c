// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//
// The four tc programs. Each one parses, decides, finishes.
//
// Failure: on a workload's interface what cannot be understood is dropped; on the
// host's interfaces what is not ours passes.
#include "maps.h"
#include "packet.h"
#include "verdict.h"
#include "source.h"
#include "flow.h"
#include "encap.h"
#include "mtu.h"
#include "arp.h"

/* On packets that left for another node through here, so that to_network lets them be. */
#define MARK_FORWARDED 0x01000000

/* Tells the host's stack what to do with the packet: to masquerade it, to let it only go where
 * it is judged.
 */
static __always_inline void mark_for_stack(struct __sk_buff *skb, const struct flow *flow)
{
	__u32 zero = 0;
	struct settings *now = bpf_map_lookup_elem(&settings, &zero);

	if (now && flow->state & FLOW_MASQUERADED)
		skb->mark |= now->nat_mark;
	if (now && flow->state & FLOW_UNJUDGED)
		skb->mark |= now->unjudged_mark;
}

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
	/* The host's stack answers with time exceeded, or translates back. */
	if (p->ttl <= 1 || flow->state & FLOW_THROUGH_STACK)
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
	__u32 uplink, room;
	__u8 forward = flow->next_hop.forward;

	if (forward == FORWARD_HOST)
		return PASS_TO_HOST;
	if (forward == FORWARD_STACK || flow->state & FLOW_THROUGH_STACK || p->ttl <= 1) {
		if (flow->state & (FLOW_MASQUERADED | FLOW_UNJUDGED))
			mark_for_stack(skb, flow);
		return PASS_TO_STACK;
	}
	room = mtu_exceeded(skb, p, &flow->next_hop);
	if (room) {
		/* The host's stack makes fragments of what may be. */
		if (!p->ipv6 && !p->whole)
			return PASS_TO_STACK;
		if (mtu_answer(skb, room))
			return DROP_ENCAP;
		*action = bpf_redirect(skb->ifindex, 0);
		return PASS_TOO_BIG;
	}
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
	int answered;

	parsed = packet_parse(skb, p, HOOK_FROM_WORKLOAD);
	switch (parsed) {
	case PARSED_IP:
		break;
	case PARSED_ARP:
		reason = arp_from_workload(skb, &answered);
		if (answered)
			*action = bpf_redirect(skb->ifindex, 0);
		return reason;
	case PARSED_NEIGHBOR:
		return discovery_from_workload(skb);
	default:
		return parsed_drop(parsed);
	}
	flow = flow_find(&p->key);
	reason = flow_decide(skb, p, &flow, HOOK_FROM_WORKLOAD, 0, 0);
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

	return finish(HOOK_FROM_WORKLOAD, reason, &p, skb->ifindex, length, action);
}

/* Whether the host's stack forwards this packet for a workload, as whose it still is known. */
static __always_inline int sent_by_workload(struct __sk_buff *skb, const struct packet *p)
{
	const struct address *source = p->sender ? &p->key.b : &p->key.a;

	return skb->ingress_ifindex && (workload_slot(source) || source_slot(skb->ingress_ifindex, source));
}

/* Whether this is a workload's packet that its policy has yet to judge, and cannot any more: the
 * host's stack has made the host its source.
 */
__noinline int never_judged(struct __sk_buff *skb, const struct packet *p)
{
	__u32 zero = 0;
	struct settings *now = bpf_map_lookup_elem(&settings, &zero);
	struct judging *j = bpf_map_lookup_elem(&scratch, &zero);

	if (!p || !now || !j || !(skb->mark & now->unjudged_mark) || sent_by_workload(skb, p))
		return 0;
	__builtin_memset(j->flow.rules, 0, sizeof(j->flow.rules)); /* for who is told */
	return 1;
}

/* The host's stack delivers to a workload: the host's own packets, and what it
 * forwards itself.
 */
static __always_inline enum reason decide_to_workload(struct __sk_buff *skb, struct packet *p)
{
	struct flow *flow;
	enum reason reason;
	enum parsed parsed;

	parsed = packet_parse(skb, p, HOOK_TO_WORKLOAD);
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
	if (skb->mark && skb->ingress_ifindex != skb->ifindex && never_judged(skb, p))
		return DROP_EGRESS_POLICY;
	flow = flow_find(&p->key);
	reason = flow_decide(skb, p, &flow, HOOK_TO_WORKLOAD, 0, 0);
	return reason ? reason : PASS_TO_WORKLOAD;
}

SEC("tc")
int to_workload(struct __sk_buff *skb)
{
	struct packet p = {};
	__u32 length = skb->len;
	enum reason reason = decide_to_workload(skb, &p);

	return finish(HOOK_TO_WORKLOAD, reason, &p, skb->ifindex, length, TC_ACT_UNSPEC);
}

/* What cannot be judged on the host's interfaces: it passes, but where a host endpoint is,
 * nothing may hide its ports.
 */
static __always_inline enum reason host_unparsed(enum parsed parsed, __u32 ifindex)
{
	if (parsed == PARSED_EXTENSION && host_policies() && host_endpoint_at(ifindex))
		return DROP_UNSUPPORTED;
	return PASS_NOT_OURS;
}

/* Reads a packet from the network, out of its tunnel if it came through one. Returns enum
 * parsed, or above it, << 8, why it is dropped.
 */
__noinline int network_parse(struct __sk_buff *skb, struct packet *p)
{
	enum reason reason;
	enum parsed parsed;

	if (!p)
		return DROP_MALFORMED << 8;
	reason = encap_pop(skb, p);
	if (reason)
		return reason << 8;
	parsed = packet_parse(skb, p, HOOK_FROM_NETWORK);
	if (p->icmp_error)
		mtu_learn(skb, p);
	return parsed;
}

static __always_inline enum reason decide_from_network(struct __sk_buff *skb, struct packet *p, int *action)
{
	__u32 via = skb->ifindex, to = 0, policies = host_policies();
	struct address *destination;
	struct flow *flow;
	enum reason reason;
	int parsed;

	parsed = network_parse(skb, p);
	if (parsed >> 8)
		return parsed >> 8;
	if (p->tunnel) {
		/* Out of a tunnel it can only be for a workload or the host. */
		if (parsed != PARSED_IP)
			return parsed_drop(parsed);
		via = INTERFACE_TUNNEL;
	} else if (parsed == PARSED_MULTICAST ? !policies || !p->key.protocol : parsed != PARSED_IP) {
		reason = parsed == PARSED_MULTICAST ? source_check(skb, p, SOURCE_STATIC) : 0;
		return reason ? reason : host_unparsed(parsed, skb->ifindex);
	}
	destination = p->sender ? &p->key.a : &p->key.b;
	if (policies & HOST_POLICY_UNTRACKED && !p->tunnel) {
		switch (host_untracked_counted(p, skb->ifindex, DIRECTION_INGRESS)) {
		case RULE_ALLOW:
			if (!workload_slot(destination)) {
				reason = source_check(skb, p, SOURCE_STATIC);
				return reason ? reason : PASS_UNTRACKED;
			}
			via = 0;
			break;
		case RULE_CONTINUE:
			break;
		default:
			return DROP_UNTRACKED;
		}
	}
	flow = flow_find(&p->key);
	if (!flow)
		to = workload_slot(destination);
	if (!flow && !to) {
		int tracked = policies & HOST_POLICY_TRACKED && host_endpoint_at(via);

		/* Of what is tracked only the first packet is asked where it comes from. The
		 * kernel looks up the socket that an error quotes.
		 */
		if (!tracked || p->icmp_error) {
			reason = source_check(skb, p, SOURCE_HOST | SOURCE_OPENS);
			return reason ? reason : tracked ? PASS_TO_HOST : PASS_NOT_OURS;
		}
	}
	reason = flow_decide(skb, p, &flow, HOOK_FROM_NETWORK, via, to);
	if (reason)
		return reason;
	if (flow->state & FLOW_TRANSIT)
		return flow->state & FLOW_FORWARDED ? PASS_TO_STACK : PASS_TO_HOST;
	if (!flow->slots[OTHER_END(p->sender)])
		return PASS_NOT_OURS;
	return forward_to_workload(skb, p, flow, action);
}

SEC("tc")
int from_network(struct __sk_buff *skb)
{
	struct packet p = {};
	int action = TC_ACT_UNSPEC;
	__u32 length = skb->len;
	enum reason reason = decide_from_network(skb, &p, &action);

	return finish(HOOK_FROM_NETWORK, reason, &p, skb->ifindex, length, action);
}

/* What leaves through the host's interface: the host endpoint's say, and that of the policy of
 * a workload, if the host's stack has led its packet to another address than it was for. 0, or
 * why it is dropped.
 */
static __always_inline enum reason host_egress(struct __sk_buff *skb, const struct packet *p, __u32 via)
{
	__u32 policies = host_policies();
	int workload = sent_by_workload(skb, p);
	struct flow *flow;

	if (skb->mark && never_judged(skb, p))
		return DROP_EGRESS_POLICY;

	if (policies & HOST_POLICY_UNTRACKED && via != INTERFACE_TUNNEL) {
		switch (host_untracked_counted(p, via, DIRECTION_EGRESS)) {
		case RULE_ALLOW:
			if (!workload)
				return 0;
			via = 0;
			break;
		case RULE_CONTINUE:
			break;
		default:
			return DROP_UNTRACKED;
		}
	}
	if (!workload && !(policies & HOST_POLICY_TRACKED))
		return 0;
	flow = flow_find(&p->key);
	if (!workload && !flow && !host_endpoint_at(via))
		return 0;
	return flow_decide(skb, p, &flow, HOOK_TO_NETWORK, via, 0);
}

/* Where a packet of the host's goes, if to a workload of another node: enum forward; 0 if not,
 * -1 if it is not known how.
 */
__noinline int away(const struct packet *p, struct judging *j)
{
	struct route *route;
	struct peer *peer;

	if (!p || !j)
		return 0;
	/* An ICMP error goes to the source of what it quotes: by its key, too. */
	route = route_lookup(p->sender ? &p->key.a : &p->key.b);
	if (!route || route->kind != ROUTE_WORKLOAD)
		return 0;
	address_copy(&j->away.node, &route->node);
	j->away.forward = route->forward;
	j->away.source_port = encap_source_port(&p->key);
	if (route->forward == FORWARD_VXLAN) {
		peer = bpf_map_lookup_elem(&peers, &route->node);
		if (!peer)
			return -1;
		__builtin_memcpy(j->away.mac, peer->mac, sizeof(j->away.mac));
	}
	return route->forward;
}

/* What the host itself sends to workloads of other nodes gets its outer header here;
 * the kernel's route has already chosen the next hop.
 */
static __always_inline enum reason decide_to_network(struct __sk_buff *skb, struct packet *p)
{
	enum reason reason;
	enum parsed parsed;
	struct judging *j;
	__u32 zero = 0;
	int forward;

	if (skb->mark & MARK_FORWARDED)
		return PASS_TO_NODE;
	parsed = packet_parse(skb, p, HOOK_TO_NETWORK);
	if (parsed == PARSED_MULTICAST ? !p->key.protocol : parsed != PARSED_IP && parsed != PARSED_FRAGMENT)
		return host_unparsed(parsed, skb->ifindex);
	j = bpf_map_lookup_elem(&scratch, &zero);
	if (!j)
		return DROP_MALFORMED;
	forward = away(p, j);
	/* What follows no fragment that has passed is of no use to anybody; the host's errors
	 * are about what policy has let through.
	 */
	if (parsed != PARSED_FRAGMENT && !p->icmp_error) {
		reason = host_egress(skb, p, forward > FORWARD_NODE ? INTERFACE_TUNNEL : skb->ifindex);
		if (reason)
			return reason;
	}
	if (!forward)
		return PASS_NOT_OURS;
	if (forward < 0)
		return DROP_NO_NEXT_HOP;
	if (forward == FORWARD_NODE)
		return PASS_TO_NODE;
	reason = encap_push(skb, &j->away, p->tos);
	if (reason)
		return reason;
	return forward == FORWARD_IPIP ? PASS_IPIP : PASS_VXLAN;
}

SEC("tc")
int to_network(struct __sk_buff *skb)
{
	struct packet p = {};
	__u32 length = skb->len;
	enum reason reason = decide_to_network(skb, &p);

	return finish(HOOK_TO_NETWORK, reason, &p, skb->ifindex, length, TC_ACT_UNSPEC);
}

/* What would become of a packet that is the first of its flow, as seen by the hook in the
 * low byte of the mark, out of a tunnel if bit 8 is set. On no hook: the daemon runs it.
 * Sends, counts and remembers nothing.
 */
static __always_inline enum reason explain_packet(struct __sk_buff *skb, struct packet *p, struct judging *j)
{
	enum hook hook = skb->mark & 0xff;
	enum direction direction = hook == HOOK_FROM_NETWORK ? DIRECTION_INGRESS : DIRECTION_EGRESS;
	__u32 via = skb->mark & 0x100 ? INTERFACE_TUNNEL : skb->ifindex;
	enum parsed parsed = packet_parse(skb, p, hook);
	enum reason reason;

	j->logs = j->asked = 0;
	j->staged[0] = j->staged[1] = 0;
	flow_start(&j->flow, p);
	if (parsed != PARSED_IP)
		return parsed == PARSED_ARP || parsed == PARSED_NEIGHBOR ? PASS_NEIGHBOR : parsed_drop(parsed);
	if ((hook == HOOK_FROM_NETWORK || hook == HOOK_TO_NETWORK) && via != INTERFACE_TUNNEL) {
		switch (host_untracked(p, via, direction)) {
		case RULE_ALLOW:
			if (hook == HOOK_TO_NETWORK || !workload_slot(p->sender ? &p->key.a : &p->key.b))
				return PASS_UNTRACKED;
			via = 0;
			break;
		case RULE_CONTINUE:
			break;
		default:
			return DROP_UNTRACKED;
		}
	}
	j->via = via;
	j->to = 0;
	j->fresh = 1;
	flow_passes(skb, j, p, hook);
	flow_judge(skb, p, j, hook);
	reason = flow_check_source(skb, &j->flow, p, hook);
	if (!reason && j->flow.state & FLOW_DENIED)
		reason = j->flow.denied_by;
	return reason;
}

SEC("tc")
int explain(struct __sk_buff *skb)
{
	struct packet p = {};
	__u32 zero = 0;
	struct explanation *answer = bpf_map_lookup_elem(&explanations, &zero);
	struct judging *j = bpf_map_lookup_elem(&scratch, &zero);
	struct search *s = bpf_map_lookup_elem(&searches, &zero);
	enum reason reason;

	if (!answer || !j || !s)
		return TC_ACT_SHOT;
	/* Linux 6.1 runs this where a packet may come in between, and use the same memory. That
	 * spoils an answer, and must not spoil a verdict.
	 */
	s->forgets = 1;
	reason = explain_packet(skb, &p, j);
	s->forgets = 0;
	answer->flow = j->flow;
	for (int i = 0; i < FLOW_RULES; i++)
		answer->logged[i] = i < j->logs ? j->logged[i] : 0;
	answer->staged[0] = j->staged[0];
	answer->staged[1] = j->staged[1];
	answer->reason = reason;
	return TC_ACT_UNSPEC;
}

char __license[] SEC("license") = "GPL";
