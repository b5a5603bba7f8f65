// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//
// Run by the daemon, on no hook. sweep_flows removes the flows that have been silent for
// too long, without copying the table to user space; add_counts adds to counters that
// programs write at the same time.
#include "maps.h"
#include "packet.h"

/* How long a flow may be silent, in jiffies. The daemon sets them before each run. */
__u64 tcp_timeout;
__u64 tcp_closed_timeout;
__u64 udp_timeout;
__u64 icmp_timeout;
__u64 other_timeout;

/* What the last run found. */
__u64 swept_at; /* jiffies */
__u32 flows_kept;
__u32 flows_waiting; /* kept in new_flows */
__u32 flows_removed;

struct sweep {
	__u64 now;	/* jiffies */
	__u32 kept;
	__u32 waiting;
	__u32 removed;
};

static __always_inline __u64 flow_timeout(const struct flow_key *key, const struct flow *flow)
{
	switch (key->protocol) {
	case IPPROTO_TCP:
		if (!(flow->state & FLOW_CONFIRMED) || flow->state & (FLOW_CLOSED_A | FLOW_CLOSED_B))
			return tcp_closed_timeout;
		return tcp_timeout;
	case IPPROTO_UDP:
	case IPPROTO_UDPLITE:
		return udp_timeout;
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		return icmp_timeout;
	default:
		return other_timeout;
	}
}

/* last_seen may be ahead of now: other CPUs go on meanwhile. */
static __always_inline int flow_is_over(const struct sweep *sweep, const struct flow_key *key, const struct flow *flow)
{
	return (__s64)(sweep->now - flow->last_seen) > (__s64)flow_timeout(key, flow);
}

static long sweep_flow(void *map, const struct flow_key *key, struct flow *flow, struct sweep *sweep)
{
	if (flow_is_over(sweep, key, flow)) {
		bpf_map_delete_elem(map, key);
		sweep->removed++;
	} else {
		sweep->kept++;
	}
	return 0;
}

/* What was never answered must not wait for ever for a late "answer". */
static long sweep_new_flow(void *map, const struct flow_key *key, struct flow *flow, struct sweep *sweep)
{
	if (flow_is_over(sweep, key, flow)) {
		bpf_map_delete_elem(&new_flows, key);
		sweep->removed++;
	} else {
		sweep->waiting++;
	}
	return 0;
}

SEC("tc")
int sweep_flows(struct __sk_buff *skb)
{
	struct sweep sweep = { .now = bpf_jiffies64() };
	__u32 now = FLOWS_NOW;
	void *table = bpf_map_lookup_elem(&flow_tables, &now);

	if (table)
		bpf_for_each_map_elem(table, sweep_flow, &sweep, 0);
	bpf_for_each_map_elem(&new_flows, sweep_new_flow, &sweep, 0);
	swept_at = sweep.now;
	flows_kept = sweep.kept;
	flows_waiting = sweep.waiting;
	flows_removed = sweep.removed;
	return 0;
}

/* What add_counts gets: after ETH_HLEN + 2 bytes, as many of these as the packet holds. */
struct rule_count {
	__u32 rule;
	__u32 pad;
	struct counter counter;
};

#define MAX_RULE_COUNTS 128

/* Only the counters of this CPU are touched, and in one instruction each: nothing that
 * counts on it can come between.
 */
SEC("tc")
int add_counts(struct __sk_buff *skb)
{
	for (__u32 i = 0; i < MAX_RULE_COUNTS; i++) {
		struct rule_count more;
		struct counter *counter;

		if (bpf_skb_load_bytes(skb, ETH_HLEN + 2 + i * sizeof(more), &more, sizeof(more)))
			break;
		counter = bpf_map_lookup_elem(&rule_counters, &more.rule);
		if (counter) {
			__sync_fetch_and_add(&counter->packets, more.counter.packets);
			__sync_fetch_and_add(&counter->bytes, more.counter.bytes);
		}
	}
	return 0;
}

char __license[] SEC("license") = "GPL";
