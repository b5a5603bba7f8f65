package api

import (
	"strings"
	"testing"
)

// read decodes and defaults what a test writes: a kind, a name and a spec in
// YAML flow style.
func read(t testing.TB, kind, name, spec string) Resource {
	t.Helper()
	r, err := Decode([]byte("{apiVersion: projectcalico.org/v3, kind: " + kind + ", metadata: {name: '" + name + "'}, spec: " + spec + "}"))
	if err != nil {
		t.Fatalf("%s: %v", spec, err)
	}
	Default(r)
	return r
}

const (
	peer = "{peerIP: 10.0.0.1, asNumber: 65001, "
	wep  = "{node: a, orchestrator: cni, workload: w, endpoint: e, interfaceName: cali1, "
)

func gnp(rule string) string { return "{ingress: [" + rule + "]}" }

// TestValidateRefuses: one fault each, and the line that names it.
func TestValidateRefuses(t *testing.T) {
	for _, c := range []struct{ kind, name, spec, want string }{
		{"IPPool", "P", "{cidr: 10.0.0.0/16}", `IPPool(P): metadata.name: "P": a lowercase RFC 1123 subdomain`},
		{"IPPool", "a_b", "{cidr: 10.0.0.0/16}", `metadata.name: "a_b"`},
		{"IPPool", strings.Repeat("a", 254), "{cidr: 10.0.0.0/16}", "must be no more than 253"},
		{"IPPool", "p", "{}", `spec.cidr: "": expected a network`},
		{"IPPool", "p", "{cidr: 10.0.0.1/16}", `IPPool(p): spec.cidr: "10.0.0.1/16": not masked: the network is 10.0.0.0/16`},
		{"IPPool", "p", "{cidr: 10.0.0.0/33}", `spec.cidr: "10.0.0.0/33"`},
		{"IPPool", "p", "{cidr: 10.0.0.0/27}", "smaller than one block of /26"},
		{"IPPool", "p", "{cidr: 10.0.0.0/16, blockSize: 19}", "spec.blockSize: 19: expected 20 to 32"},
		{"IPPool", "p", "{cidr: 10.0.0.0/16, blockSize: 33}", "spec.blockSize: 33"},
		{"IPPool", "p", "{cidr: 'fd00::/48', blockSize: 115}", "expected 116 to 128"},
		{"IPPool", "p", "{cidr: 'fd00::/48', ipipMode: Always}", "IPIP carries IPv4 only"},
		{"IPPool", "p", "{cidr: 10.0.0.0/16, ipipMode: Always, vxlanMode: CrossSubnet}", "not together with vxlanMode CrossSubnet"},
		{"IPPool", "p", "{cidr: 10.0.0.0/16, ipipMode: Sometimes}", `spec.ipipMode: "Sometimes": expected Always, CrossSubnet or Never`},
		{"IPPool", "p", "{cidr: 10.0.0.0/16, nodeSelector: 'a = b'}", "spec.nodeSelector"},
		{"IPPool", "p", "{cidr: 10.0.0.0/16, nodeSelector: 'global()'}", "all() selects all"},
		{"IPPool", "p", "{cidr: 10.0.0.0/16, allowedUses: [Workload], namespaceSelector: 'has(a) || global()'}", "all() selects all"},
		{"IPPool", "p", "{cidr: 10.0.0.0/16, namespaceSelector: has(a)}", "tunnels have no namespace"},
		{"IPPool", "p", "{cidr: 10.0.0.0/16, allowedUses: [Workload, LoadBalancer]}", "not together with LoadBalancer"},
		{"IPPool", "p", "{cidr: 10.0.0.0/16, allowedUses: [Foo]}", `"Foo": expected Workload, Tunnel or LoadBalancer`},
		{"IPPool", "p", "{cidr: 10.0.0.0/16, assignmentMode: Foo}", "expected Automatic or Manual"},
		{"IPPool", "p", "{cidr: 169.254.0.0/20}", "overlaps the link-local addresses"},
		{"IPPool", "p", "{cidr: 'fe80::/64'}", "overlaps the link-local addresses"},
		{"IPPool", "p", "{cidr: 10.0.0.0/16, nat-outgoing: true}", "a field of an old version"},
		{"IPReservation", "r", "{reservedCIDRs: [10.0.0.0/8, x]}", `spec.reservedCIDRs[1]: "x": expected a network`},
		{"IPAMConfiguration", "x", "{}", `only "default" has a meaning`},
		{"IPAMConfiguration", "default", "{maxBlocksPerHost: -1}", "expected 0 or more"},

		{"GlobalNetworkPolicy", "p", gnp("{action: Drop}"), `spec.ingress[0].action: "Drop": expected Allow, Deny, Log or Pass`},
		{"GlobalNetworkPolicy", "p", gnp("{}"), `spec.ingress[0].action: ""`},
		{"GlobalNetworkPolicy", "p", gnp("{action: Allow, protocol: 0}"), `spec.ingress[0].protocol: "0": expected 1 to 255`},
		{"GlobalNetworkPolicy", "p", gnp("{action: Allow, protocol: FOO}"), `spec.ingress[0].protocol: "FOO"`},
		{"GlobalNetworkPolicy", "p", gnp("{action: Allow, destination: {ports: [80]}}"), "spec.ingress[0].destination.ports: needs protocol TCP"},
		{"GlobalNetworkPolicy", "p", gnp("{action: Allow, protocol: ICMP, source: {notPorts: [80]}}"), "spec.ingress[0].source.notPorts: needs protocol TCP"},
		{"GlobalNetworkPolicy", "p", gnp("{action: Allow, protocol: TCP, source: {ports: [0]}}"), `source.ports[0]: "0": expected ports from 1 to 65535`},
		{"GlobalNetworkPolicy", "p", gnp("{action: Allow, protocol: TCP, source: {ports: ['0:10']}}"), `source.ports[0]: "0:10"`},
		{"GlobalNetworkPolicy", "p", gnp("{action: Allow, protocol: TCP, source: {ports: [HTTP]}}"), `source.ports[0]: "HTTP"`},
		{"GlobalNetworkPolicy", "p", gnp("{action: Allow, protocol: TCP, source: {notPorts: [a_b]}}"), `source.notPorts[0]: "a_b"`},
		{"GlobalNetworkPolicy", "p", gnp("{action: Allow, protocol: UDPLite, source: {ports: [1]}}"), "source.ports: needs protocol TCP, UDP or SCTP"},
		{"GlobalNetworkPolicy", "p", gnp("{action: Allow, protocol: 136, source: {notPorts: [1]}}"), "source.notPorts: needs protocol TCP, UDP or SCTP"},
		{"GlobalNetworkPolicy", "a.b.c", "{}", `metadata.name: "a.b.c": expected one dot at most`},
		{"StagedGlobalNetworkPolicy", "knp.default.c", "{}", "expected one dot at most"},
		{"NetworkPolicy", "a.b.c", "{}", "expected one dot at most"},
		{"StagedNetworkPolicy", "knp.other.c", "{}", "expected one dot at most"},
		{"GlobalNetworkPolicy", "p", gnp("{action: Allow, icmp: {type: 8}}"), "spec.ingress[0].icmp: needs protocol ICMP"},
		{"GlobalNetworkPolicy", "p", gnp("{action: Allow, protocol: TCP, icmp: {type: 8}}"), "spec.ingress[0].icmp: needs protocol ICMP"},
		{"GlobalNetworkPolicy", "p", gnp("{action: Allow, protocol: ICMP, icmp: {code: 8}}"), "icmp.code: 8: needs a type"},
		{"GlobalNetworkPolicy", "p", gnp("{action: Allow, protocol: ICMP, icmp: {type: 255}}"), "icmp.type: 255: expected 254 or less"},
		{"GlobalNetworkPolicy", "p", gnp("{action: Allow, protocol: ICMP, ipVersion: 6}"), `protocol: "ICMP": ICMP needs ipVersion 4, not 6`},
		{"GlobalNetworkPolicy", "p", gnp("{action: Allow, protocol: 1, ipVersion: 6}"), `protocol: "1": ICMP needs ipVersion 4, not 6`},
		{"GlobalNetworkPolicy", "p", gnp("{action: Allow, notProtocol: ICMPv6, ipVersion: 4}"), `notProtocol: "ICMPv6": ICMPv6 needs ipVersion 6, not 4`},
		{"GlobalNetworkPolicy", "p", gnp("{action: Allow, ipVersion: 5}"), "ipVersion: 5: expected 4 or 6"},
		{"GlobalNetworkPolicy", "p", gnp("{action: Allow, source: {nets: [10.0.0.1]}}"), `source.nets[0]: "10.0.0.1": a prefix length is missing`},
		{"GlobalNetworkPolicy", "p", gnp("{action: Allow, source: {nets: [10.0.0.1/8]}}"), `source.nets[0]: "10.0.0.1/8": not masked: the network is 10.0.0.0/8`},
		{"GlobalNetworkPolicy", "p", gnp("{action: Allow, source: {nets: [10.0.0.0/8]}, destination: {notNets: ['fd00::/8']}}"), "the rule has IPv4 nets already"},
		{"GlobalNetworkPolicy", "p", gnp("{action: Allow, ipVersion: 6, source: {nets: [10.0.0.0/8]}}"), "the rule's ipVersion is 6"},
		{"GlobalNetworkPolicy", "p", gnp("{action: Allow, source: {selector: 'a =='}}"), `source.selector: "a ==": selector "a ==": expected a quoted value at the end`},
		{"KubeControllersConfiguration", "default", "{controllers: {node: {hostEndpoint: {templates: [{generateName: a, interfacePattern: '('}]}}}}", "templates[0].interfacePattern"},
		{"KubeControllersConfiguration", "default", "{controllers: {node: {hostEndpoint: {templates: [{interfaceCIDRs: [10.0.0.0/8]}]}}}}", "templates[0].generateName: missing"},
		{"KubeControllersConfiguration", "default", "{controllers: {node: {hostEndpoint: {templates: [{generateName: a, interfacePattern: e}, {generateName: a, interfacePattern: e}]}}}}", `templates[1].generateName: "a": there is one`},
		{"KubeControllersConfiguration", "default", "{controllers: {node: {hostEndpoint: {templates: [{generateName: a}]}}}}", "templates[0].interfaceCIDRs: missing"},
		{"Tier", "adminnetworkpolicy", "{order: 1}", "spec.order: 1: the order of this tier is 1000"},
		{"StagedKubernetesNetworkPolicy", "p", gnp("{ports: [{port: 80, endPort: 79}]}"), "spec.ingress[0].ports[0].endPort: 79: expected a port from 80 on"},
		{"StagedKubernetesNetworkPolicy", "p", gnp("{ports: [{port: 'eth*'}]}"), `spec.ingress[0].ports[0].port: "eth*"`},
		{"WorkloadEndpoint", "", wep + "ipNetworks: [10.0.0.1], ipNATs: [{internalIP: 10.0.0.1, externalIP: 1.2.3.4/32}]}", "spec.ipNATs[0].externalIP"},
		{"StagedKubernetesNetworkPolicy", "p", gnp("{ports: [{port: http, endPort: 79}]}"), "needs a port by number"},
		{"StagedKubernetesNetworkPolicy", "p", "{egress: [{ports: [{port: 65536}]}]}", "spec.egress[0].ports[0].port: 65536"},
		{"FelixConfiguration", "default", "{bpfJITHardening: x}", "spec.bpfJITHardening"},
		{"FelixConfiguration", "default", "{bpfKubeProxyHealthzPort: 0}", "spec.bpfKubeProxyHealthzPort"},
		{"GlobalNetworkPolicy", "p", gnp("{action: Allow, source: {notNets: [0.0.0.0/0]}}"), `source.notNets[0]: "0.0.0.0/0": without all addresses`},
		{"Profile", "p", gnp("{action: Allow, destination: {notNets: ['::/0']}}"), `destination.notNets[0]: "::/0": without all addresses`},
		{"GlobalNetworkPolicy", "p", gnp("{action: Allow, source: {selector: 'global()'}}"), "global() is only for namespaceSelector"},
		{"GlobalNetworkPolicy", "p", gnp("{action: Allow, source: {namespaceSelector: 'global() || has(x)'}}"), "global() stands alone"},
		{"GlobalNetworkPolicy", "p", gnp("{action: Allow, source: {services: {name: s}}}"), "source.services.namespace: missing"},
		{"GlobalNetworkPolicy", "p", gnp("{action: Allow, destination: {services: {name: s, namespace: n}}}"), "only for the source of ingress rules"},
		{"GlobalNetworkPolicy", "p", gnp("{action: Deny, http: {methods: [GET]}}"), "only for rules with action Allow"},
		{"GlobalNetworkPolicy", "p", gnp("{action: Allow, http: {paths: [{exact: /a, prefix: /b}]}}"), "expected exact or prefix"},
		{"GlobalNetworkPolicy", "p", "{egress: [{action: Allow, http: {methods: [GET]}}]}", "spec.egress[0].http: only for ingress rules"},
		{"GlobalNetworkPolicy", "p", "{selector: 'global()'}", "spec.selector"},
		{"GlobalNetworkPolicy", "p", "{types: [Ingress, Ingress]}", `spec.types: "Ingress": is there twice`},
		{"GlobalNetworkPolicy", "p", "{types: [ingress]}", "spec.types[0]"},
		{"GlobalNetworkPolicy", "p", "{preDNAT: true}", "need applyOnForward: true"},
		{"GlobalNetworkPolicy", "p", "{preDNAT: true, doNotTrack: true, applyOnForward: true}", "not together with doNotTrack"},
		{"GlobalNetworkPolicy", "p", "{preDNAT: true, applyOnForward: true, egress: [{action: Allow}]}", "not with egress rules"},
		{"GlobalNetworkPolicy", "p", "{tier: A}", `spec.tier: "A"`},
		{"GlobalNetworkPolicy", "p", "{performanceHints: [Foo]}", "spec.performanceHints[0]"},
		{"NetworkPolicy", "p", gnp("{action: Allow, source: {nets: [x]}}"), `NetworkPolicy(default/p): spec.ingress[0].source.nets[0]: "x"`},
		{"StagedNetworkPolicy", "p", "{stagedAction: Delete, selector: 'all()'}", "nothing but a tier"},
		{"StagedNetworkPolicy", "p", "{stagedAction: Foo}", "expected Set, Delete, Learn or Ignore"},
		{"Profile", "p", "{egress: [{action: Allow, destination: {ports: [1]}}]}", "Profile(p): spec.egress[0].destination.ports"},
		{"Profile", "p", "{labelsToApply: {a: 'b c'}}", `spec.labelsToApply[a]: "b c"`},
		{"Tier", "a.b", "{}", `metadata.name: "a.b"`},
		{"Tier", "default", "{order: 5}", "the order of this tier is 1e+06"},
		{"Tier", "default", "{defaultAction: Pass}", "the default action of this tier is Deny"},
		{"Tier", "t", "{defaultAction: Allow}", "expected Deny or Pass"},
		{"GlobalNetworkSet", "s", "{nets: [10.0.0.0/8, 10.0.0.0/40]}", `spec.nets[1]: "10.0.0.0/40"`},

		{"Node", "n", "{bgp: {}}", "spec.bgp: is there and empty"},
		{"Node", "n", "{bgp: {ipv4Address: 'fd00::1/64'}}", `spec.bgp.ipv4Address: "fd00::1/64": expected IPv4`},
		{"Node", "n", "{bgp: {ipv6Address: '10.0.0.1/24'}}", "expected IPv6"},
		{"Node", "n", "{bgp: {ipv4Address: x}}", "spec.bgp.ipv4Address"},
		{"Node", "n", "{bgp: {ipv4Address: 10.0.0.1/24, asNumber: 0}}", "spec.bgp.asNumber: 0: expected an AS number from 1"},
		{"Node", "n", "{bgp: {ipv4IPIPTunnelAddr: 10.0.0.1/32}}", "expected an address without prefix length"},
		{"Node", "n", "{vxlanTunnelMACAddr: 66:aa:bb}", "expected a MAC address"},
		{"Node", "n", "{addresses: [{address: x}]}", "spec.addresses[0].address"},
		{"Node", "n", "{orchRefs: [{nodeName: x}]}", "spec.orchRefs[0].orchestrator: missing"},
		{"HostEndpoint", "h", "{interfaceName: eth0}", "spec.node: missing"},
		{"HostEndpoint", "h", "{node: n}", "there are no expectedIPs either"},
		{"HostEndpoint", "h", "{node: n, interfaceName: 'eth 0'}", `spec.interfaceName: "eth 0"`},
		{"HostEndpoint", "h", "{node: n, interfaceName: abcdefghijklmnop}", "1 to 15"},
		{"HostEndpoint", "h", "{node: n, expectedIPs: [10.0.0.1/32]}", `spec.expectedIPs[0]: "10.0.0.1/32"`},
		{"HostEndpoint", "h", "{node: n, interfaceName: eth0, ports: [{name: ssh, protocol: ICMP, port: 22}]}", "expected TCP, UDP or SCTP"},
		{"HostEndpoint", "h", "{node: n, interfaceName: eth0, ports: [{name: ssh, protocol: UDPLite, port: 22}]}", "expected TCP, UDP or SCTP"},
		{"HostEndpoint", "h", "{node: n, interfaceName: eth0, ports: [{name: ssh, protocol: TCP, port: 0}]}", "spec.ports[0].port: 0: expected more than 0"},
		{"HostEndpoint", "h", "{node: n, interfaceName: eth0, ports: [{name: SSH, protocol: TCP, port: 22}]}", `spec.ports[0].name: "SSH"`},
		{"WorkloadEndpoint", "x", wep + "}", `metadata.name: "x": the spec makes it "a-cni-w-e"`},
		{"WorkloadEndpoint", "", "{orchestrator: k8s, node: a, endpoint: e, interfaceName: cali1}", "spec.pod: missing"},
		{"WorkloadEndpoint", "", "{orchestrator: cni, node: a, endpoint: e, interfaceName: cali1}", "spec.containerID: missing"},
		{"WorkloadEndpoint", "", wep + "ipNetworks: [10.0.0.0/24]}", "expected one address"},
		{"WorkloadEndpoint", "", wep + "mac: x}", "expected a MAC address"},
		{"WorkloadEndpoint", "", "{node: a, orchestrator: cni, workload: w, endpoint: e}", "spec.interfaceName"},
		{"WorkloadEndpoint", "", wep + "ipNetworks: [10.0.0.1], ipNATs: [{internalIP: 10.0.0.2, externalIP: 1.2.3.4}]}", "not one of the endpoint's ipNetworks"},
		{"WorkloadEndpoint", "", wep + "ipNetworks: [10.0.0.1], ipNATs: [{internalIP: 10.0.0.1, externalIP: 'fd00::1'}]}", "not of internalIP's family"},
		{"WorkloadEndpoint", "", wep + "ports: [{protocol: TCP, port: 1}]}", "there is no hostPort either"},
		{"WorkloadEndpoint", "", wep + "qosControls: {ingressBandwidth: -1}}", "expected 0 or more"},
		{"WorkloadEndpoint", "", wep + "qosControls: {dscp: 64}}", "DSCP must be between 0 and 63"},

		{"BGPPeer", "p", "{}", "spec.peerIP: missing"},
		{"BGPPeer", "p", "{peerIP: 10.0.0.1}", "spec.asNumber: 0: expected an AS number from 1 to 4294967295"},
		{"BGPPeer", "p", "{peerIP: 10.0.0.1, asNumber: 0}", "spec.asNumber: 0"},
		{"BGPPeer", "p", peer + "localASNumber: 0}", "spec.localASNumber: 0"},
		{"BGPPeer", "p", "{peerIP: '10.0.0.1:0', asNumber: 1}", `spec.peerIP: "10.0.0.1:0"`},
		{"BGPPeer", "p", "{peerIP: '10.0.0.1:65536', asNumber: 1}", "spec.peerIP"},
		{"BGPPeer", "p", "{peerIP: '[fd00::1]', asNumber: 1}", "spec.peerIP"},
		{"BGPPeer", "p", "{peerIP: host, asNumber: 1}", "expected an address, IPv4:port or [IPv6]:port"},
		{"BGPPeer", "p", peer + "node: a, nodeSelector: 'all()'}", "spec.node: not together with nodeSelector"},
		{"BGPPeer", "p", peer + "peerSelector: 'all()'}", "spec.peerIP: not together with peerSelector"},
		{"BGPPeer", "p", "{asNumber: 1, peerSelector: 'all()'}", "spec.asNumber: not together with peerSelector"},
		{"BGPPeer", "p", peer + "reachableBy: 'fd00::1'}", "not of peerIP's family"},
		{"BGPPeer", "p", "{peerSelector: 'all()', reachableBy: 10.0.0.1}", "needs peerIP"},
		{"BGPPeer", "p", peer + "sourceAddress: x}", "expected UseNodeIP or None"},
		{"BGPPeer", "p", peer + "nextHopMode: x}", "expected Auto, Self or Keep"},
		{"BGPPeer", "p", peer + "keepOriginalNextHop: true, nextHopMode: Self}", "spec.keepOriginalNextHop"},
		{"BGPPeer", "p", peer + "filters: [X]}", `spec.filters[0]: "X"`},
		{"BGPConfiguration", "x", "{}", `expected "default" or "node.<name>"`},
		{"BGPConfiguration", "node.a", "{asNumber: 1}", "only for the configuration"},
		{"BGPConfiguration", "default", "{asNumber: 0}", "spec.asNumber: 0"},
		{"BGPConfiguration", "default", "{logSeverityScreen: info}", "expected Trace, Debug, Info, Warning, Error or Fatal"},
		{"BGPConfiguration", "default", "{serviceClusterIPs: [{cidr: 10.0.0.1/12}]}", "spec.serviceClusterIPs[0].cidr"},
		{"BGPConfiguration", "default", "{communities: [{name: a, value: '1:70000'}], prefixAdvertisements: [{cidr: 10.0.0.0/8, communities: [a]}]}", "expected aa:nn of 16 bits"},
		{"BGPConfiguration", "default", "{prefixAdvertisements: [{cidr: 10.0.0.0/8, communities: [a]}]}", "neither a community nor the name of one"},
		{"BGPConfiguration", "default", "{prefixAdvertisements: [{cidr: 10.0.0.0/8}]}", "spec.prefixAdvertisements[0].communities: missing"},
		{"BGPConfiguration", "default", "{nodeToNodeMeshEnabled: false, nodeMeshMaxRestartTime: 2m}", "not without the node-to-node mesh"},
		{"BGPConfiguration", "default", "{ignoredInterfaces: ['*']}", "all interfaces cannot be ignored"},
		{"BGPFilter", "f", "{exportV4: [{cidr: 10.0.0.0/8, action: Accept}]}", "spec.exportV4[0].matchOperator: missing"},
		{"BGPFilter", "f", "{exportV4: [{matchOperator: In, action: Accept}]}", "spec.exportV4[0].cidr: missing"},
		{"BGPFilter", "f", "{importV6: [{cidr: 10.0.0.0/8, matchOperator: In, action: Accept}]}", "expected IPv6"},
		{"BGPFilter", "f", "{importV4: [{action: Drop}]}", "expected Accept or Reject"},
		{"BGPFilter", "f", "{importV4: [{source: X, action: Accept}]}", "expected RemotePeers"},
		{"BGPFilter", "f", "{importV4: [{cidr: 10.0.0.0/8, matchOperator: In, prefixLength: {min: 33}, action: Accept}]}", "prefixLength.min: 33: expected 0 to 32"},
		{"BGPFilter", "f", "{importV4: [{cidr: 10.0.0.0/8, matchOperator: In, prefixLength: {min: 20, max: 10}, action: Accept}]}", "less than min, 20"},

		{"FelixConfiguration", "x", "{}", `expected "default" or "node.<name>"`},
		{"FelixConfiguration", "default", "{defaultEndpointToHostAction: drop}", "expected Drop, Accept or Return"},
		{"FelixConfiguration", "default", "{vxlanPort: 65536}", "spec.vxlanPort: 65536"},
		{"FelixConfiguration", "default", "{wireguardListeningPort: 0}", "spec.wireguardListeningPort: 0: expected more than 0"},
		{"FelixConfiguration", "default", "{vxlanVNI: 16777216}", "spec.vxlanVNI"},
		{"FelixConfiguration", "default", "{mtuIfacePattern: '('}", "spec.mtuIfacePattern"},
		{"FelixConfiguration", "default", "{externalNodesList: ['fd00::/8']}", "spec.externalNodesList[0]"},
		{"FelixConfiguration", "default", "{failsafeInboundHostPorts: [{protocol: icmp, port: 1}]}", "spec.failsafeInboundHostPorts[0].protocol"},
		{"FelixConfiguration", "default", "{routeTableRanges: [{min: 5, max: 4}]}", "spec.routeTableRanges[0]"},
		{"FelixConfiguration", "default", "{bpfDSROptoutCIDRs: [x]}", `spec.bpfDSROptoutCIDRs[0]: "x"`},
		{"FelixConfiguration", "default", "{featureGates: 'a,b'}", "expected key=value"},
		{"FelixConfiguration", "default", "{nftablesFlowTableOffload: x}", "expected Enabled or Disabled"},
		{"ClusterInformation", "x", "{}", `only "default" has a meaning`},
		{"CalicoNodeStatus", "s", "{node: a, classes: [BGP]}", "spec.updatePeriodSeconds: missing"},
		{"CalicoNodeStatus", "s", "{node: a, classes: [BGP, BGP], updatePeriodSeconds: 0}", "BGP is there twice"},
	} {
		err := Validate(read(t, c.kind, c.name, c.spec))
		if err == nil {
			t.Errorf("%s %s: accepted", c.kind, c.spec)
			continue
		}
		if !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s %s:\n got %s\nwant %s", c.kind, c.spec, err, c.want)
		}
		for line := range strings.SplitSeq(err.Error(), "\n") {
			if !strings.HasPrefix(line, c.kind+"(") {
				t.Errorf("%s %s: a line without the object: %q", c.kind, c.spec, line)
			}
		}
	}
}

func TestValidateAccepts(t *testing.T) {
	for _, c := range []struct{ kind, name, spec string }{
		{"IPPool", "p", "{cidr: 10.0.0.0/26}"},
		{"IPPool", "p", "{cidr: 10.0.0.0/28, disabled: true}"},
		{"IPPool", "p", "{cidr: 0.0.0.0/1, blockSize: 20}"},
		{"IPPool", "p", "{cidr: 'fd00::/122', vxlanMode: Always}"},
		{"NetworkPolicy", "knp.default.a.b-c", "{}"},
		{"GlobalNetworkPolicy", "p", gnp("{action: Allow, protocol: udp, destination: {ports: [1, 65535, '1:65535']}}")},
		{"GlobalNetworkPolicy", "p", gnp("{action: Allow, protocol: 6, destination: {ports: [1]}}")},
		{"GlobalNetworkPolicy", "p", gnp("{action: Allow, protocol: icmp, icmp: {type: 8}}")},
		{"GlobalNetworkPolicy", "p", gnp("{action: Allow, protocol: 1, icmp: {type: 8}}")},
		{"GlobalNetworkPolicy", "p", gnp("{action: Allow, protocol: 58, notICMP: {type: 128}}")},
		{"GlobalNetworkPolicy", "p", gnp("{action: Allow, protocol: icmpv6, icmp: {type: 128, code: 0}, ipVersion: 6}")},
		{"GlobalNetworkPolicy", "p", gnp("{action: Allow, protocol: '17'}")},
		{"GlobalNetworkPolicy", "p", gnp("{action: Allow, protocol: 255}")},
		{"GlobalNetworkPolicy", "p", gnp("{action: Allow, source: {namespaceSelector: ' global( ) '}}")},
		{"StagedGlobalNetworkPolicy", "p", "{stagedAction: Delete, tier: t}"},
		{"Node", "n", "{bgp: {ipv4Address: 10.0.0.1, asNumber: '1.1'}}"},
		{"Node", "n", "{}"},
		{"HostEndpoint", "h", "{node: n, interfaceName: '*'}"},
		{"HostEndpoint", "h", "{node: n, expectedIPs: ['fd00::1', 10.0.0.1]}"},
		{"WorkloadEndpoint", "", wep + "ipNetworks: [10.0.0.1, 'fd00::1/128']}"},
		{"WorkloadEndpoint", "a-cni-c-e", "{orchestrator: cni, node: a, containerID: c, endpoint: e, interfaceName: cali1}"}, // as Calico's plugin writes it
		{"WorkloadEndpoint", "a-libnetwork-libnetwork-e", "{orchestrator: libnetwork, node: a, endpoint: e, interfaceName: cali1}"},
		{"BGPPeer", "p", "{peerSelector: 'all()'}"},
		{"BGPPeer", "p", "{peerIP: 'fd00::1', asNumber: 4294967295, reachableBy: 'fd00::2'}"},
		{"BGPConfiguration", "node.a", "{logSeverityScreen: Debug}"},
		{"BGPFilter", "f", "{exportV4: [{action: Reject}, {interface: 'eth*', action: Accept}]}"},
		{"CalicoNodeStatus", "s", "{node: a, classes: [BGP, Agent], updatePeriodSeconds: 0}"},
		{"GlobalNetworkSet", "s", "{nets: [10.0.0.1/8, 'fd00::1']}"},
		{"FelixConfiguration", "default", "{failsafeInboundHostPorts: [], vxlanPort: 4789, bpfLogLevel: '', bpfJITHardening: Strict, bpfKubeProxyHealthzPort: 10256}"},
		{"KubeControllersConfiguration", "default", "{controllers: {node: {hostEndpoint: {templates: [{generateName: a, interfacePattern: 'eth.*', nodeSelector: has(x), labels: {a: b}}]}}}}"},
		{"StagedKubernetesNetworkPolicy", "p", gnp("{ports: [{port: 80, endPort: 90}, {port: http}, {protocol: UDP}]}")},
	} {
		if err := Validate(read(t, c.kind, c.name, c.spec)); err != nil {
			t.Errorf("%s: %v", c.spec, err)
		}
	}
}

func TestAllFaultsAreReported(t *testing.T) {
	err := Validate(read(t, "IPPool", "P_", "{cidr: 10.0.0.1/16, blockSize: 99, nodeSelector: '=', natOutgoing: true}"))
	if n := len(strings.Split(err.Error(), "\n")); n != 4 {
		t.Errorf("%d faults, want 4:\n%v", n, err)
	}
}

func TestMetadata(t *testing.T) {
	for in, want := range map[string]string{
		"{name: p, namespace: x}":          `metadata.namespace: "x": IPPool has no namespace`,
		"{name: p, labels: {'a b': c}}":    `metadata.labels: "a b"`,
		"{name: p, labels: {a: '-'}}":      `metadata.labels[a]: "-"`,
		"{name: p, annotations: {'/': c}}": `metadata.annotations: "/"`,
		"{}":                               "metadata.name: missing",
		"{name: p, annotations: {big: '" + strings.Repeat("x", maxAnnotations) + "'}}": "the limit is",
	} {
		r, err := Decode([]byte("{apiVersion: projectcalico.org/v3, kind: IPPool, metadata: " + in + ", spec: {cidr: 10.0.0.0/16}}"))
		if err != nil {
			t.Fatal(err)
		}
		Default(r)
		if err := Validate(r); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.60s: got %v, want %q", in, err, want)
		}
	}
}
