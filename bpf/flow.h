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
#include "host.h"
#include "source.h"
#include "verdict.h"

static __always_inline struct endpoint *endpoint_at(__u32 slot)
{
	return bpf_map_lookup_elem(&endpoints, &slot);
}

/* The interface of a slot, 0 if it is free. */
__noinline __u32 endpoint_ifindex(__u32 slot)
{
	struct endpoint *at = endpoint_at(slot);

	return at ? at->ifindex : 0;
}

/* An established flow; 0 if it is not in the table that is in use. */
static __always_inline struct flow *flow_find(const struct flow_key *key)
{
	__u32 now = FLOWS_NOW;
	void *table = bpf_map_lookup_elem(&flow_tables, &now);

	return table ? bpf_map_lookup_elem(table, key) : 0;
}

static __always_inline long flow_write(const struct flow_key *key, const struct flow *flow, __u64 flags)
{
	__u32 now = FLOWS_NOW;
	void *table = bpf_map_lookup_elem(&flow_tables, &now);

	return table ? bpf_map_update_elem(table, key, flow, flags) : -1;
}

/* Out of all tables: while one takes another's place it would come back. Out of the one in
 * use last, since the daemon copies from the others into that.
 */
static __always_inline void flow_forget(const struct flow_key *key)
{
	for (int i = FLOW_TABLES - 1; i >= FLOWS_NOW; i--) {
		__u32 index = i;
		void *table = bpf_map_lookup_elem(&flow_tables, &index);

		if (table)
			bpf_map_delete_elem(table, key);
	}
}

/* A flow that has not come over yet to the table in use. */
static __always_inline struct flow *flow_fetch(const struct flow_key *key)
{
	for (int i = FLOWS_ELSE; i < FLOW_TABLES; i++) {
		__u32 index = i;
		void *table = bpf_map_lookup_elem(&flow_tables, &index);
		struct flow *flow = table ? bpf_map_lookup_elem(table, key) : 0;

		if (flow) {
			flow_write(key, flow, BPF_NOEXIST);
			return flow;
		}
	}
	return 0;
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

/* A TCP connection that starts over on a flow that has been closed, or that was taken for
 * one that had started before.
 */
static __always_inline int flow_reopens(const struct flow *flow, const struct packet *p)
{
	return (p->tcp_flags & (TCP_FLAG_SYN_BYTE | TCP_FLAG_ACK_BYTE)) == TCP_FLAG_SYN_BYTE &&
	       flow->state & (FLOW_CLOSED_A | FLOW_CLOSED_B | FLOW_ANSWER);
}

/* Whether the end that opened the flow sends this packet. */
static __always_inline int flow_sent_by_opener(const struct flow *flow, const struct packet *p)
{
	return !p->sender == !!(flow->state & FLOW_A_OPENED);
}

static __always_inline void flow_deny(struct flow *flow, enum reason reason)
{
	flow->state |= FLOW_DENIED;
	flow->denied_by = reason;
}

static __always_inline int flow_denied_by_policy(const struct flow *flow)
{
	return flow->state & FLOW_DENIED && flow->denied_by >= DROP_EGRESS_POLICY && flow->denied_by <= DROP_HOST_POLICY;
}

/* Asks what staged policies would have said; nothing but a note comes of it. which is 0
 * for egress, 1 for ingress.
 */
static __always_inline void judge_staged(struct judging *j, __u32 base, __u32 which, __u32 enforced)
{
	__u32 verdict, logs = j->logs;

	if (!base)
		return;
	verdict = policy_evaluate(base, j->source, j->destination, j->ports);
	j->logs = logs;
	j->staged[which] = RULE_NUMBER(verdict);
	if (RULE_ACTION(verdict) != enforced)
		j->differs |= 1 << which;
}

/* The host's own flows, and what it forwards for others than its workloads. */
static __always_inline void judge_transit(struct judging *j, const struct flow_key *key)
{
	struct flow *flow = &j->flow;

	flow->next_hop.forward = FORWARD_STACK;
	flow->state |= FLOW_TRANSIT;
	if ((flow->entered && host_ask(j, key, flow->entered, DIRECTION_INGRESS)) ||
	    (flow->left && host_ask(j, key, flow->left, DIRECTION_EGRESS)))
		flow_deny(flow, DROP_HOST_POLICY);
}

/* Judges a flow: who its ends are, what policy says, how to reach the far end. All of
 * it is written anew but who opened it and where it passed. Works on a copy, never on
 * what other CPUs read. Like every function here that is not inlined it is verified
 * once, for any arguments, which keeps the number of paths that the verifier has to walk
 * a sum, not a product: within flow_slow it would cost 9 ns less, and four times as long
 * to load the programs.
 */
__noinline int flow_judge(struct __sk_buff *skb, const struct packet *p, struct judging *j, enum hook hook)
{
	__u8 opener, kind = 0;
	int near, far;
	__u32 zero = 0, action, tracked, former, sent;
	const struct address *source, *destination;
	struct endpoint *from, *to;
	struct settings *now = bpf_map_lookup_elem(&settings, &zero);
	struct flow *flow;

	if (!p || !j)
		return -1;
	flow = &j->flow;
	opener = !(flow->state & FLOW_A_OPENED);
	flow->state &= ~(FLOW_DENIED | FLOW_TRANSIT | FLOW_UNJUDGED);
	__builtin_memset(flow->rules, 0, sizeof(flow->rules));
	j->asked = j->logs = j->differs = 0;
	j->staged[0] = j->staged[1] = 0;
	source = opener ? &p->key.b : &p->key.a;
	destination = opener ? &p->key.a : &p->key.b;
	former = flow->slots[END(opener)];
	near = j->to && p->sender != opener ? PLACE_WORKLOAD + j->to : place_at(source);
	far = j->to && p->sender == opener ? PLACE_WORKLOAD + j->to : place_at(destination);
	flow->slots[END(opener)] = place_slot(near);
	flow->slots[OTHER_END(opener)] = place_slot(far);
	/* Where a workload may have sent it, from an address that is not its own. */
	sent = hook == HOOK_FROM_WORKLOAD ? skb->ifindex : hook == HOOK_FROM_NETWORK ? 0 : skb->ingress_ifindex;
	if (!flow->slots[END(opener)] && (former || (sent && p->sender == opener)))
		flow->slots[END(opener)] = source_slot(former ? endpoint_ifindex(former) : sent, source);
	from = endpoint_at(flow->slots[END(opener)]);
	to = endpoint_at(flow->slots[OTHER_END(opener)]);
	if (!from || !to || !now) {
		flow_deny(flow, DROP_MALFORMED);
		return 0;
	}
	/* Before the rulesets: see struct endpoint. */
	flow->generations[END(opener)] = *(volatile __u32 *)&from->generation;
	flow->generations[OTHER_END(opener)] = *(volatile __u32 *)&to->generation;

	if (!flow->slots[0] == !flow->slots[1]) {
		__builtin_memset(&flow->next_hop, 0, sizeof(flow->next_hop));
	} else if ((flow->slots[END(opener)] ? far : near) == PLACE_ELSEWHERE) {
		__builtin_memset(&flow->next_hop, 0, sizeof(flow->next_hop));
		flow->next_hop.forward = FORWARD_STACK;
	} else {
		kind = route_resolve(skb, flow->slots[END(opener)] ? destination : source, &flow->next_hop);
		flow->next_hop.source_port = encap_source_port(&p->key);
	}
	if (flow->next_hop.forward >= FORWARD_NODE && !flow->next_hop.ifindex) {
		flow_deny(flow, DROP_NO_NEXT_HOP);
		return 0;
	}

	if (kind != ROUTE_HOST)
		flow->state &= ~FLOW_TO_ITSELF;
	j->source = peer_class(flow->state & FLOW_TO_ITSELF ? destination : source);
	j->destination = peer_class(destination);
	j->ports = port_classes_of(p->key.protocol, opener ? p->key.b_port : p->key.a_port,
				   opener ? p->key.a_port : p->key.b_port, flow->opening);
	tracked = now->host_policy & HOST_POLICY_TRACKED;
	if (!flow->slots[0] && !flow->slots[1]) {
		judge_transit(j, &p->key);
		return 0;
	}
	/* A workload's interface has the host endpoint of all interfaces, but for what is the
	 * host's own.
	 */
	if (tracked) {
		flow->state |= FLOW_FORWARDED;
		if (flow->slots[END(opener)]) {
			flow->entered = INTERFACE_TUNNEL;
			flow->state |= FLOW_UNTRANSLATED;
			if (kind == ROUTE_HOST)
				flow->state &= ~FLOW_FORWARDED;
		}
		if (flow->entered && host_ask(j, &p->key, flow->entered, DIRECTION_INGRESS)) {
			flow_deny(flow, DROP_HOST_POLICY);
			return 0;
		}
	}
	if (flow->slots[END(opener)]) {
		j->hosts = j->asked;
		action = judge_ask(j, from->egress);
		if (action != RULE_ALLOW && hook != HOOK_TO_NETWORK && !flow->slots[OTHER_END(opener)] && !kind &&
		    now->unjudged_mark && is_service(destination)) {
			/* Policy means what the service leads to, where it will be asked. */
			host_spare(j, j->hosts);
			j->logs = 0;
			flow->state |= FLOW_UNJUDGED;
			action = RULE_ALLOW;
		} else {
			judge_staged(j, from->staged_egress, 0, action);
		}
		if (action != RULE_ALLOW) {
			flow_deny(flow, DROP_EGRESS_POLICY);
			return 0;
		}
		if (!flow->slots[OTHER_END(opener)]) {
			/* As with the kernel's own translation, what the first packet met is so for
			 * the whole of the flow.
			 */
			if (j->fresh && flow->next_hop.forward != FORWARD_HOST && nat_outgoing(source, destination))
				flow->state |= FLOW_MASQUERADED;
			if (flow->state & FLOW_MASQUERADED)
				flow->next_hop.forward = FORWARD_STACK;
			if (flow->next_hop.forward >= FORWARD_NODE)
				flow->left = flow->next_hop.forward == FORWARD_NODE ? flow->next_hop.ifindex
										     : INTERFACE_TUNNEL;
			if (kind == ROUTE_BLOCK)
				flow_deny(flow, DROP_NO_ENDPOINT);
			else if (kind == ROUTE_HOST && now->to_host == TO_HOST_DROP)
				flow_deny(flow, DROP_TO_HOST);
			else if (tracked && flow->left && host_ask(j, &p->key, flow->left, DIRECTION_EGRESS))
				flow_deny(flow, DROP_HOST_POLICY);
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
	if (flow->state & FLOW_TO_ITSELF && judge_ask(j, to->egress) != RULE_ALLOW) {
		flow_deny(flow, DROP_EGRESS_POLICY);
		return 0;
	}
	action = judge_ask(j, to->ingress);
	judge_staged(j, to->staged_ingress, 1, action);
	if (action != RULE_ALLOW)
		flow_deny(flow, DROP_INGRESS_POLICY);
	else if (tracked && host_ask(j, &p->key, INTERFACE_TUNNEL, DIRECTION_EGRESS))
		flow_deny(flow, DROP_HOST_POLICY);
	return 0;
}

/* Tells what a judging found: the Log rules that were met, staged policy, the flow. */
__noinline int flow_report(struct __sk_buff *skb, const struct packet *p, struct judging *j, enum hook hook)
{
	__u32 wanted = events_wanted(), what = hook << 8;

	if (!p || !j)
		return 0;
	if (j->flow.state & FLOW_DENIED)
		what |= j->flow.denied_by << 16;
	for (int i = 0; i < FLOW_RULES; i++) {
		if (i >= j->logs)
			break;
		count_rule(j->logged[i], p->length);
		if (wanted & EVENT_LOG)
			event_emit(p, skb->ifindex, EVENT_LOG | what, j->logged[i]);
	}
	for (int i = 0; i < 2; i++) {
		if (j->staged[i])
			count_rule(j->staged[i], p->length);
		if (wanted & EVENT_STAGED && j->differs & 1 << i)
			event_emit(p, skb->ifindex, EVENT_STAGED | what, j->staged[i]);
	}
	if (wanted & EVENT_FLOW)
		event_emit(p, skb->ifindex, EVENT_FLOW | what, 0);
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

/* Whether a workload starts a tunnel that it may not have. */
static __always_inline int flow_tunnels(const struct flow *flow, const struct packet *p)
{
	__u32 zero = 0;
	struct settings *now;

	if ((p->key.protocol != IPPROTO_IPIP && p->key.protocol != IPPROTO_UDP) || !flow_sent_by_opener(flow, p))
		return 0;
	now = bpf_map_lookup_elem(&settings, &zero);
	if (!now)
		return 1;
	if (p->key.protocol == IPPROTO_IPIP)
		return !(now->workload_tunnels & WORKLOAD_IPIP);
	return (p->sender ? p->key.a_port : p->key.b_port) == now->vxlan_port && !(now->workload_tunnels & WORKLOAD_VXLAN);
}

/* Whether the packet comes from where its source lives, and is what may come from there. */
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
		if (flow_tunnels(flow, p))
			return DROP_TUNNEL;
	} else if (hook == HOOK_FROM_NETWORK && !p->icmp_error) {
		/* What answers for a service does so through the host's stack. */
		if (slot || flow->next_hop.forward == FORWARD_HOST || flow->state & FLOW_UNJUDGED)
			return DROP_MARTIAN;
		/* Only the node where the source lives may send for it, or itself; what lives on
		 * none, such as another address of a node, may answer.
		 */
		if (p->tunnel && !address_equal(&p->node, &flow->next_hop.node) &&
		    !address_equal(&p->node, p->sender ? &p->key.b : &p->key.a) && !(flow->state & FLOW_TRANSIT) &&
		    (flow->next_hop.forward != FORWARD_STACK || flow_sent_by_opener(flow, p)))
			return DROP_WRONG_NODE;
	} else if (hook == HOOK_TO_WORKLOAD && !flow->slots[OTHER_END(p->sender)]) {
		/* The kernel has a route, but there is no endpoint. */
		return DROP_NO_ENDPOINT;
	}
	return 0;
}

/* Notes where the first packet of a flow passes the host's interfaces. */
static __always_inline void flow_passes(struct __sk_buff *skb, struct judging *j, const struct packet *p, enum hook hook)
{
	if (!flow_sent_by_opener(&j->flow, p))
		return;
	if (hook == HOOK_FROM_NETWORK) {
		j->flow.entered = j->via;
		j->flow.state |= FLOW_UNTRANSLATED;
		if (!(host_policies() & HOST_POLICY_TRACKED))
			return; /* nobody asks */
		if (p->link_wide || skb->pkt_type == PACKET_BROADCAST || skb->pkt_type == PACKET_MULTICAST ||
		    !route_forwards(skb, p->sender ? &p->key.b : &p->key.a, p->sender ? &p->key.a : &p->key.b))
			j->flow.state &= ~FLOW_FORWARDED;
		else
			j->flow.state |= FLOW_FORWARDED;
	} else if (hook == HOOK_TO_NETWORK) {
		j->flow.left = j->via;
		if (skb->ingress_ifindex)
			j->flow.state |= FLOW_FORWARDED;
	} else if (hook == HOOK_TO_WORKLOAD && !j->flow.entered) {
		j->flow.entered = skb->ingress_ifindex;
	}
}

/* The same for a connection of the host's that is older than its host endpoint, by a packet
 * towards the end that opened it.
 */
static __always_inline void flow_turn(struct judging *j, enum hook hook)
{
	j->flow.state ^= FLOW_A_OPENED;
	if (hook == HOOK_FROM_NETWORK) {
		j->flow.left = j->via;
	} else {
		j->flow.entered = j->via;
		j->flow.state |= FLOW_UNTRANSLATED;
	}
}

/* Starts a flow with this packet. */
static __always_inline void flow_start(struct flow *flow, const struct packet *p)
{
	__builtin_memset(flow, 0, sizeof(*flow));
	flow->state = p->sender ? 0 : FLOW_A_OPENED;
	if (p->tcp_flags & TCP_FLAG_ACK_BYTE)
		flow->state |= FLOW_ANSWER;
	flow->opening = p->icmp;
	flow->last_seen = bpf_jiffies64();
}

/* Whether this hook is where the flow's packets are counted: of those that pass two of
 * them only the first is.
 */
static __always_inline int flow_counts(struct __sk_buff *skb, const struct flow *flow, enum hook hook)
{
	return hook != HOOK_TO_NETWORK || !skb->ingress_ifindex || flow->state & FLOW_THROUGH_STACK;
}

/* Whether a packet leaves this host for a service's address, which the host's stack has led
 * nowhere.
 */
static __always_inline int flow_is_stranded(const struct flow *flow, enum hook hook)
{
	return hook == HOOK_TO_NETWORK && flow->state & FLOW_UNJUDGED;
}

/* A flow that leaves through the host's stack meets the host endpoint there after it has
 * been judged.
 */
static __always_inline int flow_leaves_unasked(const struct flow *flow, const struct packet *p, enum hook hook)
{
	return hook == HOOK_TO_NETWORK && !flow->left && host_policies() & HOST_POLICY_TRACKED &&
	       flow_sent_by_opener(flow, p);
}

/* Whether the host's stack forwards a packet to a workload though packets of its flow would
 * go past it: it has translated the packet.
 */
static __always_inline int flow_is_new_to_stack(struct __sk_buff *skb, const struct flow *flow, const struct packet *p,
						enum hook hook)
{
	return hook == HOOK_TO_WORKLOAD && skb->ingress_ifindex && !p->icmp_error &&
	       !(flow->state & FLOW_THROUGH_STACK) && flow->next_hop.forward != FORWARD_STACK;
}

/* Everything but the established case: a flow that is new, waits for its answer, has to
 * be judged again or starts over. Leaves the flow in j->flow and returns 0, or why the
 * packet is dropped.
 */
__noinline int flow_slow(struct __sk_buff *skb, const struct packet *p, enum hook hook)
{
	struct flow *known, *waiting = 0, *flow;
	enum reason reason;
	int fresh = 0;
	__u32 zero = 0;
	struct flow_key *key;
	struct judging *j;
	__u64 *refused;

	j = bpf_map_lookup_elem(&scratch, &zero);
	if (!p || !j)
		return DROP_MALFORMED;
	flow = &j->flow;
	key = &j->key;
	*key = p->key;
	known = j->absent ? 0 : flow_find(key);
	if (!known)
		known = flow_fetch(key);
	if (known) {
		*flow = *known;
	} else {
		waiting = bpf_map_lookup_elem(&new_flows, key);
		if (waiting)
			*flow = *waiting;
	}
	if ((!known && !waiting) || flow_reopens(flow, p) || flow_is_stranded(flow, hook)) {
		if (p->icmp_error)
			return DROP_NO_FLOW;
		flow_start(flow, p);
		fresh = 1;
		if (flow->state & FLOW_ANSWER && p->key.protocol == IPPROTO_TCP &&
		    ((hook == HOOK_FROM_NETWORK && j->via && !workload_slot(p->sender ? &p->key.a : &p->key.b)) ||
		     (hook == HOOK_TO_NETWORK && !skb->ingress_ifindex)) &&
		    host_answers(skb, &p->key, p->sender,
				 hook == HOOK_FROM_NETWORK ? DIRECTION_INGRESS : DIRECTION_EGRESS))
			flow_turn(j, hook);
	}
	j->fresh = fresh;
	if (flow_is_new_to_stack(skb, flow, p, hook) || (fresh && hook == HOOK_TO_NETWORK && skb->ingress_ifindex))
		flow->state |= FLOW_THROUGH_STACK;
	if (fresh && hook == HOOK_TO_WORKLOAD && skb->ingress_ifindex == skb->ifindex)
		flow->state |= FLOW_TO_ITSELF;
	if (fresh || !flow_is_current(flow) || flow_leaves_unasked(flow, p, hook)) {
		flow_passes(skb, j, p, hook);
		flow_judge(skb, p, j, hook);
		reason = flow_check_source(skb, flow, p, hook);
		/* What policy denies need not be asked where it comes from, which costs as much. */
		if (!reason && fresh && hook == HOOK_FROM_NETWORK && !flow_denied_by_policy(flow))
			reason = source_check(skb, p, j->to ? 0 : SOURCE_HOST);
		if (reason)
			return reason;
		if (j->logs || j->staged[0] || j->staged[1] || events_wanted())
			flow_report(skb, p, j, hook);
		/* What was never allowed is not remembered; what was, has to stay cut. */
		if (fresh && flow->state & FLOW_DENIED) {
			if (known)
				flow_forget(key);
			else if (waiting)
				bpf_map_delete_elem(&new_flows, key);
			if (flow_counts(skb, flow, hook))
				count_flow(flow, p->length);
			return flow->denied_by;
		}
	} else {
		reason = flow_check_source(skb, flow, p, hook);
		if (reason)
			return reason;
	}
	if (flow_counts(skb, flow, hook))
		count_flow(flow, p->length);
	if (flow->state & FLOW_DENIED) {
		flow_seen(flow);
		if (known)
			flow_write(key, flow, BPF_EXIST);
		else if (waiting)
			bpf_map_update_elem(&new_flows, key, flow, BPF_ANY);
		return flow->denied_by;
	}

	flow_touch(skb, flow, p);
	if (fresh) {
		if (known) /* it starts over: unconfirmed again */
			flow_forget(key);
		bpf_map_update_elem(&new_flows, key, flow, BPF_ANY);
		return 0;
	}
	if (known) {
		flow_write(key, flow, BPF_EXIST);
		return 0;
	}
	if (p->icmp_error)
		return 0;
	/* An answer proves the far end, but for TCP not that the opener is real: a forged
	 * SYN is answered too. Its next packet proves it.
	 */
	if (!flow_sent_by_opener(flow, p))
		flow->state |= FLOW_REPLIED;
	if (flow->state & FLOW_REPLIED && (flow_sent_by_opener(flow, p) || p->key.protocol != IPPROTO_TCP)) {
		flow->state |= FLOW_CONFIRMED;
		/* Full: it goes on as an unconfirmed flow. */
		if (flow_write(key, flow, BPF_ANY) == 0) {
			bpf_map_delete_elem(&new_flows, key);
			return 0;
		}
		refused = bpf_map_lookup_elem(&flows_refused, &zero);
		if (refused)
			*refused += 1;
	}
	bpf_map_update_elem(&new_flows, key, flow, BPF_ANY);
	return 0;
}

/* Decides a packet of an established flow: 0, or why it is dropped. -1 if this is not the
 * place to decide.
 */
static __always_inline int flow_decide_known(struct __sk_buff *skb, const struct packet *p, struct flow *known,
					     enum hook hook)
{
	enum reason reason;
	__u32 zero = 0;

	if (!flow_is_current(known) || flow_reopens(known, p) || flow_leaves_unasked(known, p, hook) ||
	    flow_is_new_to_stack(skb, known, p, hook) || flow_is_stranded(known, hook))
		return -1;
	reason = flow_check_source(skb, known, p, hook);
	if (reason)
		return reason;
	if (flow_counts(skb, known, hook))
		count_flow(known, p->length);
	if (known->state & FLOW_DENIED) {
		struct judging *j = bpf_map_lookup_elem(&scratch, &zero);

		flow_seen(known);
		if (j) /* for who is told */
			__builtin_memcpy(j->flow.rules, known->rules, sizeof(known->rules));
		return known->denied_by;
	}
	flow_touch(skb, known, p);
	return 0;
}

/* The packet's flow, established or not: 0 and *flow, or why the packet is dropped. *flow
 * is what flow_find found. via is as in struct judging.
 */
static __always_inline enum reason flow_decide(struct __sk_buff *skb, const struct packet *p, struct flow **flow,
					       enum hook hook, __u32 via, __u32 to)
{
	struct judging *j;
	int decided = -1;
	__u32 zero = 0;

	if (*flow)
		decided = flow_decide_known(skb, p, *flow, hook);
	if (decided < 0) {
		j = bpf_map_lookup_elem(&scratch, &zero);
		if (!j)
			return DROP_MALFORMED;
		j->via = via;
		j->to = to;
		j->absent = !*flow;
		*flow = &j->flow;
		decided = flow_slow(skb, p, hook);
	}
	if (!decided && p->part == PART_FIRST)
		fragment_allow(p, hook);
	return decided;
}

#endif
