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
	LAST_PASS = PASS_NEIGHBOR,
	DROP_MALFORMED,		/* headers that do not add up */
	DROP_UNSUPPORTED,	/* not IP, or extension headers that we cannot see through */
	DROP_FRAGMENT,		/* a later fragment */
	DROP_SPOOFED,		/* source is not the interface's workload */
	DROP_MULTICAST,		/* multicast or broadcast from a workload */
	DROP_EGRESS_POLICY,	/* the source's policy */
	DROP_INGRESS_POLICY,	/* the destination's policy */
	DROP_TO_HOST,		/* defaultEndpointToHostAction */
	DROP_NO_ENDPOINT,	/* an address of this node's blocks that no endpoint has */
	DROP_MARTIAN,		/* from the network with a source that lives here */
	DROP_WRONG_NODE,	/* encapsulated by a node that does not have the source */
	DROP_NO_FLOW,		/* ICMP error that quotes no flow of ours */
	DROP_ENCAP,		/* the header could not be pushed or popped */
	DROP_NO_NEXT_HOP,	/* the kernel has no route to the node */
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
	__u8 pad[5];
};

enum flow_state {
	FLOW_A_OPENED = 1,	/* a sent the first packet; else b */
	FLOW_DENIED = 2,
	FLOW_REPLIED = 4,	/* the other end has answered */
	FLOW_CONFIRMED = 8,	/* both ends have proven that they exist */
	FLOW_CLOSED_A = 16,	/* TCP FIN or RST from a */
	FLOW_CLOSED_B = 32,
	FLOW_HOST_OPENED = 64,	/* by the host itself: no policy of its workload applies */
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
};

/* Longest prefix first. prefix_length counts from the v4-mapped address: 96 + n for IPv4. */
struct prefix {
	__u32 prefix_length;
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
};

/* What the daemon may change at any time: the only entry of settings. */
struct settings {
	struct address node4;	/* outer source; zero: none */
	struct address node6;
	__u8 vxlan_mac[6];	/* inner source */
	__be16 vxlan_port;
	__u32 vxlan_vni;
	__u8 to_host;		/* enum to_host */
	__u8 pad[3];
};

#endif
