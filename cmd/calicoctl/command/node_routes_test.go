package command_test

import (
	"strings"
	"testing"

	"calico-xdp/pkg/nodeapi"

	"github.com/google/go-cmp/cmp"
)

func TestNodeRoutes(t *testing.T) {
	route := func(prefix, hop, peer, path string, best bool) nodeapi.BGPRoute {
		return nodeapi.BGPRoute{Prefix: prefix, NextHop: hop, Peer: peer, ASPath: path, Best: best}
	}
	dir := serveNode(t, fixedNode{routes: nodeapi.BGPRoutes{
		Received: []nodeapi.BGPRoute{
			route("0.0.0.0/0", "10.0.0.254", "10.0.0.254", "65100", true),
			route("10.65.1.0/26", "10.0.0.2", "10.0.0.2", "", true),
			route("10.65.1.0/26", "10.0.0.254", "10.0.0.254", "65100 65000", false),
		},
		Advertised: []nodeapi.BGPRoute{route("10.65.0.0/26", "10.0.0.1", "10.0.0.254", "65000", true)},
	}})
	c := client{env: map[string]string{"CALICO_RUN_DIR": dir}}
	want := `
Routes received
+--------------+------------+------------+-------------+------+
|    PREFIX    |  NEXT HOP  |    FROM    |   AS PATH   | USED |
+--------------+------------+------------+-------------+------+
| 0.0.0.0/0    | 10.0.0.254 | 10.0.0.254 | 65100       | yes  |
| 10.65.1.0/26 | 10.0.0.2   | 10.0.0.2   |             | yes  |
| 10.65.1.0/26 | 10.0.0.254 | 10.0.0.254 | 65100 65000 |      |
+--------------+------------+------------+-------------+------+

Routes announced
+--------------+----------+------------+---------+
|    PREFIX    | NEXT HOP |     TO     | AS PATH |
+--------------+----------+------------+---------+
| 10.65.0.0/26 | 10.0.0.1 | 10.0.0.254 | 65000   |
+--------------+----------+------------+---------+
`
	if diff := cmp.Diff(want, c.ok(t, "node", "routes")); diff != "" {
		t.Error(diff)
	}
	lines := func(arguments ...string) string {
		var found []string
		for line := range strings.Lines(c.ok(t, append([]string{"node", "routes"}, arguments...)...)) {
			if strings.HasPrefix(line, "| ") && !strings.Contains(line, "PREFIX") {
				words := strings.Fields(line)
				found = append(found, words[1]+" "+words[5])
			}
		}
		return strings.Join(found, ", ")
	}
	for arguments, want := range map[string]string{
		"--peer 10.0.0.2":                      "10.65.1.0/26 10.0.0.2",
		"--received 10.65.1.7":                 "0.0.0.0/0 10.0.0.254, 10.65.1.0/26 10.0.0.2, 10.65.1.0/26 10.0.0.254",
		"--advertised":                         "10.65.0.0/26 10.0.0.254",
		"--received 10.65.1.0/24 --peer ::1":   "",
		"--received --advertised 10.65.0.0/26": "0.0.0.0/0 10.0.0.254, 10.65.0.0/26 10.0.0.254",
	} {
		if got := lines(strings.Fields(arguments)...); got != want {
			t.Errorf("%s: %s, want %s", arguments, got, want)
		}
	}
	if got := c.run(t, "node", "routes", "here"); got.code != 1 || !strings.Contains(got.stderr, `"here" is neither a prefix nor an address`) {
		t.Errorf("got %+v", got)
	}
}
