package testbed

import (
	"errors"
	"fmt"
	"iter"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"
	"golang.org/x/sys/unix"
)

// Capture records what passes an interface.
type Capture struct {
	fd   int
	stop chan struct{}
	done chan struct{}
	end  sync.Once

	mu      sync.Mutex
	packets []CapturedPacket
}

// CapturedPacket is one frame as the interface saw it: before segmentation on
// the way out, so it may be longer than the MTU.
type CapturedPacket struct {
	Time     time.Time
	Outgoing bool // left through the interface
	Data     []byte
}

// String describes the packet as Text does.
func (p CapturedPacket) String() string { return Text(p.Data) }

// StartCapture records on an interface of a namespace until Stop or the end of
// the test. What is sent after it has returned is in it.
func StartCapture(t T, n *Namespace, iface string) *Capture {
	t.Helper()
	c := &Capture{stop: make(chan struct{}), done: make(chan struct{})}
	index := n.Link(t, iface).Attrs().Index
	if err := n.Do(func() error { return c.open(index) }); err != nil {
		t.Fatalf("capture on %s in %s: %v", iface, n.Name, err)
	}
	go c.read()
	t.Cleanup(c.Stop)
	return c
}

func (c *Capture) open(index int) error {
	// Protocol 0 hears nothing until bind names the interface.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	c.fd = fd
	err = errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 20_000}),
		unix.SetsockoptPacketMreq(fd, unix.SOL_PACKET, unix.PACKET_ADD_MEMBERSHIP,
			&unix.PacketMreq{Ifindex: int32(index), Type: unix.PACKET_MR_PROMISC}),
		unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL), Ifindex: index}),
	)
	if err != nil {
		unix.Close(fd)
	}
	return err
}

func htons(v uint16) uint16 { return v<<8 | v>>8 }

func (c *Capture) read() {
	defer close(c.done)
	defer unix.Close(c.fd)
	buf := make([]byte, 1<<17)
	for {
		// What was there before Stop has been read when nothing is left. Where
		// packets keep coming, only not to wait for more finds that moment.
		flags := 0
		select {
		case <-c.stop:
			flags = unix.MSG_DONTWAIT
		default:
		}
		n, from, err := unix.Recvfrom(c.fd, buf, flags)
		if err != nil {
			if errors.Is(err, unix.EINTR) || errors.Is(err, unix.EAGAIN) && flags == 0 {
				continue
			}
			if errors.Is(err, unix.ENETDOWN) {
				continue // the interface went down; it may come back
			}
			return
		}
		p := CapturedPacket{Time: time.Now(), Data: slices.Clone(buf[:n])}
		if ll, ok := from.(*unix.SockaddrLinklayer); ok {
			p.Outgoing = ll.Pkttype == unix.PACKET_OUTGOING
		}
		c.mu.Lock()
		c.packets = append(c.packets, p)
		c.mu.Unlock()
	}
}

// Packets returns what has been recorded so far.
func (c *Capture) Packets() []CapturedPacket {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.packets)
}

// Lines returns the recorded packets as text.
func (c *Capture) Lines() []string {
	var lines []string
	for _, p := range c.Packets() {
		lines = append(lines, p.String())
	}
	return lines
}

// Has waits until there is a packet whose text matches.
func (c *Capture) Has(match func(line string) bool) bool {
	return Eventually(func() bool { return slices.ContainsFunc(c.Lines(), match) })
}

// Stop ends the recording when all that came before it is recorded.
func (c *Capture) Stop() {
	c.end.Do(func() { close(c.stop) })
	<-c.done
}

// WritePcap writes the recorded packets to a file for tcpdump or Wireshark.
func (c *Capture) WritePcap(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	w := pcapgo.NewWriter(f)
	err = w.WriteFileHeader(1<<17, layers.LinkTypeEthernet)
	for _, p := range c.Packets() {
		if err != nil {
			break
		}
		err = w.WritePacket(gopacket.CaptureInfo{
			Timestamp: p.Time, CaptureLength: len(p.Data), Length: len(p.Data),
		}, p.Data)
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

// Inject sends a frame out of an interface as it is.
func (n *Namespace) Inject(iface string, frame []byte) error {
	return n.InjectAll(iface, func(yield func([]byte) bool) { yield(frame) })
}

// InjectAll sends frames out of an interface as they are, as fast as it can.
func (n *Namespace) InjectAll(iface string, frames iter.Seq[[]byte]) error {
	return n.Do(func() error {
		link, err := n.netlink.LinkByName(iface)
		if err != nil {
			return err
		}
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		to := &unix.SockaddrLinklayer{Ifindex: link.Attrs().Index}
		for frame := range frames {
			if err := unix.Sendto(fd, frame, 0, to); err != nil && !errors.Is(err, unix.ENOBUFS) {
				return err
			}
		}
		return nil
	})
}
