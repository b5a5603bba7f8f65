package command

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/big"
	"net/netip"
	"slices"
	"strconv"

	"calico-xdp/cmd/calicoctl/output"
	"calico-xdp/pkg/ipam"

	"github.com/spf13/cobra"
)

type ipamShowOptions struct {
	address       string
	blocks        bool
	borrowed      bool
	configuration bool
	format        string
}

func newIPAM(a *app) *cobra.Command {
	return group("ipam", "The addresses of the IP pools: how many are used, by whom, and what is wrong with them",
		"Addresses of IP pools are handed out in blocks, which belong to nodes.",
		"  calicoctl ipam show\n  calicoctl ipam show --ip=192.168.0.10\n  calicoctl ipam check",
		newIPAMShow(a), newIPAMCheck(a), newIPAMRelease(a), newIPAMConfigure(a), newIPAMSplit(a), newIPAMGC(a))
}

func newIPAMShow(a *app) *cobra.Command {
	var o ipamShowOptions
	cmd := &cobra.Command{
		Use:   "show",
		Short: "Show how full the pools are, or who has an address",
		Long:  "Show how full the IP pools are, or who has an address.",
		Example: `  # How full the pools are, and their blocks.
  calicoctl ipam show
  calicoctl ipam show --show-blocks

  # Who has an address.
  calicoctl ipam show --ip=192.168.0.10`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.ipamShow(cmd.Context(), o) },
	}
	flags := cmd.Flags()
	flags.StringVar(&o.address, "ip", "", "show who has this address")
	flags.BoolVar(&o.blocks, "show-blocks", false, "show blocks as well as pools")
	flags.BoolVar(&o.borrowed, "show-borrowed", false, "show addresses that nodes use from other nodes' blocks")
	flags.BoolVar(&o.configuration, "show-configuration", false, "show the configuration of address management")
	flags.StringVarP(&o.format, "output", "o", "table", "output: table, json")
	cmd.MarkFlagsMutuallyExclusive("ip", "show-blocks", "show-configuration")
	cmd.MarkFlagsMutuallyExclusive("ip", "show-borrowed", "show-configuration")
	return cmd
}

func (a *app) ipamShow(ctx context.Context, o ipamShowOptions) error {
	if o.format != "table" && o.format != "json" {
		return fmt.Errorf("--output: %q is none of table, json", o.format)
	}
	var (
		address netip.Addr
		err     error
	)
	if o.address != "" {
		if address, err = netip.ParseAddr(o.address); err != nil {
			return fmt.Errorf("--ip: %q is not an address", o.address)
		}
	}
	s, err := a.open(ctx)
	if err != nil {
		return err
	}
	defer s.Close()
	allocator := ipam.New(s.Client)
	switch {
	case address.IsValid():
		return a.showAddress(ctx, allocator, address.Unmap(), o.format)
	case o.configuration:
		return a.showConfiguration(ctx, allocator, o.format)
	}
	usage, err := allocator.Usage(ctx)
	switch {
	case err != nil:
		return err
	case o.format == "json":
		return output.WriteJSON(a.Out, usageDocument(usage, o.blocks || o.borrowed))
	case !o.borrowed || o.blocks:
		if err := writeUsage(a.Out, usage, o.blocks); err != nil {
			return err
		}
	}
	if o.borrowed {
		return writeBorrowed(a.Out, usage)
	}
	return nil
}

func writeUsage(w io.Writer, usage []ipam.Usage, blocks bool) error {
	row := func(grouping, cidr string, total *big.Int, used int) []string {
		inUse := big.NewInt(int64(used))
		free := new(big.Int).Sub(total, inUse)
		return []string{
			grouping, cidr, count(total),
			count(inUse) + " (" + percent(inUse, total) + ")",
			count(free) + " (" + percent(free, total) + ")",
		}
	}
	var rows [][]string
	for _, u := range usage {
		if u.Pool == "" {
			rows = append(rows, row("No pool", "", u.Total, u.InUse))
		} else {
			rows = append(rows, row("IP Pool", u.CIDR.String(), u.Total, u.InUse))
		}
		if !blocks {
			continue
		}
		for _, b := range u.Blocks {
			rows = append(rows, row("Block", b.CIDR.String(), big.NewInt(int64(b.Total)), len(b.InUse)))
		}
	}
	return output.Bordered(w, []output.Column{
		{Heading: "GROUPING"}, {Heading: "CIDR"}, {Heading: "IPS TOTAL", Right: true}, {Heading: "IPS IN USE"}, {Heading: "IPS FREE"},
	}, rows)
}

func writeBorrowed(w io.Writer, usage []ipam.Usage) error {
	var rows [][]string
	for _, u := range usage {
		for _, b := range u.Blocks {
			for _, as := range b.Borrowed() {
				kind, owner := "", as.Attributes[ipam.AttributeType]
				switch {
				case as.Attributes[ipam.AttributePod] != "":
					kind, owner = "pod", as.Attributes[ipam.AttributeNamespace]+"/"+as.Attributes[ipam.AttributePod]
				case owner != "":
					kind = "tunnel"
				default:
					owner = as.Handle
				}
				rows = append(rows, []string{as.Address.String(), as.Attributes[ipam.AttributeNode], b.CIDR.String(), ownerOf(b), kind, owner})
			}
		}
	}
	return output.Bordered(w, []output.Column{
		{Heading: "IP"}, {Heading: "BORROWING-NODE"}, {Heading: "BLOCK"}, {Heading: "BLOCK OWNER"}, {Heading: "TYPE"}, {Heading: "ALLOCATED-TO"},
	}, rows)
}

func ownerOf(b ipam.BlockUsage) string {
	const host = "host:"
	if len(b.Affinity) > len(host) && b.Affinity[:len(host)] == host {
		return b.Affinity[len(host):]
	}
	return b.Affinity
}

// count writes a number in full, or as 1.2089e+24 where nobody would read its
// digits.
func count(n *big.Int) string {
	const digits = 12
	if s := n.String(); len(s) <= digits {
		return s
	}
	f, _ := new(big.Float).SetInt(n).Float64()
	return fmt.Sprintf("%.5g", f)
}

func percent(part, whole *big.Int) string {
	if whole.Sign() == 0 {
		return "0%"
	}
	f, _ := new(big.Rat).SetFrac(new(big.Int).Mul(part, big.NewInt(100)), whole).Float64()
	return strconv.FormatFloat(f, 'f', 0, 64) + "%"
}

// The documents of -o json.
type (
	poolDocument struct {
		Pool   string          `json:"pool,omitempty"` // empty: blocks that no pool has any more
		CIDR   string          `json:"cidr,omitempty"`
		Total  *big.Int        `json:"total"`
		InUse  int             `json:"inUse"`
		Free   *big.Int        `json:"free"`
		Blocks []blockDocument `json:"blocks,omitempty"`
	}
	blockDocument struct {
		CIDR      string            `json:"cidr"`
		Node      string            `json:"node,omitempty"` // the owner
		Total     int               `json:"total"`
		InUse     int               `json:"inUse"`
		Free      int               `json:"free"`
		Addresses []addressDocument `json:"addresses,omitempty"`
	}
	addressDocument struct {
		Address    string            `json:"address"`
		InUse      bool              `json:"inUse"`
		Block      string            `json:"block,omitempty"`
		Handle     string            `json:"handle,omitempty"`
		Attributes map[string]string `json:"attributes,omitempty"`
		Borrowed   bool              `json:"borrowed,omitempty"`
	}
)

func usageDocument(usage []ipam.Usage, blocks bool) []poolDocument {
	pools := []poolDocument{}
	for _, u := range usage {
		p := poolDocument{Pool: u.Pool, Total: u.Total, InUse: u.InUse, Free: u.Free()}
		if u.Pool != "" {
			p.CIDR = u.CIDR.String()
		}
		if blocks {
			for _, b := range u.Blocks {
				p.Blocks = append(p.Blocks, blockDocumentOf(b))
			}
		}
		pools = append(pools, p)
	}
	return pools
}

func blockDocumentOf(b ipam.BlockUsage) blockDocument {
	doc := blockDocument{CIDR: b.CIDR.String(), Node: ownerOf(b), Total: b.Total, InUse: len(b.InUse), Free: b.Total - len(b.InUse)}
	borrowed := b.Borrowed()
	for _, as := range b.InUse {
		a := addressDocumentOf(as)
		a.Borrowed = slices.ContainsFunc(borrowed, func(o ipam.Assignment) bool { return o.Address == as.Address })
		doc.Addresses = append(doc.Addresses, a)
	}
	return doc
}

func addressDocumentOf(as ipam.Assignment) addressDocument {
	return addressDocument{
		Address: as.Address.String(), InUse: true, Block: as.Block.String(), Handle: as.Handle, Attributes: as.Attributes,
	}
}

func (a *app) showAddress(ctx context.Context, allocator *ipam.Allocator, address netip.Addr, format string) error {
	as, err := allocator.Lookup(ctx, address)
	free := errors.Is(err, ipam.ErrNotAssigned)
	if err != nil && !free {
		return err
	}
	switch {
	case format == "json" && free:
		return output.WriteJSON(a.Out, addressDocument{Address: address.String()})
	case format == "json":
		return output.WriteJSON(a.Out, addressDocumentOf(as))
	case free:
		_, err := fmt.Fprintf(a.Out, "%s is not assigned\n", address)
		return err
	}
	fmt.Fprintf(a.Out, "IP %s is in use\n", address)
	if as.Handle != "" {
		fmt.Fprintf(a.Out, "Handle: %s\n", as.Handle)
	}
	fmt.Fprintf(a.Out, "Block: %s\n", as.Block)
	if len(as.Attributes) == 0 {
		return nil
	}
	fmt.Fprintln(a.Out, "Attributes:")
	for _, name := range slices.Sorted(maps.Keys(as.Attributes)) {
		fmt.Fprintf(a.Out, "  %s: %s\n", name, as.Attributes[name])
	}
	return nil
}

func (a *app) showConfiguration(ctx context.Context, allocator *ipam.Allocator, format string) error {
	c, err := allocator.Config(ctx)
	if err != nil {
		return err
	}
	if format == "json" {
		return output.WriteJSON(a.Out, c)
	}
	return output.Bordered(a.Out, []output.Column{{Heading: "PROPERTY"}, {Heading: "VALUE"}}, [][]string{
		{"StrictAffinity", strconv.FormatBool(c.StrictAffinity)},
		{"AutoAllocateBlocks", strconv.FormatBool(c.AutoAllocateBlocks)},
		{"MaxBlocksPerHost", strconv.Itoa(c.MaxBlocksPerHost)},
	})
}
