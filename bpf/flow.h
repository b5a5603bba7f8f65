/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
 *
 * The flow cache: one lookup decides an established packet. A flow is judged in the
 * direction of its first packet only, when it is new and whenever the generation of
 * one of its ends has moved on; replies are never judged alone.
 */
#ifndef FLOW_H
#define FLOW_H

#include "maps.h"
#include "packet.h"
#include "policy.h"
#include "route.h"

static __always_inline struct endpoint *endpoint_at(__u32 slot)
{
	return bpf_map_lookup_elem(&endpoints, &slot);
}

static __always_inline __u32 workload_slot(const struct address *addr)
{
	__u32 *slot = bpf_map_lookup_elem(&workloads, addr);

	return slot ? *slot : 0;
}

/* Whether a flow's verdict and next hop still hold. */
static __always_inline int flow_is_current(const struct flow *flow)
{
	struct endpoint *a = endpoint_at(flow->slots[0]), *b = endpoint_at(flow->slots[1]);

	/* The kernel may have found a route since. */
	if (flow->state & FLOW_DENIED && flow->denied_by == DROP_NO_NEXT_HOP)
		return 0;
	return a && b && flow->generations[0] == a->generation && flow->generations[1] == b->generation;
}

/* A TCP connection that starts over on a flow that has been closed. */
static __always_inline int flow_reopens(const struct flow *flow, const struct packet *p)
{
	return (p->tcp_flags & (TCP_FLAG_SYN_BYTE | TCP_FLAG_ACK_BYTE)) == TCP_FLAG_SYN_BYTE &&
	       flow->state & (FLOW_CLOSED_A | FLOW_CLOSED_B);
}

static __always_inline __u32 flow_ports(const struct flow *flow, const struct flow_key *key, __u8 opener)
{
	__be16 src = opener ? key->b_port : key->a_port, dst = opener ? key->a_port : key->b_port;
	__u32 source_index, destination_index, ports = 0;
	struct port_class *class;

	if (key->protocol == IPPROTO_ICMP || key->protocol == IPPROTO_ICMPV6) {
		source_index = port_index(key->protocol, 0);
		destination_index = port_index(key->protocol, flow->opening);
	} else {
		source_index = port_index(key->protocol, bpf_ntohs(src));
		destination_index = port_index(key->protocol, bpf_ntohs(dst));
	}
	class = bpf_map_lookup_elem(&port_classes, &source_index);
	if (class)
		ports = class->source << 16;
	class = bpf_map_lookup_elem(&port_classes, &destination_index);
	if (class)
		ports |= class->destination;
	return ports;
}

static __always_inline void flow_deny(struct flow *flow, enum reason reason)
{
	flow->state |= FLOW_DENIED;
	flow->denied_by = reason;
}

/* Judges a flow: who its ends are, what policy says, how to reach the far end. All of
 * it is written anew but who opened it. Works on a copy, never on what other CPUs read.
 * Like every function here that is not inlined it is verified once, for any arguments,
 * which keeps the number of paths that the verifier has to walk a sum, not a product.
 */
__noinline int flow_judge(struct __sk_buff *skb, const struct flow_key *key, struct flow *flow, enum hook hook)
{
	__u8 opener, kind = 0;
	__u32 source_class, destination_class, ports, zero = 0;
	struct address source, destination;
	struct endpoint *from, *to;
	struct settings *now = bpf_map_lookup_elem(&settings, &zero);

	if (!key || !flow)
		return -1;
	opener = !(flow->state & FLOW_A_OPENED);
	flow->state &= ~FLOW_DENIED;
	address_copy(&source, opener ? &key->b : &key->a);
	address_copy(&destination, opener ? &key->a : &key->b);
	flow->slots[END(opener)] = workload_slot(&source);
	flow->slots[OTHER_END(opener)] = workload_slot(&destination);
	from = endpoint_at(flow->slots[END(opener)]);
	to = endpoint_at(flow->slots[OTHER_END(opener)]);
	if (!from || !to || !now) {
		flow_deny(flow, DROP_MALFORMED);
		return 0;
	}
	/* Before the rulesets: see struct endpoint. */
	flow->generations[END(opener)] = *(volatile __u32 *)&from->generation;
	flow->generations[OTHER_END(opener)] = *(volatile __u32 *)&to->generation;

	if (!flow->slots[END(opener)])
		kind = route_resolve(skb, &source, &flow->next_hop);
	else if (!flow->slots[OTHER_END(opener)])
		kind = route_resolve(skb, &destination, &flow->next_hop);
	else
		__builtin_memset(&flow->next_hop, 0, sizeof(flow->next_hop));
	if (flow->next_hop.forward >= FORWARD_NODE && !flow->next_hop.ifindex) {
		flow_deny(flow, DROP_NO_NEXT_HOP);
		return 0;
	}

	source_class = peer_class(&source);
	destination_class = peer_class(&destination);
	ports = flow_ports(flow, key, opener);
	if (flow->slots[END(opener)]) {
		if (policy_evaluate(from->egress, source_class, destination_class, ports) != RULE_ALLOW) {
			flow_deny(flow, DROP_EGRESS_POLICY);
			return 0;
		}
		if (!flow->slots[OTHER_END(opener)]) {
			if (kind == ROUTE_BLOCK)
				flow_deny(flow, DROP_NO_ENDPOINT);
			else if (kind == ROUTE_HOST && now->to_host == TO_HOST_DROP)
				flow_deny(flow, DROP_TO_HOST);
			return 0;
		}
	} else if (hook == HOOK_FROM_NETWORK && (kind == ROUTE_HOST || kind == ROUTE_BLOCK)) {
		/* Replies to the host's own flows leave through from_workload. */
		flow_deny(flow, DROP_MARTIAN);
		return 0;
	} else if (hook == HOOK_FROM_WORKLOAD && kind == ROUTE_BLOCK) {
		/* An answer to an endpoint that is gone. */
		flow_deny(flow, DROP_NO_ENDPOINT);
		return 0;
	}
	/* What the host itself sends to its own workloads is subject to no policy. */
	if (hook == HOOK_TO_WORKLOAD && kind == ROUTE_HOST && !skb->ingress_ifindex)
		flow->state |= FLOW_HOST_OPENED;
	if (flow->state & FLOW_HOST_OPENED)
		return 0;
	if (policy_evaluate(to->ingress, source_class, destination_class, ports) != RULE_ALLOW)
		flow_deny(flow, DROP_INGRESS_POLICY);
	return 0;
}

/* Keeps the flow from being swept. Denied flows too: once forgotten, an answer that
 * still comes would pass for the first packet of a flow of the other direction.
 */
static __always_inline void flow_seen(struct flow *flow)
{
	__u64 now = bpf_jiffies64();

	if (flow->last_seen != now)
		flow->last_seen = now;
}

/* Notes what a packet says about its flow: that it lives, and how far TCP has come. */
static __always_inline void flow_touch(struct __sk_buff *skb, struct flow *flow, const struct packet *p)
{
	if (flow->next_hop.forward >= FORWARD_NODE && (flow->last_seen ^ bpf_jiffies64()) >> FOLLOW_SHIFT)
		route_follow(skb, &flow->next_hop);
	flow_seen(flow);
	if (p->tcp_flags & TCP_FLAG_RST_BYTE)
		flow->state |= FLOW_CLOSED_A | FLOW_CLOSED_B;
	else if (p->tcp_flags & TCP_FLAG_FIN_BYTE)
		flow->state |= p->sender ? FLOW_CLOSED_B : FLOW_CLOSED_A;
}

/* Whether the packet comes from where its source lives. */
static __always_inline enum reason flow_check_source(struct __sk_buff *skb, const struct flow *flow,
						     const struct packet *p, enum hook hook)
{
	__u32 slot = flow->slots[END(p->sender)];

	if (hook == HOOK_FROM_WORKLOAD) {
		struct endpoint *from = endpoint_at(slot);
		struct ethhdr *eth = (void *)(long)skb->data;

		if (!slot || !from || from->ifindex != skb->ifindex || p->quoted_wrong)
			return DROP_SPOOFED;
		if ((void *)(eth + 1) > (void *)(long)skb->data_end)
			return DROP_MALFORMED;
		if (from->flags & ENDPOINT_MAC &&
		    (*(__u32 *)&eth->h_source[0] != *(__u32 *)&from->mac[0] ||
		     *(__u16 *)&eth->h_source[4] != *(__u16 *)&from->mac[4]))
			return DROP_SPOOFED;
	} else if (hook == HOOK_FROM_NETWORK && !p->icmp_error &&
		   (slot || flow->next_hop.forward == FORWARD_HOST)) {
		return DROP_MARTIAN;
	}
	return 0;
}

/* Everything but the established case: a flow that is new, waits for its answer, has to
 * be judged again or starts over. Leaves the flow in *flow and returns 0, or why the
 * packet is dropped.
 */
__noinline int flow_slow(struct __sk_buff *skb, const struct packet *p, struct flow *flow, enum hook hook)
{
	struct flow *known, *waiting = 0;
	__u8 sender_opened;
	enum reason reason;
	int fresh = 0;

	if (!p || !flow)
		return DROP_MALFORMED;
	known = bpf_map_lookup_elem(&flows, &p->key);
	if (known) {
		*flow = *known;
	} else {
		waiting = bpf_map_lookup_elem(&new_flows, &p->key);
		if (waiting)
			*flow = *waiting;
	}
	if ((!known && !waiting) || flow_reopens(flow, p)) {
		if (p->icmp_error)
			return DROP_NO_FLOW;
		__builtin_memset(flow, 0, sizeof(*flow));
		flow->state = p->sender ? 0 : FLOW_A_OPENED;
		flow->opening = p->icmp;
		flow->last_seen = bpf_jiffies64();
		fresh = 1;
	}
	if (fresh || !flow_is_current(flow)) {
		flow_judge(skb, &p->key, flow, hook);
		reason = flow_check_source(skb, flow, p, hook);
		if (reason)
			return reason;
		/* What was never allowed is not remembered; what was, has to stay cut. */
		if (fresh && flow->state & FLOW_DENIED) {
			if (known)
				bpf_map_delete_elem(&flows, &p->key);
			else if (waiting)
				bpf_map_delete_elem(&new_flows, &p->key);
			return flow->denied_by;
		}
	} else {
		reason = flow_check_source(skb, flow, p, hook);
		if (reason)
			return reason;
	}
	if (flow->state & FLOW_DENIED) {
		flow_seen(flow);
		if (known)
			bpf_map_update_elem(&flows, &p->key, flow, BPF_EXIST);
		else if (waiting)
			bpf_map_update_elem(&new_flows, &p->key, flow, BPF_ANY);
		return flow->denied_by;
	}

	flow_touch(skb, flow, p);
	sender_opened = !p->sender == !!(flow->state & FLOW_A_OPENED);
	if (fresh) {
		if (known) /* it starts over: unconfirmed again */
			bpf_map_delete_elem(&flows, &p->key);
		bpf_map_update_elem(&new_flows, &p->key, flow, BPF_ANY);
		return 0;
	}
	if (known) {
		bpf_map_update_elem(&flows, &p->key, flow, BPF_EXIST);
		return 0;
	}
	if (p->icmp_error)
		return 0;
	/* An answer proves the far end, but for TCP not that the opener is real: a forged
	 * SYN is answered too. Its next packet proves it.
	 */
	if (!sender_opened)
		flow->state |= FLOW_REPLIED;
	if (flow->state & FLOW_REPLIED && (sender_opened || p->key.protocol != IPPROTO_TCP)) {
		flow->state |= FLOW_CONFIRMED;
		/* Full: it goes on as an unconfirmed flow. */
		if (bpf_map_update_elem(&flows, &p->key, flow, BPF_ANY) == 0) {
			bpf_map_delete_elem(&new_flows, &p->key);
			return 0;
		}
	}
	bpf_map_update_elem(&new_flows, &p->key, flow, BPF_ANY);
	return 0;
}

/* The packet's flow, established or not: 0 and *flow, or why the packet is dropped. */
static __always_inline enum reason flow_decide(struct __sk_buff *skb, const struct packet *p, struct flow **flow,
					       enum hook hook)
{
	struct flow *known = bpf_map_lookup_elem(&flows, &p->key);
	enum reason reason;
	__u32 zero = 0;

	if (known && flow_is_current(known) && !flow_reopens(known, p)) {
		*flow = known;
		reason = flow_check_source(skb, known, p, hook);
		if (reason)
			return reason;
		if (known->state & FLOW_DENIED) {
			flow_seen(known);
			return known->denied_by;
		}
		flow_touch(skb, known, p);
		return 0;
	}
	*flow = bpf_map_lookup_elem(&scratch, &zero);
	if (!*flow)
		return DROP_MALFORMED;
	return flow_slow(skb, p, *flow, hook);
}

#endif
