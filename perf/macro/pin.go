package macro

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// pin has the calling goroutine stay on one of the CPUs that this process may use, the nth of
// them, counted around, until free is called: whether two ends of a connection share a CPU
// must not be left to the scheduler, which decides otherwise each time.
func pin(n int) (free func()) {
	runtime.LockOSThread()
	var may unix.CPUSet
	if unix.SchedGetaffinity(0, &may) != nil {
		return runtime.UnlockOSThread
	}
	n %= max(may.Count(), 1)
	for cpu := range 64 * len(may) {
		if !may.IsSet(cpu) {
			continue
		}
		if n--; n < 0 {
			var one unix.CPUSet
			one.Set(cpu)
			_ = unix.SchedSetaffinity(0, &one)
			break
		}
	}
	return func() {
		_ = unix.SchedSetaffinity(0, &may)
		runtime.UnlockOSThread()
	}
}
