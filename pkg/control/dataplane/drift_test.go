package dataplane

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"calico-xdp/pkg/api"
	"calico-xdp/pkg/control/desired"
	kernel "calico-xdp/pkg/maps"
)

// drift is a change that somebody else makes in the kernel's tables.
type drift struct {
	name string
	do   func(k *kernel.Maps, one entries) error
}

// entries are the keys of one entry of each table, and what the endpoint was.
type entries struct {
	host     kernel.Address
	net      kernel.Prefix
	workload kernel.Address
	slot     uint32
	endpoint kernel.Endpoint
	port     int
	failsafe kernel.FailsafeKey
	hosts    kernel.HostEndpoint // of interface 200
	rule     uint32
}

func oneOfEach(t *testing.T, d *Dataplane) entries {
	t.Helper()
	k := d.kernel
	one := entries{
		host: firstKey(t, k.HostClasses), net: firstKey(t, k.NetClasses), workload: firstKey(t, k.Workloads),
		slot: d.endpoints.slots[slices.MinFunc(slices.Collect(maps.Keys(d.endpoints.slots)), compareKeys)],
	}
	var err error
	if one.endpoint, _, err = k.Endpoints.Get(one.slot); err != nil {
		t.Fatal(err)
	}
	if one.hosts, _, err = k.HostEndpoints.Get(200); err != nil {
		t.Fatal(err)
	}
	one.failsafe = firstKey(t, k.Failsafe)
	ports, err := k.Ports.Load()
	if err != nil {
		t.Fatal(err)
	}
	words, err := k.Words.Read(int(one.endpoint.Egress)+headerWords, 1)
	if err != nil {
		t.Fatal(err)
	}
	one.rule = uint32(words[0] >> 32)
	one.port = max(0, slices.IndexFunc(ports, func(p kernel.PortClass) bool { return p != (kernel.PortClass{}) }))
	return one
}

var (
	stranger    = kernel.NewAddress(netip.MustParseAddr("203.0.113.77"))
	strangeNet  = kernel.NewPrefix(netip.MustParsePrefix("203.0.113.0/24"))
	ipipRoute   = kernel.NewPrefix(netip.MustParsePrefix("192.168.4.0/26"))
	ipipPeer    = kernel.NewAddress(netip.MustParseAddr(ipip4))
	strangeRule = kernel.NewRuleName("||ingress|", kernel.RuleLog, false)
	garbagePort = kernel.PortClass{Destination: 65535, Source: 65535}
)

// editing changes the endpoint in place.
func editing(change func(*kernel.Endpoint)) func(*kernel.Maps, entries) error {
	return func(k *kernel.Maps, one entries) error {
		change(&one.endpoint)
		return k.Endpoints.Put(one.slot, one.endpoint)
	}
}

var drifts = []drift{
	{"workload added", func(k *kernel.Maps, one entries) error { return k.Workloads.Put(stranger, one.slot) }},
	{"workload removed", func(k *kernel.Maps, one entries) error { return k.Workloads.Delete(one.workload) }},
	{"workload changed", func(k *kernel.Maps, one entries) error { return k.Workloads.Put(one.workload, 999) }},
	{"route added", func(k *kernel.Maps, _ entries) error { return k.Routes.Put(strangeNet, kernel.Route{Kind: 1}) }},
	{"route removed", func(k *kernel.Maps, _ entries) error { return k.Routes.Delete(ipipRoute) }},
	{"route changed", func(k *kernel.Maps, _ entries) error { return k.Routes.Put(ipipRoute, kernel.Route{Kind: 3}) }},
	{"peer added", func(k *kernel.Maps, _ entries) error { return k.Peers.Put(stranger, kernel.Peer{}) }},
	{"peer removed", func(k *kernel.Maps, _ entries) error { return k.Peers.Delete(ipipPeer) }},
	{"peer changed", func(k *kernel.Maps, _ entries) error { return k.Peers.Put(ipipPeer, kernel.Peer{}) }},
	{"settings removed", func(k *kernel.Maps, _ entries) error { return k.Settings.Delete(0) }},
	{"settings changed", func(k *kernel.Maps, _ entries) error { return k.Settings.Put(0, kernel.Settings{VxlanVni: 7}) }},
	{"host endpoint added", func(k *kernel.Maps, one entries) error { return k.HostEndpoints.Put(777, one.hosts) }},
	{"host endpoint removed", func(k *kernel.Maps, _ entries) error { return k.HostEndpoints.Delete(200) }},
	{"host endpoint changed", func(k *kernel.Maps, one entries) error {
		one.hosts.Ingress, one.hosts.PreDnat = 0, one.hosts.Egress
		return k.HostEndpoints.Put(200, one.hosts)
	}},
	{"tunnels' host endpoint removed", func(k *kernel.Maps, _ entries) error { return k.HostEndpoints.Delete(0) }},
	{"XDP ruleset added", func(k *kernel.Maps, one entries) error {
		return k.XDPRulesets.Put(777, kernel.XDPRuleset{Ifindex: 777, Base: one.hosts.Ingress})
	}},
	{"XDP ruleset removed", func(k *kernel.Maps, _ entries) error { return k.XDPRulesets.Delete(200) }},
	{"XDP ruleset changed", func(k *kernel.Maps, one entries) error {
		return k.XDPRulesets.Put(200, kernel.XDPRuleset{Ifindex: 200, Base: one.hosts.Ingress})
	}},
	{"failsafe added", func(k *kernel.Maps, one entries) error {
		one.failsafe.Port++
		return k.Failsafe.Put(one.failsafe, 1)
	}},
	{"failsafe removed", func(k *kernel.Maps, one entries) error { return k.Failsafe.Delete(one.failsafe) }},
	{"failsafe changed", func(k *kernel.Maps, one entries) error { return k.Failsafe.Put(one.failsafe, 7) }},
	{"failsafe port added", func(k *kernel.Maps, _ entries) error { return k.FailsafePorts.Put(100, 1) }},
	{"failsafe ports removed", func(k *kernel.Maps, _ entries) error { return k.FailsafePorts.Delete(0) }},
	{"failsafe ports changed", func(k *kernel.Maps, _ entries) error { return k.FailsafePorts.Put(0, 1<<63) }},
	{"NAT net added", func(k *kernel.Maps, _ entries) error { return k.NATNets.Put(strangeNet, kernel.NATInside) }},
	{"host class added", func(k *kernel.Maps, _ entries) error { return k.HostClasses.Put(stranger, 1) }},
	{"host class removed", func(k *kernel.Maps, one entries) error { return k.HostClasses.Delete(one.host) }},
	{"host class changed", func(k *kernel.Maps, one entries) error { return k.HostClasses.Put(one.host, 9) }},
	{"net class added", func(k *kernel.Maps, _ entries) error { return k.NetClasses.Put(strangeNet, 1) }},
	{"net class removed", func(k *kernel.Maps, one entries) error { return k.NetClasses.Delete(one.net) }},
	{"net class changed", func(k *kernel.Maps, one entries) error { return k.NetClasses.Put(one.net, 9) }},
	{"class nodes' class changed", func(k *kernel.Maps, _ entries) error { return k.ClassNodes.Put(0xcb0, 0, 8) }},
	{"class nodes' way changed", func(k *kernel.Maps, _ entries) error { return k.ClassNodes.Put(0xcb0, 0, kernel.TrieChild|7) }},
	{"place nodes changed", func(k *kernel.Maps, _ entries) error { return k.PlaceNodes.Put(0xcb0, 0, 3) }},
	{"port class added", func(k *kernel.Maps, _ entries) error {
		return k.Ports.Put(kernel.PortIndex(132, 4242), kernel.PortClass{Destination: 1, Source: 1})
	}},
	{"port class removed", func(k *kernel.Maps, one entries) error { return k.Ports.Put(one.port, kernel.PortClass{}) }},
	{"port class changed", func(k *kernel.Maps, one entries) error {
		return k.Ports.Put(one.port, kernel.PortClass{Destination: 5, Source: 7})
	}},
	{"ruleset word changed", func(k *kernel.Maps, one entries) error {
		return k.Words.Write(int(one.endpoint.Egress)+headerWords+1, []uint64{0x1234})
	}},
	{"ruleset gone", func(k *kernel.Maps, one entries) error {
		return k.Words.Write(int(one.endpoint.Egress), make([]uint64, 4))
	}},
	{"endpoint added", func(k *kernel.Maps, _ entries) error {
		return k.Endpoints.Put(77, kernel.Endpoint{Egress: 1, Ingress: 1, Ifindex: 77})
	}},
	{"rule name added", func(k *kernel.Maps, _ entries) error { return k.RuleNames.Put(4711, strangeRule) }},
	{"rule name removed", func(k *kernel.Maps, one entries) error { return k.RuleNames.Delete(one.rule) }},
	{"rule name changed", func(k *kernel.Maps, one entries) error { return k.RuleNames.Put(one.rule, strangeRule) }},
	{"endpoint removed", func(k *kernel.Maps, one entries) error { return k.Endpoints.Delete(one.slot) }},
	{"endpoint's policy changed", editing(func(e *kernel.Endpoint) { e.Egress, e.Ingress = e.Ingress, 0 })},
	{"endpoint's MAC changed", editing(func(e *kernel.Endpoint) { e.Mac = [6]uint8{} })},
	{"endpoint's interface changed", editing(func(e *kernel.Endpoint) { e.Ifindex = 4711 })},
	{"endpoint's generation changed", editing(func(e *kernel.Endpoint) { e.Generation += 5 })},
}

// garbage are numbers that nobody ever handed out.
var garbage = []drift{
	{"host class", func(k *kernel.Maps, one entries) error { return k.HostClasses.Put(one.host, 0xfffffff0) }},
	{"net class", func(k *kernel.Maps, one entries) error { return k.NetClasses.Put(one.net, 0x7fffffff) }},
	{"port class", func(k *kernel.Maps, one entries) error { return k.Ports.Put(one.port, garbagePort) }},
	{"endpoint's policy", editing(func(e *kernel.Endpoint) { e.Egress = 0xfffffff0 })},
	{"ruleset header", func(k *kernel.Maps, one entries) error {
		return k.Words.Write(int(one.endpoint.Egress), []uint64{1<<64 - 1, 1<<64 - 1})
	}},
	{"rule number in a ruleset", func(k *kernel.Maps, one entries) error {
		at := int(one.endpoint.Egress) + headerWords
		rule, err := k.Words.Read(at, 1)
		if err != nil {
			return err
		}
		return k.Words.Write(at, []uint64{rule[0] | 0xffffffff<<32})
	}},
	{"rule name", func(k *kernel.Maps, one entries) error { return k.RuleNames.Put(one.rule, strangeRule) }},
	{"rule name of no number", func(k *kernel.Maps, _ entries) error { return k.RuleNames.Put(0xffffffff, strangeRule) }},
	{"host class of a stranger", func(k *kernel.Maps, _ entries) error { return k.HostClasses.Put(stranger, 1<<20) }},
}

// withAddress is an endpoint that is not closed.
func withAddress(w *desired.Dataplane) api.Key {
	return slices.MinFunc(slices.Collect(maps.Keys(w.Endpoints)), func(a, b api.Key) int {
		return cmp.Or(cmp.Compare(len(w.Endpoints[b].Addresses), len(w.Endpoints[a].Addresses)), compareKeys(a, b))
	})
}

// What others change in the kernel is put right by the round after a Resync.
func TestDriftIsRepaired(t *testing.T) {
	d := unhooked(t)
	s := compiled(rich(t))
	apply(t, d, s)
	sound := generationless(t, d)
	for _, drift := range drifts {
		t.Run(drift.name, func(t *testing.T) {
			sound = repaired(t, d, sound, drift, func() *Dataplane {
				d.Resync()
				apply(t, d, s)
				return d
			})
		})
	}
}

// Numbers that nobody ever handed out do not lead astray, now or after a restart.
func TestGarbageIsRepaired(t *testing.T) {
	store := rich(t)
	for _, drift := range garbage {
		t.Run(drift.name, func(t *testing.T) {
			d := unhooked(t)
			s := compiled(store)
			apply(t, d, s)
			repaired(t, d, generationless(t, d), drift, func() *Dataplane {
				d.Resync()
				apply(t, d, s)
				return d
			})
		})
		// A new process may give other numbers, but the next one has to agree with it.
		t.Run(drift.name+", before a start", func(t *testing.T) {
			d := unhooked(t)
			apply(t, d, compiled(store))
			one, before := oneOfEach(t, d), generationless(t, d)
			if err := drift.do(d.kernel, one); err != nil {
				t.Fatal(err)
			}
			wrong := difference(before, generationless(t, d))
			d = restarted(d)
			apply(t, d, compiled(store))
			now := generationless(t, d)
			for _, line := range wrong {
				for key, value := range now {
					if line == fmt.Sprintf("+ %s %s", key, value) {
						t.Errorf("still there: %s", line)
					}
				}
			}
			e, _, err := d.kernel.Endpoints.Get(one.slot)
			if err != nil || e.Egress == 0 || e.Ingress == 0 {
				t.Errorf("the endpoint is closed: %+v %v", e, err)
			}
			d = restarted(d)
			apply(t, d, compiled(store))
			if diff := difference(now, generationless(t, d)); len(diff) > 0 {
				t.Errorf("another restart changes more:\n%s", strings.Join(diff[:min(20, len(diff))], "\n"))
			}
		})
	}
}

// repaired says whether a round undoes a change, and returns how the tables are then.
func repaired(t *testing.T, d *Dataplane, sound map[string]string, drift drift, round func() *Dataplane) map[string]string {
	t.Helper()
	one := oneOfEach(t, d)
	if err := drift.do(d.kernel, one); err != nil {
		t.Fatal(err)
	}
	d = round()
	now := generationless(t, d)
	if diff := difference(sound, now); len(diff) > 0 {
		t.Errorf("not repaired:\n%s", strings.Join(diff[:min(20, len(diff))], "\n"))
	}
	if e, _, _ := d.kernel.Endpoints.Get(one.slot); e.Generation < one.endpoint.Generation {
		t.Errorf("generation %d after %d", e.Generation, one.endpoint.Generation)
	}
	return now
}

// firstKey is one key of a table, always the same.
func firstKey[K, V comparable](t testing.TB, table kernel.Table[K, V]) K {
	t.Helper()
	all, err := table.Load()
	if err != nil || len(all) == 0 {
		t.Fatalf("an empty table: %v", err)
	}
	return slices.MinFunc(slices.Collect(maps.Keys(all)), func(a, b K) int { return cmp.Compare(fmt.Sprint(a), fmt.Sprint(b)) })
}
