package maps

import (
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
)

// Tables that a former version has pinned in another shape: those that nothing is lost
// with are made anew, any other is an error that says what to do, and stays.
func TestTablesOfAnotherVersion(t *testing.T) {
	spec, err := loadBpf()
	if err != nil {
		t.Fatal(err)
	}
	for name, s := range spec.Maps {
		if strings.HasPrefix(name, ".") {
			continue
		}
		t.Run(name, func(t *testing.T) {
			dir := pins(t)
			if err := makePinDir(dir); err != nil {
				t.Fatal(err)
			}
			other := s.Copy()
			switch other.Type {
			case ebpf.RingBuf:
				other.MaxEntries *= 2
			case ebpf.ArrayOfMaps:
				other.MaxEntries++
			default:
				other.ValueSize += 8
				other.Key, other.Value = nil, nil
			}
			old, err := ebpf.NewMap(other)
			if err != nil {
				t.Fatal(err)
			}
			defer old.Close()
			if err := old.Pin(filepath.Join(dir, name)); err != nil {
				t.Fatal(err)
			}
			m, err := Open(dir)
			switch {
			case slices.Contains(passing, name):
				if err != nil {
					t.Fatal(err)
				}
				defer m.Close()
				pinned, err := ebpf.LoadPinnedMap(filepath.Join(dir, name), nil)
				if err != nil {
					t.Fatal(err)
				}
				defer pinned.Close()
				if err := errors.Join(s.Compatible(m.Handles()[name]), s.Compatible(pinned)); err != nil {
					t.Error(err)
				}
			case err == nil:
				m.Close()
				t.Error("opened")
			case !strings.Contains(err.Error(), "map "+name+": of another version") || !strings.Contains(err.Error(), "--detach"):
				t.Error(err)
			default:
				if stays, err := ebpf.LoadPinnedMap(filepath.Join(dir, name), nil); err != nil {
					t.Error(err)
				} else {
					stays.Close()
				}
			}
		})
	}
}
