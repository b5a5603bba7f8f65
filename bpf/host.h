/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
 *
 * Host endpoints: policy on the host's own interfaces. Its stages are asked in Calico's
 * order: untracked, then before the destination is translated, then what is forwarded or
 * what is the host's own. All but the untracked are part of judging a flow.
 *
 * Failsafe: no ruleset but that of the forwarded closes a port of the failsafe table,
 * whatever else is full, missing or wrong. It is looked at where a packet would be dropped,
 * which comes to the same as before, and costs the others nothing.
 */
#ifndef HOST_H
#define HOST_H

#include "maps.h"
#include "packet.h"
#include "policy.h"
#include "route.h"
#include "verdict.h"

static __always_inline __u32 host_policies(void)
{
	__u32 zero = 0;
	struct settings *now = bpf_map_lookup_elem(&settings, &zero);

	return now ? now->host_policy : 0;
}

/* The host endpoint of an interface, or of INTERFACE_TUNNEL. */
static __always_inline struct host_endpoint *host_endpoint_at(__u32 via)
{
	__u32 index = via == INTERFACE_TUNNEL ? 0 : via;

	return bpf_map_lookup_elem(&host_endpoints, &index);
}

/* Whether failsafe may have anything for a port. */
static __always_inline int failsafe_may_have(enum direction direction, __be16 port)
{
	__u32 bit = direction << 16 | bpf_ntohs(port), index = bit / 64;
	__u64 *word = bpf_map_lookup_elem(&failsafe_ports, &index);

	return !word || *word >> (bit & 63) & 1;
}

static __always_inline int failsafe_has(enum direction direction, __u8 protocol, __be16 port,
					const struct address *other)
{
	struct {
		__u32 prefix_length;
		__u32 port;
		__u32 words[4];
	} key = { .prefix_length = 32 + 128, .port = direction | protocol << 8 | (__u32)port << 16 };

	if (!failsafe_may_have(direction, port))
		return 0;
	__builtin_memcpy(key.words, other, sizeof(key.words));
	return bpf_map_lookup_elem(&failsafe, &key) != 0;
}

/* Whether a packet, or the flow that it opens, is beyond the reach of policy: a failsafe
 * port, or another node's encapsulated packet that the stack puts together. sender is
 * the end that sends. With answers also what only can be an answer from such a port.
 */
__noinline int host_exempt(const struct flow_key *key, __u32 sender, enum direction direction, __u32 answers)
{
	struct address other;
	__be16 source, destination;
	struct settings *now;
	__u32 zero = 0;

	if (!key)
		return 0;
	source = sender ? key->b_port : key->a_port;
	destination = sender ? key->a_port : key->b_port;
	/* Ingress: the other host is the sender. */
	address_copy(&other, !sender == (direction == DIRECTION_INGRESS) ? &key->a : &key->b);
	if (failsafe_has(direction, key->protocol, destination, &other))
		return 1;
	if (answers && failsafe_has(!direction, key->protocol, source, &other))
		return 1;
	now = bpf_map_lookup_elem(&settings, &zero);
	return now && is_tunnel(now, key->protocol, destination) && bpf_map_lookup_elem(&peers, &other);
}

#define SOCKET_LISTENS 10 /* TCP_LISTEN */

/* The state of the host's TCP socket for packets from one end of the key to the other; 0 if
 * there is none. With any, of the one that listens to everybody.
 */
static __always_inline int host_socket(struct __sk_buff *skb, const struct flow_key *key, __u32 from, int any)
{
	const struct address *source = from ? &key->b : &key->a, *destination = from ? &key->a : &key->b;
	__be16 source_port = from ? key->b_port : key->a_port, destination_port = from ? key->a_port : key->b_port;
	struct bpf_sock_tuple tuple = {};
	struct bpf_sock *socket;
	int state, ipv4 = address_is_ipv4(source);

	if (ipv4) {
		tuple.ipv4.saddr = any ? 0 : address_ipv4(source);
		tuple.ipv4.daddr = address_ipv4(destination);
		tuple.ipv4.sport = any ? 0 : source_port;
		tuple.ipv4.dport = destination_port;
	} else {
		if (!any)
			__builtin_memcpy(tuple.ipv6.saddr, source, 16);
		__builtin_memcpy(tuple.ipv6.daddr, destination, 16);
		tuple.ipv6.sport = any ? 0 : source_port;
		tuple.ipv6.dport = destination_port;
	}
	socket = bpf_skc_lookup_tcp(skb, &tuple, ipv4 ? sizeof(tuple.ipv4) : sizeof(tuple.ipv6), BPF_F_CURRENT_NETNS, 0);
	if (!socket)
		return 0;
	state = socket->state;
	bpf_sk_release(socket);
	return state;
}

/* Whether a packet in the middle of a TCP connection of the host's that has no flow, since
 * it is older than its host endpoint, travels towards the end that opened it.
 */
__noinline int host_answers(struct __sk_buff *skb, const struct flow_key *key, __u32 sender, enum direction direction)
{
	__u32 remote = direction == DIRECTION_INGRESS ? sender : !sender;
	int state;

	if (!key)
		return 0;
	state = host_socket(skb, key, remote, 0);
	if (!state || state == SOCKET_LISTENS)
		return 0;
	/* It has been accepted if its port is one that listens. */
	return (host_socket(skb, key, remote, 1) == SOCKET_LISTENS) == (direction == DIRECTION_EGRESS);
}

/* Asks a ruleset about the flow that is being judged: an enum rule_action. */
static __always_inline __u32 judge_ask(struct judging *j, __u32 base)
{
	__u32 verdict = policy_evaluate(base, j->source, j->destination, j->ports);

	/* The last one stays, since it may be that which denied. */
	if (RULE_ACTION(verdict) != RULE_CONTINUE && RULE_NUMBER(verdict)) {
		j->asked = j->asked < FLOW_RULES ? j->asked + 1 : FLOW_RULES;
		j->flow.rules[(j->asked - 1) & (FLOW_RULES - 1)] = RULE_NUMBER(verdict);
	}
	return RULE_ACTION(verdict);
}

/* Forgets what was asked since: a failsafe port is beyond what it says. */
static __always_inline void host_spare(struct judging *j, __u32 asked)
{
	if (asked < FLOW_RULES)
		j->flow.rules[asked & (FLOW_RULES - 1)] = 0;
	j->asked = asked;
}

/* What the host endpoint of an interface, or of INTERFACE_TUNNEL, says of the flow that is
 * being judged, in the direction in which it was opened. 0, or -1 for no.
 */
__noinline int host_ask(struct judging *j, const struct flow_key *key, __u32 via, enum direction direction)
{
	struct host_endpoint *at;
	__u32 base, action, asked, sender;

	if (!j || !key)
		return -1;
	at = host_endpoint_at(via);
	if (!at)
		return 0;
	sender = !(j->flow.state & FLOW_A_OPENED);
	asked = j->asked;
	if (direction == DIRECTION_INGRESS && j->flow.state & FLOW_UNTRANSLATED && at->pre_dnat) {
		action = judge_ask(j, at->pre_dnat);
		if (action == RULE_ALLOW)
			return 0;
		if (action != RULE_CONTINUE) {
			if (!host_exempt(key, sender, direction, j->flow.state & FLOW_ANSWER))
				return -1;
			host_spare(j, asked);
		}
	}
	if (j->flow.state & FLOW_FORWARDED) {
		base = direction == DIRECTION_INGRESS ? at->forward_ingress : at->forward_egress;
		if (!base)
			return 0;
		action = judge_ask(j, base);
		return action == RULE_ALLOW || action == RULE_CONTINUE ? 0 : -1;
	}
	/* From a workload to its host: its egress policy and the endpoint-to-host action. */
	if (!(j->flow.state & FLOW_TRANSIT))
		return 0;
	action = judge_ask(j, direction == DIRECTION_INGRESS ? at->ingress : at->egress);
	if (action == RULE_ALLOW)
		return 0;
	if (!host_exempt(key, sender, direction, j->flow.state & FLOW_ANSWER))
		return -1;
	host_spare(j, asked);
	return 0;
}

/* What the untracked policy of an interface says of a packet, each for itself: an enum
 * rule_action, RULE_CONTINUE if there is none. ifindex is of the packet's interface.
 * Leaves the rule in this CPU's judging.
 */
__noinline int host_untracked(const struct packet *p, __u32 ifindex, enum direction direction)
{
	struct host_endpoint *at = host_endpoint_at(ifindex);
	__u32 base, verdict, source, destination, zero = 0;
	__be16 source_port, destination_port;
	struct judging *j;

	if (!p || !at || p->icmp_error)
		return RULE_CONTINUE;
	base = direction == DIRECTION_INGRESS ? at->untracked_ingress : at->untracked_egress;
	j = bpf_map_lookup_elem(&scratch, &zero);
	if (!base || !j)
		return RULE_CONTINUE;
	source_port = p->sender ? p->key.b_port : p->key.a_port;
	destination_port = p->sender ? p->key.a_port : p->key.b_port;
	source = peer_class(p->sender ? &p->key.b : &p->key.a);
	destination = peer_class(p->sender ? &p->key.a : &p->key.b);
	j->logs = 0;
	verdict = policy_evaluate(base, source, destination,
				  port_classes_of(p->key.protocol, source_port, destination_port, p->icmp));
	if (RULE_ACTION(verdict) == RULE_CONTINUE)
		return RULE_CONTINUE;
	/* A failsafe port is no matter of this stage; the tracked ones are asked as ever. */
	if (RULE_ACTION(verdict) != RULE_ALLOW && host_exempt(&p->key, p->sender, direction, 1))
		return RULE_CONTINUE;
	j->flow.rules[0] = RULE_NUMBER(verdict);
	j->flow.rules[1] = 0;
	return RULE_ACTION(verdict);
}

/* Counts the packet for the rule by which host_untracked has decided. What XDP lets pass
 * is decided again behind it, and counted there.
 */
static __always_inline void count_untracked(__u32 length)
{
	__u32 zero = 0;
	struct judging *j = bpf_map_lookup_elem(&scratch, &zero);

	if (j && j->flow.rules[0])
		count_rule(j->flow.rules[0], length);
}

/* host_untracked where what it decides is final. */
static __always_inline int host_untracked_counted(const struct packet *p, __u32 ifindex, enum direction direction)
{
	int action = host_untracked(p, ifindex, direction);

	if (action != RULE_CONTINUE)
		count_untracked(p->length);
	return action;
}

#endif
