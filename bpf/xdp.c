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
static __always_inline int from_nowhere(void *data, void *end, __be16 ethertype)
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
	return source_is_martian(&source);
}

static __always_inline enum reason decide_xdp(struct xdp_md *ctx, struct packet *p, __u32 length)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = data;
	enum parsed parsed;

	if ((void *)(eth + 1) > end)
		return PASS_NOT_OURS;
	if (from_nowhere(data, end, eth->h_proto))
		return DROP_MARTIAN;
	if (!(host_policies() & HOST_POLICY_UNTRACKED))
		return PASS_NOT_OURS;
	parsed = packet_headers(data, end, length, eth->h_proto, p);
	if (parsed != PARSED_IP && (parsed != PARSED_MULTICAST || !p->key.protocol))
		return PASS_NOT_OURS;
	switch (host_untracked(p, ctx->ingress_ifindex, DIRECTION_INGRESS)) {
	case RULE_ALLOW:
	case RULE_CONTINUE:
		return PASS_NOT_OURS;
	default:
		return DROP_UNTRACKED;
	}
}

/* Frags-aware: a plain XDP program would take TSO and large MTUs away from a veth. */
SEC("xdp.frags")
int xdp_network(struct xdp_md *ctx)
{
	struct packet p = {};
	__u32 length = bpf_xdp_get_buff_len(ctx);
	enum reason reason = decide_xdp(ctx, &p, length);

	return finish(HOOK_XDP_NETWORK, reason, &p, ctx->ingress_ifindex, length, 0) == TC_ACT_SHOT ? XDP_DROP : XDP_PASS;
}

char __license[] SEC("license") = "GPL";
