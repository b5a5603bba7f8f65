/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
 *
 * The one way out of a program: count, tell who listens, return.
 */
#ifndef VERDICT_H
#define VERDICT_H

#include <linux/pkt_cls.h>

#include "maps.h"
#include "packet.h"

static __always_inline void count(enum hook hook, enum reason reason, __u32 length)
{
	__u32 index = hook * REASON_MAX + reason;
	struct counter *counter = bpf_map_lookup_elem(&counters, &index);

	if (counter) {
		counter->packets++;
		counter->bytes += length;
	}
}

static __always_inline void count_rule(__u32 number, __u32 length)
{
	struct counter *counter = bpf_map_lookup_elem(&rule_counters, &number);

	if (counter) {
		counter->packets++;
		counter->bytes += length;
	}
}

/* Every packet of a flow counts for the rules that judged the flow. */
static __always_inline void count_flow(const struct flow *flow, __u32 length)
{
	for (int i = 0; i < FLOW_RULES; i++) {
		if (!flow->rules[i])
			break;
		count_rule(flow->rules[i], length);
	}
}

static __always_inline __u32 events_wanted(void)
{
	__u32 zero = 0;
	struct settings *now = bpf_map_lookup_elem(&settings, &zero);

	return now ? now->events : 0;
}

#define SECOND 1000000000ULL

/* Whether this CPU may emit one more. */
static __always_inline int event_granted(__u64 time)
{
	__u32 zero = 0;
	struct event_budget *budget = bpf_map_lookup_elem(&event_budgets, &zero);
	struct settings *now = bpf_map_lookup_elem(&settings, &zero);

	if (!budget || !now)
		return 0;
	if (time - budget->since >= SECOND) {
		budget->since = time;
		budget->left = now->event_rate;
	}
	if (!budget->left) {
		budget->lost++;
		return 0;
	}
	budget->left--;
	return 1;
}

/* what is enum event_kind | enum hook << 8 | enum reason << 16. What is told of the flow
 * is that of this CPU's judging; rule 0 stands for the last of its rules.
 */
__noinline int event_emit(const struct packet *p, __u32 ifindex, __u32 what, __u32 rule)
{
	__u32 zero = 0, kind = what & 0xff, reason = what >> 16;
	struct judging *j = bpf_map_lookup_elem(&scratch, &zero);
	__u64 time = bpf_ktime_get_ns();
	struct event *e;
	__u8 sender;

	if (!p || !j || !event_granted(time))
		return 0;
	e = bpf_ringbuf_reserve(&events, sizeof(*e), 0);
	if (!e) {
		struct event_budget *budget = bpf_map_lookup_elem(&event_budgets, &zero);

		if (budget)
			budget->lost++;
		return 0;
	}
	/* An ICMP error's key is that of the packet that it quotes. */
	sender = p->sender;
	e->time = time;
	address_copy(&e->source, sender ? &p->key.b : &p->key.a);
	address_copy(&e->destination, sender ? &p->key.a : &p->key.b);
	e->source_port = sender ? p->key.b_port : p->key.a_port;
	e->destination_port = sender ? p->key.a_port : p->key.b_port;
	if (p->key.protocol == IPPROTO_ICMP || p->key.protocol == IPPROTO_ICMPV6) {
		e->source_port = 0;
		e->destination_port = bpf_htons(p->icmp);
	}
	e->ifindex = ifindex;
	e->length = p->length;
	e->rule = rule;
	for (int i = 0; i < FLOW_RULES; i++) {
		e->rules[i] = 0;
		if (kind == EVENT_DROP && reason != DROP_EGRESS_POLICY && reason != DROP_INGRESS_POLICY &&
		    reason != DROP_HOST_POLICY && reason != DROP_UNTRACKED)
			continue;
		e->rules[i] = j->flow.rules[i];
		if (!rule && e->rules[i])
			e->rule = e->rules[i];
	}
	e->protocol = p->key.protocol;
	e->kind = kind;
	e->hook = what >> 8;
	e->reason = reason;
	e->pad = 0;
	bpf_ringbuf_submit(e, 0);
	return 0;
}

/* action is what the program returns for a packet that goes on; a drop overrides it. */
static __always_inline int finish(enum hook hook, enum reason reason, const struct packet *p, __u32 ifindex,
				  __u32 length, int action)
{
	count(hook, reason, length);
	if (reason <= LAST_PASS)
		return action;
	if (events_wanted() & EVENT_DROP)
		event_emit(p, ifindex, EVENT_DROP | hook << 8 | reason << 16, 0);
	return TC_ACT_SHOT;
}

#endif
