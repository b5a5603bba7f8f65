package maps

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// bpffs is where systemd mounts the BPF file system; where nobody has, we do.
const bpffs = "/sys/fs/bpf"

// makePinDir makes a directory on a bpffs.
func makePinDir(dir string) error {
	if dir == bpffs || strings.HasPrefix(dir, bpffs+"/") {
		var fs unix.Statfs_t
		if err := unix.Statfs(bpffs, &fs); err != nil {
			return fmt.Errorf("pin directory %s: %s: %w", dir, bpffs, err)
		}
		if fs.Type != unix.BPF_FS_MAGIC {
			if err := unix.Mount("bpf", bpffs, "bpf", 0, ""); err != nil {
				return fmt.Errorf("pin directory %s: mount bpf on %s: %w", dir, bpffs, err)
			}
		}
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("pin directory: %w", err)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return fmt.Errorf("pin directory %s: %w", dir, err)
	}
	if fs.Type != unix.BPF_FS_MAGIC {
		return fmt.Errorf("pin directory %s: not on a bpf file system (mount -t bpf bpf DIR)", dir)
	}
	return nil
}
