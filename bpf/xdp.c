// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//
// The earliest hook. Failure: everything passes.
#include "maps.h"
#include "verdict.h"

/* Frags-aware: a plain XDP program would take TSO and large MTUs away from a veth. */
SEC("xdp.frags")
int xdp_network(struct xdp_md *ctx)
{
	count(HOOK_XDP_NETWORK, PASS_NOT_OURS, ctx->data_end - ctx->data);
	return XDP_PASS;
}

char __license[] SEC("license") = "GPL";
