// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
// No program: pkg/maps generates Go's types from here and creates the maps.
#include "maps.h"

/* Enums reach BTF, and so Go, only through a variable. */
const volatile enum hook hook_names;
const volatile enum reason reason_names;
const volatile enum endpoint_flags endpoint_flag_names;
const volatile enum forward forward_names;
const volatile enum flow_state flow_state_names;
const volatile enum route_kind route_kind_names;
const volatile enum to_host to_host_names;
const volatile enum rule_action rule_action_names;
const volatile enum ruleset_header ruleset_header_names;
const volatile enum host_policy host_policy_names;
const volatile enum workload_tunnel workload_tunnel_names;
const volatile enum rpf rpf_names;
const volatile enum direction direction_names;
const volatile enum nat_net nat_net_names;
const volatile enum event_kind event_kind_names;
const volatile enum flow_tables flow_table_names;
const volatile enum trie_entry trie_entry_names;
const volatile enum trie_shape trie_shape_names;
const volatile enum place place_names;

/* So do structs that no map's type names. */
const volatile struct event event_layout;

char __license[] SEC("license") = "GPL";
