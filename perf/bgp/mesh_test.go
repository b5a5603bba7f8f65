// Package bgp measures what a full mesh of BGP speakers costs on one machine, ours
// beside BIRD's: go test ./perf/bgp -bench Mesh -benchtime 1x [-speakers 100]
package bgp

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	speaker "calico-xdp/pkg/control/bgp"
	"calico-xdp/pkg/control/desired"
)

var speakers = flag.Int("speakers", 100, "how many there are")

// inside marks the process that measures: it has a network namespace of its own.
const inside = "CALICO_XDP_PERF_BGP_INSIDE"

func TestMain(m *testing.M) {
	if os.Getenv(inside) != "" {
		if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "%v: %s\n", err, out)
			os.Exit(1)
		}
		os.Exit(m.Run())
	}
	runtime.LockOSThread() // the child dies with this thread
	child := exec.Command("/proc/self/exe", os.Args[1:]...)
	child.Env = append(os.Environ(), inside+"=1")
	child.Stdout, child.Stderr = os.Stdout, os.Stderr
	child.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	err := child.Run()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		os.Exit(exit.ExitCode())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// address is that of speaker i, from 0.
func address(i int) netip.Addr { return netip.AddrFrom4([4]byte{127, 1, byte(i >> 8), byte(i + 1)}) }

func block(i int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 65, byte(i >> 2), byte(i << 6)}), 26)
}

// cpu is the time that a process, or this one and all its children if pid is 0, has
// spent on a processor.
func cpu(b *testing.B, pid int) time.Duration {
	b.Helper()
	if pid == 0 {
		var u syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
			b.Fatal(err)
		}
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		b.Fatal(err)
	}
	fields := strings.Fields(string(data[strings.LastIndex(string(data), ")")+1:]))
	user, _ := strconv.Atoi(fields[11])
	system, _ := strconv.Atoi(fields[12])
	return time.Duration(user+system) * 10 * time.Millisecond // the kernel's clock tick
}

// BenchmarkMesh starts all speakers at once and waits until each knows the block of
// every other one.
func BenchmarkMesh(b *testing.B) {
	b.Run("ours", func(b *testing.B) {
		for range b.N {
			ours(b)
		}
	})
	b.Run("bird", func(b *testing.B) {
		for range b.N {
			birds(b)
		}
	})
}

func ours(b *testing.B) {
	before, begin := cpu(b, 0), time.Now()
	var all []*speaker.Speaker
	var starting sync.WaitGroup
	for i := range *speakers {
		s := speaker.New(speaker.Options{ListenAddresses: []netip.Addr{address(i)}, FirstStart: true}, slog.New(slog.DiscardHandler))
		all = append(all, s)
		want := &desired.State{BGP: desired.BGP{
			Enabled: true, AS: 64512, RouterID: address(i), NextHop4: address(i),
			Peers: map[string]desired.BGPPeer{}, Advertise: map[netip.Prefix]bool{block(i): true},
		}}
		for j := range *speakers {
			if i != j {
				want.BGP.Peers[address(j).String()] = desired.BGPPeer{
					Address: address(j), AS: 64512, Local: address(i), Kind: desired.PeerMesh, ClusterNode: true,
					Passive: address(j).String() > address(i).String(),
				}
			}
		}
		starting.Go(func() {
			if err := s.Prune(context.Background(), want); err != nil {
				b.Error(err)
			}
		})
	}
	starting.Wait()
	b.ReportMetric(time.Since(begin).Seconds(), "s/started")
	converged := func() bool {
		for _, s := range all {
			if len(s.Learned()) != *speakers-1 {
				return false
			}
		}
		return true
	}
	wait(b, converged)
	b.ReportMetric(time.Since(begin).Seconds(), "s/converged")
	b.ReportMetric((cpu(b, 0) - before).Seconds(), "cpu-s")
	// A change: one block goes, everybody hears of it.
	begin = time.Now()
	gone := &desired.State{BGP: desired.BGP{}}
	if err := all[0].Prune(context.Background(), gone); err != nil {
		b.Fatal(err)
	}
	wait(b, func() bool {
		for _, s := range all[1:] {
			if len(s.Learned()) != *speakers-2 {
				return false
			}
		}
		return true
	})
	b.ReportMetric(time.Since(begin).Seconds(), "s/withdrawn")
	for _, s := range all {
		s.Close()
	}
}

func birds(b *testing.B) {
	dir := b.TempDir()
	begin := time.Now()
	var all []*exec.Cmd
	for i := range *speakers {
		var conf strings.Builder
		fmt.Fprintf(&conf, "router id %s;\nprotocol device { }\nprotocol static { ipv4; route %s blackhole; }\n", address(i), block(i))
		for j := range *speakers {
			if i == j {
				continue
			}
			passive := ""
			if address(j).String() > address(i).String() {
				passive = "passive on;"
			}
			fmt.Fprintf(&conf, "protocol bgp { local %s as 64512; neighbor %s as 64512; strict bind; multihop; graceful restart; %s\n"+
				"  connect delay time 1; connect retry time 3; error wait time 5, 60; ipv4 { import all; export where source = RTS_STATIC; }; }\n",
				address(i), address(j), passive)
		}
		path := filepath.Join(dir, fmt.Sprintf("%d.conf", i))
		if err := os.WriteFile(path, []byte(conf.String()), 0o600); err != nil {
			b.Fatal(err)
		}
		c := exec.Command("bird", "-f", "-c", path, "-s", control(dir, i))
		if err := c.Start(); err != nil {
			b.Fatal(err)
		}
		all = append(all, c)
		b.Cleanup(func() { c.Process.Kill(); c.Wait() })
	}
	routes := func(i int) int {
		out, _ := exec.Command("birdc", "-s", control(dir, i), "show", "route", "count").Output()
		for line := range strings.Lines(string(out)) {
			words := strings.Fields(line)
			for k, w := range words {
				if w == "for" && k+1 < len(words) { // "99 of 99 routes for 99 networks in table master4"
					n, _ := strconv.Atoi(words[k+1])
					return n
				}
			}
		}
		return 0
	}
	known := 0 // those before it know all
	wait(b, func() bool {
		for known < *speakers && routes(known) == *speakers {
			known++
		}
		return known == *speakers
	})
	b.ReportMetric(time.Since(begin).Seconds(), "s/converged")
	var total time.Duration
	for _, c := range all {
		total += cpu(b, c.Process.Pid)
	}
	b.ReportMetric(total.Seconds(), "cpu-s")
}

func control(dir string, i int) string { return filepath.Join(dir, fmt.Sprintf("%d.ctl", i)) }

func wait(b *testing.B, ok func() bool) {
	b.Helper()
	for end := time.Now().Add(5 * time.Minute); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if ok() {
			return
		}
	}
	b.Fatal("not within five minutes")
}
