package dataplane

import (
	"fmt"
	"testing"
	"time"

	v3 "github.com/projectcalico/api/pkg/apis/projectcalico/v3"
	"github.com/prometheus/client_golang/prometheus"

	"calico-xdp/pkg/api"
	"calico-xdp/pkg/control/desired"
	"calico-xdp/pkg/loader"
	kernel "calico-xdp/pkg/maps"
	"calico-xdp/pkg/policy"
)

// longIngress is a policy of so many rules, allowing and denying in turn.
func longIngress(rules int) *v3.GlobalNetworkPolicy {
	p := v3.NewGlobalNetworkPolicy()
	p.Name = "default.long"
	p.Spec = v3.GlobalNetworkPolicySpec{Tier: "default", Selector: "app == 'b'", Types: []v3.PolicyType{v3.PolicyTypeIngress}}
	for i := range rules {
		action := v3.Allow
		if i%2 == 1 {
			action = v3.Deny
		}
		p.Spec.Ingress = append(p.Spec.Ingress, v3.Rule{Action: action, Source: v3.EntityRule{Nets: []string{fmt.Sprintf("172.%d.%d.0/24", 16+i/256, i%256)}}})
	}
	return p
}

// BenchmarkEditLongPolicy is an edit of a policy of 10,000 rules, from compiled to in the
// kernel.
func BenchmarkEditLongPolicy(b *testing.B) {
	for _, edit := range []struct {
		name string
		do   func(p *v3.GlobalNetworkPolicy, i int)
	}{
		{"a net of one rule", func(p *v3.GlobalNetworkPolicy, i int) {
			p.Spec.Ingress[5000].Source.Nets = []string{fmt.Sprintf("10.0.%d.0/24", i%200)}
		}},
		{"an action of one rule", func(p *v3.GlobalNetworkPolicy, i int) {
			p.Spec.Ingress[5000].Action = []v3.Action{v3.Allow, v3.Deny}[i%2]
		}},
		{"one rule more or less in front", func(p *v3.GlobalNetworkPolicy, i int) {
			p.Spec.Ingress = p.Spec.Ingress[i%2:]
		}},
	} {
		b.Run(edit.name, func(b *testing.B) {
			l := newLedgerOn(b, unhookedWith(b, kernel.Options{Sizes: map[string]int{"rule_counters": 65536, "rule_names": 65536, "ruleset_words": 1 << 23}}))
			var changes []api.Change
			for i := 0; b.Loop(); i++ {
				b.StopTimer()
				p := longIngress(10_000)
				edit.do(p, i)
				c := api.Change{Key: api.KeyOf(p), Resource: p}
				l.store.Apply(c)
				if changes = []api.Change{c}; i == 0 {
					changes = nil
				}
				state := &desired.State{Dataplane: desired.Dataplane{
					Policy: l.compiler.Compile(l.store, changes), Endpoints: localEndpoints(l.store),
				}}
				pretendAttached(l.Dataplane, state)
				time.Sleep(grace)
				b.StartTimer()
				if err := l.Ensure(b.Context(), state); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkScrape is reading what 100,000 rules have counted.
func BenchmarkScrape(b *testing.B) {
	d := unhookedWith(b, kernel.Options{Sizes: map[string]int{"rule_counters": 131072, "rule_names": 131072}})
	from := &policy.Ruleset{}
	for i := range 100_000 {
		if i%100 == 0 {
			from.Parts = append(from.Parts, policy.Part{From: i, Run: &policy.Run{ID: policy.RuleID{
				Tier: "default", Policy: api.Key{Kind: "NetworkPolicy", Namespace: "default", Name: fmt.Sprint("default.p", i/100)}, Direction: "ingress",
			}}})
		}
		run := from.Parts[i/100].Run
		run.Rules = append(run.Rules, policy.RunRule{Action: policy.Deny, Index: int32(i % 100)})
	}
	b.Run("numbering", func(b *testing.B) {
		for b.Loop() {
			b.StopTimer()
			d.classifier.rules = newRules(d.kernel, d.log)
			if err := d.classifier.rules.load(); err != nil {
				b.Fatal(err)
			}
			d.classifier.rules.settle()
			b.StartTimer()
			d.classifier.rules.hold(from, false)
		}
	})
	b.Run("numbering after a restart", func(b *testing.B) {
		for b.Loop() {
			d.classifier.rules = newRules(d.kernel, d.log)
			if err := d.classifier.rules.load(); err != nil {
				b.Fatal(err)
			}
			d.classifier.rules.hold(from, false)
		}
	})
	b.Run("rules", func(b *testing.B) {
		for b.Loop() {
			if counts, err := d.Rules(); err != nil || len(counts) != 100_000 {
				b.Fatal(len(counts), err)
			}
		}
	})
	registry := prometheus.NewRegistry()
	registry.MustRegister(d)
	b.Run("metrics, of which none has counted", func(b *testing.B) {
		for b.Loop() {
			if _, err := registry.Gather(); err != nil {
				b.Fatal(err)
			}
		}
	})
	var all []loader.RuleCount
	for i := range 100_000 {
		all = append(all, loader.RuleCount{Rule: uint32(i + 1), Packets: 1, Bytes: 100})
	}
	if err := d.programs.AddCounts(all); err != nil {
		b.Fatal(err)
	}
	b.Run("metrics, of which all have", func(b *testing.B) {
		for b.Loop() {
			if _, err := registry.Gather(); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("freeing", func(b *testing.B) {
		for b.Loop() {
			b.StopTimer()
			numbers, without := d.classifier.rules.hold(from, false)
			d.classifier.rules.release(numbers, without)
			b.StartTimer()
			d.classifier.rules.release(numbers, without)
		}
	})
}
