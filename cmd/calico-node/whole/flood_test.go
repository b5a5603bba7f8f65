package whole

import (
	"encoding/binary"
	"flag"
	"io"
	"net"
	"net/netip"
	"strconv"
	"testing"
	"time"

	"calico-xdp/tools/testbed"
)

var (
	floodSources = flag.Int("flood-sources", 200000, "sources of the SYN flood")
	floodStreams = flag.Int("flood-streams", 200, "streams that have to survive it")
)

// TestSYNFlood: a flood of half-open connections, each from a source of its own, cuts no
// established one, and new ones go on to be made.
func TestSYNFlood(t *testing.T) {
	c := newCluster(t, options{subnets: []int{1, 1}})
	a, b := c.nodes[0], c.nodes[1]
	client, db := c.attach(b, "plain", "client"), c.attach(a, "plain", "db")
	c.apply(`
{apiVersion: projectcalico.org/v3, kind: GlobalNetworkPolicy, metadata: {name: db}, spec: {selector: "role == 'db'",
 types: [Ingress], ingress: [{action: Allow, protocol: TCP, destination: {ports: [7000]}}]}}
---
{apiVersion: projectcalico.org/v3, kind: GlobalNetworkPolicy, metadata: {name: client}, spec: {selector: "role == 'client'",
 types: [Egress], egress: [{action: Allow}]}}`)
	c.settle()

	l, err := db.Listen("tcp", netip.AddrPortFrom(db.v4, 7000).String())
	if err != nil {
		t.Fatal(err)
	}
	testbed.Serve(t, l, testbed.Echo)
	target := net.JoinHostPort(db.v4.String(), strconv.Itoa(7000))
	var streams []net.Conn
	for range *floodStreams {
		conn, err := client.Dial("tcp", target)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		streams = append(streams, conn)
	}
	echo := func(when string) {
		t.Helper()
		buf := make([]byte, 4)
		for i, conn := range streams {
			conn.SetDeadline(time.Now().Add(20 * time.Second))
			if _, err := conn.Write([]byte("ping")); err != nil {
				t.Fatalf("%s: stream %d: %v", when, i, err)
			}
			if _, err := io.ReadFull(conn, buf); err != nil {
				t.Fatalf("%s: stream %d: %v", when, i, err)
			}
		}
	}
	echo("before")
	template := testbed.Ethernet("02:00:00:00:00:99", a.MAC.String()).IPv4("10.200.0.0", db.v4.String()).TCP(1, 7000, "S").Bytes()
	flood := func(from, to int) {
		err := c.lab.Fabric.InjectAll(a.Port, func(yield func([]byte) bool) {
			for i := from; i < to; i++ {
				if !yield(fromSource(template, uint32(i))) {
					return
				}
			}
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	const rounds = 10
	for i := range rounds {
		flood(*floodSources*i/rounds, *floodSources*(i+1)/rounds)
		echo("under flood")
	}
	// That the flood was one: nearly all of it has been seen, and judged as flows.
	if n := a.counter(`calico_xdp_packets_total{hook="from_network",reason="pass_to_workload"}`); n < float64(*floodSources)*0.9 {
		t.Errorf("%.0f packets went to the workload, %d were sent", n, *floodSources)
	}
	conn, err := client.Dial("tcp", target)
	if err != nil {
		t.Fatalf("no new connection after the flood: %v", err)
	}
	defer conn.Close()
	streams = append(streams, conn)
	echo("after")
	t.Logf("%d sources, %d streams", *floodSources, len(streams))
}

// fromSource gives a TCP over IPv4 frame another source, 10.200.0.0 plus i, and checksums
// that are right (RFC 1624).
func fromSource(frame []byte, i uint32) []byte {
	const source, ipCheck, tcpCheck = 14 + 12, 14 + 10, 14 + 20 + 16
	out := append([]byte(nil), frame...)
	was := binary.BigEndian.Uint32(out[source:])
	now := was + i
	binary.BigEndian.PutUint32(out[source:], now)
	for _, at := range []int{ipCheck, tcpCheck} {
		sum := uint32(^binary.BigEndian.Uint16(out[at:]))
		sum += uint32(^uint16(was>>16)) + uint32(^uint16(was)) + now>>16 + now&0xffff
		for sum > 0xffff {
			sum = sum>>16 + sum&0xffff
		}
		binary.BigEndian.PutUint16(out[at:], ^uint16(sum))
	}
	return out
}
