// Package testbed builds networks out of network namespaces, sends packets
// through them and says what arrived. Tests of every package use it; it
// imports nothing of ours.
package testbed

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// T is what the testbed needs of a test; *testing.T and *testing.B are one. A
// program that wants a testbed brings its own.
type T interface {
	Helper()
	Fatalf(format string, args ...any)
	Logf(format string, args ...any)
	Cleanup(func())
}

const namespaceDir = "/run/netns"

// counter makes the names of this process's namespaces unique.
var counter atomic.Int64

// namePrefix is how the names of all namespaces of this process start.
func namePrefix() string { return fmt.Sprintf("tb%d-", os.Getpid()) }

// Namespace is a named network namespace.
type Namespace struct {
	Name string

	handle   netns.NsHandle
	netlink  *netlink.Handle
	launcher chan func()
	start    sync.Once
	startErr error
}

// NewNamespace makes a network namespace with lo up and without duplicate
// address detection, so that IPv6 addresses work at once. It is removed when
// the test ends.
func NewNamespace(t T, hint string) *Namespace {
	t.Helper()
	n := &Namespace{
		Name:     fmt.Sprintf("%s%d-%s", namePrefix(), counter.Add(1), hint),
		launcher: make(chan func()),
	}
	if err := n.create(); err != nil {
		n.remove()
		t.Fatalf("namespace %s: %v", n.Name, err)
	}
	t.Cleanup(func() {
		if err := n.remove(); err != nil {
			t.Logf("namespace %s: %v", n.Name, err)
		}
	})
	for name, value := range map[string]string{
		"net.ipv6.conf.all.accept_dad":       "0",
		"net.ipv6.conf.default.accept_dad":   "0",
		"net.ipv6.conf.all.disable_ipv6":     "0",
		"net.ipv6.conf.default.disable_ipv6": "0",
		"net.ipv6.conf.default.accept_ra":    "0",
		// An address is kept when its interface goes down, as IPv4's are.
		"net.ipv6.conf.all.keep_addr_on_down": "1",
		// Router solicitations would turn up in captures.
		"net.ipv6.conf.default.router_solicitations": "0",
	} {
		n.Sysctl(t, name, value)
	}
	n.SetUp(t, "lo")
	return n
}

func (n *Namespace) create() error {
	if err := shareNamespaceDir(); err != nil {
		return err
	}
	f, err := os.OpenFile(n.Path(), os.O_CREATE|os.O_EXCL, 0o444)
	if err != nil {
		return err
	}
	f.Close()
	result := make(chan error, 1)
	go func() {
		// The thread ends with this goroutine: it is never unlocked.
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			result <- fmt.Errorf("unshare: %w", err)
			return
		}
		result <- unix.Mount("/proc/thread-self/ns/net", n.Path(), "", unix.MS_BIND, "")
	}()
	if err := <-result; err != nil {
		return err
	}
	if n.handle, err = netns.GetFromPath(n.Path()); err != nil {
		return err
	}
	n.netlink, err = netlink.NewHandleAt(n.handle, unix.NETLINK_ROUTE)
	return err
}

// shareNamespaceDir makes the directory what `ip netns` expects: a shared mount,
// so that the names are the same in every mount namespace.
func shareNamespaceDir() error {
	if err := os.MkdirAll(namespaceDir, 0o755); err != nil {
		return err
	}
	dir, err := os.Open(namespaceDir)
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("lock %s: %w", namespaceDir, err)
	}
	err = unix.Mount("", namespaceDir, "", unix.MS_SHARED|unix.MS_REC, "")
	if !errors.Is(err, unix.EINVAL) {
		return err
	}
	if err := unix.Mount(namespaceDir, namespaceDir, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("bind %s: %w", namespaceDir, err)
	}
	return unix.Mount("", namespaceDir, "", unix.MS_SHARED|unix.MS_REC, "")
}

func (n *Namespace) remove() error {
	n.start.Do(func() {}) // no launcher from here on
	close(n.launcher)
	if n.netlink != nil {
		n.netlink.Close()
	}
	if n.handle > 0 {
		n.handle.Close()
	}
	err := unix.Unmount(n.Path(), unix.MNT_DETACH)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
		err = nil // never mounted
	}
	if e := os.Remove(n.Path()); !errors.Is(e, os.ErrNotExist) {
		err = errors.Join(err, e)
	}
	return err
}

// Path is the file that stands for the namespace.
func (n *Namespace) Path() string { return filepath.Join(namespaceDir, n.Name) }

// Do runs fn on a thread inside the namespace. fn must not call t.Fatal; it
// returns its error. Sockets and processes that fn opens stay in the namespace.
func (n *Namespace) Do(fn func() error) error {
	result := make(chan error, 1)
	go func() {
		err := errors.New("ended without returning")
		defer func() { result <- err }()
		runtime.LockOSThread()
		old, e := netns.GetFromPath("/proc/thread-self/ns/net")
		if e != nil {
			err = e
			return
		}
		defer old.Close()
		if err = unix.Setns(int(n.handle), unix.CLONE_NEWNET); err != nil {
			err = fmt.Errorf("enter namespace %s: %w", n.Name, err)
			return
		}
		err = errors.New("ended without returning")
		defer func() {
			// A thread that cannot go back dies with this goroutine.
			if unix.Setns(int(old), unix.CLONE_NEWNET) == nil {
				runtime.UnlockOSThread()
			}
		}()
		err = fn()
	}()
	return <-result
}

// Netlink is a netlink handle inside the namespace.
func (n *Namespace) Netlink() *netlink.Handle { return n.netlink }

// Handle is the open namespace.
func (n *Namespace) Handle() netns.NsHandle { return n.handle }

// Link returns the interface of that name.
func (n *Namespace) Link(t T, name string) netlink.Link {
	t.Helper()
	link, err := n.netlink.LinkByName(name)
	if err != nil {
		t.Fatalf("link %s in %s: %v", name, n.Name, err)
	}
	return link
}

// SetUp brings the interface up.
func (n *Namespace) SetUp(t T, name string) {
	t.Helper()
	if err := n.netlink.LinkSetUp(n.Link(t, name)); err != nil {
		t.Fatalf("set %s up in %s: %v", name, n.Name, err)
	}
}

// SetDown brings the interface down.
func (n *Namespace) SetDown(t T, name string) {
	t.Helper()
	if err := n.netlink.LinkSetDown(n.Link(t, name)); err != nil {
		t.Fatalf("set %s down in %s: %v", name, n.Name, err)
	}
}

// AddAddress gives the interface an address, "10.0.0.1/24" or "fd00::1/64".
func (n *Namespace) AddAddress(t T, iface, address string) {
	t.Helper()
	a, err := netlink.ParseAddr(address)
	if err != nil {
		t.Fatalf("address %s: %v", address, err)
	}
	if a.IP.To4() == nil {
		a.Flags |= unix.IFA_F_NODAD
	}
	if err := n.netlink.AddrAdd(n.Link(t, iface), a); err != nil {
		t.Fatalf("add %s to %s in %s: %v", address, iface, n.Name, err)
	}
}

// Sysctl sets a kernel parameter of the namespace, "net.ipv4.ip_forward". A dot
// inside an interface's name is written as a slash, as sysctl has it.
func (n *Namespace) Sysctl(t T, name, value string) {
	t.Helper()
	err := n.Do(func() error { return os.WriteFile(sysctlPath(name), []byte(value), 0o644) })
	if err != nil {
		t.Fatalf("sysctl %s in %s: %v", name, n.Name, err)
	}
}

// ReadSysctl returns a kernel parameter of the namespace.
func (n *Namespace) ReadSysctl(t T, name string) string {
	t.Helper()
	var value []byte
	err := n.Do(func() (err error) {
		value, err = os.ReadFile(sysctlPath(name))
		return err
	})
	if err != nil {
		t.Fatalf("sysctl %s in %s: %v", name, n.Name, err)
	}
	return strings.TrimSpace(string(value))
}

func sysctlPath(name string) string {
	return "/proc/sys/" + strings.NewReplacer(".", "/", "/", ".").Replace(name)
}

// Dial connects from inside the namespace; address has a literal IP.
func (n *Namespace) Dial(network, address string) (net.Conn, error) {
	return n.DialTimeout(network, address, 5*time.Second)
}

// DialTimeout is Dial for connections that are expected to fail: it gives up
// after that time.
func (n *Namespace) DialTimeout(network, address string, limit time.Duration) (net.Conn, error) {
	var conn net.Conn
	err := n.Do(func() (err error) {
		conn, err = (&net.Dialer{Timeout: limit}).Dial(network, address)
		return err
	})
	return conn, err
}

// Listen listens for connections inside the namespace.
func (n *Namespace) Listen(network, address string) (net.Listener, error) {
	var l net.Listener
	err := n.Do(func() (err error) {
		l, err = net.Listen(network, address)
		return err
	})
	return l, err
}

// ListenPacket opens a datagram or raw IP socket inside the namespace.
func (n *Namespace) ListenPacket(network, address string) (net.PacketConn, error) {
	var c net.PacketConn
	err := n.Do(func() (err error) {
		c, err = net.ListenPacket(network, address)
		return err
	})
	return c, err
}
