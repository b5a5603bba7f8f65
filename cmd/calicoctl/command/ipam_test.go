package command_test

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestIPAMShow(t *testing.T) {
	c := newCluster(t)
	c.load(t, "resources.txt")
	c.load(t, "ipam.txt")

	var cidrs []string
	for line := range strings.Lines(c.ok(t, "ipam", "show")) {
		if f := strings.Fields(line); len(f) > 4 && f[1] == "IP" {
			cidrs = append(cidrs, f[4])
		}
	}
	// Pools are in the order of their names.
	if want := []string{"10.99.0.0/16", "192.168.0.0/18", "192.168.64.0/18", "172.20.0.0/24", "fd02::/48", "192.168.128.0/18"}; !slices.Equal(cidrs, want) {
		t.Errorf("pools are %v, not %v", cidrs, want)
	}
	if got := c.ok(t, "ipam", "show"); !strings.Contains(got, "| IP Pool  | 192.168.0.0/18   |      16384 |") ||
		!strings.Contains(got, "| IP Pool  | fd02::/48        | 1.2089e+24 | 2 (0%)     | 1.2089e+24 (100%) |\n") {
		t.Errorf("got\n%s", got)
	}
	blocks := c.ok(t, "ipam", "show", "--show-blocks")
	for _, want := range []string{
		"| GROUPING |                CIDR               | IPS TOTAL  | IPS IN USE |     IPS FREE      |\n",
		"| Block    | 192.168.107.224/28               |         16 | 6 (38%)    | 10 (62%)          |\n",
		"| Block    | fd02::6d15:74ba:80e:4835:8080/122 |",
	} {
		if !strings.Contains(squeeze(blocks), squeeze(want)) {
			t.Errorf("%q is missing in\n%s", want, blocks)
		}
	}
	for i, line := range strings.Split(strings.TrimSpace(blocks), "\n") {
		if len(line) != len(blocks[:strings.Index(blocks, "\n")]) {
			t.Errorf("line %d has another width:\n%s", i+1, blocks)
		}
	}
	if got := c.ok(t, "ipam", "show", "--ip=192.168.5.5"); got != "IP 192.168.5.5 is in use\nHandle: manual-h\nBlock: 192.168.5.0/26\nAttributes:\n  type: manual\n" {
		t.Errorf("got %q", got)
	}
	if got := c.ok(t, "ipam", "show", "--ip=192.168.5.6"); got != "192.168.5.6 is not assigned\n" {
		t.Errorf("got %q", got)
	}
	if got := c.fails(t, "ipam", "show", "--ip=192.168.5"); got != "--ip: \"192.168.5\" is not an address\n" {
		t.Errorf("got %q", got)
	}

	var pools []struct {
		Pool   string
		Total  json.Number
		InUse  int
		Blocks []struct {
			CIDR, Node string
			Addresses  []struct{ Address, Handle string }
		}
	}
	if err := json.Unmarshal([]byte(c.ok(t, "ipam", "show", "--show-blocks", "-ojson")), &pools); err != nil {
		t.Fatal(err)
	}
	for _, p := range pools {
		if p.Pool == "v6-pool" && (p.Total != "1208925819614629174706176" || p.InUse != 2 || len(p.Blocks) != 1 ||
			p.Blocks[0].Node != "node-a" || p.Blocks[0].Addresses[1].Address != "fd02::6d15:74ba:80e:4835:8081") {
			t.Errorf("got %+v", p)
		}
	}
	if len(pools) != 6 {
		t.Errorf("got %d pools", len(pools))
	}
	if got := words(c.ok(t, "ipam", "show", "--show-borrowed")); len(got) != len(words("IP BORROWING-NODE BLOCK BLOCK OWNER TYPE ALLOCATED-TO")) {
		t.Errorf("got %q", got)
	}
	config := c.ok(t, "ipam", "show", "--show-configuration")
	if diff := cmp.Diff("PROPERTY VALUE StrictAffinity false AutoAllocateBlocks true MaxBlocksPerHost 0", strings.Join(words(config), " ")); diff != "" {
		t.Error(diff)
	}
}

// words returns what is in a bordered table.
func words(s string) []string {
	return strings.FieldsFunc(s, func(r rune) bool { return strings.ContainsRune("+-| \n", r) })
}
