package desired

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"strconv"
	"strings"
)

// none is Felix's word for nothing at all, whatever the default is.
const none = "none"

func boolean(dst *bool) func(string) error {
	return func(v string) error {
		switch strings.ToLower(v) {
		case "true", "yes", "y", "t", "1":
			*dst = true
		case "false", "no", "n", "f", "0", none:
			*dst = false
		default:
			return errors.New("want true or false")
		}
		return nil
	}
}

func integer[T int | uint16 | uint32](dst *T, least, most int64) func(string) error {
	return func(v string) error {
		n, err := strconv.ParseInt(v, 10, 64)
		if err != nil || n < least || n > most {
			return fmt.Errorf("want a number from %d to %d", least, most)
		}
		*dst = T(n)
		return nil
	}
}

// absent takes nothing but the value that asks for nothing.
func absent(off, why string) func(string) error {
	return func(v string) error {
		if v = strings.ToLower(v); v != off && v != none {
			return errors.New(why)
		}
		return nil
	}
}

// entries takes the size of a table; 0 is "not set".
func entries(dst *int) func(string) error { return integer(dst, 0, 1<<30) }

// mtu takes 0 as "not set", as Calico does.
func mtu(dst *int, least int64) func(string) error {
	return func(v string) error {
		if v == "0" || strings.EqualFold(v, none) {
			*dst = 0
			return nil
		}
		return integer(dst, least, math.MaxUint16)(v)
	}
}

func text(dst *string) func(string) error {
	return func(v string) error {
		if *dst = v; strings.EqualFold(v, none) {
			*dst = ""
		}
		return nil
	}
}

// address takes an address of one family.
func address(dst *netip.Addr, family string, is func(netip.Addr) bool) func(string) error {
	return func(v string) error {
		if strings.EqualFold(v, none) {
			*dst = netip.Addr{}
			return nil
		}
		a, err := netip.ParseAddr(v)
		if err != nil || !is(a) || a.Zone() != "" {
			return errors.New("want an " + family + " address")
		}
		*dst = a
		return nil
	}
}

// nameOf takes nothing but the node's name, which is not Felix's to give.
func nameOf(node string) func(string) error {
	return func(v string) error {
		if !strings.EqualFold(v, node) {
			return fmt.Errorf("this node is %q; NODENAME says otherwise", node)
		}
		return nil
	}
}

func failsafe(dst *[]FailsafePort) func(string) error {
	return func(v string) error {
		ports, err := parseFailsafe(v)
		if err == nil {
			*dst = ports
		}
		return err
	}
}
