package command_test

import (
	"context"
	"encoding/json"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"calico-xdp/pkg/api"
	"calico-xdp/pkg/nodeapi"

	"github.com/google/go-cmp/cmp"
)

// fixedNode answers over a real socket with what it is given.
type fixedNode struct {
	nodeapi.Traffic
	status nodeapi.Status
	bgp    nodeapi.BGPStatus
	routes nodeapi.BGPRoutes
}

func (n fixedNode) Status() nodeapi.Status                               { return n.status }
func (n fixedNode) BGP(context.Context) (nodeapi.BGPStatus, error)       { return n.bgp, nil }
func (n fixedNode) BGPRoutes(context.Context) (nodeapi.BGPRoutes, error) { return n.routes, nil }
func (n fixedNode) Wait(context.Context, api.Key, int64) error           { return nil }

func serveNode(t *testing.T, n fixedNode) (runDir string) {
	t.Helper()
	dir := t.TempDir()
	l, err := net.Listen("unix", nodeapi.SocketPath(dir))
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: nodeapi.Handler(n)}
	go server.Serve(l)
	t.Cleanup(func() { server.Close() })
	return dir
}

func TestNodeStatus(t *testing.T) {
	peer := func(family, address, state, info string) nodeapi.BGPPeerStatus {
		return nodeapi.BGPPeerStatus{
			Address: address, Type: "node-to-node mesh", State: state, Info: info, Family: family,
			Since: time.Date(2016, 11, 23, 10, 0, 0, 0, time.Local),
		}
	}
	for _, test := range []struct {
		name string
		node fixedNode
		want string
	}{
		{"one family", fixedNode{
			status: nodeapi.Status{Node: "a", InSync: true},
			bgp: nodeapi.BGPStatus{Enabled: true, Peers: []nodeapi.BGPPeerStatus{
				peer("v4", "172.17.8.102", "up", "Established"), peer("v4", "172.17.8.9", "start", "Active"),
			}},
		}, `Calico process is running.

IPv4 BGP status
+--------------+-------------------+-------+------------+-------------+
| PEER ADDRESS |     PEER TYPE     | STATE |   SINCE    |    INFO     |
+--------------+-------------------+-------+------------+-------------+
| 172.17.8.102 | node-to-node mesh | up    | 2016-11-23 | Established |
| 172.17.8.9   | node-to-node mesh | start | 2016-11-23 | Active      |
+--------------+-------------------+-------+------------+-------------+

IPv6 BGP status
No IPv6 peers found.

`},
		{"no BGP, and something wrong", fixedNode{
			status: nodeapi.Status{Backend: "vxlan", Problems: []nodeapi.Problem{{Object: "IPPool(x)", Error: "spec.cidr: bad\nand more"}}},
		}, `Calico process is running.

BGP is not in use (backend "vxlan").

The node has not applied everything in the datastore yet.

Not applied, or not whole
  IPPool(x): spec.cidr: bad
    and more

`},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := client{env: map[string]string{"CALICO_RUN_DIR": serveNode(t, test.node)}}
			if diff := cmp.Diff(test.want, c.ok(t, "node", "status")); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestNodeStatusForPrograms(t *testing.T) {
	dir := serveNode(t, fixedNode{
		status: nodeapi.Status{Node: "a", WorkloadMTU: 1480},
		bgp:    nodeapi.BGPStatus{Enabled: true, AS: 64512},
	})
	out := client{}.ok(t, "node", "status", "--run-dir", dir, "-ojson")
	var got struct {
		Node        string
		WorkloadMTU int
		BGP         nodeapi.BGPStatus
	}
	if err := json.Unmarshal([]byte(out), &got); err != nil {
		t.Fatal(err)
	}
	if got.Node != "a" || got.WorkloadMTU != 1480 || got.BGP.AS != 64512 {
		t.Errorf("got %s", out)
	}
	if out := (client{}).ok(t, "node", "status", "--run-dir", dir, "-o", "yaml"); !strings.Contains(out, "workloadMTU: 1480\n") {
		t.Errorf("got %s", out)
	}
}

func TestNodeIsNotRunning(t *testing.T) {
	got := client{}.run(t, "node", "status", "--run-dir", t.TempDir())
	if diff := cmp.Diff(result{code: 1, stderr: "Calico process is not running.\n"}, got, cmp.AllowUnexported(result{})); diff != "" {
		t.Error(diff)
	}
}
