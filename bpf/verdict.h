/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
 *
 * The one way out of a program: count, return.
 */
#ifndef VERDICT_H
#define VERDICT_H

#include <linux/pkt_cls.h>

#include "maps.h"

static __always_inline void count(enum hook hook, enum reason reason, __u32 length)
{
	__u32 index = hook * REASON_MAX + reason;
	struct counter *counter = bpf_map_lookup_elem(&counters, &index);

	if (counter) {
		counter->packets++;
		counter->bytes += length;
	}
}

/* action is what the program returns for a packet that goes on; a drop overrides it. */
static __always_inline int finish(enum hook hook, enum reason reason, __u32 length, int action)
{
	count(hook, reason, length);
	return reason > LAST_PASS ? TC_ACT_SHOT : action;
}

#endif
