package testbed

import (
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Eventually polls until ok is true and says whether that came within 10 s; the
// limit is for a hung test, not something to measure by.
func Eventually(ok func() bool) bool {
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); {
		if ok() {
			return true
		}
		time.Sleep(5 * time.Millisecond)
	}
	return ok()
}

// CheckNoLeaks fails the test if, after all clean-up that is registered later,
// namespaces of this process, links of its own namespace or files under the pin
// directories are left that were not there before.
func CheckNoLeaks(t T, pinDirs ...string) {
	t.Helper()
	before := traces(pinDirs)
	t.Cleanup(func() {
		var left []string
		gone := Eventually(func() bool {
			left = slices.DeleteFunc(traces(pinDirs), func(s string) bool { return slices.Contains(before, s) })
			return len(left) == 0
		})
		if !gone {
			t.Fatalf("left behind: %s", strings.Join(left, ", "))
		}
	})
}

// traces lists what a test of this process could leave behind.
func traces(pinDirs []string) []string {
	var found []string
	names, _ := filepath.Glob(filepath.Join(namespaceDir, namePrefix()+"*"))
	for _, name := range names {
		found = append(found, "namespace "+filepath.Base(name))
	}
	links, _ := net.Interfaces()
	for _, l := range links {
		found = append(found, "link "+l.Name)
	}
	for _, dir := range pinDirs {
		// An error is a directory that is not there.
		filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
			if err == nil {
				found = append(found, "pin "+path)
			}
			return nil
		})
	}
	return found
}

// RemoveStale removes the namespaces of testbeds whose process has died.
func RemoveStale() error {
	names, err := filepath.Glob(filepath.Join(namespaceDir, "tb[0-9]*-*"))
	if err != nil {
		return err
	}
	for _, path := range names {
		pid, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(path), "tb"), "-")
		if _, err := os.Stat("/proc/" + pid); err == nil {
			continue
		}
		if err := (&Namespace{Name: filepath.Base(path), launcher: make(chan func())}).remove(); err != nil {
			return err
		}
	}
	return nil
}
