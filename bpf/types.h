/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
 *
 * Everything that C and Go share: structs and enums, no logic. Go's types are
 * generated from here (pkg/maps). No implicit padding; padding is spelled and
 * zero. Addresses are 16 bytes in network order, IPv4 as ::ffff:a.b.c.d, so that
 * there is one code path for both families.
 */
#ifndef TYPES_H
#define TYPES_H

#include <linux/types.h>

struct address {
	__u8 bytes[16];
} __attribute__((aligned(8)));

/* Where a packet is seen. Named from the host's view. */
enum hook {
	HOOK_FROM_WORKLOAD,
	HOOK_TO_WORKLOAD,
	HOOK_FROM_NETWORK,
	HOOK_TO_NETWORK,
	HOOK_XDP_NETWORK,
	HOOK_MAX,
};

/* How a packet ended at a hook. Up to LAST_PASS it went on; after, it was dropped.
 * Metric labels are these names in lower case, read from BTF.
 */
enum reason {
	PASS_NOT_OURS,		/* no business of ours: the host's stack decides */
	PASS_TO_HOST,		/* for the host itself */
	PASS_TO_STACK,		/* allowed; the host's stack forwards it */
	PASS_TO_WORKLOAD,	/* to a local workload */
	PASS_TO_NODE,		/* to a workload on another node, not encapsulated */
	PASS_IPIP,		/* the same, in IPIP */
	PASS_VXLAN,		/* the same, in VXLAN */
	PASS_NEIGHBOR,		/* ARP and neighbour discovery */
	PASS_FAILSAFE,		/* to or from a failsafe port of the host */
	PASS_UNTRACKED,		/* allowed by an untracked policy: no flow */
	PASS_TOO_BIG,		/* its sender has been told what would fit */
	LAST_PASS = PASS_TOO_BIG,
	DROP_MALFORMED,		/* headers that do not add up */
	DROP_UNSUPPORTED,	/* not IP, of a VLAN, or extension headers that we cannot see through */
	DROP_FRAGMENT,		/* a fragment whose first was not allowed, or that is not the next */
	DROP_SPOOFED,		/* source is not the interface's workload, nor what it may use */
	DROP_MULTICAST,		/* multicast or broadcast from a workload */
	DROP_EGRESS_POLICY,	/* the source's policy */
	DROP_INGRESS_POLICY,	/* the destination's policy */
	DROP_HOST_POLICY,	/* a host endpoint's policy, but for the untracked */
	DROP_UNTRACKED,		/* a host endpoint's untracked policy */
	DROP_TO_HOST,		/* defaultEndpointToHostAction */
	DROP_NO_ENDPOINT,	/* an address of this node's blocks that no endpoint has */
	DROP_MARTIAN,		/* from the network with a source that lives here or nowhere */
	DROP_WRONG_NODE,	/* encapsulated by a node that does not have the source */
	DROP_NO_FLOW,		/* ICMP error that quotes no flow of ours */
	DROP_ENCAP,		/* the header could not be pushed or popped */
	DROP_NO_NEXT_HOP,	/* the kernel has no route to the node */
	DROP_RPF,		/* where it came in is no way back to its source */
	DROP_ECN,		/* a tunnel's congestion mark that it cannot carry (RFC 6040) */
	DROP_TUNNEL,		/* a workload's own IPIP or VXLAN (allow…PacketsFromWorkloads) */
	REASON_MAX,
};

/* Packets and bytes, one per hook and reason: index hook * REASON_MAX + reason. */
struct counter {
	__u64 packets;
	__u64 bytes;
};

enum endpoint_flags {
	ENDPOINT_VETH = 1,	/* the workload holds the interface's veth peer */
	ENDPOINT_MAC = 2,	/* mac is known: check and set it */
};

/* One local workload endpoint, by slot. Slot 0 stands for everything that is no
 * local workload; its generation is that of the route table.
 *
 * The kernel copies a new value word by word in this order, and programs read
 * generation first, so whoever sees a new generation sees its rulesets too.
 */
struct endpoint {
	__u32 egress;		/* first word of the ruleset in ruleset_words; 0: drop all */
	__u32 ingress;
	__u32 generation;	/* flows that were judged under another one are judged again */
	__u32 ifindex;		/* the host side's; 0: the slot is free */
	__u8 mac[6];		/* the workload's */
	__u8 host_mac[6];
	__u32 flags;		/* enum endpoint_flags */
	__u32 staged_egress;	/* as if the staged policies were enforced: counted only; 0: none */
	__u32 staged_ingress;
	__u32 pad;
};

/* The host endpoint of one of the host's own interfaces, by ifindex; that on all
 * interfaces stands under 0 too, for what comes out of or goes into a tunnel or a workload.
 * Members are rulesets as in struct endpoint. Only of the normal two 0 means to drop
 * all; else that the stage has no policies and the next one decides.
 */
struct host_endpoint {
	__u32 untracked_egress;
	__u32 untracked_ingress;
	__u32 pre_dnat;
	__u32 forward_egress;	/* what the host forwards */
	__u32 forward_ingress;
	__u32 egress;		/* what the host itself sends and receives */
	__u32 ingress;
	__u32 pad;
};

/* What xdp_network asks on an interface: the untracked ingress ruleset of its host endpoint
 * once more, in the place that the interface's number leads to. The kernel writes it in one
 * piece or, where another interface had the place, after zeroes.
 */
struct xdp_ruleset {
	__u32 ifindex;		/* 0: of none */
	__u32 base;		/* as in struct host_endpoint */
};

#define XDP_RULESETS 1024 /* places: by ifindex modulo this */

enum direction {
	DIRECTION_INGRESS,
	DIRECTION_EGRESS,
};

/* Ports that no host endpoint policy closes. What stands in front of the address has
 * to match whole, so the shortest prefix_length is 32. A port is that of the packet's
 * destination; address is the other host's.
 */
struct failsafe_key {
	__u32 prefix_length;	/* 32 + that of the v4-mapped address */
	__u8 direction;		/* enum direction */
	__u8 protocol;
	__be16 port;
	__u8 bytes[16];
};

/* A flow's two ends in a fixed order (a < b), so that both directions have one key.
 * Ports are 0 for protocols without; both are the id for ICMP echo.
 */
struct flow_key {
	struct address a;
	struct address b;
	__be16 a_port;
	__be16 b_port;
	__u8 protocol;
	__u8 pad[3];
};

/* How packets leave for the end of a flow that is no local workload. */
enum forward {
	FORWARD_HOST,		/* it is this host */
	FORWARD_STACK,		/* the host's stack forwards */
	FORWARD_NODE,		/* a workload on another node, plain */
	FORWARD_IPIP,
	FORWARD_VXLAN,
};

struct next_hop {
	struct address node;	/* the other node, outer destination */
	__u32 ifindex;		/* uplink */
	__u8 mac[6];		/* VXLAN: inner destination */
	__u8 forward;		/* enum forward */
	__u8 pad;
	__u16 mtu;		/* of the way to the node, outer header included; 0: not known */
	__be16 source_port;	/* VXLAN: of the outer header */
};

/* What a router has said of the way to a node. */
struct path_mtu {
	__u64 learned;		/* CLOCK_MONOTONIC, ns */
	__u32 mtu;
	__u32 pad;
};

enum flow_state {
	FLOW_A_OPENED = 1,	/* a sent the first packet; else b */
	FLOW_DENIED = 2,
	FLOW_REPLIED = 4,	/* the other end has answered */
	FLOW_CONFIRMED = 8,	/* both ends have proven that they exist */
	FLOW_CLOSED_A = 16,	/* TCP FIN or RST from a */
	FLOW_CLOSED_B = 32,
	FLOW_HOST_OPENED = 64,	/* by the host itself: no policy of its workload applies */
	FLOW_TRANSIT = 128,	/* no end is a local workload: the host's own, or forwarded */
	FLOW_FORWARDED = 256,	/* neither from nor to the host itself */
	FLOW_UNTRANSLATED = 512, /* entered as it was sent: before any translation by the host */
	FLOW_ANSWER = 1024,	/* opened by what only can be an answer: TCP with ACK */
	FLOW_MASQUERADED = 2048, /* the host's stack gives it an address of the host as source */
	FLOW_THROUGH_STACK = 4096, /* the host's stack forwards it, perhaps translated: its answers, too */
	FLOW_UNJUDGED = 8192,	/* egress policy waits for what the host's stack makes of the service's address */
	FLOW_TO_ITSELF = 16384,	/* a workload's own, whose source the host's stack has made the host */
};

/* What a prefix means to the host's own translation. With natOutgoing a flow from NAT_SOURCE to
 * where nothing says NAT_INSIDE is masqueraded. Of prefixes within one another the longest
 * says all.
 */
enum nat_net {
	NAT_SOURCE = 1,		/* of a pool that has it */
	NAT_INSIDE = 2,		/* of any pool, or else excluded */
	NAT_SERVICE = 4,	/* of services, which the host's own rules lead elsewhere */
};

#define FLOW_RULES 4

/* In place of an interface: out of or into a tunnel or a workload. */
#define INTERFACE_TUNNEL 0xffffffff

/* A fragmented packet at one hook (RFC 791, RFC 8200, 4.5). */
struct fragment_key {
	struct address source;
	struct address destination;
	__u32 id;		/* as in the packet */
	__u8 protocol;
	__u8 hook;		/* enum hook */
	__u8 pad[2];
};

/* What its first fragment said, for those that follow it. */
struct fragment {
	__be16 source_port;
	__be16 destination_port;
	__u16 icmp;		/* type << 8 | code */
	__u16 next;		/* where in the packet's payload the next one has to begin, bytes */
};

struct flow {
	__u64 last_seen;	/* jiffies */
	__u32 slots[2];		/* endpoint of a and of b; 0: not local */
	__u32 generations[2];	/* of these slots when the flow was judged */
	struct next_hop next_hop; /* towards the end whose slot is 0 */
	__u32 state;		/* enum flow_state */
	__u16 opening;		/* ICMP: type << 8 | code of the first packet */
	__u8 denied_by;		/* enum reason */
	__u8 pad;
	__u32 rules[FLOW_RULES]; /* what decided, one per ruleset asked, the last one denied; 0: no more */
	__u32 entered;		/* the host's interface where its first packet came in; 0: none */
	__u32 left;		/* and where it went out */
};

/* Longest prefix first. prefix_length counts from the v4-mapped address: 96 + n for IPv4. */
struct prefix {
	__u32 prefix_length;
	__u8 bytes[16];
};

/* What else a workload may send from. What stands in front of the address has to match
 * whole, so the shortest prefix_length is 32.
 */
struct source_key {
	__u32 prefix_length;	/* 32 + that of the v4-mapped address */
	__u32 ifindex;
	__u8 bytes[16];
};

enum route_kind {
	ROUTE_HOST = 1,		/* an address of this host */
	ROUTE_WORKLOAD,		/* workloads of another node */
	ROUTE_BLOCK,		/* our own block */
	ROUTE_PEER_HOST,	/* another node itself */
};

struct route {
	__u8 kind;		/* enum route_kind */
	__u8 forward;		/* ROUTE_WORKLOAD: enum forward */
	__u8 pad[6];
	struct address node;	/* ROUTE_WORKLOAD: the node's address */
};

/* Another node, by the source address of what it sends encapsulated. */
struct peer {
	__u8 mac[6];		/* of its VXLAN device */
	__u8 pad[2];
};

/* A trie that says a number of each IPv4 address, four bits a node. What stands in the
 * entries of its nodes; 0: it does not know.
 */
enum trie_entry {
	TRIE_KNOWN = 1,		/* added to the number */
	TRIE_CHILD = 1 << 30,	/* added to the index of the node that has the next four bits */
};

enum trie_shape {
	TRIE_WAYS = 16,
	TRIE_ROOTS = 4096, /* nodes that stand for bits 12 to 15, by the 12 in front of them */
};

struct trie_node {
	__u32 entry[TRIE_WAYS];
};

/* What is at an address. */
enum place {
	PLACE_ELSEWHERE,	/* neither in workloads nor in routes */
	PLACE_ROUTE,		/* perhaps in routes */
	PLACE_WORKLOAD,		/* added to a workload's slot */
};

/* Classes of a (protocol, port), by the index that port_index() computes. */
struct port_class {
	__u16 destination;
	__u16 source;
};

enum to_host {
	TO_HOST_DROP,
	TO_HOST_RETURN,
	TO_HOST_ACCEPT,
};

enum rule_action {
	RULE_DENY = 1,
	RULE_ALLOW = 2,
	RULE_PASS = 3,		/* go on at rule `next` */
	RULE_LOG = 4,		/* go on with the next rule */
	RULE_CONTINUE = 5,	/* go on with the next stage of the host endpoint */
	RULE_SOURCE_ONLY = 128,	/* added: the rule asks for nothing but the source */
};

/* In the lower half of a ruleset's first word. */
enum ruleset_header {
	RULESET_RULES = 0xffffff, /* how many */
	RULESET_ANY = 1 << 24,	  /* shifted by each dimension's number of which no rule asks anything */
};

/* A rule's number says where it comes from. Rulesets that have the same rule of the
 * same policy have the same number for it; 0 is no rule. struct counter by number is in
 * rule_counters. rule_names is for people and for the daemon's next start: no program
 * reads it.
 */
struct rule_name {
	char text[256];		/* tier|kind|[namespace/]name|direction|index, NUL-terminated */
};

enum event_kind {
	EVENT_LOG = 1,		/* a Log rule matched: rule is that */
	EVENT_DROP = 2,
	EVENT_FLOW = 4,		/* a flow was judged, for the first time or again */
	EVENT_STAGED = 8,	/* staged policies would have judged otherwise: rule is what would have */
};

/* What happened to a packet; in the ring buffer `events`. */
struct event {
	__u64 time;		/* CLOCK_MONOTONIC, ns */
	struct address source;
	struct address destination;
	__be16 source_port;	/* ICMP: 0 */
	__be16 destination_port; /* ICMP: type << 8 | code */
	__u32 ifindex;		/* where it was seen */
	__u32 length;		/* bytes, with the Ethernet header */
	__u32 rule;		/* that kind speaks of; DROP: which denied, 0: none did */
	__u32 rules[FLOW_RULES]; /* as in struct flow */
	__u8 protocol;
	__u8 kind;		/* enum event_kind */
	__u8 hook;		/* enum hook */
	__u8 reason;		/* enum reason of a drop; else that of the verdict so far, 0: allowed */
	__u32 pad;
};

/* How many events a CPU may still emit in the present interval, and how many it could
 * not since the start.
 */
struct event_budget {
	__u64 since;		/* start of the interval, ns */
	__u32 left;
	__u32 pad;
	__u64 lost;
};

/* What `explain` says about a packet that is not sent. */
struct explanation {
	struct flow flow;	/* as if the packet had been the first of it */
	__u32 logged[FLOW_RULES]; /* the Log rules that were met */
	__u32 staged[2];	/* rules of the staged egress and ingress ruleset */
	__u8 reason;		/* enum reason */
	__u8 pad[7];
};

/* What the daemon may change at any time: the only entry of settings. */
struct settings {
	struct address node4;	/* outer source; zero: none */
	struct address node6;
	__u8 vxlan_mac[6];	/* inner source */
	__be16 vxlan_port;
	__u32 vxlan_vni;
	__u8 to_host;		/* enum to_host */
	__u8 host_policy;	/* enum host_policy */
	__u8 events;		/* set of enum event_kind that somebody listens to */
	__u8 rpf;		/* enum rpf, of the host's interfaces */
	__u32 event_rate;	/* events per CPU and second */
	__u32 nat_mark;		/* on packets that the host's stack is to masquerade */
	__u32 workload_tunnels;	/* set of enum workload_tunnel */
	__u32 unjudged_mark;	/* on packets of FLOW_UNJUDGED: no host may take them, nor other interfaces send */
};

/* What workloads may encapsulate themselves. Once the host's NAT has given it the host's
 * address, another node would open it as ours.
 */
enum workload_tunnel {
	WORKLOAD_IPIP = 1,
	WORKLOAD_VXLAN = 2,
};

/* What the way back to a packet's source has to be. */
enum rpf {
	RPF_DISABLED,
	RPF_LOOSE,		/* any */
	RPF_STRICT,		/* the interface where it came in */
};

/* What kinds of host endpoint there are anywhere on the host: a table that is not asked
 * costs nothing.
 */
enum host_policy {
	HOST_POLICY_TRACKED = 1,
	HOST_POLICY_UNTRACKED = 2,
};

#endif
