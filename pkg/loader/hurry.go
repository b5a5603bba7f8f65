package loader

import (
	"os"
	"path/filepath"
	"strings"
)

// burst is from how many links on that come or go at once the kernel is asked to hurry.
const burst = 8

// hurry makes links that come and go cost the kernel microseconds. Each time it waits for
// all that may still use the hook's old programs (synchronize_rcu, with the lock that
// everything else about interfaces waits for), 9 to 16 ms on an idle machine, 8 s for 250
// workloads. While rcu_expedited is set it interrupts the processors and asks, in place
// of waiting until they come by. Where real-time work must not be interrupted, rcu_normal
// is set, which overrides that; where /sys may not be written, it just takes longer.
//
// The setting is the machine's, so it must not stay behind should the process be killed.
// The mark says that it is ours, and stands from before it is set until after it is
// back. It is a directory, as a bpffs has no files, and like the setting does not
// outlive the boot.
type hurry struct {
	setting string // file that has 0 or 1
	mark    string // directory
}

// hurry is called before n links come or go, and what it returns afterwards. It first
// takes back what a process that was killed has left.
func (l Links) hurry(n int) (end func()) {
	if l.Dir == "" {
		return func() {}
	}
	h := hurry{setting: "/sys/kernel/rcu_expedited", mark: filepath.Join(l.Dir, "hurry")}
	h.end()
	if n >= burst && !l.Clsact { // filters do not wait
		h.begin()
	}
	return h.end
}

// begin sets the setting, unless somebody else has.
func (h hurry) begin() {
	if now, err := os.ReadFile(h.setting); err != nil || strings.TrimSpace(string(now)) != "0" {
		return
	}
	if err := os.MkdirAll(h.mark, 0o700); err != nil {
		return
	}
	if err := os.WriteFile(h.setting, []byte("1"), 0); err != nil {
		os.Remove(h.mark)
	}
}

// end puts it back if it is ours. Should that fail, the mark makes the next burst and the
// next process try again.
func (h hurry) end() {
	if _, err := os.Stat(h.mark); err != nil {
		return
	}
	if err := os.WriteFile(h.setting, []byte("0"), 0); err == nil {
		os.Remove(h.mark)
	}
}
