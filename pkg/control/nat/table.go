package nat

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"

	"calico-xdp/pkg/control/desired"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

const setName = "inside"

// content is what a table holds. Two that have the same text hold the same.
type content struct {
	text   string
	chains []chain
	set    []nftables.SetElement // begin and end of intervals; nil: no set
}

// chain is one with its rules.
type chain struct {
	nftables.Chain
	rules [][]expr.Any
}

// newChain is a chain without rules at a hook that it is named after.
func newChain(name string, kind nftables.ChainType, hook *nftables.ChainHook, priority *nftables.ChainPriority) chain {
	return chain{Chain: nftables.Chain{Name: name, Type: kind, Hooknum: hook, Priority: priority, Policy: new(nftables.ChainPolicyAccept)}}
}

// statusDNAT is conntrack's bit for a connection whose destination was translated
// (IPS_DST_NAT).
const statusDNAT = 1 << 5

// contentOf is what a family's table is to hold; with nil, an empty chain.
func contentOf(n *desired.NAT, f nftables.TableFamily) content {
	var c content
	postrouting := newChain("postrouting", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource)
	if n != nil && translates(n, f) {
		c.set = intervals(n.Inside, f == nftables.TableFamilyIPv6)
		postrouting.rules = rulesOf(n, f, c.set != nil)
	}
	if n != nil && hasServices(n, f) {
		c.chains = guards(n)
	}
	c.chains = append(c.chains, postrouting)
	for _, chain := range c.chains {
		c.text += chainText(&chain.Chain, chain.rules)
	}
	if c.set != nil {
		c.text += setText(setOf(nil, f), c.set)
	}
	return c
}

func translates(n *desired.NAT, f nftables.TableFamily) bool {
	return f == nftables.TableFamilyIPv4 && n.IPv4 || f == nftables.TableFamilyIPv6 && n.IPv6
}

func hasServices(n *desired.NAT, f nftables.TableFamily) bool {
	return f == nftables.TableFamilyIPv4 && n.Services4 || f == nftables.TableFamilyIPv6 && n.Services6
}

// guards are chains, by name, that hold back a packet that no policy has judged, unless it goes
// where one will. They come before other chains, which may change its mark.
func guards(n *desired.NAT) []chain {
	forward := newChain("forward", nftables.ChainTypeFilter, nftables.ChainHookForward, nftables.ChainPriorityRaw)
	input := newChain("input", nftables.ChainTypeFilter, nftables.ChainHookInput, nftables.ChainPriorityRaw)
	mark := &expr.Meta{Key: expr.MetaKeyMARK, Register: reg}
	forward.rules = append(forward.rules, append(hasBit(mark, n.UnjudgedMark, expr.CmpOpEq), leave()))
	for _, name := range n.Exits {
		forward.rules = append(forward.rules, append(isInterface(name, expr.CmpOpEq), leave()))
	}
	forward.rules = append(forward.rules, []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}})
	input.rules = [][]expr.Any{append(hasBit(mark, n.UnjudgedMark, expr.CmpOpNeq), &expr.Verdict{Kind: expr.VerdictDrop})}
	return []chain{forward, input}
}

// Registers.
const reg, reg2, reg3 = 1, 2, 3

// hasBit compares one bit of a number with 0.
func hasBit(key expr.Any, bit uint32, op expr.CmpOp) []expr.Any {
	number := binaryutil.NativeEndian.PutUint32
	return []expr.Any{
		key,
		&expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: 4, Mask: number(bit), Xor: number(0)},
		&expr.Cmp{Op: op, Register: reg, Data: number(0)},
	}
}

// isInterface compares the name of the interface that the packet leaves through with one, or,
// if that ends in +, with how names begin. Empty: all do.
func isInterface(name string, op expr.CmpOp) []expr.Any {
	name, all := strings.CutSuffix(name, "+")
	data := []byte(name)
	if !all {
		data = append(data, make([]byte, unix.IFNAMSIZ-len(name))...)
	}
	if len(data) == 0 {
		return nil
	}
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: reg}, &expr.Cmp{Op: op, Register: reg, Data: data}}
}

func leave() expr.Any { return &expr.Verdict{Kind: expr.VerdictReturn} }

// rulesOf are the chain's rules: what is not marked goes its way, as does what the host
// has sent inside, after all; the rest is translated.
func rulesOf(n *desired.NAT, f nftables.TableFamily, inside bool) [][]expr.Any {
	rules := [][]expr.Any{append(hasBit(&expr.Meta{Key: expr.MetaKeyMARK, Register: reg}, n.Mark, expr.CmpOpEq), leave())}
	if n.Interface != "" {
		if other := isInterface(n.Interface, expr.CmpOpNeq); other != nil {
			rules = append(rules, append(other, leave()))
		}
	}
	if inside {
		offset, length := uint32(16), uint32(4)
		if f == nftables.TableFamilyIPv6 {
			offset, length = 24, 16
		}
		rules = append(rules, append(
			hasBit(&expr.Ct{Key: expr.CtKeySTATUS, Register: reg}, statusDNAT, expr.CmpOpNeq),
			&expr.Payload{OperationType: expr.PayloadLoad, DestRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: length},
			&expr.Lookup{SourceRegister: reg, SetName: setName}, leave(),
		))
	}
	address := f == nftables.TableFamilyIPv4 && n.Address.IsValid()
	if n.FirstPort != 0 {
		for _, protocol := range []byte{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
			rule := []expr.Any{
				&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg}, &expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: []byte{protocol}},
			}
			if address {
				rule = append(rule,
					&expr.Immediate{Register: reg, Data: n.Address.AsSlice()},
					&expr.Immediate{Register: reg2, Data: binaryutil.BigEndian.PutUint16(n.FirstPort)},
					&expr.Immediate{Register: reg3, Data: binaryutil.BigEndian.PutUint16(n.LastPort)},
					&expr.NAT{
						Type: expr.NATTypeSourceNAT, Family: uint32(f), RegAddrMin: reg, RegAddrMax: reg,
						RegProtoMin: reg2, RegProtoMax: reg3, Specified: true,
					})
			} else {
				rule = append(rule,
					&expr.Immediate{Register: reg, Data: binaryutil.BigEndian.PutUint16(n.FirstPort)},
					&expr.Immediate{Register: reg2, Data: binaryutil.BigEndian.PutUint16(n.LastPort)},
					&expr.Masq{ToPorts: true, RegProtoMin: reg, RegProtoMax: reg2},
				)
			}
			rules = append(rules, rule)
		}
	}
	if address {
		return append(rules, []expr.Any{
			&expr.Immediate{Register: reg, Data: n.Address.AsSlice()},
			&expr.NAT{Type: expr.NATTypeSourceNAT, Family: uint32(f), RegAddrMin: reg, RegAddrMax: reg},
		})
	}
	return append(rules, []expr.Any{&expr.Masq{}})
}

// intervals are the elements of a set of these prefixes of one family: the first address
// of each, and the first behind it. nil if there are none.
func intervals(prefixes []netip.Prefix, is6 bool) []nftables.SetElement {
	var out []nftables.SetElement
	for _, p := range prefixes {
		if p.Addr().Is6() != is6 {
			continue
		}
		out = append(out, nftables.SetElement{Key: p.Addr().AsSlice()})
		last := p.Addr().AsSlice()
		for bit := p.Bits(); bit < 8*len(last); bit++ {
			last[bit/8] |= 0x80 >> (bit % 8)
		}
		if a, _ := netip.AddrFromSlice(last); a.Next().IsValid() {
			out = append(out, nftables.SetElement{Key: a.Next().AsSlice(), IntervalEnd: true})
		}
	}
	return out
}

func setOf(t *nftables.Table, f nftables.TableFamily) *nftables.Set {
	kind := nftables.TypeIPAddr
	if f == nftables.TableFamilyIPv6 {
		kind = nftables.TypeIP6Addr
	}
	return &nftables.Set{Table: t, Name: setName, KeyType: kind, Interval: true}
}

// tables are our tables in nftables. Put replaces a whole one at once: no packet meets a
// part of it, and connections that are translated already are so by conntrack alone.
type tables struct {
	conn      *nftables.Conn
	namespace int // as in newIn
}

// list returns the tables of ours that exist.
func (t *tables) list() (map[family]*nftables.Table, error) {
	out := make(map[family]*nftables.Table)
	for _, f := range []nftables.TableFamily{nftables.TableFamilyIPv4, nftables.TableFamilyIPv6} {
		all, err := t.conn.ListTablesOfFamily(f)
		if err != nil {
			return nil, fmt.Errorf("list tables: %w", err)
		}
		for _, table := range all {
			if table.Name == tableName && table.Family == f {
				out[family(f)] = table
			}
		}
	}
	return out, nil
}

func (t *tables) Load() (map[family]content, error) {
	there, err := t.list()
	if err != nil {
		return nil, err
	}
	out := make(map[family]content)
	for f, table := range there {
		text, err := t.read(table)
		if err != nil {
			return nil, fmt.Errorf("table %s: %w", f, err)
		}
		out[f] = content{text: text}
	}
	return out, nil
}

// read returns the text of a table. One that somebody changes meanwhile is some text
// that is not what is wanted.
func (t *tables) read(table *nftables.Table) (string, error) {
	text := ""
	if table.Flags != 0 {
		text = fmt.Sprintf("flags %x\n", table.Flags) // dormant, say
	}
	chains, err := t.conn.ListChainsOfTableFamily(table.Family)
	if err != nil {
		return "", fmt.Errorf("chains: %w", err)
	}
	slices.SortStableFunc(chains, func(a, b *nftables.Chain) int { return strings.Compare(a.Name, b.Name) })
	for _, c := range chains {
		if c.Table.Name != tableName {
			continue
		}
		rules, err := t.conn.GetRules(table, c)
		if err != nil {
			return "", fmt.Errorf("rules: %w", err)
		}
		expressions := make([][]expr.Any, len(rules))
		for i, r := range rules {
			expressions[i] = r.Exprs
		}
		text += chainText(c, expressions)
	}
	sets, err := t.conn.GetSets(table)
	if err != nil {
		return "", fmt.Errorf("sets: %w", err)
	}
	for _, s := range sets {
		elements, err := t.conn.GetSetElements(s)
		if err != nil {
			return "", fmt.Errorf("set %s: %w", s.Name, err)
		}
		text += setText(s, elements)
	}
	return text, nil
}

func chainText(c *nftables.Chain, rules [][]expr.Any) string {
	var b strings.Builder
	fmt.Fprintf(&b, "chain %s %s", c.Name, c.Type)
	if c.Hooknum != nil && c.Priority != nil {
		fmt.Fprintf(&b, " hook %d priority %d", *c.Hooknum, *c.Priority)
	}
	if c.Policy != nil {
		fmt.Fprintf(&b, " policy %d", *c.Policy)
	}
	for _, rule := range rules {
		b.WriteString("\nrule")
		for _, e := range rule {
			if l, ok := e.(*expr.Lookup); ok {
				e = &expr.Lookup{SourceRegister: l.SourceRegister, SetName: l.SetName, Invert: l.Invert} // no number
			}
			fmt.Fprintf(&b, " %T%+v", e, reflect.Indirect(reflect.ValueOf(e)))
		}
	}
	b.WriteString("\n")
	return b.String()
}

func setText(s *nftables.Set, elements []nftables.SetElement) string {
	elements = slices.Clone(elements)
	slices.SortFunc(elements, func(a, b nftables.SetElement) int {
		end := func(e nftables.SetElement) int {
			if e.IntervalEnd {
				return 0
			}
			return 1
		}
		return cmp.Or(bytes.Compare(a.Key, b.Key), end(a)-end(b))
	})
	var b strings.Builder
	fmt.Fprintf(&b, "set %s %s interval %v map %v\n", s.Name, s.KeyType.Name, s.Interval, s.IsMap)
	for _, e := range elements {
		fmt.Fprintf(&b, "%x %v\n", e.Key, e.IntervalEnd)
	}
	return b.String()
}

// elementsAtOnce is how many elements of a set one message carries; its length is limited
// to 64 KiB.
const elementsAtOnce = 500

func (t *tables) Put(f family, c content) error {
	table := t.renew(f)
	if c.set != nil {
		set := setOf(table, table.Family)
		if err := t.conn.AddSet(set, nil); err != nil {
			return err
		}
		for elements := range slices.Chunk(c.set, elementsAtOnce) {
			if err := t.conn.SetAddElements(set, elements); err != nil {
				return err
			}
		}
	}
	var withPorts [][]expr.Any
	var last *nftables.Chain // postrouting
	for _, chain := range c.chains {
		chain.Table = table
		last = t.conn.AddChain(&chain.Chain)
		for _, rule := range chain.rules {
			if masq, ok := rule[len(rule)-1].(*expr.Masq); ok && masq.ToPorts {
				withPorts = append(withPorts, rule)
				continue
			}
			t.conn.AddRule(&nftables.Rule{Table: table, Chain: last, Exprs: rule})
		}
	}
	if err := t.conn.Flush(); err != nil || len(withPorts) == 0 {
		return err
	}
	return t.insertBeforeLast(table, last, withPorts)
}

// renew begins a batch in which the table is a new one.
func (t *tables) renew(f family) *nftables.Table {
	table := &nftables.Table{Name: tableName, Family: nftables.TableFamily(f)}
	t.conn.AddTable(table)
	t.conn.DelTable(table)
	return t.conn.AddTable(table)
}

func (t *tables) Delete(f family) error {
	t.conn.DelTable(&nftables.Table{Name: tableName, Family: nftables.TableFamily(f)})
	if err := t.conn.Flush(); !errors.Is(err, unix.ENOENT) {
		return err
	}
	return nil
}
