package whole

import (
	"fmt"
	"strings"
	"testing"
)

// TestPolicy: who may talk to whom, in both families, on one host and between
// two, through every way of travelling.
func TestPolicy(t *testing.T) {
	c := newCluster(t, options{subnets: []int{1, 1}})
	a, b := c.nodes[0], c.nodes[1]
	type members struct{ client, web, db, beside *workload } // web and db are on the other host
	networks := make(map[string]members)
	for _, n := range []string{"ipip", "vxlan", "plain"} {
		networks[n] = members{
			client: c.attach(a, n, "client-"+n), beside: c.attach(a, n, "web-beside-"+n),
			web: c.attach(b, n, "web-"+n), db: c.attach(b, n, "db-"+n),
		}
	}
	c.settle()
	// all makes tries of every network and family.
	all := func(make func(m members, to func(w *workload, from *workload, port uint16, want bool))) []try {
		var tries []try
		for _, m := range networks {
			for _, ipv6 := range []bool{false, true} {
				if m.db.address(ipv6).IsValid() {
					make(m, func(w, from *workload, port uint16, want bool) {
						tries = append(tries, try{from: from.Namespace, to: w.address(ipv6), port: port, want: want})
					})
				}
			}
		}
		return tries
	}
	c.tryAll("profiles only", all(func(m members, to func(w, from *workload, port uint16, want bool)) {
		to(m.db, m.client, 5432, true)
		to(m.db, m.beside, 80, true)
		to(m.db, m.web, 80, true)
		to(m.client, m.db, 0, true)
		to(m.beside, m.client, 80, true)
	})...)

	// Networks are strangers to each other.
	c.tryAll("another network",
		try{from: networks["ipip"].client.Namespace, to: networks["vxlan"].db.v4, port: 80},
		try{from: networks["vxlan"].client.Namespace, to: networks["ipip"].beside.v4, port: 80},
		try{from: networks["plain"].web.Namespace, to: networks["vxlan"].client.v6, port: 80})

	c.apply(`
{apiVersion: projectcalico.org/v3, kind: GlobalNetworkPolicy, metadata: {name: db}, spec: {order: 10, selector: role == 'db', types: [Ingress],
 ingress: [{action: Allow, protocol: TCP, source: {selector: role == 'web'}, destination: {ports: [5432]}}]}}`)
	c.tryAll("ingress by selector and port", all(func(m members, to func(w, from *workload, port uint16, want bool)) {
		to(m.db, m.beside, 5432, true)
		to(m.db, m.web, 5432, true)
		to(m.db, m.beside, 80, false)
		to(m.db, m.web, 80, false)
		to(m.db, m.client, 5432, false)
		to(m.db, m.beside, 0, false)
		to(m.client, m.db, 80, true) // its own connections are not the policy's matter
		to(m.web, m.client, 80, true)
	})...)

	c.apply(`
{apiVersion: projectcalico.org/v3, kind: GlobalNetworkPolicy, metadata: {name: client}, spec: {order: 20, selector: role == 'client', types: [Egress],
 egress: [{action: Deny, protocol: TCP, destination: {notSelector: role == 'web'}}, {action: Allow, protocol: TCP, destination: {ports: [80]}},
          {action: Allow, protocol: UDP, destination: {selector: role == 'db'}}]}}
---
{apiVersion: projectcalico.org/v3, kind: GlobalNetworkPolicy, metadata: {name: db}, spec: {order: 10, selector: role == 'db', types: [Ingress],
 ingress: [{action: Allow, protocol: UDP, destination: {ports: [80]}}, {action: Allow, protocol: ICMP}, {action: Allow, protocol: ICMPv6}]}}`)
	tries := all(func(m members, to func(w, from *workload, port uint16, want bool)) {
		to(m.web, m.client, 80, true)
		to(m.beside, m.client, 80, true)
		to(m.web, m.client, 5432, false)
		to(m.beside, m.client, 5432, false)
		to(m.db, m.client, 80, false)
		to(m.web, m.client, 0, false)
		to(m.client, m.web, 80, true)
		to(m.client, m.db, 0, true)
		to(m.db, m.web, 0, true)
		to(m.db, m.web, 5432, false)
	})
	for _, m := range networks {
		for _, ipv6 := range []bool{false, true} {
			if to := m.db.address(ipv6); to.IsValid() {
				tries = append(tries,
					try{from: m.client.Namespace, to: to, port: 80, udp: true, want: true},
					try{from: m.client.Namespace, to: to, port: 5432, udp: true},
					try{from: m.client.Namespace, to: m.web.address(ipv6), port: 80, udp: true})
			}
		}
	}
	c.tryAll("egress, UDP and ICMP", tries...)

	c.delete("globalnetworkpolicy", "client")
	c.delete("globalnetworkpolicy", "db")
	c.tryAll("policies deleted", all(func(m members, to func(w, from *workload, port uint16, want bool)) {
		to(m.db, m.client, 5432, true)
		to(m.web, m.client, 5432, true)
	})...)
	for _, n := range c.nodes {
		if s := n.status(); len(s.Problems) != 0 {
			t.Errorf("%s: %+v", n.name, s.Problems)
		}
	}
}

// TestHosts: between workloads and hosts.
func TestHosts(t *testing.T) {
	c := newCluster(t, options{subnets: []int{1, 1}})
	a, b := c.nodes[0], c.nodes[1]
	c.apply(openProfile)
	for _, n := range c.nodes {
		c.serve(n.Namespace, 8080)
	}
	// One of each way between the hosts, and one that no profile or policy is for.
	var near, far []*workload
	for i, pool := range []string{"10.65.%d.1/32", "10.66.%d.1/32", "10.67.%d.1/32"} {
		for _, n := range c.nodes {
			s := script{n: n, iface: fmt.Sprintf("cali%d", i), role: "open"}
			third := map[*node]int{a: 201, b: 202}[n]
			s.addresses = []string{fmt.Sprintf(pool, third)}
			if i > 0 {
				s.addresses = append(s.addresses, fmt.Sprintf("fd6%d::%d/128", 5+i, third))
			}
			w := s.plug(c)
			s.put(c)
			if n == a {
				near = append(near, w)
			} else {
				far = append(far, w)
			}
		}
	}
	shut := script{n: a, iface: "cali9", role: "shut", addresses: []string{"10.65.201.9/32", "fd66::9/128"}, closed: true}
	closed := shut.plug(c)
	shut.put(c)
	c.settle()

	hosts := func(w *workload, local, remote *node, toLocal bool) []try {
		tries := []try{
			// The host itself reaches its workloads, whatever the policy.
			{from: local.Namespace, to: w.v4, port: 80, want: true},
			{from: local.Namespace, to: w.v4, want: true},
			{from: remote.Namespace, to: w.v4, port: 80, want: true},
			{from: remote.Namespace, to: w.v4, want: true},
			{from: remote.Namespace, to: w.v4, port: 80, udp: true, want: true},
			{from: w.Namespace, to: local.IPv4.Addr(), port: 8080, want: toLocal},
			{from: w.Namespace, to: local.IPv4.Addr(), want: toLocal},
			{from: w.Namespace, to: remote.IPv4.Addr(), port: 8080, want: true},
		}
		if w.v6.IsValid() {
			tries = append(tries,
				try{from: local.Namespace, to: w.v6, port: 80, want: true},
				try{from: remote.Namespace, to: w.v6, port: 80, want: true},
				try{from: w.Namespace, to: local.IPv6.Addr(), port: 8080, want: toLocal},
				try{from: w.Namespace, to: remote.IPv6.Addr(), port: 8080, want: true})
		}
		return tries
	}
	every := func(toLocal bool) []try {
		var tries []try
		for _, w := range near {
			tries = append(tries, hosts(w, a, b, toLocal)...)
		}
		for _, w := range far {
			tries = append(tries, hosts(w, b, a, toLocal)...)
		}
		return append(tries,
			try{from: a.Namespace, to: closed.v4, port: 80, want: true},
			try{from: a.Namespace, to: closed.v6, port: 80, want: true},
			try{from: b.Namespace, to: closed.v4, port: 80},
			try{from: b.Namespace, to: closed.v6, port: 80},
			try{from: near[0].Namespace, to: closed.v4, port: 80},
			try{from: far[1].Namespace, to: closed.v6, port: 80},
			try{from: closed.Namespace, to: near[0].v4, port: 80},
			try{from: closed.Namespace, to: far[1].v6, port: 80},
			try{from: closed.Namespace, to: a.IPv4.Addr(), port: 8080},
			try{from: closed.Namespace, to: b.IPv6.Addr(), port: 8080},
		)
	}
	c.tryAll("by default", every(false)...)
	for _, action := range []string{"Return", "Accept", "Drop"} {
		c.apply(fmt.Sprintf(`
{apiVersion: projectcalico.org/v3, kind: FelixConfiguration, metadata: {name: default}, spec: {defaultEndpointToHostAction: %s}}`, action))
		c.tryAll(action, every(action != "Drop")...)
	}
	// For one node alone.
	c.apply(`
{apiVersion: projectcalico.org/v3, kind: FelixConfiguration, metadata: {name: node.host2}, spec: {defaultEndpointToHostAction: Accept}}`)
	c.tryAll("one node",
		try{from: near[0].Namespace, to: a.IPv4.Addr(), port: 8080}, try{from: far[0].Namespace, to: b.IPv4.Addr(), port: 8080, want: true})

	// A workload's egress policy is for the host too, its ingress policy for other
	// hosts, which in a tunnel are known by their address there.
	c.apply(fmt.Sprintf(`
{apiVersion: projectcalico.org/v3, kind: GlobalNetworkPolicy, metadata: {name: open}, spec: {selector: role == 'open', types: [Egress, Ingress],
 egress: [{action: Deny, protocol: TCP, destination: {ports: [8080]}}, {action: Allow}],
 ingress: [{action: Deny, source: {nets: [10.10.1.2/32, %s/32, %s/32]}}, {action: Deny, source: {nets: ["fd10:10:1::2/128", %s/128]}}, {action: Allow}]}}`,
		a.tunnel("ipip"), a.tunnel("vxlan"), a.tunnel("vxlan6")))
	var tries []try
	for _, w := range far { // on host2; host1 is 10.10.1.2
		tries = append(tries,
			try{from: b.Namespace, to: w.v4, port: 80, want: true}, try{from: a.Namespace, to: w.v4, port: 80},
			try{from: w.Namespace, to: b.IPv4.Addr(), port: 8080}, try{from: w.Namespace, to: b.IPv4.Addr(), want: true},
			try{from: w.Namespace, to: a.IPv4.Addr(), port: 8080})
		if w.v6.IsValid() {
			tries = append(tries, try{from: b.Namespace, to: w.v6, port: 80, want: true}, try{from: a.Namespace, to: w.v6, port: 80},
				try{from: w.Namespace, to: b.IPv6.Addr(), port: 8080})
		}
	}
	for _, w := range near {
		tries = append(tries, try{from: a.Namespace, to: w.v4, port: 80, want: true}, try{from: b.Namespace, to: w.v4, port: 80, want: true})
	}
	c.tryAll("policy", tries...)
	for _, n := range c.nodes {
		if s := n.status(); len(s.Problems) != 0 {
			t.Errorf("%s: %+v", n.name, s.Problems)
		}
		if _, body := n.get(metrics); !strings.Contains(body, `reason="drop_to_host"`) {
			t.Errorf("%s counts nothing as dropped on the way to the host", n.name)
		}
	}
}
