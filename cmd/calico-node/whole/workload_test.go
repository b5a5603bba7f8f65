package whole

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"strings"

	"calico-xdp/tools/testbed"
)

// workload is a namespace with an endpoint.
type workload struct {
	*testbed.Namespace
	name   string
	node   *node
	v4, v6 netip.Addr
}

func (w *workload) address(ipv6 bool) netip.Addr {
	if ipv6 {
		return w.v6
	}
	return w.v4
}

// attach adds a workload to a network through the CNI plugin. Its labels are
// role, which is the name up to a dash, and network.
func (c *cluster) attach(n *node, network, name string) *workload {
	c.Helper()
	w := &workload{Namespace: testbed.NewNamespace(c, name), name: name, node: n}
	out, err := c.cni("ADD", w, network)
	if err != nil {
		c.Fatal(err)
	}
	var result struct {
		IPs []struct{ Address netip.Prefix }
	}
	if err := json.Unmarshal(out, &result); err != nil {
		c.Fatalf("CNI result: %v: %s", err, out)
	}
	for _, ip := range result.IPs {
		if a := ip.Address.Addr(); a.Is4() {
			w.v4 = a
		} else {
			w.v6 = a
		}
	}
	c.serve(w.Namespace, 80, 5432)
	return w
}

func (c *cluster) cni(command string, w *workload, network string) ([]byte, error) {
	ipv6 := network != "ipip"
	ipam := map[string]any{
		"type": "calico-ipam", "assign_ipv4": "true", "assign_ipv6": fmt.Sprint(ipv6), "ipv4_pools": []string{network},
	}
	if ipv6 {
		ipam["ipv6_pools"] = []string{network + "6"}
	}
	role, _, _ := strings.Cut(w.name, "-")
	conf, err := json.Marshal(map[string]any{
		"cniVersion": "1.0.0", "name": network, "type": "calico",
		"etcd_endpoints": w.node.etcd, "nodename": w.node.name, "run_dir": w.node.dir + "/run",
		"labels": map[string]string{"role": role, "network": network},
		"ipam":   ipam,
	})
	if err != nil {
		return nil, err
	}
	var stdout, stderr bytes.Buffer
	cmd := w.node.command("calico")
	cmd.Env = append(os.Environ(), "CNI_COMMAND="+command, "CNI_CONTAINERID="+w.name, "CNI_NETNS="+w.Path(),
		"CNI_IFNAME=eth0", "CNI_PATH="+bin)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(conf), &stdout, &stderr
	p := w.node.StartCmd(w.node.c, cmd)
	<-p.Exited()
	if !cmd.ProcessState.Success() {
		return nil, fmt.Errorf("CNI %s %s: %s%s", command, w.name, stdout.String(), stderr.String())
	}
	return stdout.Bytes(), nil
}
