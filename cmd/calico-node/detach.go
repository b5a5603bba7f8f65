package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	"calico-xdp/pkg/control/dataplane"
	"calico-xdp/pkg/control/host"
	"calico-xdp/pkg/control/nat"
)

// detach removes what the daemon has left on this host and says what that was.
// What is in the datastore stays: it is the cluster's.
func detach(c *config, out io.Writer) error {
	unlock, err := lockPins(c.pinDir)
	if errors.Is(err, errLocked) {
		return fmt.Errorf("%w: stop it first", err)
	}
	if err != nil {
		return err
	}
	defer unlock()
	var errs []error
	var removed []string
	note := func(what []string, err error) {
		removed = append(removed, what...)
		errs = append(errs, err)
	}
	note(dataplane.Detach(c.pinDir))
	routes, err := host.Detach()
	note(routes, err)
	note(nat.Detach())
	for _, path := range []string{c.socket(), c.nodenameFile, c.mtuFile()} {
		if path == "" {
			continue
		}
		switch err := os.Remove(path); {
		case err == nil:
			removed = append(removed, "file "+path)
		case !errors.Is(err, os.ErrNotExist):
			errs = append(errs, err)
		}
	}
	for _, r := range removed {
		fmt.Fprintln(out, "removed", r)
	}
	if len(removed) == 0 {
		fmt.Fprintln(out, "nothing to remove")
	}
	return errors.Join(errs...)
}
