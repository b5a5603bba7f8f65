/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
 *
 * Headers -> struct packet. Every bounds check on a received packet lives here.
 */
#ifndef PACKET_H
#define PACKET_H

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "maps.h"
#include "types.h"

#define IP_OFFSET_MASK 0x1fff
#define IP_MORE_FRAGMENTS 0x2000
#define IP_DONT_FRAGMENT 0x4000

/* RFC 792, 4443, 4861. Not from linux/icmp.h, which drags libc's sockets in. */
#define ICMP_ECHO_REPLY 0
#define ICMP_UNREACHABLE 3
#define ICMP_ECHO_REQUEST 8
#define ICMP_TIME_EXCEEDED 11
#define ICMP_PARAMETER_PROBLEM 12
#define ICMPV6_UNREACHABLE 1
#define ICMPV6_PARAMETER_PROBLEM 4
#define ICMPV6_ECHO_REQUEST 128
#define ICMPV6_ECHO_REPLY 129
#define ICMPV6_ROUTER_SOLICITATION 133
#define ICMPV6_NEIGHBOR_SOLICITATION 135
#define ICMPV6_NEIGHBOR_ADVERTISEMENT 136
#define ICMPV6_REDIRECT 137

struct icmp_header {
	__u8 type;
	__u8 code;
	__be16 check;
	__be16 id; /* echo */
	__be16 sequence;
};

#define TCP_FLAG_FIN_BYTE 0x01
#define TCP_FLAG_SYN_BYTE 0x02
#define TCP_FLAG_RST_BYTE 0x04
#define TCP_FLAG_ACK_BYTE 0x10

/* The two ends of a flow key as array indices that the verifier can bound. */
#define END(end) ((end) & 1)
#define OTHER_END(end) (((end) ^ 1) & 1)

/* What parsing found. */
enum parsed {
	PARSED_IP,		/* struct packet is complete */
	PARSED_ARP,
	PARSED_NEIGHBOR,	/* ICMPv6 router and neighbour discovery */
	PARSED_MULTICAST,	/* multicast or broadcast: complete, unless the key's protocol is 0 */
	PARSED_OTHER,		/* not IP, or of a VLAN */
	PARSED_FRAGMENT,	/* a fragment that follows none that we know: no ports */
	PARSED_EXTENSION,	/* IPv6 extension headers that we do not see through */
	PARSED_MALFORMED,
};

/* What of a fragmented packet. */
enum part {
	PART_WHOLE, /* it is not, or the only fragment (RFC 6946) */
	PART_FIRST,
	PART_LATER,
	PART_LAST,
};

struct packet {
	struct flow_key key;
	__u32 length;		/* of the IP packet and its Ethernet header, bytes */
	__u32 id;		/* fragment: of the packet */
	__u16 icmp;		/* type << 8 | code */
	__u16 offset;		/* fragment: where in the packet's payload it begins, bytes */
	__u16 payload;		/* fragment: bytes of that payload */
	__u8 part;		/* enum part */
	__u8 sender;		/* which end of the key sent it: 0 a, 1 b */
	__u8 ipv6;
	__u8 tcp_flags;
	__u8 icmp_error;	/* key is the quoted packet's */
	__u8 ttl;
	__u8 tos;
	__u8 quoted_wrong;	/* ICMP error whose sender is not the quoted destination */
	__u8 link_wide : 1;	/* multicast or broadcast */
	__u8 whole : 1;		/* IPv4 that must not be fragmented */
	__u8 tunnel;		/* enum forward: FORWARD_IPIP, FORWARD_VXLAN; 0: it was not encapsulated */
	struct address node;	/* who encapsulated it, on from_network */
};

/* Halves of an address, comparable. Not in any meaningful order. */
#define ADDRESS_HI(addr) (((const __u64 *)(addr))[0])
#define ADDRESS_LO(addr) (((const __u64 *)(addr))[1])

static __always_inline void address_set(struct address *to, __u64 hi, __u64 lo)
{
	((__u64 *)to)[0] = hi;
	((__u64 *)to)[1] = lo;
}

/* Also onto the stack, to be the key of a table: Linux before 6.2 does not take as key what
 * a function that is not inlined was given a pointer to.
 */
static __always_inline void address_copy(struct address *to, const struct address *from)
{
	address_set(to, ADDRESS_HI(from), ADDRESS_LO(from));
}

static __always_inline int address_equal(const struct address *x, const struct address *y)
{
	return ADDRESS_LO(x) == ADDRESS_LO(y) && ADDRESS_HI(x) == ADDRESS_HI(y);
}

static __always_inline __u64 address_lo4(__be32 ipv4)
{
	return (__u64)ipv4 << 32 | bpf_htonl(0xffff);
}

static __always_inline __be32 address_ipv4(const struct address *addr)
{
	return ADDRESS_LO(addr) >> 32;
}

/* Whether the halves of an address are those of an IPv4 address. */
static __always_inline int address_is_mapped(__u64 hi, __u64 lo)
{
	return hi == 0 && (__u32)lo == bpf_htonl(0xffff);
}

static __always_inline int address_is_ipv4(const struct address *addr)
{
	return address_is_mapped(ADDRESS_HI(addr), ADDRESS_LO(addr));
}

/* The key of a flow from its sender's view, put in order. Returns which end the sender is. */
static __always_inline __u8 flow_key_set(struct flow_key *key, __u64 src_hi, __u64 src_lo, __u64 dst_hi,
					 __u64 dst_lo, __be16 src_port, __be16 dst_port, __u8 protocol)
{
	__u8 sender = 0;

	if (src_lo != dst_lo)
		sender = src_lo > dst_lo;
	else if (src_hi != dst_hi)
		sender = src_hi > dst_hi;
	else
		sender = src_port > dst_port;
	/* Ports, protocol and padding in one piece: who reads them together must not have to
	 * wait for several stores.
	 */
	if (sender) {
		address_set(&key->a, dst_hi, dst_lo);
		address_set(&key->b, src_hi, src_lo);
		*(__u64 *)&key->a_port = dst_port | (__u64)src_port << 16 | (__u64)protocol << 32;
	} else {
		address_set(&key->a, src_hi, src_lo);
		address_set(&key->b, dst_hi, dst_lo);
		*(__u64 *)&key->a_port = src_port | (__u64)dst_port << 16 | (__u64)protocol << 32;
	}
	return sender;
}

static __always_inline int icmp_is_error(__u8 protocol, __u8 type)
{
	if (protocol == IPPROTO_ICMP)
		return type == ICMP_UNREACHABLE || type == ICMP_TIME_EXCEEDED || type == ICMP_PARAMETER_PROBLEM;
	return type >= ICMPV6_UNREACHABLE && type <= ICMPV6_PARAMETER_PROBLEM;
}

static __always_inline int icmp_is_echo(__u8 protocol, __u8 type)
{
	if (protocol == IPPROTO_ICMP)
		return type == ICMP_ECHO_REQUEST || type == ICMP_ECHO_REPLY;
	return type == ICMPV6_ECHO_REQUEST || type == ICMPV6_ECHO_REPLY;
}

/* Ports of the first bytes behind an IP header, as the flow key wants them. Returns how many
 * bytes tell them, or -1 if there are fewer.
 */
static __always_inline int ports_read(void *l4, void *end, __u8 protocol, __be16 *src, __be16 *dst)
{
	__be16 *words = l4;

	*src = *dst = 0;
	switch (protocol) {
	case IPPROTO_TCP:
	case IPPROTO_UDP:
	case IPPROTO_SCTP:
	case IPPROTO_UDPLITE:
		if (l4 + 4 > end)
			return -1;
		*src = words[0];
		*dst = words[1];
		return 4;
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		if (l4 + 8 > end)
			return -1;
		if (icmp_is_echo(protocol, *(__u8 *)l4))
			*src = *dst = words[2];
		return 8;
	}
	return 0;
}

/* Makes the first bytes of the packet readable. Headers of what a local stack sends
 * nearly always are.
 */
#define HEADER_BYTES (ETH_HLEN + 40 + 20)

static __always_inline void packet_pull(struct __sk_buff *skb, __u32 bytes)
{
	if (skb->len < bytes)
		bytes = skb->len;
	if ((void *)(long)skb->data + bytes > (void *)(long)skb->data_end)
		bpf_skb_pull_data(skb, bytes);
}

/* Takes the packet that an ICMP error quotes in so many bytes. The error travels towards the
 * quoted packet's source, so its "sender" is the quoted destination.
 */
static __always_inline int packet_quoted(struct packet *p, void *inner, void *end, __s32 length,
					 const struct address *outer_src)
{
	__u64 src_hi, src_lo, dst_hi, dst_lo;
	__be16 src_port, dst_port;
	__u8 protocol;
	void *l4;
	int bytes;

	if (p->ipv6) {
		struct ipv6hdr *ip6 = inner;

		if (inner + sizeof(*ip6) > end || ip6->version != 6)
			return -1;
		src_hi = ADDRESS_HI(&ip6->saddr);
		src_lo = ADDRESS_LO(&ip6->saddr);
		dst_hi = ADDRESS_HI(&ip6->daddr);
		dst_lo = ADDRESS_LO(&ip6->daddr);
		if (address_is_mapped(src_hi, src_lo) || address_is_mapped(dst_hi, dst_lo))
			return -1;
		protocol = ip6->nexthdr;
		l4 = ip6 + 1;
		length -= sizeof(*ip6);
		if (protocol == IPPROTO_FRAGMENT) { /* next header, reserved, offset and more, id */
			__be16 *words = l4;

			if (l4 + 8 > end || words[1] & bpf_htons(0xfff8))
				return -1;
			protocol = *(__u8 *)l4;
			l4 += 8;
			length -= 8;
		}
	} else {
		struct iphdr *ip = inner;

		if (inner + sizeof(*ip) > end || ip->version != 4 || ip->ihl != 5 || ip->frag_off & bpf_htons(IP_OFFSET_MASK))
			return -1;
		src_hi = dst_hi = 0;
		src_lo = address_lo4(ip->saddr);
		dst_lo = address_lo4(ip->daddr);
		protocol = ip->protocol;
		l4 = ip + 1;
		length -= sizeof(*ip);
	}
	bytes = ports_read(l4, end, protocol, &src_port, &dst_port);
	if (bytes < 0 || length < bytes)
		return -1;
	p->quoted_wrong = ADDRESS_LO(outer_src) != dst_lo || ADDRESS_HI(outer_src) != dst_hi;
	p->icmp_error = 1;
	p->sender = !flow_key_set(&p->key, src_hi, src_lo, dst_hi, dst_lo, src_port, dst_port, protocol);
	return 0;
}

/* What an IP header's length field says. 0 stands for more than it can say: what a local
 * stack has not segmented yet can be that long.
 */
static __always_inline __u32 ip_length(__be16 field, __u32 there)
{
	return field || there <= 65535 ? bpf_ntohs(field) : there;
}

/* Notes that the packet is a fragment, of length bytes from offset on. -1 if no sender
 * makes such.
 */
static __always_inline int fragment_set(struct packet *p, __u32 id, __u32 offset, __u32 more, __u32 length)
{
	p->id = id;
	p->offset = offset;
	p->payload = length;
	if (offset)
		p->part = more ? PART_LATER : PART_LAST;
	else
		p->part = more ? PART_FIRST : PART_WHOLE;
	return length > 65535 || offset + length > 65535 || (more && length & 7) || !length ? -1 : 0;
}

/* Reads the headers of a packet of so many bytes, its Ethernet header at data. What is behind
 * its end, by its own account, is not of the packet: who receives it cuts that off.
 */
static __always_inline enum parsed packet_headers(void *data, void *end, __u32 length, __be16 ethertype,
						  struct packet *p)
{
	__u64 src_hi, src_lo, dst_hi, dst_lo;
	__be16 src_port, dst_port;
	__s32 content; /* bytes behind the IP header */
	__u8 protocol;
	void *l4;
	int bytes;

	p->length = length;
	p->tcp_flags = 0;
	p->icmp = 0;
	p->icmp_error = 0;
	p->quoted_wrong = 0;
	p->link_wide = 0;
	p->part = PART_WHOLE;

	if (ethertype == bpf_htons(ETH_P_IP)) {
		struct iphdr *ip = data + ETH_HLEN;

		if ((void *)(ip + 1) > end || ip->version != 4 || ip->ihl < 5)
			return PARSED_MALFORMED;
		if (bpf_ntohs(ip->tot_len) > length - ETH_HLEN)
			return PARSED_MALFORMED;
		content = ip_length(ip->tot_len, length - ETH_HLEN) - ip->ihl * 4;
		if (content < 0)
			return PARSED_MALFORMED;
		if ((ip->daddr & bpf_htonl(0xf0000000)) == bpf_htonl(0xe0000000) || ip->daddr == 0xffffffff)
			p->link_wide = 1;
		src_hi = dst_hi = 0;
		src_lo = address_lo4(ip->saddr);
		dst_lo = address_lo4(ip->daddr);
		protocol = ip->protocol;
		p->ipv6 = 0;
		p->ttl = ip->ttl;
		p->tos = ip->tos;
		p->whole = !!(ip->frag_off & bpf_htons(IP_DONT_FRAGMENT));
		if (ip->frag_off & bpf_htons(IP_OFFSET_MASK | IP_MORE_FRAGMENTS)) {
			__u32 field = bpf_ntohs(ip->frag_off);

			if (fragment_set(p, ip->id, (field & IP_OFFSET_MASK) * 8, field & IP_MORE_FRAGMENTS, content))
				return PARSED_MALFORMED;
			if (p->part > PART_FIRST) {
				p->sender = flow_key_set(&p->key, src_hi, src_lo, dst_hi, dst_lo, 0, 0, protocol);
				return PARSED_FRAGMENT;
			}
		}
		l4 = (void *)ip + ip->ihl * 4;
	} else if (ethertype == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr *ip6 = data + ETH_HLEN;

		if ((void *)(ip6 + 1) > end || ip6->version != 6)
			return PARSED_MALFORMED;
		if (bpf_ntohs(ip6->payload_len) > length - ETH_HLEN - sizeof(*ip6))
			return PARSED_MALFORMED;
		content = ip_length(ip6->payload_len, length - ETH_HLEN - sizeof(*ip6));
		src_hi = ADDRESS_HI(&ip6->saddr);
		src_lo = ADDRESS_LO(&ip6->saddr);
		dst_hi = ADDRESS_HI(&ip6->daddr);
		dst_lo = ADDRESS_LO(&ip6->daddr);
		/* Nobody sends these (RFC 4942, 2.2): here they would pass for IPv4. */
		if (address_is_mapped(src_hi, src_lo) || address_is_mapped(dst_hi, dst_lo))
			return PARSED_MALFORMED;
		protocol = ip6->nexthdr;
		p->ipv6 = 1;
		p->ttl = ip6->hop_limit;
		p->tos = ip6->priority << 4 | ip6->flow_lbl[0] >> 4;
		l4 = ip6 + 1;
		if (protocol == IPPROTO_ICMPV6) {
			__u8 *type = l4;

			if (l4 + 1 > end || content < 8)
				return PARSED_MALFORMED;
			/* A hop limit below 255 has been routed: no neighbour (RFC 4861, 7.1). */
			if (*type >= ICMPV6_ROUTER_SOLICITATION && *type <= ICMPV6_REDIRECT && ip6->hop_limit == 255)
				return PARSED_NEIGHBOR;
		}
		p->link_wide = ip6->daddr.s6_addr[0] == 0xff;
		switch (protocol) {
		case IPPROTO_HOPOPTS:
		case IPPROTO_ROUTING:
		case IPPROTO_FRAGMENT:
		case IPPROTO_DSTOPTS:
		case IPPROTO_AH:
		case IPPROTO_MH:
			p->key.protocol = 0;
			return p->link_wide ? PARSED_MULTICAST : PARSED_EXTENSION;
		}
	} else if (ethertype == bpf_htons(ETH_P_ARP)) {
		return PARSED_ARP;
	} else {
		return PARSED_OTHER;
	}

	bytes = ports_read(l4, end, protocol, &src_port, &dst_port);
	if (bytes < 0 || content < bytes)
		return PARSED_MALFORMED;
	p->sender = flow_key_set(&p->key, src_hi, src_lo, dst_hi, dst_lo, src_port, dst_port, protocol);
	if (protocol == IPPROTO_TCP) {
		struct tcphdr *tcp = l4;

		if ((void *)(tcp + 1) > end || content < (__s32)sizeof(*tcp))
			return PARSED_MALFORMED;
		p->tcp_flags = ((__u8 *)tcp)[13];
	} else if (protocol == IPPROTO_ICMP || protocol == IPPROTO_ICMPV6) {
		struct icmp_header *icmp = l4;

		if ((void *)(icmp + 1) > end)
			return PARSED_MALFORMED;
		p->icmp = icmp->type << 8 | icmp->code;
		if (icmp_is_error(protocol, icmp->type)) {
			struct address src;

			address_set(&src, src_hi, src_lo);
			if (packet_quoted(p, icmp + 1, end, content - sizeof(*icmp), &src))
				return PARSED_MALFORMED;
		}
	}
	return p->link_wide ? PARSED_MULTICAST : PARSED_IP;
}

static __always_inline void fragment_key_set(struct fragment_key *key, const struct packet *p, enum hook hook)
{
	address_copy(&key->source, p->sender ? &p->key.b : &p->key.a);
	address_copy(&key->destination, p->sender ? &p->key.a : &p->key.b);
	key->id = p->id;
	*(__u32 *)&key->protocol = p->key.protocol | hook << 8;
}

/* Gives a later fragment the ports of the first. Fragments come in order, each where the one
 * before it ended: what overlaps or comes too early is no packet that somebody reads.
 */
static __always_inline enum parsed fragment_follow(struct packet *p, enum hook hook)
{
	struct fragment_key key;
	struct fragment *first;

	fragment_key_set(&key, p, hook);
	first = bpf_map_lookup_elem(&fragments, &key);
	if (!first || first->next != p->offset)
		return PARSED_FRAGMENT;
	first->next = p->offset + p->payload;
	p->icmp = first->icmp;
	p->sender = flow_key_set(&p->key, ADDRESS_HI(&key.source), ADDRESS_LO(&key.source),
				 ADDRESS_HI(&key.destination), ADDRESS_LO(&key.destination), first->source_port,
				 first->destination_port, key.protocol);
	if (p->part == PART_LAST)
		bpf_map_delete_elem(&fragments, &key);
	return p->link_wide ? PARSED_MULTICAST : PARSED_IP;
}

/* Has those that follow an allowed first fragment pass. */
__noinline int fragment_allow(const struct packet *p, enum hook hook)
{
	struct fragment_key key;
	struct fragment first = {};

	if (!p || p->part != PART_FIRST || p->icmp_error)
		return 0;
	fragment_key_set(&key, p, hook);
	first.source_port = p->sender ? p->key.b_port : p->key.a_port;
	first.destination_port = p->sender ? p->key.a_port : p->key.b_port;
	first.icmp = p->icmp;
	first.next = p->payload;
	bpf_map_update_elem(&fragments, &key, &first, BPF_ANY);
	return 0;
}

#define EXTENSIONS 6 /* IPv6 extension headers that we see through, one after the other */

struct extension_header {
	__u8 next;
	__u8 length; /* in 8 bytes, without the first 8 */
	__be16 word; /* fragment: offset and more; routing: type, segments left */
	__be32 id;   /* fragment */
};

static __always_inline int is_extension(__u8 protocol)
{
	return protocol == IPPROTO_HOPOPTS || protocol == IPPROTO_DSTOPTS || protocol == IPPROTO_ROUTING ||
	       protocol == IPPROTO_FRAGMENT;
}

/* Reads an IPv6 packet behind its extension headers (RFC 8200). Source routes are not
 * followed, and neighbour discovery and errors do not hide there (RFC 6980).
 */
static __always_inline enum parsed packet_extensions(struct __sk_buff *skb, struct packet *p)
{
	__u32 offset = ETH_HLEN + sizeof(struct ipv6hdr), bytes = 0, end;
	struct extension_header header;
	__be16 src_port = 0, dst_port = 0;
	__be16 words[8] = {};
	struct ipv6hdr ip6;
	__u8 protocol;

	if (bpf_skb_load_bytes(skb, ETH_HLEN, &ip6, sizeof(ip6)))
		return PARSED_MALFORMED;
	protocol = ip6.nexthdr;
	end = offset + ip_length(ip6.payload_len, skb->len - offset);
	for (int i = 0; i < EXTENSIONS; i++) {
		if (!is_extension(protocol) || p->part > PART_FIRST)
			break;
		if (protocol == IPPROTO_HOPOPTS && i)
			return PARSED_MALFORMED;
		if (bpf_skb_load_bytes(skb, offset, &header, sizeof(header)))
			return PARSED_MALFORMED;
		if (protocol == IPPROTO_ROUTING && header.word & bpf_htons(0xff))
			return PARSED_EXTENSION;
		if (protocol == IPPROTO_FRAGMENT) {
			__u32 field = bpf_ntohs(header.word);

			offset += sizeof(header);
			if (end < offset || fragment_set(p, header.id, field & 0xfff8, field & 1, end - offset))
				return PARSED_MALFORMED;
		} else {
			offset += 8 + header.length * 8;
		}
		protocol = header.next;
	}
	if (p->part <= PART_FIRST) {
		if (is_extension(protocol) || protocol == IPPROTO_AH)
			return PARSED_EXTENSION;
		if (protocol == IPPROTO_TCP)
			bytes = 14;
		else if (protocol == IPPROTO_UDP || protocol == IPPROTO_UDPLITE || protocol == IPPROTO_SCTP)
			bytes = 4;
		else if (protocol == IPPROTO_ICMPV6 || protocol == IPPROTO_ICMP)
			bytes = 8;
		if (offset + bytes > end)
			return PARSED_MALFORMED;
		/* The length as a constant, each time: the verifier wants it. */
		if (bytes == 14 && bpf_skb_load_bytes(skb, offset, words, 14))
			return PARSED_MALFORMED;
		if (bytes == 8 && bpf_skb_load_bytes(skb, offset, words, 8))
			return PARSED_MALFORMED;
		if (bytes == 4 && bpf_skb_load_bytes(skb, offset, words, 4))
			return PARSED_MALFORMED;
		if (protocol == IPPROTO_ICMPV6 || protocol == IPPROTO_ICMP) {
			__u8 type = bpf_ntohs(words[0]) >> 8;

			if (icmp_is_error(protocol, type) ||
			    (type >= ICMPV6_ROUTER_SOLICITATION && type <= ICMPV6_REDIRECT))
				return PARSED_EXTENSION;
			p->icmp = bpf_ntohs(words[0]);
			if (icmp_is_echo(protocol, type))
				src_port = dst_port = words[2];
		} else {
			src_port = words[0];
			dst_port = words[1];
		}
		p->tcp_flags = bpf_ntohs(words[6]); /* zero but for TCP */
	}
	p->sender = flow_key_set(&p->key, ADDRESS_HI(&ip6.saddr), ADDRESS_LO(&ip6.saddr), ADDRESS_HI(&ip6.daddr),
				 ADDRESS_LO(&ip6.daddr), src_port, dst_port, protocol);
	return p->part > PART_FIRST ? PARSED_FRAGMENT : PARSED_IP;
}

/* Reads what packet_headers could not: fragments and IPv6 extension headers. */
__noinline int packet_unusual(struct __sk_buff *skb, struct packet *p, enum parsed parsed, enum hook hook)
{
	if (!p)
		return PARSED_MALFORMED;
	if (parsed == PARSED_EXTENSION)
		parsed = packet_extensions(skb, p);
	if (parsed == PARSED_FRAGMENT)
		parsed = fragment_follow(p, hook);
	return parsed;
}

/* Whether an IPv4 packet in so many bytes is TCP or UDP without options, whole, with its
 * ports and, of TCP, the header within its length.
 */
static __always_inline int ipv4_plain(const struct iphdr *ip, __u32 bytes)
{
	__u32 length = bpf_ntohs(ip->tot_len);

	if (ip->version != 4 || ip->ihl != 5 || ip->frag_off & bpf_htons(IP_OFFSET_MASK | IP_MORE_FRAGMENTS) || length > bytes)
		return 0;
	if (ip->protocol == IPPROTO_TCP)
		return length >= sizeof(*ip) + sizeof(struct tcphdr);
	return ip->protocol == IPPROTO_UDP && length >= sizeof(*ip) + 4;
}

/* Reads what nearly all packets are: TCP or UDP over IPv4 without options, whole, to one
 * receiver, with its headers in one piece. 0 if this is another one: nothing is read then.
 */
static __always_inline int packet_plain(struct __sk_buff *skb, struct packet *p)
{
	void *data = (void *)(long)skb->data;
	struct iphdr *ip = data + ETH_HLEN;
	struct tcphdr *tcp = (void *)(ip + 1);
	__be16 *ports = (void *)tcp;

	if (skb->protocol != bpf_htons(ETH_P_IP) || skb->vlan_present || (void *)(tcp + 1) > (void *)(long)skb->data_end ||
	    !ipv4_plain(ip, skb->len - ETH_HLEN) ||
	    (ip->daddr & bpf_htonl(0xf0000000)) == bpf_htonl(0xe0000000) || ip->daddr == 0xffffffff)
		return 0;
	p->tcp_flags = ip->protocol == IPPROTO_TCP ? ((__u8 *)tcp)[13] : 0;
	p->length = skb->len;
	p->icmp = 0;
	p->icmp_error = 0;
	p->quoted_wrong = 0;
	p->link_wide = 0;
	p->part = PART_WHOLE;
	p->ipv6 = 0;
	p->ttl = ip->ttl;
	p->tos = ip->tos;
	p->whole = !!(ip->frag_off & bpf_htons(IP_DONT_FRAGMENT));
	p->sender = flow_key_set(&p->key, 0, address_lo4(ip->saddr), 0, address_lo4(ip->daddr), ports[0], ports[1],
				 ip->protocol);
	return 1;
}

/* Reads any packet's headers. */
__noinline int packet_any(struct __sk_buff *skb, struct packet *p, enum hook hook)
{
	enum parsed parsed;

	if (!p)
		return PARSED_MALFORMED;
	/* The kernel has taken the tag off. It is of another network, whose interface has
	 * a hook of its own.
	 */
	if (skb->vlan_present)
		return PARSED_OTHER;
	packet_pull(skb, HEADER_BYTES);
	parsed = packet_headers((void *)(long)skb->data, (void *)(long)skb->data_end, skb->len, skb->protocol, p);
	if (parsed == PARSED_FRAGMENT || parsed == PARSED_EXTENSION)
		return packet_unusual(skb, p, parsed, hook);
	return parsed;
}

/* Reads the packet's headers, as seen at a hook. Packet pointers taken before are void
 * afterwards.
 */
static __always_inline int packet_parse(struct __sk_buff *skb, struct packet *p, enum hook hook)
{
	return packet_plain(skb, p) ? PARSED_IP : packet_any(skb, p, hook);
}

/* The packets that nodes encapsulate others in. */
static __always_inline int is_tunnel(const struct settings *now, __u8 protocol, __be16 destination)
{
	return protocol == IPPROTO_IPIP || (protocol == IPPROTO_UDP && destination == now->vxlan_port);
}

#endif
