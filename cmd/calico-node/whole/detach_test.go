package whole

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unsafe"

	"calico-xdp/tools/testbed"

	"golang.org/x/sys/unix"
)

// TestDetach: --detach leaves a host as if the daemon had never been there, and
// the daemon can come back. Both ways of attaching programs, XDP too.
func TestDetach(t *testing.T) {
	c := newCluster(t, options{subnets: []int{1, 1}})
	a, b := c.nodes[0], c.nodes[1]
	for n, flag := range map[*node]string{a: "--xdp", b: "--clsact"} {
		n.stop()
		if out, ok := n.finish("--detach"); !ok {
			t.Fatalf("%s: %s", n.name, out)
		}
		n.args = append(n.args, flag)
		n.restart()
	}
	client, far := c.attach(a, "vxlan", "client"), c.attach(b, "vxlan", "db-far")
	client2 := c.attach(b, "vxlan", "client-far")
	c.attach(a, "ipip", "client-ipip")
	c.attach(b, "ipip", "db-ipip")
	c.apply(policyFor(80))
	works := func(when string) {
		t.Helper()
		c.settle()
		c.tryAll(when,
			try{from: client.Namespace, to: far.v4, port: 80, want: true}, try{from: client.Namespace, to: far.v6, port: 80, want: true},
			try{from: client.Namespace, to: far.v4, port: 5432}, try{from: far.Namespace, to: client.v4, want: true})
	}
	works("before")
	if out := a.MustRun(t, "ip", "-d", "link", "show", "eth0"); !strings.Contains(out, "xdp") {
		t.Errorf("no XDP program on host1's eth0: %s", out)
	}
	if out := b.MustRun(t, "tc", "filter", "show", "dev", "eth0", "ingress"); !strings.Contains(out, "bpf") {
		t.Errorf("no filter on host2's eth0: %q", out)
	}

	// However programs are attached, a new daemon puts its own in their place
	// without a gap.
	traffic := &runs{c: c}
	traffic.run("vxlan", client, client2, false)
	traffic.run("vxlan, IPv6", client, client2, true)
	for _, n := range c.nodes {
		n.daemon.Kill()
		traffic.goOn(n.name + " killed")
		n.restart()
		traffic.goOn(n.name + " back")
		n.stop()
		n.restart()
	}
	traffic.goOn("back")
	traffic.end()

	for round := range 2 {
		for _, n := range c.nodes {
			objects := append(pinned(t, n.pins), n.filters(c)...)
			if len(objects) < 10 {
				t.Errorf("%s: only %v", n.name, objects)
			}
			if out, ok := n.finish("--detach"); ok || !strings.Contains(out, "stop it first") {
				t.Errorf("%s: detach of a running daemon: %v %s", n.name, ok, out)
			}
			if round == 0 {
				n.stop()
			} else {
				n.daemon.Kill()
			}
			out, ok := n.finish("--detach")
			if !ok {
				t.Fatalf("%s: %s", n.name, out)
			}
			if _, err := os.Stat(n.pins); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("%s: pin directory: %v", n.name, err)
			}
			var left []object
			gone := testbed.Eventually(func() bool {
				left = slices.DeleteFunc(slices.Clone(objects), func(o object) bool { return !o.exists() })
				return len(left) == 0
			})
			if !gone {
				t.Errorf("%s: %v stay in the kernel", n.name, left)
			}
			for _, family := range []string{"-4", "-6"} {
				if out := n.MustRun(t, "ip", family, "route", "show", "table", "all", "proto", "88"); out != "" {
					t.Errorf("%s: routes: %s", n.name, out)
				}
			}
			if out := n.MustRun(t, "tc", "qdisc", "show"); strings.Contains(out, "clsact") {
				t.Errorf("%s: qdiscs: %s", n.name, out)
			}
			if out := n.MustRun(t, "ip", "-d", "link", "show"); strings.Contains(out, "xdp") {
				t.Errorf("%s: XDP: %s", n.name, out)
			}
			for _, file := range []string{"/run/node.sock", "/nodename", "/mtu"} {
				if _, err := os.Stat(n.dir + file); !errors.Is(err, os.ErrNotExist) {
					t.Errorf("%s: %s: %v", n.name, file, err)
				}
			}
			if out, ok := n.finish("--detach"); !ok || !strings.Contains(out, "nothing to remove") {
				t.Errorf("%s: second detach: %v %s", n.name, ok, out)
			}
		}
		c.tryAll("detached",
			try{from: a.Namespace, to: b.IPv4.Addr(), want: true}, try{from: b.Namespace, to: a.IPv6.Addr(), want: true},
			try{from: c.lab.Router, to: a.IPv4.Addr(), want: true}, try{from: client.Namespace, to: far.v4})
		for _, n := range c.nodes {
			n.start()
		}
		for _, n := range c.nodes {
			n.waitReady()
		}
		works(fmt.Sprintf("back, round %d", round))
	}
}

// object is a BPF object in the kernel, by number.
type object struct {
	kind string // "map", "prog", "link"
	id   uint32
}

// The bpf(2) commands that find an object by its number.
var byNumber = map[string]uintptr{"prog": unix.BPF_PROG_GET_FD_BY_ID, "map": unix.BPF_MAP_GET_FD_BY_ID, "link": unix.BPF_LINK_GET_FD_BY_ID}

func bpf(command uintptr, attr unsafe.Pointer, size uintptr) (int, error) {
	fd, _, errno := unix.Syscall(unix.SYS_BPF, command, uintptr(attr), size)
	if errno != 0 {
		return 0, errno
	}
	return int(fd), nil
}

func (o object) exists() bool {
	attr := struct{ id, next, flags uint32 }{id: o.id}
	fd, err := bpf(byNumber[o.kind], unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	if err != nil {
		return !errors.Is(err, unix.ENOENT)
	}
	unix.Close(fd)
	return true
}

// pinned lists what a daemon has pinned: tables, links, and the programs of
// these.
func pinned(t *testing.T, dir string) []object {
	t.Helper()
	var found []object
	for sub, kind := range map[string]string{"maps": "map", "links": "link"} {
		paths, err := filepath.Glob(filepath.Join(dir, "v1", sub, "*"))
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range paths {
			name, err := unix.BytePtrFromString(path)
			if err != nil {
				t.Fatal(err)
			}
			get := struct {
				path      unsafe.Pointer
				fd, flags uint32
			}{path: unsafe.Pointer(name)}
			fd, err := bpf(unix.BPF_OBJ_GET, unsafe.Pointer(&get), unsafe.Sizeof(get))
			if err != nil {
				t.Fatalf("%s: %v", path, err)
			}
			// Maps and links begin with type and number; links go on with their program's.
			info := new([64]uint32)
			ask := struct {
				fd, length uint32
				info       unsafe.Pointer
			}{uint32(fd), uint32(unsafe.Sizeof(*info)), unsafe.Pointer(info)}
			_, err = bpf(unix.BPF_OBJ_GET_INFO_BY_FD, unsafe.Pointer(&ask), unsafe.Sizeof(ask))
			unix.Close(fd)
			if err != nil {
				t.Fatalf("%s: %v", path, err)
			}
			found = append(found, object{kind, info[1]})
			if kind == "link" {
				found = append(found, object{"prog", info[2]})
			}
		}
	}
	return found
}

// filters lists the programs that are filters of the node's interfaces.
func (n *node) filters(c *cluster) []object {
	c.Helper()
	links, err := n.Netlink().LinkList()
	if err != nil {
		c.Fatal(err)
	}
	var found []object
	for _, l := range links {
		for _, direction := range []string{"ingress", "egress"} {
			out, _ := n.Run("tc", "filter", "show", "dev", l.Attrs().Name, direction)
			for _, m := range regexp.MustCompile(`\bid (\d+)`).FindAllStringSubmatch(out, -1) {
				if id, err := strconv.ParseUint(m[1], 10, 32); err == nil {
					found = append(found, object{"prog", uint32(id)})
				}
			}
		}
	}
	return found
}
