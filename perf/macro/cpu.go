package macro

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// tick is the unit of /proc/stat: USER_HZ, which is 100 on all architectures of Linux
// that matter here.
const tick = 10 * time.Millisecond

// busy is how long the machine's CPUs have worked, but for the programs of others:
// ours, and the kernel's own work, of which nobody knows whose it is.
func busy() time.Duration {
	stat, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0
	}
	line, _, _ := strings.Cut(string(stat), "\n")
	var ticks uint64
	for i, f := range strings.Fields(line)[1:] {
		switch n, _ := strconv.ParseUint(f, 10, 64); i {
		case 0, 1, 2, 5, 6: // user, nice, system, irq, softirq
			ticks += n
		}
	}
	return time.Duration(ticks-min(ticks, others())) * tick
}

// others are the ticks of all other processes that are not the kernel's.
func others() uint64 {
	files, _ := filepath.Glob("/proc/[0-9]*/stat")
	self := strconv.Itoa(os.Getpid())
	var ticks uint64
	for _, name := range files {
		text, err := os.ReadFile(name)
		end := bytes.LastIndexByte(text, ')') // the name before it may hold anything
		if err != nil || end < 0 || filepath.Base(filepath.Dir(name)) == self {
			continue
		}
		const ppid, utime, stime = 1, 11, 12 // after the name
		f := strings.Fields(string(text[end+1:]))
		if len(f) <= stime || f[ppid] == "2" { // children of kthreadd
			continue
		}
		for _, i := range []int{utime, stime} {
			n, _ := strconv.ParseUint(f[i], 10, 64)
			ticks += n
		}
	}
	return ticks
}
