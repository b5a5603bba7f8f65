/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
 *
 * Every shared map. Written by the daemon and read by the programs unless said
 * otherwise; all are pinned. Sizes are the defaults, pkg/maps may raise them.
 */
#ifndef MAPS_H
#define MAPS_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "types.h"

/* Local workload endpoints by slot. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct endpoint);
	__uint(max_entries, 16384);
} endpoints SEC(".maps");

/* Address of a local workload -> slot. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, struct address);
	__type(value, __u32);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
} workloads SEC(".maps");

/* Flows whose both ends have spoken. Programs add and update, the sweep removes. They
 * reach it through flow_tables only, so that a larger one can take its place.
 */
struct flow_table {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, struct flow_key);
	__type(value, struct flow);
	__uint(max_entries, 524288);
	__uint(map_flags, BPF_F_NO_PREALLOC);
} flows SEC(".maps");

/* FLOWS_NOW is the table in use. While it is being replaced, what is not in it may be
 * in one of the others. To go from O to N: (O, N, -), (O, N, O), (N, N, O), (N, O, O),
 * then copy O to N, then (N, -, -): no lookup ever misses either.
 */
enum flow_tables {
	FLOWS_NOW,
	FLOWS_ELSE,
	FLOWS_LAST,
	FLOW_TABLES,
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__type(key, __u32);
	__uint(max_entries, FLOW_TABLES);
	__array(values, struct flow_table);
} flow_tables SEC(".maps");

/* How many times the table of flows had no room for one. Programs count. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, __u64);
	__uint(max_entries, 1);
} flows_refused SEC(".maps");

/* Flows that wait for an answer. Programs only; a flood of them evicts its like. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__type(key, struct flow_key);
	__type(value, struct flow);
	__uint(max_entries, 65536);
} new_flows SEC(".maps");

/* Packets of which fragments are on their way. Programs only. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__type(key, struct fragment_key);
	__type(value, struct fragment);
	__uint(max_entries, 8192);
} fragments SEC(".maps");

/* Addresses that a workload may send from though they are not its own -> its slot. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__type(key, struct source_key);
	__type(value, __u32);
	__uint(max_entries, 16384);
	__uint(map_flags, BPF_F_NO_PREALLOC);
} allowed_sources SEC(".maps");

/* Where addresses live that are not local workloads'. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__type(key, struct prefix);
	__type(value, struct route);
	__uint(max_entries, 262144);
	__uint(map_flags, BPF_F_NO_PREALLOC);
} routes SEC(".maps");

/* What workloads and routes say of IPv4 addresses: enum place. Asked before them, as
 * class_nodes is.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct trie_node);
	__uint(max_entries, 8192);
	__uint(map_flags, BPF_F_MMAPABLE);
} place_nodes SEC(".maps");

/* Other nodes: the only sources whose encapsulated packets are opened. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, struct address);
	__type(value, struct peer);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
} peers SEC(".maps");

/* Way to a node -> its MTU where routers say that it is smaller. Programs only. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__type(key, struct address);
	__type(value, struct path_mtu);
	__uint(max_entries, 4096);
} path_mtus SEC(".maps");

/* Prefix -> set of enum nat_net. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__type(key, struct prefix);
	__type(value, __u32);
	__uint(max_entries, 16384);
	__uint(map_flags, BPF_F_NO_PREALLOC);
} nat_nets SEC(".maps");

/* Peer class of a single address, asked before that of its net. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, struct address);
	__type(value, __u32);
	__uint(max_entries, 524288);
	__uint(map_flags, BPF_F_NO_PREALLOC);
} host_classes SEC(".maps");

/* Peer class of every other prefix. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__type(key, struct prefix);
	__type(value, __u32);
	__uint(max_entries, 524288);
	__uint(map_flags, BPF_F_NO_PREALLOC);
} net_classes SEC(".maps");

/* The same for IPv4 addresses, asked before both. What it does not know they say, so that it
 * may lack what it has no room for.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct trie_node);
	__uint(max_entries, 16384);
	__uint(map_flags, BPF_F_MMAPABLE);
} class_nodes SEC(".maps");

/* Port classes by port_index(). */
#define PORT_PROTOCOLS 6 /* TCP, UDP, SCTP, UDPLite, ICMP, ICMPv6: 65,536 entries each */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct port_class);
	__uint(max_entries, PORT_PROTOCOLS * 65536 + 256);
	__uint(map_flags, BPF_F_MMAPABLE);
} port_classes SEC(".maps");

/* All rulesets, each a run of words; see policy.h. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, __u64);
	__uint(max_entries, 4194304);
	__uint(map_flags, BPF_F_MMAPABLE);
} ruleset_words SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct settings);
	__uint(max_entries, 1);
} settings SEC(".maps");

/* Host endpoints by ifindex. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, __u32);
	__type(value, struct host_endpoint);
	__uint(max_entries, 4096);
} host_endpoints SEC(".maps");

/* Asked before host_endpoints, which has what is not here. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct xdp_ruleset);
	__uint(max_entries, XDP_RULESETS);
} xdp_rulesets SEC(".maps");

/* Checked before any host endpoint policy, written for nothing but its own
 * configuration. The value says nothing.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__type(key, struct failsafe_key);
	__type(value, __u32);
	__uint(max_entries, 4096);
	__uint(map_flags, BPF_F_NO_PREALLOC);
} failsafe SEC(".maps");

/* The ports that failsafe has anything for, whatever the protocol: a bit each, by direction
 * << 16 | port. The others are not looked for there.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, __u64);
	__uint(max_entries, 2 * 65536 / 64);
} failsafe_ports SEC(".maps");

/* A flow that is being judged, and what its judging found. Here, since the stack, which
 * all functions of a call share, is too small.
 */
struct judging {
	struct flow flow;
	struct flow_key key;	/* of the packet, while it takes the slow path */
	__u32 source;		/* classes of the opener's packets */
	__u32 destination;
	__u32 ports;		/* source class << 16 | destination class */
	__u32 asked;		/* how many of flow.rules there are */
	__u32 logged[FLOW_RULES];
	__u32 logs;		/* how many of these */
	__u32 staged[2];	/* rules of the staged egress and ingress ruleset; 0: none asked */
	__u32 differs;		/* bit 0, bit 1: that one would have judged otherwise */
	__u32 via;		/* where the packet is: a host's interface or INTERFACE_TUNNEL */
	__u32 to;		/* slot of the packet's destination where that is known already; 0: not */
	__u32 absent;		/* the flow is not in the table in use */
	__u32 fresh;		/* the packet is the first of its flow */
	__u32 outer;		/* outer IPv4 headers so far that have an identification */
	__u32 hosts;		/* how many of those asked are host endpoints', before a workload's egress */
	struct next_hop away;	/* to_network: where its packet goes */
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, struct judging);
	__uint(max_entries, 1);
} scratch SEC(".maps");

#define DIMENSIONS 4 /* source, destination, source port, destination port */

/* Where an evaluation stands: 64 rules of which some still may match. */
struct evaluation {
	__u64 bits;
	__u32 rules;	/* index of the word of the ruleset's first rule */
	__u32 at;	/* number of the first of the 64 */
	__u32 from;	/* rules below it do not match any more */
	int verdict;
	__u32 logs;	/* Log rules met */
	__u32 pad;
};

/* The verdict of a ruleset about packets of some classes, where it takes long to find. It
 * holds while the rulesets are what they were.
 */
struct remembered {
	__u64 generation; /* ruleset_words[0] before it was looked for */
	__u32 base;
	__u32 source;
	__u32 destination;
	__u32 ports;
	int verdict;
	__u32 pad;
};

#define REMEMBERED_BITS 12

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, struct remembered);
	__uint(max_entries, 1 << REMEMBERED_BITS);
} remembered SEC(".maps");

/* An evaluation of more than 64 rules: of policy.h alone. */
struct search {
	struct evaluation e;
	struct remembered is;		/* what is looked for */
	__u64 words;			/* of the block's 64 words, those that all dimensions store */
	__u64 stored[DIMENSIONS];	/* of these words, those that a dimension stores */
	__u32 first[DIMENSIONS];	/* and the index of the first of them */
	__u32 vectors[DIMENSIONS];	/* index of the next block's two words */
	__u32 block;			/* number of the next block's first rule */
	__u32 rule_count;
	__u32 any;			/* a bit for each dimension that need not be looked at */
	__u32 forgets;			/* what is found is not remembered now */
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, struct search);
	__uint(max_entries, 1);
} searches SEC(".maps");

/* Packets by rule: every packet of a flow counts for the rules that judged the flow. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, struct counter);
	__uint(max_entries, 32768);
} rule_counters SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, __u32);
	__type(value, struct rule_name);
	__uint(max_entries, 32768);
	__uint(map_flags, BPF_F_NO_PREALLOC);
} rule_names SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20); /* bytes */
} events SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, struct event_budget);
	__uint(max_entries, 1);
} event_budgets SEC(".maps");

/* What `explain` found last: one question at a time. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct explanation);
	__uint(max_entries, 1);
} explanations SEC(".maps");

/* Programs write, the daemon reads. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, struct counter);
	__uint(max_entries, HOOK_MAX * REASON_MAX);
} counters SEC(".maps");

#endif
