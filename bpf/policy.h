/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
 *
 * The classifier. A ruleset is a run of words in ruleset_words:
 *
 *   word 0            number of rules | peer classes << 32 (enum ruleset_header)
 *   word 1            port classes
 *   rules             one word each: action | next << 8 | number << 32   (enum rule_action)
 *                     RULE_SOURCE_ONLY: its bit is set in all vectors but those of sources
 *   sources           one word per peer class
 *   destinations      one word per peer class
 *   source ports      one word per port class
 *   destination ports one word per port class
 *   vectors           of more than 64 rules
 *
 * Up to 64 rules a class's word is its vector: bit i is set if rule i matches. Beyond,
 * it is where, counted from word 0, a sparse vector stands. That has two words for each
 * 4,096 rules: which of their 64 words are not zero, and where, counted from word 0,
 * the first of these stands. Words that are zero are not stored.
 *
 * A packet's rule is the first bit set in the AND of its four vectors. The last rule
 * matches all, so there always is one. Cost does not grow with the number of rules:
 * words that are zero in any dimension are never looked at, nor are vectors of what no
 * rule asks about. Where many words have to be, for there are rules enough for the
 * source's class and for the port's but none of them near each other is for both, the
 * verdict is remembered.
 *
 * ruleset_words[0] is another number after each change of the others.
 */
#ifndef POLICY_H
#define POLICY_H

#include "maps.h"
#include "packet.h"
#include "trie.h"

#define MAX_RULES 65536
#define BLOCK_RULES 4096 /* that one word of non-zero words stands for */

/* A packet as rules see it. */
struct classes {
	__u32 source;
	__u32 destination;
	__u16 source_port;
	__u16 destination_port;
};

/* The class of an address that the trie does not know. */
__noinline int peer_class_else(const struct address *addr)
{
	struct {
		__u32 prefix_length;
		__u32 words[4];
	} prefix;
	__u32 *class;

	if (!addr)
		return 0;
	prefix.prefix_length = 128;
	prefix.words[0] = ((const __u32 *)addr)[0];
	prefix.words[1] = ((const __u32 *)addr)[1];
	prefix.words[2] = ((const __u32 *)addr)[2];
	prefix.words[3] = ((const __u32 *)addr)[3];
	class = bpf_map_lookup_elem(&host_classes, prefix.words);
	if (class)
		return *class;
	class = bpf_map_lookup_elem(&net_classes, &prefix);
	return class ? *class : 0;
}

static __always_inline int peer_class(const struct address *addr)
{
	int known = address_is_ipv4(addr) ? trie_find(&class_nodes, address_ipv4(addr)) : -1;

	return known >= 0 ? known : peer_class_else(addr);
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

/* Source class << 16 | destination class of a packet. Ports are in network order, icmp is
 * type << 8 | code.
 */
static __always_inline __u32 port_classes_of(__u8 protocol, __be16 source, __be16 destination, __u16 icmp)
{
	__u32 source_index = port_index(protocol, 0), destination_index, ports = 0;
	struct port_class *class;

	if (protocol == IPPROTO_ICMP || protocol == IPPROTO_ICMPV6) {
		destination_index = port_index(protocol, icmp);
	} else {
		source_index = port_index(protocol, bpf_ntohs(source));
		destination_index = port_index(protocol, bpf_ntohs(destination));
	}
	class = bpf_map_lookup_elem(&port_classes, &source_index);
	if (class)
		ports = class->source << 16;
	class = bpf_map_lookup_elem(&port_classes, &destination_index);
	if (class)
		ports |= class->destination;
	return ports;
}

static __always_inline __u64 ruleset_word(__u32 index)
{
	__u64 *word = bpf_map_lookup_elem(&ruleset_words, &index);

	return word ? *word : 0;
}

/* Ones in a word. BPF has no instruction for it, and clang 14 crashes on its own
 * expansion of the one below.
 */
static __always_inline __u32 popcount(__u64 bits)
{
	bits -= bits >> 1 & 0x5555555555555555;
	bits = (bits & 0x3333333333333333) + (bits >> 2 & 0x3333333333333333);
	bits = (bits + (bits >> 4)) & 0x0f0f0f0f0f0f0f0f;
	return bits * 0x0101010101010101 >> 56;
}

/* Index of the lowest bit set: the number of ones below it. */
static __always_inline __u32 lowest_bit(__u64 bits)
{
	return popcount((bits & -bits) - 1);
}

#define RULE_ACTION(verdict) ((verdict) & 7)
#define RULE_NUMBER(verdict) ((__u32)(verdict) >> 3)

/* The verdict of a rule that decides, 0 for one that does not. */
static __always_inline int rule_verdict(__u64 word)
{
	switch (word & 7) {
	case RULE_PASS:
	case RULE_LOG:
		return 0;
	case RULE_ALLOW:
	case RULE_CONTINUE:
		return (word & 7) | word >> 32 << 3;
	default:
		return RULE_DENY | word >> 32 << 3;
	}
}

static __always_inline void evaluate_log(__u32 number)
{
	__u32 zero = 0;
	struct judging *j = bpf_map_lookup_elem(&scratch, &zero);

	if (j && j->logs < FLOW_RULES)
		j->logged[j->logs++ & (FLOW_RULES - 1)] = number;
}

/* Takes the first rule that may match. 1 when that decides. */
static __always_inline int evaluate_rule(struct evaluation *e)
{
	__u64 word = ruleset_word(e->rules + e->at + lowest_bit(e->bits));

	e->bits &= e->bits - 1;
	switch (word & 7) {
	case RULE_PASS:
		e->from = (__u32)word >> 8;
		if (e->from >= e->at + 64)
			e->bits = 0;
		else
			e->bits &= ~0ULL << (e->from - e->at & 63);
		return 0;
	case RULE_LOG:
		e->logs++;
		evaluate_log(word >> 32);
		return 0;
	default:
		e->verdict = rule_verdict(word);
		return 1;
	}
}

static long evaluate_step(__u32 i, struct search **searching)
{
	struct search *s = *searching;

	return !s->e.bits || evaluate_rule(&s->e);
}

/* A dimension's bits of 64 rules, of whose words the block has these before them; first is
 * where the block's are.
 */
static __always_inline __u64 search_word(const struct search *s, int dimension, __u32 first, __u64 before)
{
	return s->any >> dimension & 1 ? ~0ULL : ruleset_word(first + popcount(s->stored[dimension] & before));
}

/* One step: a rule, or on to the next 64 rules, or on to the next block. */
static long search_step(__u32 i, struct search **searching)
{
	struct search *s = *searching;
	__u64 below;

	if (s->e.bits)
		return evaluate_rule(&s->e);
	if (s->words) {
		__u32 word = lowest_bit(s->words);

		below = (1ULL << (word & 63)) - 1;
		s->words &= s->words - 1;
		s->e.at = s->block - BLOCK_RULES + word * 64;
		if (s->e.from >= s->e.at + 64)
			return 0;
		s->e.bits = s->e.from > s->e.at ? ~0ULL << (s->e.from - s->e.at & 63) : ~0ULL;
		/* Sources and destination ports tell most rules apart. */
		s->e.bits &= search_word(s, 0, s->first[0], below);
		s->e.bits &= search_word(s, 3, s->first[3], below);
		if (!s->e.bits)
			return 0;
		s->e.bits &= search_word(s, 1, s->first[1], below);
		s->e.bits &= search_word(s, 2, s->first[2], below);
		return 0;
	}
	if (s->block >= s->rule_count)
		return 1;
	s->block += BLOCK_RULES;
	s->words = ~0ULL;
	for (int d = 0; d < DIMENSIONS; d++) {
		if (s->any >> d & 1)
			continue;
		s->stored[d] = ruleset_word(s->vectors[d]);
		s->first[d] = s->is.base + ruleset_word(s->vectors[d] + 1);
		s->vectors[d] += 2;
		s->words &= s->stored[d];
	}
	return 0;
}

/* The search as far as the first rule that may match: the verdict if that decides, as it
 * nearly always does, and 0 if the search has to be made in full.
 */
#define FIRST_BLOCKS 4

static __always_inline int search_first(struct search *s)
{
#pragma clang loop unroll(disable)
	for (__u32 block = 0; block < FIRST_BLOCKS; block++) {
		__u64 all = ~0ULL, bits = ~0ULL, below;
		__u32 at;

		if (block * BLOCK_RULES >= s->rule_count)
			return 0;
		for (int d = 0; d < DIMENSIONS; d++) {
			if (s->any >> d & 1)
				continue;
			s->stored[d] = ruleset_word(s->vectors[d] + 2 * block);
			all &= s->stored[d];
		}
		if (!all)
			continue;
		below = (all & -all) - 1;
		at = block * BLOCK_RULES + popcount(below) * 64;
		for (int d = 0; d < DIMENSIONS; d++) {
			if (s->any >> d & 1)
				continue;
			bits &= ruleset_word(s->is.base + ruleset_word(s->vectors[d] + 2 * block + 1) +
					     popcount(s->stored[d] & below));
		}
		if (!bits)
			return 0;
		return rule_verdict(ruleset_word(s->is.base + 2 + at + lowest_bit(bits)));
	}
	return 0;
}

/* Where the verdict is remembered that is looked for. */
static __always_inline struct remembered *remembered_of(const struct remembered *is)
{
	__u32 at = (is->base ^ is->source * 0x9e3779b1) * 0x85ebca6b ^ (is->destination ^ is->ports * 0xc2b2ae35) * 0x27d4eb2f;

	at = (at ^ at >> 15) * 0x9e3779b1 >> (32 - REMEMBERED_BITS);
	return bpf_map_lookup_elem(&remembered, &at);
}

/* Evaluates one ruleset. Returns what it says, RULE_ALLOW, RULE_DENY or RULE_CONTINUE,
 * and above that, see RULE_NUMBER, the number of the rule that says so. Whatever is out
 * of bounds denies. ports is source class << 16 | destination class. Log rules that are
 * met are noted in the judging of this CPU.
 */
__noinline int policy_evaluate(__u32 base, __u32 source, __u32 destination, __u32 ports)
{
	__u32 rule_count, row, classes, zero = 0;
	__u64 header, word, bits = ~0ULL;
	struct remembered *known;
	struct search *s;
	int verdict;

	s = bpf_map_lookup_elem(&searches, &zero);
	if (!base || !s)
		return RULE_DENY;
	header = ruleset_word(base);
	rule_count = header & RULESET_RULES;
	classes = header >> 32;
	row = base + 2 + rule_count;
	if (source >= classes || destination >= classes)
		return RULE_DENY;
	s->is.source = source;
	s->is.destination = destination;
	s->is.ports = ports;
	s->vectors[0] = row + source;
	s->vectors[1] = row + classes + destination;
	s->any = (__u32)header / RULESET_ANY;
	if (s->any >> 2 != 3) {
		row += 2 * classes;
		classes = ruleset_word(base + 1);
		if (ports >> 16 >= classes || (ports & 0xffff) >= classes)
			return RULE_DENY;
		s->vectors[2] = row + (ports >> 16);
		s->vectors[3] = row + classes + (ports & 0xffff);
	}
	if (rule_count <= 64)
		bits >>= 64 - rule_count & 63;
	else if (s->any == (1 << DIMENSIONS) - 1)
		s->any ^= 1; /* one has to say where the rules end */
	for (int d = 0; d < DIMENSIONS; d++) {
		if (s->any >> d & 1)
			continue;
		/* A class that no rule matches has no vector. */
		word = ruleset_word(s->vectors[d]);
		if (!word)
			return RULE_DENY;
		bits &= word;
		s->vectors[d] = base + word;
	}

	if (rule_count <= 64) {
		if (!bits)
			return RULE_DENY;
		/* Nearly always the first match decides; only Pass and Log go on. */
		verdict = rule_verdict(ruleset_word(base + 2 + lowest_bit(bits)));
		if (verdict)
			return verdict;
		s->e.bits = bits;
		s->e.rules = base + 2;
		s->e.at = 0;
		s->e.from = 0;
		s->e.verdict = RULE_DENY;
		bpf_loop(64, evaluate_step, &s, 0);
		return s->e.verdict;
	}

	s->is.base = base;
	s->rule_count = rule_count;
	verdict = search_first(s);
	if (verdict)
		return verdict;
	s->is.generation = ruleset_word(0);
	known = remembered_of(&s->is);
	if (!known)
		return RULE_DENY;
	if (known->base == base && known->generation == s->is.generation && known->source == s->is.source &&
	    known->destination == s->is.destination && known->ports == s->is.ports)
		return known->verdict;
	s->e.logs = 0;
	s->e.bits = 0;
	s->e.rules = base + 2;
	s->e.from = 0;
	s->e.verdict = RULE_DENY;
	s->words = 0;
	s->block = 0;
	bpf_loop(2 * MAX_RULES, search_step, &s, 0);
	/* Log rules want to be met each time. */
	if (!s->e.logs && !s->forgets) {
		s->is.verdict = s->e.verdict;
		*known = s->is;
	}
	return s->e.verdict;
}

/* What a ruleset says of all packets from a source, whatever else they are: as
 * policy_evaluate does, or 0 if that is not to be known by the source alone.
 */
static __always_inline int policy_of_source(__u32 base, __u32 source)
{
	__u64 header = ruleset_word(base), bits, stored, word;
	__u32 rule_count = header & RULESET_RULES, at = 0, vector;

	if (!base || source >= header >> 32)
		return 0;
	bits = ruleset_word(base + 2 + rule_count + source);
	if (rule_count > 64) {
		if (!bits)
			return 0;
		vector = base + bits;
		stored = ruleset_word(vector);
		if (!stored)
			return 0;
		at = lowest_bit(stored) * 64;
		bits = ruleset_word(base + ruleset_word(vector + 1));
	}
	if (!bits)
		return 0;
	/* The first rule that may match does. */
	word = ruleset_word(base + 2 + at + lowest_bit(bits));
	return word & RULE_SOURCE_ONLY ? rule_verdict(word) : 0;
}

#endif
