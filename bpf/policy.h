/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
 *
 * The classifier. A ruleset is a run of words in ruleset_words:
 *
 *   word 0            number of rules | source classes << 16 | port classes << 40
 *   rules             one word each: action | next << 8   (enum rule_action)
 *   sources           one word per peer class: bit i set: rule i matches such a source
 *   destinations      one word per peer class
 *   source ports      one word per port class
 *   destination ports one word per port class
 *
 * A packet's rule is the first bit set in the AND of its four words. The last rule
 * matches all, so there always is one. Cost does not depend on the number of rules.
 */
#ifndef POLICY_H
#define POLICY_H

#include "maps.h"
#include "packet.h"

#define MAX_RULES 64

/* A packet as rules see it. */
struct classes {
	__u32 source;
	__u32 destination;
	__u16 source_port;
	__u16 destination_port;
};

__noinline int peer_class(const struct address *addr)
{
	struct {
		__u32 prefix_length;
		__u32 words[4];
	} prefix;
	__u32 *class;

	if (!addr)
		return 0;
	class = bpf_map_lookup_elem(&host_classes, addr);
	if (class)
		return *class;
	prefix.prefix_length = 128;
	prefix.words[0] = ((const __u32 *)addr)[0];
	prefix.words[1] = ((const __u32 *)addr)[1];
	prefix.words[2] = ((const __u32 *)addr)[2];
	prefix.words[3] = ((const __u32 *)addr)[3];
	class = bpf_map_lookup_elem(&net_classes, &prefix);
	return class ? *class : 0;
}

/* port is in host order; type << 8 | code for ICMP. */
static __always_inline __u32 port_index(__u8 protocol, __u16 port)
{
	switch (protocol) {
	case IPPROTO_TCP:
		return port;
	case IPPROTO_UDP:
		return 1 << 16 | port;
	case IPPROTO_SCTP:
		return 2 << 16 | port;
	case IPPROTO_UDPLITE:
		return 3 << 16 | port;
	case IPPROTO_ICMP:
		return 4 << 16 | port;
	case IPPROTO_ICMPV6:
		return 5 << 16 | port;
	default:
		return PORT_PROTOCOLS << 16 | protocol;
	}
}

static __always_inline __u64 ruleset_word(__u32 index)
{
	__u64 *word = bpf_map_lookup_elem(&ruleset_words, &index);

	return word ? *word : 0;
}

/* Index of the lowest bit set: the number of ones below it. BPF has no instruction for
 * it and clang 14 crashes on its own expansion.
 */
static __always_inline __u32 lowest_bit(__u64 bits)
{
	__u64 ones = (bits & -bits) - 1;

	ones -= ones >> 1 & 0x5555555555555555;
	ones = (ones & 0x3333333333333333) + (ones >> 2 & 0x3333333333333333);
	ones = (ones + (ones >> 4)) & 0x0f0f0f0f0f0f0f0f;
	return ones * 0x0101010101010101 >> 56;
}

/* Where an evaluation stands: what still may match, and the verdict once there is one. */
struct evaluation {
	__u64 bits;
	__u32 rules; /* index of the first rule's word */
	__u32 verdict;
};

/* Takes the first rule that still may match. 1 when that decides. */
static long evaluate_rule(__u32 i, struct evaluation *e)
{
	__u64 word;

	if (!e->bits) {
		e->verdict = RULE_DENY;
		return 1;
	}
	word = ruleset_word(e->rules + lowest_bit(e->bits));
	switch (word & 0xff) {
	case RULE_PASS:
		e->bits &= ~0ULL << (word >> 8 & 63);
		return 0;
	case RULE_LOG:
		e->bits &= e->bits - 1;
		return 0;
	default:
		e->verdict = (word & 0xff) == RULE_ALLOW ? RULE_ALLOW : RULE_DENY;
		return 1;
	}
}

/* Evaluates one ruleset. Returns RULE_ALLOW or RULE_DENY; whatever is out of bounds
 * denies. Not inlined: it is verified once, with any arguments.
 */
__noinline int policy_evaluate(__u32 base, __u32 source, __u32 destination, __u32 ports)
{
	__u32 source_port = ports >> 16, destination_port = ports & 0xffff;
	__u32 rules, peers, port_count, vectors;
	struct evaluation e = { .verdict = RULE_DENY };
	__u64 header;

	if (!base)
		return RULE_DENY;
	header = ruleset_word(base);
	rules = header & 0xffff;
	peers = header >> 16 & 0xffffff;
	port_count = header >> 40;
	if (source >= peers || destination >= peers || source_port >= port_count || destination_port >= port_count)
		return RULE_DENY;
	vectors = base + 1 + rules;
	e.rules = base + 1;
	e.bits = ruleset_word(vectors + source) & ruleset_word(vectors + peers + destination) &
		 ruleset_word(vectors + 2 * peers + source_port) &
		 ruleset_word(vectors + 2 * peers + port_count + destination_port);
	/* Nearly always the first match decides; only Pass and Log go on. */
	if (!evaluate_rule(0, &e))
		bpf_loop(MAX_RULES, evaluate_rule, &e, 0);
	return e.verdict;
}

#endif
