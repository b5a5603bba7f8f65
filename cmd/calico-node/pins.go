package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// bpffs is where a system has its BPF filesystem.
const bpffs = "/sys/fs/bpf"

// errLocked says that another daemon has the pin directory.
var errLocked = errors.New("another calico-node uses it")

// lockPins makes the pin directory and locks it, so that no two daemons work on
// the same programs and tables. Whoever ends, ends its lock.
func lockPins(dir string) (unlock func(), err error) {
	if err := mountBPF(dir); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("pin directory: %w", err)
	}
	d, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("pin directory: %w", err)
	}
	if err := unix.Flock(int(d.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		d.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = errLocked
		}
		return nil, fmt.Errorf("pin directory %s: %w", dir, err)
	}
	return func() { d.Close() }, nil
}

// mountBPF mounts the BPF filesystem where the system has not, and checks that
// the directory is on one.
func mountBPF(dir string) error {
	is, err := isBPF(dir)
	if err != nil || is {
		return err
	}
	if rel, err := filepath.Rel(bpffs, dir); err == nil && filepath.IsLocal(rel) {
		if err := unix.Mount("bpf", bpffs, "bpf", 0, ""); err != nil {
			return fmt.Errorf("mount %s: %w", bpffs, err)
		}
		return nil
	}
	return fmt.Errorf("pin directory %s: not on a BPF filesystem; make one with: mount -t bpf bpf <directory>", dir)
}

// isBPF says whether the directory, or its nearest parent that exists, is on a
// BPF filesystem.
func isBPF(dir string) (bool, error) {
	for {
		var s unix.Statfs_t
		err := unix.Statfs(dir, &s)
		if err == nil {
			return s.Type == unix.BPF_FS_MAGIC, nil
		}
		if !errors.Is(err, unix.ENOENT) || dir == filepath.Dir(dir) {
			return false, fmt.Errorf("pin directory %s: %w", dir, err)
		}
		dir = filepath.Dir(dir)
	}
}
