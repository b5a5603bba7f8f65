package control

import (
	"fmt"
	"net/netip"
	"sync"
	"time"

	"calico-xdp/tools/testbed"

	v3 "github.com/projectcalico/api/pkg/apis/projectcalico/v3"
	"golang.org/x/sys/unix"
)

// Burst measures how long that many endpoints of the node take that are written
// at once; their interfaces exist. Each is enforced when a packet from it passes,
// which policy allows, since until then its interface is closed.
func Burst(t testbed.T, o Options, endpoints int) []Figure {
	t.Helper()
	n := newNode(t, o)
	n.putBasics()
	n.put(probePolicy(probeRule(v3.Allow)))
	pods := testbed.NewNamespace(t, "pods")
	for i := range 1 + (256+endpoints)/64 {
		n.put(block(nodeName, after(localAddresses, 64*i), 50))
	}
	type member struct {
		key, value string
		address    netip.Addr
		name       string
	}
	members := make([]member, endpoints)
	for i := range members {
		m := &members[i]
		m.name, m.address = fmt.Sprintf("b%d", i), after(localAddresses, 256+i)
		testbed.Veth(t, n.Namespace, "cali"+m.name, pods, m.name)
		m.key, m.value = n.encode(endpoint(nodeName, m.name, m.address, map[string]string{"role": "client"}))
	}
	n.start()
	server := n.addWorkload("server", after(localAddresses, 2), map[string]string{"role": "server"})
	n.settle()

	// What each sends, and who has been heard.
	senders := make([]*sender, endpoints)
	for i, m := range members {
		senders[i] = newSender(t, n.Namespace, pods, m.name, m.address, server.Addresses[0])
	}
	socket, err := server.ListenPacket("udp", netip.AddrPortFrom(server.Addresses[0], probePort).String())
	n.must(err)
	t.Cleanup(func() { socket.Close() })
	heard := make(chan netip.Addr, endpoints)
	go func() {
		var b [64]byte
		for {
			_, from, err := socket.ReadFrom(b[:])
			if err != nil {
				return
			}
			heard <- netip.MustParseAddrPort(from.String()).Addr()
		}
	}()
	// Nothing passes yet.
	for _, s := range senders {
		s.send()
	}
	time.Sleep(50 * time.Millisecond)
	if len(heard) > 0 {
		t.Fatalf("packets of endpoints that are not there pass")
	}

	var first, written, all time.Duration
	n.profiled("burst", 5*time.Second, func() {
		begin := time.Now()
		var writer sync.WaitGroup
		writer.Go(func() {
			for _, m := range members {
				n.etcd.Put(m.key, m.value)
			}
			written = time.Since(begin)
		})
		waiting := make(map[netip.Addr]*sender, endpoints)
		for i, m := range members {
			waiting[m.address] = senders[i]
		}
		for len(waiting) > 0 {
			for _, s := range waiting {
				s.send()
			}
			time.Sleep(2 * time.Millisecond)
			for drained := false; !drained; {
				select {
				case a := <-heard:
					if delete(waiting, a); first == 0 {
						first = time.Since(begin)
					}
				default:
					drained = true
				}
			}
			if time.Since(begin) > time.Minute {
				t.Fatalf("%d of %d endpoints are not enforced after a minute", len(waiting), endpoints)
			}
		}
		all = time.Since(begin)
		writer.Wait()
	})
	n.settle()
	now, most := n.memory()
	scenario := fmt.Sprintf("%d local endpoints at once", endpoints)
	return []Figure{
		{scenario, "first write to all written", written.Seconds(), "s", 0},
		{scenario, "first write to first enforced", first.Seconds(), "s", 0},
		{scenario, "first write to all enforced", all.Seconds(), "s", 1},
		{scenario, "memory", now, "MB", 0},
		{scenario, "memory, most", most, "MB", 0},
	}
}

// sender sends one packet, as it is, out of one interface.
type sender struct {
	fd    int
	to    unix.SockaddrLinklayer
	frame []byte
}

func newSender(t testbed.T, host, pods *testbed.Namespace, name string, from, to netip.Addr) *sender {
	t.Helper()
	inside, outside := pods.Link(t, name).Attrs(), host.Link(t, "cali"+name).Attrs()
	s := &sender{to: unix.SockaddrLinklayer{Ifindex: inside.Index}}
	s.frame = testbed.Ethernet(inside.HardwareAddr.String(), outside.HardwareAddr.String()).IP(from, to).UDP(probePort, probePort).Payload(8).Bytes()
	err := pods.Do(func() (err error) {
		s.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		return err
	})
	if err != nil {
		t.Fatalf("sender: %v", err)
	}
	t.Cleanup(func() { unix.Close(s.fd) })
	return s
}

func (s *sender) send() { unix.Sendto(s.fd, s.frame, 0, &s.to) } // what is lost is sent again
