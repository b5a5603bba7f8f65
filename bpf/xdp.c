// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//
// The earliest hook: drops what can come from nowhere, and what the untracked policy of the
// interface's host endpoint denies, before the kernel spends anything on it. from_network
// asks the same again of what passes, so nothing depends on this program. Failure:
// everything passes.
#include "maps.h"
#include "packet.h"
#include "host.h"
#include "source.h"
#include "verdict.h"

/* Whether the packet's source is one that no network has. */
static __always_inline int from_nowhere(void *data, void *end, __be16 ethertype, const struct settings *now)
{
	struct address source, destination;

	if (ethertype == bpf_htons(ETH_P_IP)) {
		struct iphdr *ip = data + ETH_HLEN;

		if ((void *)(ip + 1) > end)
			return 0;
		address_set(&source, 0, address_lo4(ip->saddr));
		/* Who has no address yet asks everybody for one. */
		if (ip->saddr == 0)
			return ip->daddr != 0xffffffff && (ip->daddr & bpf_htonl(0xf0000000)) != bpf_htonl(0xe0000000);
	} else if (ethertype == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr *ip6 = data + ETH_HLEN;

		if ((void *)(ip6 + 1) > end)
			return 0;
		address_copy(&source, (void *)&ip6->saddr);
		address_copy(&destination, (void *)&ip6->daddr);
		if (source_is_none(&source))
			return destination.bytes[0] != 0xff;
	} else {
		return 0;
	}
	return source_is_martian(&source, now);
}

/* What the untracked policy of the interface says, if nothing but a few tables has to be
 * asked: a plain TCP or UDP packet over IPv4 to ports that are not failsafe, from a source of
 * which the ruleset says the same whatever else a packet is. A flood is best of such, and
 * calls cost more here than all else. -1 if that is not so: decide_in_full says the same.
 */
static __always_inline int decide_by_source(void *data, void *end, __u32 ifindex, const struct settings *now)
{
	__u32 place = ifindex % XDP_RULESETS;
	struct iphdr *ip = data + ETH_HLEN;
	__be16 *ports = (void *)(ip + 1);
	struct xdp_ruleset *ruleset;
	__u32 verdict;
	int class;

	if ((void *)(ports + 2) > end || !ipv4_plain(ip, end - data - ETH_HLEN) ||
	    (ip->protocol == IPPROTO_UDP && ports[1] == now->vxlan_port))
		return -1;
	ruleset = bpf_map_lookup_elem(&xdp_rulesets, &place);
	if (!ruleset || ruleset->ifindex != ifindex)
		return -1;
	class = trie_find(&class_nodes, ip->saddr);
	if (class < 0)
		return -1;
	verdict = policy_of_source(ruleset->base, class);
	switch (RULE_ACTION(verdict)) {
	case RULE_ALLOW:
	case RULE_CONTINUE:
		return PASS_NOT_OURS;
	case RULE_DENY:
		break;
	default:
		return -1;
	}
	/* Whose denial it is would have to be told. */
	if (now->events & EVENT_DROP || failsafe_may_have(DIRECTION_INGRESS, ports[1]) ||
	    failsafe_may_have(DIRECTION_EGRESS, ports[0]))
		return -1;
	count_rule(RULE_NUMBER(verdict), end - data);
	return DROP_UNTRACKED;
}

static __always_inline enum reason decide_in_full(struct xdp_md *ctx, void *data, void *end, struct packet *p,
						  __u32 length, __be16 ethertype)
{
	enum parsed parsed = packet_headers(data, end, length, ethertype, p);

	if (parsed != PARSED_IP && (parsed != PARSED_MULTICAST || !p->key.protocol))
		return PASS_NOT_OURS;
	switch (host_untracked(p, ctx->ingress_ifindex, DIRECTION_INGRESS)) {
	case RULE_ALLOW:
	case RULE_CONTINUE:
		return PASS_NOT_OURS;
	default:
		count_untracked(length);
		return DROP_UNTRACKED;
	}
}

/* The frame's length. Only of what is not all in one piece the kernel has to be asked. */
static __always_inline __u32 frame_length(struct xdp_md *ctx, void *data, void *end, __be16 ethertype)
{
	struct iphdr *ip = data + ETH_HLEN;

	if (ethertype == bpf_htons(ETH_P_IP) && (void *)(ip + 1) <= end && ip->tot_len &&
	    bpf_ntohs(ip->tot_len) <= end - data - ETH_HLEN)
		return end - data;
	return bpf_xdp_get_buff_len(ctx);
}

static __always_inline enum reason decide_xdp(struct xdp_md *ctx, struct packet *p, __u32 *length)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = data;
	struct settings *now;
	__u32 zero = 0;
	int reason;

	now = bpf_map_lookup_elem(&settings, &zero);
	if (!now || (void *)(eth + 1) > end)
		return PASS_NOT_OURS;
	*length = frame_length(ctx, data, end, eth->h_proto);
	if (from_nowhere(data, end, eth->h_proto, now))
		return DROP_MARTIAN;
	if (!(now->host_policy & HOST_POLICY_UNTRACKED))
		return PASS_NOT_OURS;
	if (eth->h_proto == bpf_htons(ETH_P_IP)) {
		reason = decide_by_source(data, end, ctx->ingress_ifindex, now);
		if (reason >= 0)
			return reason;
	}
	return decide_in_full(ctx, data, end, p, *length, eth->h_proto);
}

/* Frags-aware: a plain XDP program would take TSO and large MTUs away from a veth. */
SEC("xdp.frags")
int xdp_network(struct xdp_md *ctx)
{
	struct packet p = {};
	__u32 length = 0;
	enum reason reason = decide_xdp(ctx, &p, &length);

	return finish(HOOK_XDP_NETWORK, reason, &p, ctx->ingress_ifindex, length, 0) == TC_ACT_SHOT ? XDP_DROP : XDP_PASS;
}

char __license[] SEC("license") = "GPL";
