package control

import (
	"fmt"
	"os"
	"os/exec"
	"testing"
)

// options builds the daemon. CONTROL_PROFILES names a directory for profiles.
func options(b *testing.B) Options {
	b.Helper()
	o := Options{Bin: b.TempDir(), Profiles: os.Getenv("CONTROL_PROFILES")}
	cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-o", o.Bin+"/", "calico-xdp/cmd/calico-node")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		b.Fatalf("%s: %v\n%s", cmd, err, out)
	}
	return o
}

// report runs a scenario once, whatever b.N is, and shows its figures.
func report(b *testing.B, run func(Options) []Figure) {
	b.Helper()
	for _, f := range run(options(b)) {
		fmt.Println(f) // b.Log shows ten lines
	}
}

func BenchmarkPolicyFlip(b *testing.B) {
	for _, rules := range []int{10, 10_000} {
		report(b, func(o Options) []Figure { return PolicyFlip(b, o, rules, 200) })
	}
}

func BenchmarkRuleEdit(b *testing.B) {
	report(b, func(o Options) []Figure { return RuleEdit(b, o, 10_000, 100) })
}

func BenchmarkLargeCluster(b *testing.B) {
	report(b, func(o Options) []Figure { return LargeCluster(b, o, 1000, 100, 1000, 250, 60) })
}

func BenchmarkRouting(b *testing.B) {
	report(b, func(o Options) []Figure { return Routing(b, o, 10_000, 100) })
}

func BenchmarkBurst(b *testing.B) {
	report(b, func(o Options) []Figure { return Burst(b, o, 1000) })
}
