package datastore

import (
	"flag"
	"fmt"
	"log/slog"
	"runtime"
	"testing"
	"time"

	"calico-xdp/pkg/api"
	"calico-xdp/tools/testbed"

	"golang.org/x/sys/unix"
)

var scale = flag.Int("scale", 100_000, "how many workload endpoints BenchmarkScale has")

// BenchmarkScale reads a cluster's workload endpoints: as `calicoctl get` does, and
// as a daemon does when it starts. B/endpoint is what stays in memory; cpu-s/op, for
// machines that do other things too, counts etcd's part as well.
func BenchmarkScale(b *testing.B) {
	e := testbed.StartEtcd(b)
	values := make(map[string]string)
	for i := range *scale {
		w := someEndpoint().(*api.WorkloadEndpoint)
		node, pod := fmt.Sprintf("node-%d", i/100), fmt.Sprintf("pod-%d", i)
		w.Name = api.WorkloadEndpointName(node, "cni", pod, "eth0")
		w.Spec.Node, w.Spec.Workload, w.Spec.ContainerID = node, pod, fmt.Sprintf("%064x", i)
		w.Spec.IPNetworks = []string{fmt.Sprintf("10.%d.%d.%d/32", i>>16&255, i>>8&255, i&255)}
		key, kv := stored(b, w)
		path, err := newCodec().path(key)
		if err != nil {
			b.Fatal(err)
		}
		values[path] = string(kv.Value)
	}
	e.PutAll(values)
	c, err := Open(b.Context(), Config{Endpoints: []string{e.Endpoint()}, AuditInterval: -1}, slog.New(slog.DiscardHandler))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(c.Close)
	heap := func() float64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return float64(m.HeapAlloc)
	}
	b.Run("list", func(b *testing.B) {
		defer reportCPU(b)()
		for b.Loop() {
			all, err := c.List(b.Context(), api.KindWorkloadEndpoint, "")
			if err != nil || len(all) != *scale {
				b.Fatal(len(all), err)
			}
		}
	})
	b.Run("snapshot", func(b *testing.B) {
		defer reportCPU(b)()
		for b.Loop() {
			before := heap()
			w := c.Watch(b.Context())
			store := api.NewStore()
			for !w.InSync() {
				<-w.Changed()
				changes, _ := w.Take()
				for _, change := range changes {
					store.Apply(change)
				}
			}
			b.StopTimer()
			b.ReportMetric((heap()-before)/float64(*scale), "B/endpoint")
			runtime.KeepAlive(store)
			runtime.KeepAlive(w)
			b.StartTimer()
		}
	})
}

// reportCPU returns what reports the processor time since, of each operation.
func reportCPU(b *testing.B) func() {
	used := func() time.Duration {
		var r unix.Rusage
		if err := unix.Getrusage(unix.RUSAGE_SELF, &r); err != nil {
			b.Fatal(err)
		}
		return time.Duration(r.Utime.Nano() + r.Stime.Nano())
	}
	before := used()
	return func() { b.ReportMetric((used()-before).Seconds()/float64(b.N), "cpu-s/op") }
}
