// Package report shows what a run has found: as a table, as Markdown with the machine
// described, and as charts.
package report

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Machine is where a run took place, as far as it matters for its figures.
type Machine struct {
	CPU         string
	CPUs        int
	Memory      uint64 // bytes
	Kernel      string
	JIT         string // of BPF: "1" is on
	Spectre     string // what the kernel does about it: indirect calls cost
	Virtual     bool
	Go          string
	Tools       []string // versions of those that are compared
	Load        float64  // before the run: runnable processes, mean of a minute
	Time        time.Time
	Commit      string
	Uncommitted bool
}

// Describe looks at the machine.
func Describe() Machine {
	m := Machine{CPUs: runtime.NumCPU(), Go: runtime.Version(), Time: time.Now()}
	for line := range strings.Lines(read("/proc/cpuinfo")) {
		name, value, _ := strings.Cut(line, ":")
		switch strings.TrimSpace(name) {
		case "model name":
			m.CPU = strings.TrimSpace(value)
		case "flags":
			m.Virtual = strings.Contains(value, " hypervisor")
		}
	}
	var info unix.Sysinfo_t
	if unix.Sysinfo(&info) == nil {
		m.Memory = uint64(info.Totalram) * uint64(info.Unit)
	}
	m.Kernel = strings.TrimSpace(read("/proc/sys/kernel/osrelease"))
	m.JIT = strings.TrimSpace(read("/proc/sys/net/core/bpf_jit_enable"))
	m.Spectre = strings.TrimSpace(read("/sys/devices/system/cpu/vulnerabilities/spectre_v2"))
	load, _, _ := strings.Cut(read("/proc/loadavg"), " ")
	m.Load, _ = strconv.ParseFloat(load, 64)
	for _, tool := range [][]string{{"iptables-nft", "--version"}, {"iptables-legacy", "--version"}, {"nft", "--version"}, {"ipset", "--version"}} {
		if v := first(tool...); v != "" {
			m.Tools = append(m.Tools, v)
		}
	}
	m.Commit = first("git", "-c", "safe.directory=*", "rev-parse", "--short", "HEAD")
	m.Uncommitted = first("git", "-c", "safe.directory=*", "status", "--porcelain", "--untracked-files=no") != ""
	return m
}

// Busy says whether others use the machine so much that figures suffer.
func (m Machine) Busy() bool { return m.Load > 0.5*float64(m.CPUs) }

func (m Machine) lines() []string {
	kind := ""
	if m.Virtual {
		kind = ", virtual"
	}
	commit := m.Commit
	if m.Uncommitted {
		commit += " and uncommitted changes"
	}
	return []string{
		fmt.Sprintf("%s, %d CPUs%s, %d GiB", m.CPU, m.CPUs, kind, (m.Memory+1<<29)>>30),
		fmt.Sprintf("Linux %s, BPF JIT %s, Spectre v2: %s", m.Kernel, map[string]string{"0": "off", "1": "on"}[m.JIT], m.Spectre),
		m.Go + "; " + strings.Join(m.Tools, "; "),
		fmt.Sprintf("%s, commit %s, load before the run %.1f", m.Time.UTC().Format("2006-01-02 15:04 MST"), commit, m.Load),
	}
}

func read(name string) string {
	b, err := os.ReadFile(name)
	if err != nil {
		return ""
	}
	return string(b)
}

// first is the first line that a command prints.
func first(command ...string) string {
	out, err := exec.Command(command[0], command[1:]...).Output()
	if err != nil {
		return ""
	}
	line, _, _ := strings.Cut(string(out), "\n")
	return strings.TrimSpace(line)
}
